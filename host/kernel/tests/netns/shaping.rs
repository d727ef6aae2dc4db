//! Limits in both directions, measured by bytes that really moved.
//!
//! The bounds are wide (half to one and a half of the rate, after the burst): a busy machine delivers late but
//! never early, and without a limit the same transfer is many times faster, which each test checks too.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use culvert_core::bandwidth::Rate;
use culvert_core::plan::{Plan, Step};
use culvert_kernel::Kernel;

use crate::namespace::{Namespace, PATIENCE, Pod, assert_same, attach, spec};

const HOST: &str = "cvtest5";
const IFB: &str = "cvifb5";
const SLOW: Rate = Rate { bits_per_second: 16_000_000, burst_bytes: 65_536 };
const FAST: Rate = Rate { bits_per_second: 64_000_000, burst_bytes: 65_536 };
/// One second at the slow rate.
const AMOUNT_BYTES: usize = 2_000_000;

#[derive(Clone, Copy, Debug)]
enum Direction {
    ToPod,
    FromPod,
}

/// Move bytes between the node and the pod. **Units** of the result: bits/s.
fn measure(node: &Namespace, pod: &Pod, direction: Direction, address: &str) -> f64 {
    let listener = pod.namespace.inside(|| TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let near = node.inside(|| TcpStream::connect(target).unwrap());
    let (far, _) = listener.accept().unwrap();
    let (mut sender, mut receiver) = match direction {
        Direction::ToPod => (near, far),
        Direction::FromPod => (far, near),
    };
    let start = Instant::now();
    let writer = std::thread::spawn(move || sender.write_all(&vec![7; AMOUNT_BYTES]).unwrap());
    let mut received = vec![0; AMOUNT_BYTES];
    receiver.read_exact(&mut received).unwrap();
    writer.join().unwrap();
    AMOUNT_BYTES as f64 * 8.0 / start.elapsed().as_secs_f64()
}

fn held(measured: f64, rate: Rate) -> bool {
    let limit = rate.bits_per_second as f64;
    (0.5 * limit..1.5 * limit).contains(&measured)
}

async fn apply(kernel: &mut Kernel, step: Step) {
    kernel.apply(&Plan { steps: vec![step] }, None).await.unwrap();
}

fn shape(direction: Direction, rate: Rate, before: Option<Rate>) -> Step {
    match direction {
        Direction::ToPod => Step::ShapeIngress { host_name: HOST.into(), rate, before },
        Direction::FromPod => Step::ShapeEgress { host_name: HOST.into(), ifb_name: IFB.into(), rate, before },
    }
}

fn unshape(direction: Direction, before: Rate) -> Step {
    match direction {
        Direction::ToPod => Step::UnshapeIngress { host_name: HOST.into(), before },
        Direction::FromPod => Step::UnshapeEgress { host_name: HOST.into(), ifb_name: IFB.into(), before },
    }
}

#[test]
fn each_direction_is_held_to_its_rate_alone_and_freed_again() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let pod = attach(kernel, links, 5).await;
        let unshaped = node.snapshot();
        for (direction, other) in [(Direction::ToPod, Direction::FromPod), (Direction::FromPod, Direction::ToPod)] {
            apply(kernel, shape(direction, SLOW, None)).await;
            for address in ["10.244.1.5", "fd00:244:0:1::5"] {
                let measured = measure(&node, &pod, direction, address);
                assert!(held(measured, SLOW), "{direction:?} to {address}: {measured} bit/s");
            }
            let free = measure(&node, &pod, other, "10.244.1.5");
            assert!(free > 3.0 * SLOW.bits_per_second as f64, "{other:?} is not limited: {free} bit/s");
            apply(kernel, shape(direction, FAST, Some(SLOW))).await;
            let measured = measure(&node, &pod, direction, "10.244.1.5");
            assert!(held(measured, FAST), "{direction:?} replaced: {measured} bit/s");
            for _ in 0..2 {
                apply(kernel, unshape(direction, FAST)).await;
                assert_same(&unshaped, &node.snapshot());
            }
            let free = measure(&node, &pod, direction, "10.244.1.5");
            assert!(free > 3.0 * FAST.bits_per_second as f64, "{direction:?} is free again: {free} bit/s");
        }
    });
}

