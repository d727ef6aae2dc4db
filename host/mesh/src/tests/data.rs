//! Packets from one TUN to another, by streams.

use super::node::{Plan, TestNode, connect, eventually, record, record_v6, table};
use crate::MeshCounters;

fn with_tun() -> Plan {
    Plan { with_tun: true, carry_datagrams: false, ..Plan::default() }
}

/// Two connected nodes that know each other's blocks, with their data paths ready.
async fn pair() -> (TestNode, TestNode) {
    let (mut one, mut two) = (TestNode::start(with_tun()), TestNode::start(with_tun()));
    let nodes = [
        (one.id(), vec!["10.244.1.0/24", "fd10:1::/64"]),
        (two.id(), vec!["10.244.2.0/24", "fd10:2::/64"]),
        (culvert_core::membership::PeerId("third".into()), vec!["10.244.3.0/24"]),
    ];
    one.table.store(table(0, &nodes).into());
    two.table.store(table(1, &nodes).into());
    connect(&mut one, &mut two).await;
    exchange(&one, &two).await;
    exchange_back(&one, &two).await;
    (one, two)
}

/// Sends until a first packet gets through: the path is opened after the connection.
async fn exchange(from: &TestNode, to: &TestNode) {
    first_packet(from, to, &record([10, 244, 1, 2], [10, 244, 2, 2], b"first")).await;
}

async fn exchange_back(one: &TestNode, two: &TestNode) {
    first_packet(two, one, &record([10, 244, 2, 2], [10, 244, 1, 2], b"first")).await;
}

async fn first_packet(from: &TestNode, to: &TestNode, packet: &[u8]) {
    let before = from.mesh.counters().packets_out;
    eventually(|| {
        if from.mesh.counters().packets_out > before {
            return Some(());
        }
        from.send(packet);
        None
    })
    .await;
    assert_eq!(to.receive().await, packet);
    // What was sent before the counter was seen may have got through as well.
    eventually(|| (to.mesh.counters().packets_in == from.mesh.counters().packets_out).then_some(())).await;
    for _ in 1..to.mesh.counters().packets_in {
        assert_eq!(to.receive().await, packet);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_of_both_families_arrive_as_they_were_sent_and_in_order() {
    let (one, two) = pair().await;
    let small = record_v6("fd10:1::2", "fd10:2::2", b"six");
    one.send(&small);
    assert_eq!(two.receive().await, small);
    let reply = record_v6("fd10:2::2", "fd10:1::2", b"six too");
    two.send(&reply);
    assert_eq!(one.receive().await, reply);
    for round in 0..200_u32 {
        let burst: Vec<_> = (0..8_u32)
            .map(|number| {
                record([10, 244, 1, 2], [10, 244, 2, 2], &[round.to_be_bytes(), number.to_be_bytes()].concat())
            })
            .collect();
        burst.iter().for_each(|packet| one.send(packet));
        for packet in &burst {
            assert_eq!(two.receive().await, *packet);
        }
    }
    let largest = record([10, 244, 1, 2], [10, 244, 2, 2], &vec![9; 65_515]);
    one.send(&largest);
    assert_eq!(two.receive().await, largest);
    // A packet is counted just after it is written.
    eventually(|| (two.mesh.counters().bytes_in >= one.mesh.counters().bytes_out).then_some(())).await;
    let (sent, received) = (one.mesh.counters(), two.mesh.counters());
    assert_eq!((sent.packets_out, sent.bytes_out), (received.packets_in, received.bytes_in));
    assert_eq!(sent.dropped_queue_full + sent.dropped_path_broken + received.dropped_tun_refused, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_lies_in_a_packet_loses_that_packet_alone() {
    let (one, two) = pair().await;
    // To the sender the peer holds more than the peer itself knows of.
    let generous = [
        (one.id(), vec!["10.244.1.0/24", "fd10:1::/64"]),
        (two.id(), vec!["10.244.2.0/24", "10.244.9.0/24", "fd10:2::/64"]),
    ];
    one.table.store(table(0, &generous).into());
    let before = two.mesh.counters();
    let honest = record([10, 244, 1, 2], [10, 244, 2, 2], b"honest");
    let mut lying_header = honest.clone();
    lying_header[1] = 1; // TCP segmentation of a UDP packet.
    let lies = [
        record([10, 244, 3, 3], [10, 244, 2, 2], b"spoofed"),
        record([192, 168, 0, 1], [10, 244, 2, 2], b"spoofed, not even a pod"),
        record([10, 244, 2, 5], [10, 244, 2, 2], b"spoofed as the receiver's own"),
        record([10, 244, 1, 2], [10, 244, 9, 9], b"astray"),
        record([10, 244, 1, 2], [10, 244, 2, 255], b"broadcast"),
        lying_header,
    ];
    for lie in &lies {
        one.send(lie);
        one.send(&honest);
        assert_eq!(two.receive().await, honest);
    }
    // A packet is counted just after it is written.
    let honest_packets = before.packets_in + lies.len() as u64;
    eventually(|| (two.mesh.counters().packets_in >= honest_packets).then_some(())).await;
    let after = two.mesh.counters();
    let grown = |counter: fn(&MeshCounters) -> u64| counter(&after) - counter(&before);
    assert_eq!(grown(|counters| counters.dropped_foreign_source), 3);
    assert_eq!(
        grown(|counters| counters.dropped_foreign_destination)
            + grown(|counters| counters.dropped_forbidden_destination),
        2
    );
    assert!(grown(|counters| counters.dropped_foreign_destination) >= 1);
    assert_eq!(grown(|counters| counters.dropped_offload), 1);
    assert_eq!(grown(|counters| counters.packets_in), lies.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_holds_and_what_nobody_reaches_is_counted() {
    let (one, two) = pair().await;
    let before = one.mesh.counters();
    one.send(&record([10, 244, 1, 2], [10, 244, 77, 1], b"nobody holds it"));
    one.send(&record([10, 244, 1, 2], [10, 244, 3, 1], b"no path"));
    one.send(b"no packet at all");
    let honest = record([10, 244, 1, 2], [10, 244, 2, 2], b"honest");
    one.send(&honest);
    assert_eq!(two.receive().await, honest);
    let after = one.mesh.counters();
    assert_eq!(after.dropped_no_peer - before.dropped_no_peer, 1);
    assert_eq!(after.dropped_no_path - before.dropped_no_path, 1);
    assert_eq!(after.dropped_malformed_out - before.dropped_malformed_out, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_changes_under_way_is_followed_at_once() {
    let (one, two) = pair().await;
    let moved = [(one.id(), vec!["10.244.1.0/24"]), (two.id(), vec!["10.244.5.0/24"])];
    one.table.store(table(0, &moved).into());
    two.table.store(table(1, &moved).into());
    let packet = record([10, 244, 1, 2], [10, 244, 5, 5], b"moved");
    one.send(&packet);
    assert_eq!(two.receive().await, packet);
    let before = one.mesh.counters().dropped_no_peer;
    one.send(&record([10, 244, 1, 2], [10, 244, 2, 2], b"gone"));
    eventually(|| (one.mesh.counters().dropped_no_peer == before + 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_both_threads_and_leaves_the_tun_to_its_owner() {
    let (one, two) = pair().await;
    let tun = one.tun.as_ref().unwrap().try_clone().unwrap();
    one.stop().await;
    // The mesh's end is closed when its threads are gone.
    let gone = eventually(|| rustix::io::write(&tun, b"anybody?").err()).await;
    assert!([rustix::io::Errno::PIPE, rustix::io::Errno::CONNRESET].contains(&gone), "{gone}");
    drop(two);
}
