//! Nodes that reach each other through a relay alone.

use super::node::{NEXT_KEY, Plan, TestNode, eventually, free_port, record, table};
use crate::*;

fn relay_plan(port: u16) -> Plan {
    Plan { port, serve_relay: true, ..Plan::default() }
}

fn unreachable(node: &TestNode) -> PeerEndpoint {
    PeerEndpoint { peer: node.id(), addresses: Vec::new() }
}

async fn wait_place(node: &mut TestNode) {
    node.wait(|event| matches!(event, MeshEvent::RelayReady { .. }).then_some(())).await;
}

/// A relay and two nodes that know it, and of each other no address.
async fn relayed_pair(relay: &TestNode, with_tun: bool) -> (TestNode, TestNode) {
    let known = relay.as_relay(true).await;
    let plan = || Plan { relays: vec![known.clone()], with_tun, ..Plan::default() };
    let (mut one, mut two) = (TestNode::start(plan()), TestNode::start(plan()));
    wait_place(&mut one).await;
    wait_place(&mut two).await;
    one.mesh.set_peers(vec![unreachable(&two)]).await;
    two.mesh.set_peers(vec![unreachable(&one)]).await;
    let through = PeerPath::Relayed { relay: relay.id() };
    assert_eq!(one.wait_connected(&two.id()).await, through);
    assert_eq!(two.wait_connected(&one.id()).await, through);
    (one, two)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_without_addresses_talk_through_a_relay_and_move_to_a_direct_path_when_one_appears() {
    let relay = TestNode::start(relay_plan(0));
    let (mut one, mut two) = relayed_pair(&relay, false).await;
    let two_id = two.id();
    let (answer, _) = tokio::join!(one.mesh.ask(&two_id, Ask::Claims), two.answer(Some(Answer::Released)));
    assert_eq!(answer, Ok(Answer::Released));

    one.mesh.set_peers(vec![two.endpoint().await]).await;
    let remote = two.quic().await;
    let changed = one
        .wait(|event| match event {
            MeshEvent::PathChanged { peer, path } if *peer == two_id => Some(path.clone()),
            _ => None,
        })
        .await;
    assert_eq!(changed, PeerPath::Direct { remote });
    let (answer, _) = tokio::join!(one.mesh.ask(&two_id, Ask::Claims), two.answer(Some(Answer::Released)));
    assert_eq!(answer, Ok(Answer::Released));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_restarts_gives_places_again_and_its_circuits_come_back() {
    let port = free_port();
    let relay = TestNode::start(relay_plan(port));
    let (mut one, mut two) = relayed_pair(&relay, false).await;
    let (one_id, two_id) = (one.id(), two.id());
    let folder = relay.stop().await;
    one.wait_disconnected(&two_id).await;
    two.wait_disconnected(&one_id).await;
    let relay = TestNode::start_in(relay_plan(port), folder);
    let through = PeerPath::Relayed { relay: relay.id() };
    assert_eq!(one.wait_connected(&two_id).await, through);
    assert_eq!(two.wait_connected(&one_id).await, through);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_known_by_the_first_identity_that_answers() {
    let relay = TestNode::start(relay_plan(0));
    let mut node = TestNode::start(Plan { relays: vec![relay.as_relay(false).await], ..Plan::default() });
    let identified = node
        .wait(|event| match event {
            MeshEvent::RelayIdentified { node_name, peer } => Some((node_name.clone(), peer.clone())),
            _ => None,
        })
        .await;
    assert_eq!(identified, ("relay".to_owned(), relay.id()));
    wait_place(&mut node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_else_at_a_pinned_relays_address_is_refused() {
    let (relay, other) = (TestNode::start(relay_plan(0)), TestNode::start(relay_plan(0)));
    let mut address = relay.as_relay(true).await;
    address.peer = Some(other.id());
    let mut node = TestNode::start(Plan { relays: vec![address], ..Plan::default() });
    let refused = node
        .wait(|event| match event {
            MeshEvent::RelayRefused { node_name, expected, found } => {
                Some((node_name.clone(), expected.clone(), found.clone()))
            }
            _ => None,
        })
        .await;
    assert_eq!(refused, ("relay".to_owned(), other.id(), relay.id()));
    assert_eq!(
        node.mesh.peers(),
        [PeerStatus { peer: other.id(), path: None, datagrams: None, round_trip: None, refused_packets: 0 }]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_does_not_know_the_key_is_reported_with_the_remedy() {
    let relay = TestNode::start(Plan { keys: vec![NEXT_KEY], ..relay_plan(0) });
    let mut node = TestNode::start(Plan { relays: vec![relay.as_relay(true).await], ..Plan::default() });
    let (name, reason) = node
        .wait(|event| match event {
            MeshEvent::RelayUnreachable { node_name, reason } => Some((node_name.clone(), reason.clone())),
            _ => None,
        })
        .await;
    assert_eq!(name, "relay");
    assert!(reason.contains("does the other side know this node's first pre-shared key?"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_its_own_relay_says_so() {
    let port = free_port();
    let myself = RelayAddress { node_name: "me".into(), addresses: vec![format!("127.0.0.1:{port}")], peer: None };
    let mut node = TestNode::start(Plan { relays: vec![myself], ..relay_plan(port) });
    let name = node
        .wait(|event| if let MeshEvent::RelayIsSelf { node_name } = event { Some(node_name.clone()) } else { None })
        .await;
    assert_eq!(name, "me");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_over_its_quota_is_cut_and_dialed_again() {
    let limits = MeshLimits { relay_circuit_bytes: 300_000, ..MeshLimits::default() };
    let relay = TestNode::start(Plan { limits, ..relay_plan(0) });
    let (one, two) = relayed_pair(&relay, true).await;
    let nodes = [(one.id(), vec!["10.244.1.0/24"]), (two.id(), vec!["10.244.2.0/24"])];
    one.table.store(table(0, &nodes).into());
    two.table.store(table(1, &nodes).into());
    let packet = record([10, 244, 1, 2], [10, 244, 2, 2], &[7; 10_000]);
    eventually(|| {
        one.send(&packet);
        (one.mesh.counters().dropped_path_broken > 0).then_some(())
    })
    .await;
    // Sent until it is seen, which takes a fresh circuit: the old ones have carried what they may.
    let marker = record([10, 244, 1, 2], [10, 244, 2, 2], b"by a fresh circuit");
    let sending = eventually(|| {
        one.send(&marker);
        None::<()>
    });
    let seeing = async { while two.receive().await != marker {} };
    tokio::select! {
        () = sending => {}
        () = seeing => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_without_free_places_keeps_those_it_gave() {
    let limits = MeshLimits { relay_reservations: 1, ..MeshLimits::default() };
    let relay = TestNode::start(Plan { limits, ..relay_plan(0) });
    let known = relay.as_relay(true).await;
    let plan = || Plan { relays: vec![known.clone()], ..Plan::default() };
    let mut first = TestNode::start(plan());
    wait_place(&mut first).await;
    let mut second = TestNode::start(plan());
    second.wait_connected(&relay.id()).await;
    // The second finds the first through the relay, though it has no place itself.
    second.mesh.set_peers(vec![unreachable(&first)]).await;
    let mut place = false;
    let path = second
        .wait(|event| match event {
            MeshEvent::RelayReady { .. } => {
                place = true;
                None
            }
            MeshEvent::Connected { peer, path } if *peer == first.id() => Some(path.clone()),
            _ => None,
        })
        .await;
    assert_eq!((path, place), (PeerPath::Relayed { relay: relay.id() }, false));
}
