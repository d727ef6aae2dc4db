//! Who gets in.

use std::net::SocketAddr;

use futures::StreamExt as _;
use libp2p::swarm::{Swarm, SwarmEvent};
use libp2p::{Transport as _, identify, identity, quic};
use tokio::time::timeout;

use super::node::{KEY, LIMIT, NEXT_KEY, Plan, TestNode, connect, free_port};
use crate::address;
use crate::*;

/// The address and reason of the next stranger, and whether anybody was connected before.
async fn refusal(node: &mut TestNode) -> (String, bool) {
    let mut connected = false;
    let reason = node
        .wait(|event| match event {
            MeshEvent::StrangerRefused { reason, .. } => Some(reason.clone()),
            MeshEvent::Connected { .. } => {
                connected = true;
                None
            }
            _ => None,
        })
        .await;
    (reason, connected)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_the_same_key_connect_by_quic_and_by_tcp_over_both_families() {
    let (mut one, two) = (TestNode::start(Plan::default()), TestNode::start(Plan::default()));
    let addresses = [
        two.listening(MeshHandle::quic_addresses, SocketAddr::is_ipv4).await,
        two.listening(MeshHandle::quic_addresses, SocketAddr::is_ipv6).await,
        two.listening(MeshHandle::tcp_addresses, SocketAddr::is_ipv4).await,
        two.listening(MeshHandle::tcp_addresses, SocketAddr::is_ipv6).await,
    ];
    for address in addresses {
        one.mesh.set_peers(vec![PeerEndpoint { peer: two.id(), addresses: vec![address] }]).await;
        assert_eq!(one.wait_connected(&two.id()).await, PeerPath::Direct { remote: address });
        let folder = one.stop().await;
        one = TestNode::start_in(Plan::default(), folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_valid_key_lets_a_node_in_from_either_side() {
    let mut changing = TestNode::start(Plan { keys: vec![KEY, NEXT_KEY], ..Plan::default() });
    let mut changed = TestNode::start(Plan { keys: vec![NEXT_KEY, KEY], ..Plan::default() });
    let mut latest = TestNode::start(Plan { keys: vec![NEXT_KEY], ..Plan::default() });
    connect(&mut changing, &mut changed).await;
    connect(&mut latest, &mut changing).await;
    connect(&mut changed, &mut latest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_an_unknown_key_is_refused_and_others_are_not_disturbed() {
    let mut node = TestNode::start(Plan::default());
    let mut member = TestNode::start(Plan::default());
    connect(&mut member, &mut node).await;
    let stranger = TestNode::start(Plan { keys: vec![NEXT_KEY], ..Plan::default() });
    stranger.mesh.set_peers(vec![node.endpoint().await]).await;
    assert_eq!(refusal(&mut node).await, ("unknown pre-shared key".to_owned(), false));
    assert!(node.mesh.counters().strangers_refused >= 1);
    assert_eq!(node.mesh.peers().into_iter().map(|peer| peer.peer).collect::<Vec<_>>(), [member.id()]);
    let seen = stranger.mesh.peers();
    assert_eq!(
        seen,
        [PeerStatus { peer: node.id(), path: None, datagrams: None, round_trip: None, refused_packets: 0 }]
    );
    let node_id = node.id();
    let (answer, (from, _)) = tokio::join!(member.mesh.ask(&node_id, Ask::Claims), async {
        node.answer(Some(Answer::Claims { claims: Vec::new() })).await
    });
    assert_eq!((answer, from), (Ok(Answer::Claims { claims: Vec::new() }), member.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_libp2p_peer_learns_nothing() {
    let mut node = TestNode::start(Plan::default());
    let key = identity::Keypair::generate_ed25519();
    let transport = quic::tokio::Transport::new(quic::Config::new(&key))
        .map(|(peer, connection), _| (peer, libp2p::core::muxing::StreamMuxerBox::new(connection)))
        .boxed();
    let asks = identify::Behaviour::new(identify::Config::new("/curious/1".to_owned(), key.public()));
    let config = libp2p::swarm::Config::with_tokio_executor();
    let mut curious = Swarm::new(transport, asks, key.public().to_peer_id(), config);
    curious.dial(address::quic(node.quic().await)).unwrap();
    let learns = async {
        loop {
            match curious.select_next_some().await {
                SwarmEvent::Behaviour(identify::Event::Received { info, .. }) => return Some(info),
                SwarmEvent::ConnectionClosed { .. } => return None,
                _ => {}
            }
        }
    };
    assert!(timeout(LIMIT, learns).await.expect("the connection was left open").is_none());
    let (reason, connected) = refusal(&mut node).await;
    assert_eq!((reason.as_str(), connected), ("does not speak Culvert's admission protocol", false));
    assert_eq!(node.mesh.peers(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_proves_one_peer_at_one_address_and_disturbs_nobody() {
    let (mut one, mut two) = (TestNode::start(Plan::default()), TestNode::start(Plan::default()));
    let third = TestNode::start(Plan::default());
    connect(&mut one, &mut two).await;
    let before = (one.mesh.peers(), two.mesh.peers());
    assert!(one.mesh.probe_on_link(&two.id(), two.quic().await).await);
    let tcp = two.listening(MeshHandle::tcp_addresses, SocketAddr::is_ipv4).await;
    assert!(one.mesh.probe_on_link(&two.id(), tcp).await);
    assert!(!one.mesh.probe_on_link(&two.id(), third.quic().await).await);
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    assert!(!one.mesh.probe_on_link(&two.id(), nobody).await);
    let paths = |peers: Vec<PeerStatus>| peers.into_iter().map(|peer| (peer.peer, peer.path)).collect::<Vec<_>>();
    assert_eq!((paths(one.mesh.peers()), paths(two.mesh.peers())), (paths(before.0), paths(before.1)));
    super::node::eventually(|| (two.mesh.counters().probes_answered == 2).then_some(())).await;
    assert_eq!(two.mesh.counters().strangers_refused, 0);
    let stranger = TestNode::start(Plan { keys: vec![NEXT_KEY], ..Plan::default() });
    assert!(!stranger.mesh.probe_on_link(&two.id(), two.quic().await).await);
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error() {
    let first = TestNode::start(Plan { port: free_port(), ..Plan::default() });
    let port = first.quic().await.port();
    let folder = tempfile::tempdir().unwrap();
    let config = MeshConfig {
        key: NodeKey::load_or_create(&folder.path().join("key")).unwrap(),
        pre_shared_keys: PreSharedKeys::from_texts(&[KEY]).unwrap(),
        listen_port: port,
        data_port: 0,
        carry_datagrams: true,
        relays: Vec::new(),
        serve_relay: false,
        limits: MeshLimits::default(),
    };
    let error = start(config, None, Default::default()).err().expect("two meshes share a port").to_string();
    assert!(error.starts_with(&format!("cannot listen on /ip4/0.0.0.0/udp/{port}/quic-v1: ")), "{error}");
    assert!(error.ends_with("choose another listen port, or stop what uses this one"), "{error}");
}

#[tokio::test]
async fn a_circuit_duration_that_cannot_be_told_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let seconds = u64::from(u32::MAX) + 1;
    let config = MeshConfig {
        key: NodeKey::load_or_create(&folder.path().join("key")).unwrap(),
        pre_shared_keys: PreSharedKeys::from_texts(&[KEY]).unwrap(),
        listen_port: 0,
        data_port: 0,
        carry_datagrams: true,
        relays: Vec::new(),
        serve_relay: true,
        limits: MeshLimits { relay_circuit_duration: std::time::Duration::from_secs(seconds), ..MeshLimits::default() },
    };
    let error = start(config, None, Default::default()).err().map(|error| error.to_string());
    assert_eq!(error, Some("a circuit's duration of 4294967296 s is out of range; use 1 to 4294967295".into()));
}
