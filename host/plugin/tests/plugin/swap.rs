//! Swaps while callers call, and generations that are put back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use culvert_core::policy::{PodView, ShapeRequest};
use culvert_plugin::{BandwidthPolicy, FaultKind, Kind, Slot, SlotError, Unit};

use crate::guest::{EMPTY, Guest, data, words};
use crate::host::Host;

/// A bandwidth guest that limits every pod to `rate`, and traps for pods of the namespace "bad" if told so.
fn shaping(name: &str, rate: u32, traps: bool) -> Unit {
    let trap = if traps { "(if (i32.eq (local.get 1) (i32.const 3)) (then unreachable))" } else { "" };
    let fields = data(6144, &words(&[0, 0, 1, 0, rate, 0, 4096, 0]));
    Guest::new(Kind::Bandwidth, name).answer(&format!("{trap} i32.const 6144")).extra(&fields).unit()
}

fn request(namespace: &str) -> ShapeRequest {
    let pod = PodView { namespace: namespace.to_owned(), ..PodView::default() };
    ShapeRequest { pod, ..ShapeRequest::default() }
}

fn rate(slot: &Slot<BandwidthPolicy>, request: &ShapeRequest) -> Result<u64, SlotError> {
    slot.call(|policy| policy.shape(request))
        .map(|shaping| shaping.total.ingress.map_or(0, |rate| rate.bits_per_second))
}

/// A deadline that a busy test machine cannot miss: this is about swaps, not about deadlines.
fn patient_host() -> Host {
    let quick = std::time::Duration::from_secs(20);
    Host::with(culvert_plugin::Limits { quick, configure: quick, ..Default::default() })
}

#[test]
fn no_call_is_lost_while_generations_are_swapped() {
    const SWAPS: u64 = 200;
    let host = patient_host();
    let (one, two) = (shaping("one", 1_000, false), shaping("two", 2_000, false));
    let slot = Slot::new();
    slot.activate(host.bandwidth(&one));
    let (done, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let (request, other) = (request("good"), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    match rate(&slot, &request) {
                        Ok(1_000 | 2_000) => calls.fetch_add(1, Ordering::Relaxed),
                        Ok(_) | Err(_) => other.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
        for swap in 0..SWAPS {
            slot.activate(host.bandwidth(if swap % 2 == 0 { &two } else { &one }));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(other.load(Ordering::Relaxed), 0);
    assert!(calls.load(Ordering::Relaxed) > 0);
    assert_eq!(slot.generation(), Some(SWAPS + 1));
}

#[test]
fn a_new_generation_that_traps_is_replaced_by_the_one_before() {
    let host = patient_host();
    let slot = Slot::new();
    slot.activate(host.bandwidth(&shaping("old", 1_000, false)));
    slot.activate(host.bandwidth(&shaping("new", 2_000, true)));
    assert_eq!(rate(&slot, &request("good")), Ok(2_000));
    match rate(&slot, &request("bad")) {
        Err(SlotError::Failed { unit, back_to, .. }) => assert_eq!((unit.as_str(), back_to), ("new", Some(3))),
        other => panic!("{other:?}"),
    }
    assert_eq!(rate(&slot, &request("bad")), Ok(1_000));
    let status = slot.status();
    assert_eq!(status.rolled_back.map(|back| back.card.unit), Some("new".to_owned()));
    assert_eq!(status.active.map(|active| active.card.unit), Some("old".to_owned()));
}

#[test]
fn a_failing_plugin_without_a_predecessor_keeps_answering_what_it_can() {
    let host = patient_host();
    let slot = Slot::new();
    let body = format!("(if (i32.eq (local.get 1) (i32.const 3)) (then unreachable)) {EMPTY}");
    slot.activate(host.bandwidth(&Guest::new(Kind::Bandwidth, "only").answer(&body).unit()));
    for _ in 0..10 {
        assert!(rate(&slot, &request("bad")).is_err());
        assert_eq!(rate(&slot, &request("good")), Ok(0));
    }
    let active = slot.status().active.unwrap();
    assert_eq!((active.number, active.calls, active.faults_of(FaultKind::Trap)), (1, 20, 10));
}
