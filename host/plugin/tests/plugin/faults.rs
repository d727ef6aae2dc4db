//! Guests that pass the gate and fail afterwards: what the call says, and that nobody else notices.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use culvert_core::bandwidth::{Limits as Rates, Rate, Shaping};
use culvert_core::decision::{Route, Via};
use culvert_core::policy::{PickRequest, PodView, ShapeRequest};
use culvert_plugin::{Fault, Kind, Policy};

use crate::guest::{EMPTY, Guest, LIST, LOCAL, LOOP, data, prefix, route, words};
use crate::host::{Host, topology};

/// A route guest that does `body` on generation 666, and else answers nothing.
fn on_666(body: &str) -> Guest {
    let answer = format!("(if (i64.eq (local.get 0) (i64.const 666)) (then {body})) {EMPTY}");
    Guest::new(Kind::Route, "guest").answer(&answer)
}

const UNREACHABLE: &str = "wasm trap: wasm `unreachable` instruction executed";

#[test]
fn answers_come_back_in_cores_words() {
    let host = Host::new();
    // A table on generation 7 only: the made-up clusters hold other blocks.
    let on_7 = format!("(if (result i32) (i64.eq (local.get 0) (i64.const 7)) (then {LIST}) (else {EMPTY}))");
    let guest = Guest::new(Kind::Route, "guest").list(1, route(&prefix(0, [10, 244, 1, 0], 24), LOCAL)).answer(&on_7);
    let to = "10.244.1.0/24".parse().unwrap();
    let policy = host.route(&guest.unit());
    assert_eq!(policy.plan(&topology(7)), Ok(vec![Route { to, via: Via::Local, otherwise: None }]));
    assert_eq!(policy.plan(&topology(8)), Ok(vec![]));
    let shaping = Guest::new(Kind::Bandwidth, "guest")
        .answer("i32.const 6144")
        .extra(&data(6144, &words(&[0, 0, 1, 0, 5_000_000, 0, 4096, 0])));
    let total = Rates { ingress: Some(Rate { bits_per_second: 5_000_000, burst_bytes: 4096 }), egress: None };
    let expected = Shaping { total, tunnel: Rates::default() };
    assert_eq!(host.bandwidth(&shaping.unit()).shape(&ShapeRequest::default()), Ok(expected));
}

#[test]
fn a_trap_ends_one_call_and_the_next_gets_a_fresh_instance() {
    let host = Host::new();
    let policy = host.route(&on_666("unreachable").unit());
    assert_eq!(policy.plan(&topology(666)), Err(Fault::Trap(UNREACHABLE.to_owned())));
    assert_eq!(policy.plan(&topology(1)), Ok(vec![]));
}

#[test]
fn a_trap_of_a_warm_instance_is_not_seen_by_the_next_call() {
    let host = Host::new();
    // Parameter 1 is the length of the namespace.
    let guest = |kind| {
        let body = format!("(if (i32.eq (local.get 1) (i32.const 3)) (then unreachable)) {EMPTY}");
        Guest::new(kind, "guest").answer(if kind == Kind::Bandwidth { &body } else { EMPTY }).pick(&body)
    };
    let pod = |namespace: &str| PodView { namespace: namespace.to_owned(), ..PodView::default() };
    let (bandwidth, ipam) = (host.bandwidth(&guest(Kind::Bandwidth).unit()), host.ipam(&guest(Kind::Ipam).unit()));
    let shape = |namespace| bandwidth.shape(&ShapeRequest { pod: pod(namespace), ..ShapeRequest::default() });
    let pick = |namespace| ipam.pick(&PickRequest { pod: pod(namespace), ..PickRequest::default() });
    for _ in 0..10 {
        assert_eq!(shape("bad"), Err(Fault::Trap(UNREACHABLE.to_owned())));
        assert_eq!(shape("good"), Ok(Shaping::default()));
        assert_eq!(pick("bad"), Err(Fault::Trap(UNREACHABLE.to_owned())));
        assert_eq!(pick("good"), Ok(None));
    }
}

#[test]
fn an_endless_loop_is_stopped_and_other_calls_go_on() {
    let host = Host::new();
    let (looping, good) = (host.route(&on_666(LOOP).unit()), host.route(&on_666("nop").unit()));
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut answered = 0_u32;
            while !stopped.load(Ordering::SeqCst) {
                assert_eq!(good.plan(&topology(1)), Ok(vec![]));
                answered += 1;
            }
            answered
        });
        let fault = looping.plan(&topology(666));
        stopped.store(true, Ordering::SeqCst);
        assert_eq!(fault, Err(Fault::Timeout(100)));
        assert!(other.join().unwrap() > 0);
    });
    assert_eq!(looping.plan(&topology(1)), Ok(vec![]));
}

#[test]
fn an_endless_loop_on_the_way_of_a_pod_is_stopped_sooner() {
    let host = Host::new();
    let body = format!("(if (i32.eq (local.get 1) (i32.const 3)) (then {LOOP})) {EMPTY}");
    let policy = host.bandwidth(&Guest::new(Kind::Bandwidth, "guest").answer(&body).unit());
    let pod = PodView { namespace: "bad".to_owned(), ..PodView::default() };
    assert_eq!(policy.shape(&ShapeRequest { pod, ..ShapeRequest::default() }), Err(Fault::Timeout(2)));
}

#[test]
fn a_guest_that_asks_for_four_gigabytes_gets_its_grant_and_no_more() {
    let host = Host::new();
    let bomb = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
    let policy = host.route(&on_666(bomb).unit());
    assert_eq!(policy.plan(&topology(666)), Err(Fault::Memory(16 << 20)));
    assert_eq!(policy.plan(&topology(1)), Ok(vec![]));
}

#[test]
fn a_stack_overflow_is_a_trap() {
    let host = Host::new();
    let deep = on_666("call $deep").extra("(func $deep call $deep call $deep)");
    let policy = host.route(&deep.unit());
    assert_eq!(policy.plan(&topology(666)), Err(Fault::Trap("wasm trap: call stack exhausted".to_owned())));
}

#[test]
fn a_pointer_past_the_end_of_memory_is_an_invalid_answer() {
    let host = Host::new();
    let policy = host.route(&on_666("(return (i32.const -8))").unit());
    let fault = policy.plan(&topology(666)).unwrap_err();
    assert_eq!(fault.kind().label(), "invalid", "{fault}");
}

/// A writer that tests can read.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_flood_of_log_lines_is_cut_in_number_and_length_and_cannot_forge_lines() {
    let host = Host::new();
    let flood = "(local.set 1 (i32.const 500)) (loop $l (call $log (i32.const 2) (i32.const 8192) (i32.const 2000)) (local.set 1 (i32.sub (local.get 1) (i32.const 1))) (br_if $l (local.get 1)))";
    let text = format!("first\n\u{1b}[31mforged{}", "x".repeat(3_000));
    let guest = on_666(flood).logging().extra(&data(8192, text.as_bytes()));
    let policy = host.route(&guest.unit());
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || assert_eq!(policy.plan(&topology(666)), Ok(vec![])));
    let written = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(written.lines().count(), 100);
    assert!(written.lines().all(|line| line.contains("first\\n\\u{1b}[31mforgedxxx") && line.len() < 600));
    assert_eq!(policy.log_lines_dropped(), 400);
}
