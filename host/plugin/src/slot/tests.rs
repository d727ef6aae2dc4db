//! The slot against policies made of plain closures: what is active after which faults.

use super::*;
use crate::unit::{Description, Digest, Kind, Origin};

/// A policy that answers its name, or fails.
struct Named {
    card: Card,
    fault: Option<Fault>,
}

impl Policy for Named {
    fn card(&self) -> &Card {
        &self.card
    }

    fn log_lines_dropped(&self) -> u64 {
        0
    }
}

fn named(name: &str, fault: Option<Fault>) -> Named {
    let card = Card {
        unit: name.to_owned(),
        origin: Origin::Shipped,
        kind: Kind::Route,
        digest: Digest::of(name.as_bytes()),
        description: Description::default(),
    };
    Named { card, fault }
}

fn good(name: &str) -> Named {
    named(name, None)
}

fn trapping(name: &str) -> Named {
    named(name, Some(Fault::Trap("unreachable".to_owned())))
}

fn ask(slot: &Slot<Named>) -> Result<String, SlotError> {
    slot.call(|policy| match &policy.fault {
        Some(fault) => Err(fault.clone()),
        None => Ok(policy.card.unit.clone()),
    })
}

fn failed(unit: &str, back_to: Option<u64>) -> Result<String, SlotError> {
    Err(SlotError::Failed { unit: unit.to_owned(), fault: Fault::Trap("unreachable".to_owned()), back_to })
}

#[test]
fn an_empty_slot_says_so() {
    let slot = Slot::<Named>::new();
    assert_eq!(ask(&slot), Err(SlotError::Empty));
    assert_eq!(slot.generation(), None);
    assert_eq!(slot.status(), SlotStatus::default());
}

#[test]
fn a_trap_on_probation_puts_the_previous_policy_back_as_a_new_generation() {
    let slot = Slot::new();
    assert_eq!(slot.activate(good("old")), 1);
    assert!(!slot.status().on_probation);
    assert_eq!(slot.activate(trapping("new")), 2);
    assert!(slot.status().on_probation);
    assert_eq!([ask(&slot), ask(&slot)], [failed("new", Some(3)), Ok("old".to_owned())]);
    let status = slot.status();
    let active = status.active.unwrap();
    assert_eq!((active.number, active.card.unit.as_str(), active.calls), (3, "old", 1));
    assert_eq!((status.previous, status.on_probation), (None, false));
    assert_eq!(status.last_fault.as_deref(), Some("new trapped: unreachable"));
    let rolled_back = status.rolled_back.unwrap();
    assert_eq!((rolled_back.number, rolled_back.card.unit.as_str()), (2, "new"));
}

#[test]
fn a_unit_that_was_taken_back_rests() {
    let slot = Slot::new();
    slot.activate(good("old"));
    slot.activate(trapping("new"));
    let digest = |name: &str| Digest::of(name.as_bytes());
    assert_eq!(slot.may_activate(digest("new")), Ok(()));
    assert_eq!(ask(&slot), failed("new", Some(3)));
    assert_eq!(slot.may_activate(digest("new")).map_err(|resting| resting.times), Err(1));
    assert_eq!(slot.may_activate(digest("other")), Ok(()));
}

#[test]
fn the_same_content_again_changes_nothing() {
    let slot = Slot::new();
    assert_eq!(slot.activate(good("one")), 1);
    assert_eq!(ask(&slot), Ok("one".to_owned()));
    assert_eq!(slot.activate(good("one")), 1);
    assert_eq!(slot.status().active.map(|active| active.calls), Some(1));
}

#[test]
fn only_generations_that_can_come_back_are_kept() {
    let slot = Slot::new();
    slot.activate(good("first"));
    for number in 0..10 {
        slot.activate(good(&format!("unit-{number}")));
    }
    let kept: Vec<_> = slot.book().kept.values().map(|kept| kept.policy.card().unit.clone()).collect();
    assert_eq!(kept.len(), 2);
    assert!(kept.contains(&"first".to_owned()) && kept.contains(&"unit-9".to_owned()));
    assert_eq!(slot.status().previous.map(|previous| previous.card.unit), Some("first".to_owned()));
}

#[test]
fn a_failing_policy_without_a_previous_one_keeps_the_slot_filled() {
    let slot = Slot::new();
    slot.activate(trapping("only"));
    for _ in 0..20 {
        assert_eq!(ask(&slot), failed("only", None));
    }
    let active = slot.status().active.unwrap();
    assert_eq!((active.calls, active.faults_of(FaultKind::Trap), active.faults_of(FaultKind::Timeout)), (20, 20, 0));
}

#[test]
fn the_good_generation_is_kept_when_an_unproved_one_is_replaced() {
    let slot = Slot::new();
    slot.activate(good("good"));
    slot.activate(good("unproved"));
    assert_eq!(ask(&slot), Ok("unproved".to_owned()));
    slot.activate(trapping("worse"));
    assert_eq!([ask(&slot), ask(&slot)], [failed("worse", Some(4)), Ok("good".to_owned())]);
}

#[test]
fn honest_errors_of_the_policy_put_nothing_back_and_defects_it_admits_do() {
    let slot = Slot::new();
    slot.activate(good("old"));
    let refused = |name: &str, error| named(name, Some(Fault::Refused(error)));
    slot.activate(refused("full", PolicyError::Exhausted("full".to_owned())));
    for _ in 0..100 {
        assert!(matches!(ask(&slot), Err(SlotError::Failed { back_to: None, .. })));
    }
    assert_eq!(slot.generation(), Some(2));
    slot.activate(refused("buggy", PolicyError::Internal("bug".to_owned())));
    let back: Vec<_> = (0..3)
        .map(|_| match ask(&slot) {
            Err(SlotError::Failed { back_to, .. }) => back_to,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(back, [None, None, Some(4)]);
    assert_eq!(ask(&slot), Ok("old".to_owned()));
}

#[test]
fn a_caller_in_flight_finishes_on_the_generation_it_began_with() {
    let slot = Slot::new();
    slot.activate(good("old"));
    let answer = slot.call(|policy| {
        slot.activate(good("new"));
        Ok(policy.card.unit.clone())
    });
    assert_eq!(answer, Ok("old".to_owned()));
    assert_eq!(ask(&slot), Ok("new".to_owned()));
}

#[test]
fn a_late_fault_of_a_replaced_generation_takes_nothing_back() {
    let slot = Slot::new();
    slot.activate(good("first"));
    slot.activate(trapping("second"));
    let late = slot.call(|policy| {
        slot.activate(good("third"));
        Err::<(), _>(policy.fault.clone().unwrap())
    });
    assert!(matches!(late, Err(SlotError::Failed { back_to: None, .. })));
    assert_eq!(ask(&slot), Ok("third".to_owned()));
}
