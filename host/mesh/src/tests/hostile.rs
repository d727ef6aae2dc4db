//! A member that knows the key and does not keep to the protocols.

use std::sync::Arc;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::swarm::{Config, ConnectionId, Swarm, SwarmEvent};
use libp2p::{PeerId, Stream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::node::{KEY, LIMIT, Plan, TestNode, eventually, record, table};
use crate::admission::Door;
use crate::identity::to_core;
use crate::lanes::{Lane, LaneEvent, Lanes};
use crate::proof::Purpose;
use crate::stream_head::StreamHead;
use crate::{MeshEvent, PreSharedKeys, address, transport};

/// A swarm that passes the door and then does what a test tells it to.
struct Hostile {
    swarm: Swarm<Lanes>,
    victim: PeerId,
    connection: ConnectionId,
    serial: u64,
}

impl Hostile {
    async fn join(node: &TestNode) -> Self {
        let key = libp2p::identity::Keypair::generate_ed25519();
        let local = key.public().to_peer_id();
        let (refusals, _) = mpsc::channel(1);
        let keys = Arc::new(PreSharedKeys::from_texts(&[KEY]).unwrap());
        let door = Door { local, keys, purpose: Purpose::Ordinary, refusals, counters: Arc::default() };
        let transport = transport::build(&key, door, None).unwrap();
        let mut swarm = Swarm::new(transport, Lanes::default(), local, Config::with_tokio_executor());
        swarm.dial(address::quic(node.quic().await)).unwrap();
        let established = async {
            loop {
                if let SwarmEvent::ConnectionEstablished { peer_id, connection_id, .. } = swarm.select_next_some().await
                {
                    return (peer_id, connection_id);
                }
            }
        };
        let (victim, connection) = timeout(LIMIT, established).await.expect("the door stayed shut");
        Self { swarm, victim, connection, serial: 0 }
    }

    fn id(&self) -> culvert_core::membership::PeerId {
        to_core(self.swarm.local_peer_id())
    }

    /// A stream of that kind, with its head sent.
    async fn open(&mut self, lane: Lane) -> Stream {
        self.swarm.behaviour_mut().open(self.victim, self.connection, lane);
        let opened = async {
            loop {
                match self.swarm.select_next_some().await {
                    SwarmEvent::Behaviour((_, _, LaneEvent::Opened(_, stream))) => return stream,
                    SwarmEvent::ConnectionClosed { cause, .. } => panic!("the connection was closed: {cause:?}"),
                    _ => {}
                }
            }
        };
        let mut stream = timeout(LIMIT, opened).await.expect("no stream");
        self.serial += 1;
        StreamHead { session: 1, serial: self.serial }.write(&mut stream).await.unwrap();
        stream
    }

    /// Runs the swarm until `done` is.
    async fn until<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                outcome = &mut done => return outcome,
                event = self.swarm.select_next_some() => {
                    assert!(!matches!(event, SwarmEvent::ConnectionClosed { .. }), "the connection was closed: {event:?}");
                }
            }
        }
    }
}

