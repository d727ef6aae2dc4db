//! Asks a policy about made-up inputs and about the live topology before anything depends on it.
//!
//! Each question is asked more than once, of fresh and of used instances: the answers must be equal, or the
//! policy keeps state, and then two nodes would decide differently about the same cluster.

use culvert_core::address::Family;
use culvert_core::decision::{Route, admit};
use culvert_core::policy::PolicyError;
use culvert_core::topology::{Node, Topology};

use super::{Reason, canned};
use crate::fault::Fault;
use crate::policy::{BandwidthPolicy, IpamPolicy, RoutePolicy};

/// The name of the live topology in messages.
const LIVE: &str = "the live topology";

/// Whether a policy may say that it cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excuse {
    /// On a made-up input: the policy may be right that it does not fit.
    Accepted,
    /// On the live topology: the policy is asked to serve it.
    Refused,
}

pub(super) fn route(policy: &RoutePolicy, live: Option<&Topology>) -> Result<(), Reason> {
    for canned in canned::topologies() {
        plan(policy, canned.name, &canned.input, Excuse::Accepted)?;
    }
    live.map_or(Ok(()), |topology| plan(policy, LIVE, topology, Excuse::Refused))
}

fn plan(policy: &RoutePolicy, input: &str, topology: &Topology, excuse: Excuse) -> Result<(), Reason> {
    let question = Question { call: "plan", input, excuse };
    let answers = [policy.plan(topology), policy.plan(topology)];
    match question.settle(answers)? {
        Some(routes) => admitted(input, topology, routes),
        None => Ok(()),
    }
}

fn admitted(input: &str, topology: &Topology, routes: Vec<Route>) -> Result<(), Reason> {
    let admitted = admit(topology, routes, topology.generation);
    admitted.map(|_| ()).map_err(|refusal| Reason::Routes { input: input.to_owned(), refusal })
}

pub(super) fn ipam(policy: &IpamPolicy, live: Option<&Topology>) -> Result<(), Reason> {
    for topology in canned::topologies() {
        for space in canned::spaces() {
            let input = format!("{}, {}", topology.name, space.name);
            blocks(policy, &input, (&topology.input, &space.input))?;
        }
    }
    if let Some(topology) = live {
        blocks(policy, LIVE, (topology, &canned::space_of(topology)))?;
    }
    pick(policy)
}

fn blocks(
    policy: &IpamPolicy,
    input: &str,
    (topology, space): (&Topology, &culvert_core::claim::Space),
) -> Result<(), Reason> {
    let Some(node) = topology.local_node() else { return Ok(()) };
    for family in [Family::V4, Family::V6] {
        propose(policy, input, (node, family, space))?;
    }
    let question = Question { call: "reclaim", input, excuse: Excuse::Accepted };
    question.settle([policy.reclaim(topology, space), policy.reclaim(topology, space)])?;
    Ok(())
}

/// `exhausted` and `unsupported` are honest answers here even about the live topology: its space is put
/// together from what the nodes hold, and a policy may well serve one family only.
fn propose(
    policy: &IpamPolicy,
    input: &str,
    (node, family, space): (&Node, Family, &culvert_core::claim::Space),
) -> Result<(), Reason> {
    let question = Question { call: "propose", input, excuse: Excuse::Accepted };
    question.settle([policy.propose(node, family, space), policy.propose(node, family, space)])?;
    Ok(())
}

fn pick(policy: &IpamPolicy) -> Result<(), Reason> {
    let time = policy.0.program.limits().quick_in_gate;
    for canned in canned::picks() {
        let fresh = policy.0.program.fresh().and_then(|mut i| policy.pick_on(&mut i, &canned.input, time));
        let warm = || policy.0.program.on_warm(|instance| policy.pick_on(instance, &canned.input, time));
        let question = Question { call: "pick", input: canned.name, excuse: Excuse::Accepted };
        question.settle([fresh, warm(), warm()])?;
    }
    Ok(())
}

pub(super) fn bandwidth(policy: &BandwidthPolicy) -> Result<(), Reason> {
    let time = policy.0.program.limits().quick_in_gate;
    for canned in canned::pods() {
        let fresh = policy.0.program.fresh().and_then(|mut i| policy.shape_on(&mut i, &canned.input, time));
        let warm = || policy.0.program.on_warm(|instance| policy.shape_on(instance, &canned.input, time));
        let question = Question { call: "shape", input: canned.name, excuse: Excuse::Accepted };
        question.settle([fresh, warm(), warm()])?;
    }
    Ok(())
}

/// One question, for the message when its answers are not in order.
struct Question<'a> {
    call: &'static str,
    input: &'a str,
    excuse: Excuse,
}

impl Question<'_> {
    /// The one answer, none when the policy excused itself.
    fn settle<T: PartialEq, const N: usize>(&self, answers: [Result<T, Fault>; N]) -> Result<Option<T>, Reason> {
        let steady = answers.windows(2).all(|pair| pair[0] == pair[1]);
        for answer in &answers {
            if let Err(fault) = answer
                && !self.excuses(fault)
            {
                return Err(self.failed(fault.clone()));
            }
        }
        if !steady {
            return Err(Reason::Unsteady { call: self.call, input: self.input.to_owned() });
        }
        let mut answers = answers.into_iter();
        Ok(answers.next().and_then(Result::ok))
    }

    fn excuses(&self, fault: &Fault) -> bool {
        let honest = matches!(fault, Fault::Refused(PolicyError::Unsupported(_) | PolicyError::Exhausted(_)));
        honest && self.excuse == Excuse::Accepted
    }

    fn failed(&self, fault: Fault) -> Reason {
        Reason::SelfTest { call: self.call, input: self.input.to_owned(), fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(excuse: Excuse) -> Question<'static> {
        Question { call: "plan", input: "an input", excuse }
    }

    #[test]
    fn equal_answers_settle_and_different_ones_do_not() {
        assert_eq!(question(Excuse::Refused).settle([Ok(1), Ok(1)]).unwrap(), Some(1));
        let message = question(Excuse::Refused).settle([Ok(1), Ok(2)]).unwrap_err().to_string();
        assert_eq!(
            message,
            "plan on an input gives another answer when asked again: a policy must not keep state between calls"
        );
    }

    #[test]
    fn an_honest_excuse_counts_on_made_up_inputs_only() {
        let excuse = || Fault::Refused(PolicyError::Unsupported("IPv6".to_owned()));
        assert_eq!(question(Excuse::Accepted).settle([Err::<(), _>(excuse()), Err(excuse())]).unwrap(), None);
        let message = question(Excuse::Refused).settle([Err::<(), _>(excuse())]).unwrap_err().to_string();
        assert_eq!(message, "plan on an input answered with an error: unsupported: IPv6");
        let defect = Fault::Refused(PolicyError::Internal("bug".to_owned()));
        assert!(question(Excuse::Accepted).settle([Err::<(), _>(defect)]).is_err());
    }
}
