//! How packets find the best path between two whole meshes: the stream carries them until keys are agreed on and
//! probes are answered.

use culvert_core::membership::PeerId;
use culvert_core::path::Endpoint;

use super::node::{Plan, TestNode, connect, eventually, record, table, table_of};
use crate::{DatagramStatus, MeshEvent, PeerEndpoint, PeerPath};

fn with_tun() -> Plan {
    Plan { with_tun: true, ..Plan::default() }
}

fn know_each_other(one: &TestNode, two: &TestNode) {
    let nodes = [(one.id(), vec!["10.244.1.0/24"]), (two.id(), vec!["10.244.2.0/24"])];
    one.table.store(table(0, &nodes).into());
    two.table.store(table(1, &nodes).into());
}

async fn pair(plans: [Plan; 2]) -> (TestNode, TestNode) {
    let [mut one, mut two] = plans.map(TestNode::start);
    know_each_other(&one, &two);
    connect(&mut one, &mut two).await;
    (one, two)
}

fn datagrams(node: &TestNode, peer: &PeerId) -> Option<DatagramStatus> {
    node.mesh.peers().into_iter().find(|status| status.peer == *peer)?.datagrams
}

async fn wait_datagrams(one: &TestNode, two: &TestNode) {
    for (node, peer) in [(one, two.id()), (two, one.id())] {
        let status = eventually(|| datagrams(node, &peer).filter(|status| status.round_trip.is_some())).await;
        assert!(matches!(status.endpoint, Endpoint::Direct(remote) if remote.ip().is_loopback()), "{status:?}");
        assert_eq!(status.loss_permille, 0);
    }
}

async fn exchange(one: &TestNode, two: &TestNode) {
    for (from, to, source, destination) in
        [(one, two, [10, 244, 1, 2], [10, 244, 2, 2]), (two, one, [10, 244, 2, 2], [10, 244, 1, 2])]
    {
        let packet = record(source, destination, b"packet");
        from.send(&packet);
        assert_eq!(to.receive().await[10..], packet[10..]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_move_to_datagrams_once_probes_are_answered() {
    let (one, two) = pair([with_tun(), with_tun()]).await;
    wait_datagrams(&one, &two).await;
    exchange(&one, &two).await;
    // A stream would carry this; no single datagram does.
    one.send(&record([10, 244, 1, 2], [10, 244, 2, 2], &[1; 60_000]));
    eventually(|| (one.mesh.counters().dropped_too_big == 1).then_some(())).await;
    let counters = one.mesh.counters();
    assert_eq!((counters.path_changes, counters.key_agreements_failed), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_gets_new_keys_and_the_same_path() {
    let (one, mut two) = pair([with_tun(), with_tun()]).await;
    wait_datagrams(&one, &two).await;
    let folder = two.stop().await;
    two = TestNode::start_in(with_tun(), folder);
    know_each_other(&one, &two);
    one.mesh.set_peers(vec![two.endpoint().await]).await;
    // The old process is known to be gone before the new one answers.
    eventually(|| (one.mesh.counters().path_changes >= 2).then_some(())).await;
    wait_datagrams(&one, &two).await;
    exchange(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_datagrams_is_reached_by_its_stream() {
    let silent = Plan { carry_datagrams: false, ..with_tun() };
    let (one, two) = pair([with_tun(), silent]).await;
    let (lower, higher) = if one.id() < two.id() { (&one, &two) } else { (&two, &one) };
    let packet = record([10, 244, 1, 2], [10, 244, 2, 2], b"by stream");
    eventually(|| {
        one.send(&packet);
        (two.mesh.counters().packets_in > 0).then_some(())
    })
    .await;
    assert_eq!(two.receive().await, packet);
    // Only a node that carries datagrams offers keys, and only the one with the lower id.
    if lower.id() == one.id() {
        eventually(|| (lower.mesh.counters().key_agreements_failed > 0).then_some(())).await;
    }
    assert_eq!((datagrams(&one, &two.id()), datagrams(higher, &lower.id())), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_first_keys_differ_still_agree_while_both_have_both() {
    use super::node::{KEY, NEXT_KEY};
    let (older, newer) =
        (Plan { keys: vec![KEY, NEXT_KEY], ..with_tun() }, Plan { keys: vec![NEXT_KEY, KEY], ..with_tun() });
    let (one, two) = pair([older, newer]).await;
    wait_datagrams(&one, &two).await;
    exchange(&one, &two).await;
}

/// Two nodes that only a relay reaches. Every address is one of the pod network, so that none is tried directly.
async fn relayed_pair(relay: &TestNode) -> (TestNode, TestNode) {
    let known = relay.as_relay(true).await;
    let plan = || Plan { relays: vec![known.clone()], ..with_tun() };
    let (mut one, mut two) = (TestNode::start(plan()), TestNode::start(plan()));
    let everything = vec!["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"];
    let nodes = [
        (one.id(), vec!["10.244.1.0/24"]),
        (two.id(), vec!["10.244.2.0/24"]),
        (PeerId("third".into()), everything.clone()),
    ];
    one.table.store(table_of(0, &nodes, &everything).into());
    two.table.store(table_of(1, &nodes, &everything).into());
    for node in [&mut one, &mut two] {
        node.wait(|event| matches!(event, MeshEvent::RelayReady { .. }).then_some(())).await;
    }
    for (node, peer) in [(&one, two.id()), (&two, one.id())] {
        node.mesh.set_peers(vec![PeerEndpoint { peer, addresses: Vec::new() }]).await;
    }
    let through = PeerPath::Relayed { relay: relay.id() };
    assert_eq!(one.wait_connected(&two.id()).await, through);
    assert_eq!(two.wait_connected(&one.id()).await, through);
    (one, two)
}

fn is_relayed_by(status: &DatagramStatus, by: &PeerId) -> bool {
    matches!(&status.endpoint, Endpoint::Relayed { relay, .. } if relay == by)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_without_a_direct_path_send_datagrams_through_their_relay_until_it_goes() {
    let relay = TestNode::start(Plan { serve_relay: true, ..with_tun() });
    let (one, two) = relayed_pair(&relay).await;
    for (node, peer) in [(&one, two.id()), (&two, one.id())] {
        let status = eventually(|| datagrams(node, &peer)).await;
        assert!(is_relayed_by(&status, &relay.id()), "{status:?}");
        assert_eq!(status.mtu_bytes, 1432);
    }
    let before = relay.mesh.counters().relayed_datagrams;
    exchange(&one, &two).await;
    assert!(relay.mesh.counters().relayed_datagrams >= before + 2);
    assert_eq!(relay.mesh.counters().packets_in, 0);
    relay.stop().await;
    eventually(|| datagrams(&one, &two.id()).is_none().then_some(())).await;
}