/// Sends datagrams back until the socket is closed.
fn echo_all(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        if length == 0 || socket.send_to(&buffer[..length], from).is_err() {
            return;
        }
    }
}

#[test]
fn limits_come_and_go_without_losing_a_packet() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let pod = attach(kernel, links, 5).await;
        let far = pod.namespace.inside(|| UdpSocket::bind("10.244.1.5:0").unwrap());
        let target = far.local_addr().unwrap();
        let near = node.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        near.connect(target).unwrap();
        near.set_read_timeout(Some(PATIENCE)).unwrap();
        let echo = std::thread::spawn(move || echo_all(&far));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let asking = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let mut rounds = 0_u32;
            while matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
                near.send(&rounds.to_be_bytes()).unwrap();
                let length = near.recv(&mut buffer).map_err(|error| format!("round {rounds} was lost: {error}"))?;
                assert_eq!(&buffer[..length], rounds.to_be_bytes());
                rounds += 1;
            }
            near.send(&[]).unwrap();
            Ok::<u32, String>(rounds)
        });
        for _ in 0..20 {
            for direction in [Direction::ToPod, Direction::FromPod] {
                apply(kernel, shape(direction, SLOW, None)).await;
            }
            for direction in [Direction::ToPod, Direction::FromPod] {
                apply(kernel, unshape(direction, SLOW)).await;
            }
        }
        drop(stop);
        let rounds = asking.join().unwrap().unwrap();
        assert!(rounds > 100, "only {rounds} rounds while the limits changed");
        echo.join().unwrap();
    });
}

#[test]
fn replacing_a_limit_keeps_its_discipline_filter_and_ifb() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let _pod = attach(kernel, links, 5).await;
        for direction in [Direction::ToPod, Direction::FromPod] {
            apply(kernel, shape(direction, SLOW, None)).await;
        }
        let ifb = node.run(&format!("ip -o link show {IFB}"));
        for direction in [Direction::ToPod, Direction::FromPod] {
            apply(kernel, shape(direction, FAST, Some(SLOW))).await;
        }
        assert_eq!(node.run(&format!("ip -o link show {IFB}")), ifb);
        for link in [HOST, IFB] {
            let disciplines = node.run(&format!("tc qdisc show dev {link} root"));
            assert_eq!(disciplines.trim(), "qdisc tbf 67: root refcnt 2 rate 64Mbit burst 64Kb lat 50ms", "{link}");
        }
        let filters = node.run(&format!("tc filter show dev {HOST} ingress"));
        assert_eq!(filters.matches("Egress Redirect to device cvifb5").count(), 1, "{filters}");
    });
}

#[test]
fn a_failed_change_of_limits_brings_the_old_ones_back() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let _pod = attach(kernel, links, 5).await;
        apply(kernel, shape(Direction::ToPod, SLOW, None)).await;
        apply(kernel, shape(Direction::FromPod, SLOW, None)).await;
        let before = node.snapshot();
        let missing = Step::ShapeIngress { host_name: "cvmissing".into(), rate: SLOW, before: None };
        let steps = vec![shape(Direction::ToPod, FAST, Some(SLOW)), missing];
        kernel.apply(&Plan { steps }, None).await.unwrap_err();
        assert_same(&before, &node.snapshot());
        let unreachable = Step::PodLinkUp { index: 0x7000_0000 };
        let steps = vec![shape(Direction::ToPod, FAST, Some(SLOW)), unshape(Direction::FromPod, SLOW), unreachable];
        let pod = Pod::new();
        let error = kernel.apply(&Plan { steps }, Some(&pod.passed)).await.unwrap_err();
        assert_eq!(error.undo_failures(), []);
        let indexless = |text: String| text.lines().filter(|line| !line.contains(IFB)).collect::<Vec<_>>().join("\n");
        assert_same(&indexless(before.clone()), &indexless(node.snapshot()));
        assert_eq!(
            node.run(&format!("tc qdisc show dev {IFB} root")).trim(),
            "qdisc tbf 67: root refcnt 2 rate 16Mbit burst 64Kb lat 50ms"
        );
    });
}
