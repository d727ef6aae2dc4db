//! Which elements of the NAT table a plan changes, and when: pure.
//!
//! What stands before every other step of the plan is changed first, all else last: a port leads to a pod only
//! while that is there.

use culvert_core::plan::Plan;

use super::compile::Impossible;
use crate::nat_table::Change;

/// The changes of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Before its links. They make way for something to go, so a table that is gone already must not stop it.
    pub(crate) first: Vec<Change>,
    /// After its links and routes.
    pub(crate) last: Vec<Change>,
}

/// Every change of a plan, in order.
pub(crate) fn changes(plan: &Plan) -> Result<Changes, Impossible> {
    let mut changes = Changes::default();
    let mut others = false;
    for (position, step) in plan.steps.iter().enumerate() {
        match Change::of(step, position).map_err(|reason| Impossible { position, reason })? {
            None if !others => {
                others = true;
                changes.first = std::mem::take(&mut changes.last).into_iter().map(Change::unless_gone).collect();
            }
            None => {}
            Some(change) => changes.last.push(change),
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use culvert_core::plan::Step;

    use super::*;

    #[test]
    fn elements_change_before_or_after_the_links_and_by_themselves_they_must_succeed() {
        let exempt = || Step::Exempt { address: "10.244.1.5".parse().unwrap() };
        let link = || Step::DeleteLink { name: "cv1".into() };
        for (steps, first, last) in [
            (vec![exempt(), link(), exempt()], vec![0], vec![2]),
            (vec![exempt(), exempt(), link(), link()], vec![0, 1], vec![]),
            (vec![link(), exempt(), link()], vec![], vec![1]),
            (vec![exempt()], vec![], vec![0]),
        ] {
            let changes = changes(&Plan { steps }).unwrap();
            let positions = |changes: &[Change]| changes.iter().map(|change| change.position).collect::<Vec<_>>();
            assert_eq!((positions(&changes.first), positions(&changes.last)), (first, last));
            let lenient = |change: &Change| change.clone().unless_gone() == *change;
            assert!(changes.first.iter().all(lenient) && !changes.last.iter().any(lenient));
        }
    }
}