fn frame(record: &[u8]) -> Vec<u8> {
    [&u32::try_from(record.len()).unwrap().to_le_bytes(), record].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_frames_end_their_stream_and_nothing_else() {
    let node = TestNode::start(Plan { with_tun: true, ..Plan::default() });
    let mut hostile = Hostile::join(&node).await;
    let nodes = [(node.id(), vec!["10.244.1.0/24"]), (hostile.id(), vec!["10.244.2.0/24"])];
    node.table.store(table(0, &nodes).into());
    let packet = record([10, 244, 2, 2], [10, 244, 1, 2], b"honest");
    for (round, garbage) in [vec![0xff; 4], vec![0, 0, 0, 0], vec![10, 0, 0, 0]].into_iter().enumerate() {
        let mut stream = hostile.open(Lane::Data).await;
        hostile
            .until(async {
                stream.write_all(&frame(&packet)).await.unwrap();
                stream.write_all(&garbage).await.unwrap();
                stream.flush().await.unwrap();
                assert_eq!(node.receive().await, packet);
                eventually(|| (node.mesh.counters().data_streams_malformed == round as u64 + 1).then_some(())).await;
            })
            .await;
    }
    // Pieces of a frame, one byte each, still make a frame; a packet that is none is dropped alone.
    let mut stream = hostile.open(Lane::Data).await;
    let mut broken = packet.clone();
    broken[10] = 0x75;
    hostile
        .until(async {
            stream.write_all(&frame(&broken)).await.unwrap();
            for byte in frame(&packet) {
                stream.write_all(&[byte]).await.unwrap();
                stream.flush().await.unwrap();
            }
            assert_eq!(node.receive().await, packet);
        })
        .await;
    assert_eq!(node.mesh.counters().dropped_malformed_in, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_on_a_newer_stream_wait_for_the_rest_of_the_older_one() {
    let node = TestNode::start(Plan { with_tun: true, ..Plan::default() });
    let mut hostile = Hostile::join(&node).await;
    let nodes = [(node.id(), vec!["10.244.1.0/24"]), (hostile.id(), vec!["10.244.2.0/24"])];
    node.table.store(table(0, &nodes).into());
    let packet = |text: &[u8]| record([10, 244, 2, 2], [10, 244, 1, 2], text);
    let mut older = hostile.open(Lane::Data).await;
    hostile
        .until(async {
            // Only a stream that is being read already is waited for: heads of two may arrive in either order.
            older.write_all(&frame(&packet(b"before"))).await.unwrap();
            older.flush().await.unwrap();
            assert_eq!(node.receive().await, packet(b"before"));
        })
        .await;
    let mut newer = hostile.open(Lane::Data).await;
    hostile
        .until(async {
            newer.write_all(&frame(&packet(b"second"))).await.unwrap();
            newer.flush().await.unwrap();
            older.write_all(&frame(&packet(b"first"))).await.unwrap();
            older.close().await.unwrap();
            assert_eq!(node.receive().await, packet(b"first"));
            assert_eq!(node.receive().await, packet(b"second"));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_messages_end_their_stream_and_nothing_else() {
    let mut node = TestNode::start(Plan::default());
    let mut hostile = Hostile::join(&node).await;
    for garbage in [vec![0xff, 0xff, 0xff, 0xff], [&[0, 0, 0, 5][..], b"hello"].concat()] {
        let mut stream = hostile.open(Lane::Control).await;
        let ended = hostile
            .until(async {
                stream.write_all(&garbage).await.unwrap();
                stream.flush().await.unwrap();
                stream.read(&mut [0; 1]).await
            })
            .await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    // An unknown ask on a fresh stream is answered as such, and an unknown message skipped.
    let mut stream = hostile.open(Lane::Control).await;
    let say = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    let answer = hostile
        .until(async {
            stream.write_all(&say(r#"{"kind":"song"}"#)).await.unwrap();
            stream.write_all(&say(r#"{"kind":"ask","id":4,"body":{"ask":"dance"}}"#)).await.unwrap();
            stream.flush().await.unwrap();
            let mut length = [0; 4];
            stream.read_exact(&mut length).await.unwrap();
            let mut body = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut body).await.unwrap();
            String::from_utf8(body).unwrap()
        })
        .await;
    assert_eq!(answer, r#"{"kind":"answer","id":4,"body":{"answer":"unsupported","ask":"dance"}}"#);
    assert_eq!(node.mesh.counters().messages_unknown, 1);
    let id = hostile.id();
    assert!(matches!(node.wait_connected(&id).await, crate::PeerPath::Direct { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_too_many_streams_is_held_to_a_few() {
    let mut node = TestNode::start(Plan::default());
    let mut hostile = Hostile::join(&node).await;
    let mut streams = Vec::new();
    for _ in 0..12 {
        streams.push(hostile.open(Lane::Control).await);
    }
    let counters = node.mesh.clone();
    hostile.until(eventually(|| (counters.counters().streams_refused == 8).then_some(()))).await;
    // The four that were taken work.
    let ask = br#"{"kind":"ask","id":1,"body":{"ask":"members"}}"#;
    let stream = &mut streams[0];
    hostile
        .until(async {
            stream.write_all(&u32::try_from(ask.len()).unwrap().to_be_bytes()).await.unwrap();
            stream.write_all(ask).await.unwrap();
            stream.flush().await.unwrap();
            node.wait(|event| matches!(event, MeshEvent::Asked { .. }).then_some(())).await;
        })
        .await;
}
