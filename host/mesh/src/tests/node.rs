//! A node for the tests: a mesh with its key, its events and, if wanted, a socket pair as its TUN.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_core::decision::{Route, Via, admit};
use culvert_core::membership::{Binding, Directory, PeerId};
use culvert_core::topology::{Node, Reach, Topology};
use culvert_core::tunnel_table::TunnelTable;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::*;

/// The cluster's key, and one that replaces it.
pub(super) const KEY: &str = "the cluster's pre-shared key";
pub(super) const NEXT_KEY: &str = "the next pre-shared key, longer";

/// Everything here happens on one machine; only a broken mesh takes this long.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// How a node is started.
pub(super) struct Plan {
    pub(super) keys: Vec<&'static str>,
    pub(super) port: u16,
    pub(super) relays: Vec<RelayAddress>,
    pub(super) serve_relay: bool,
    pub(super) limits: MeshLimits,
    pub(super) with_tun: bool,
    pub(super) carry_datagrams: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            keys: vec![KEY],
            port: 0,
            relays: Vec::new(),
            serve_relay: false,
            limits: MeshLimits::default(),
            with_tun: false,
            carry_datagrams: true,
        }
    }
}

pub(super) struct TestNode {
    pub(super) mesh: MeshHandle,
    pub(super) events: mpsc::Receiver<MeshEvent>,
    pub(super) table: Arc<ArcSwap<TunnelTable>>,
    /// The kernel's end of the TUN.
    pub(super) tun: Option<OwnedFd>,
    key_path: PathBuf,
    folder: tempfile::TempDir,
}

impl TestNode {
    pub(super) fn start(plan: Plan) -> Self {
        Self::start_in(plan, tempfile::tempdir().unwrap())
    }

    /// Starts a node whose key is kept in `folder`.
    pub(super) fn start_in(plan: Plan, folder: tempfile::TempDir) -> Self {
        let key_path = folder.path().join("node.key");
        let config = MeshConfig {
            key: NodeKey::load_or_create(&key_path).unwrap(),
            pre_shared_keys: PreSharedKeys::from_texts(&plan.keys).unwrap(),
            listen_port: plan.port,
            data_port: 0,
            carry_datagrams: plan.carry_datagrams,
            relays: plan.relays,
            serve_relay: plan.serve_relay,
            limits: plan.limits,
        };
        let table = Arc::new(ArcSwap::from_pointee(TunnelTable::default()));
        let (tun, ours) = if plan.with_tun {
            let (kernel, ours) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            rustix::net::sockopt::set_socket_timeout(&kernel, rustix::net::sockopt::Timeout::Recv, Some(LIMIT))
                .unwrap();
            (Some(kernel), Some(TunDevice { queues: vec![ours], takes_udp: true }))
        } else {
            (None, None)
        };
        let (mesh, events) = start(config, ours, Arc::clone(&table)).unwrap();
        Self { mesh, events, table, tun, key_path, folder }
    }

    pub(super) fn id(&self) -> PeerId {
        self.mesh.peer_id().clone()
    }

    pub(super) fn key(&self) -> NodeKey {
        NodeKey::load_or_create(&self.key_path).unwrap()
    }

    /// Ends the mesh properly and gives the key's folder back.
    pub(super) async fn stop(self) -> tempfile::TempDir {
        let ports: Vec<u16> = self.mesh.quic_addresses().iter().map(SocketAddr::port).collect();
        self.mesh.shutdown().await;
        // QUIC keeps its sockets for a moment, for the goodbyes of its peers. A process would end here.
        for port in ports {
            wait_free(port).await;
        }
        self.folder
    }

    /// Forgets the mesh, whose runtime is gone, and gives the key's folder back.
    pub(super) fn into_folder(self) -> tempfile::TempDir {
        self.folder
    }

    /// Where others on this machine reach it by QUIC.
    pub(super) async fn quic(&self) -> SocketAddr {
        self.listening(MeshHandle::quic_addresses, |address| address.is_ipv4()).await
    }

    pub(super) async fn listening(
        &self,
        addresses: impl Fn(&MeshHandle) -> Vec<SocketAddr>,
        wanted: impl Fn(&SocketAddr) -> bool,
    ) -> SocketAddr {
        eventually(|| addresses(&self.mesh).into_iter().find(|address| address.ip().is_loopback() && wanted(address)))
            .await
    }

    pub(super) async fn endpoint(&self) -> PeerEndpoint {
        PeerEndpoint { peer: self.id(), addresses: vec![self.quic().await] }
    }

    pub(super) async fn as_relay(&self, pinned: bool) -> RelayAddress {
        let peer = pinned.then(|| self.id());
        RelayAddress { node_name: "relay".into(), addresses: vec![self.quic().await.to_string()], peer }
    }

    /// The next event for which `wanted` has an answer; the others are passed over.
    pub(super) async fn wait<T>(&mut self, mut wanted: impl FnMut(&MeshEvent) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let search = async {
            while let Some(event) = self.events.recv().await {
                if let Some(found) = wanted(&event) {
                    return Some(found);
                }
                seen.push(event);
            }
            None
        };
        timeout(LIMIT, search).await.ok().flatten().unwrap_or_else(|| panic!("the event did not come; seen: {seen:#?}"))
    }

    pub(super) async fn wait_connected(&mut self, peer: &PeerId) -> PeerPath {
        self.wait(|event| match event {
            MeshEvent::Connected { peer: found, path } if found == peer => Some(path.clone()),
            _ => None,
        })
        .await
    }

    pub(super) async fn wait_disconnected(&mut self, peer: &PeerId) {
        self.wait(|event| matches!(event, MeshEvent::Disconnected { peer: found } if found == peer).then_some(()))
            .await;
    }

    /// Answers the next question that is asked of this node.
    pub(super) async fn answer(&mut self, answer: Option<Answer>) -> (PeerId, Ask) {
        let asked = async {
            loop {
                if let Some(MeshEvent::Asked { from, ask, reply }) = self.events.recv().await {
                    match answer {
                        Some(answer) => drop(reply.send(answer)),
                        None => drop(reply),
                    }
                    return (from, ask);
                }
            }
        };
        timeout(LIMIT, asked).await.expect("nobody asked")
    }

    /// Sends a packet out of the kernel's end of the TUN.
    pub(super) fn send(&self, record: &[u8]) {
        rustix::io::write(self.tun.as_ref().unwrap(), record).unwrap();
    }

    /// The next packet that arrives at the kernel's end of the TUN.
    pub(super) async fn receive(&self) -> Vec<u8> {
        let tun = self.tun.as_ref().unwrap().try_clone().unwrap();
        let read = move || {
            let mut record = vec![0; 70_000];
            let count = rustix::io::read(&tun, record.as_mut_slice()).unwrap();
            record.truncate(count);
            record
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }
}

/// Waits until `look` finds something.
pub(crate) async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let search = async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        loop {
            pause.tick().await;
            if let Some(found) = look() {
                return found;
            }
        }
    };
    timeout(LIMIT, search).await.expect("the condition did not come true")
}

/// Connects two nodes directly.
pub(super) async fn connect(one: &mut TestNode, two: &mut TestNode) {
    one.mesh.set_peers(vec![two.endpoint().await]).await;
    one.wait_connected(&two.id()).await;
    two.wait_connected(&one.id()).await;
}

/// Waits until nobody listens on a UDP port any more.
pub(super) async fn wait_free(port: u16) {
    eventually(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).ok().map(drop)).await;
    eventually(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).ok().map(drop)).await;
}

/// A port that is free for UDP and TCP now.
pub(super) fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        if UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// The table of the node at `local`: node k holds `blocks[k]`, and everything else goes by tunnel.
pub(crate) fn table(local: usize, nodes: &[(PeerId, Vec<&str>)]) -> TunnelTable {
    table_of(local, nodes, &["10.244.0.0/16", "fd10::/16"])
}

/// The same in a cluster that has these prefixes.
pub(super) fn table_of(local: usize, nodes: &[(PeerId, Vec<&str>)], prefixes: &[&str]) -> TunnelTable {
    let name = |position: usize| format!("node-{position}");
    let topology = Topology {
        generation: 1,
        local,
        nodes: nodes
            .iter()
            .enumerate()
            .map(|(position, (_, blocks))| Node {
                name: name(position),
                reach: Reach::TunnelOnly,
                blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
                ..Node::default()
            })
            .collect(),
        cluster_prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        service_prefixes: Vec::new(),
    };
    let routes = topology.nodes.iter().enumerate().flat_map(|(position, node)| {
        let via = if position == local { Via::Local } else { Via::Tunnel(position) };
        node.blocks.iter().map(move |block| Route { to: *block, via, otherwise: None })
    });
    let admitted = admit(&topology, routes.collect(), 1).unwrap();
    let bindings = nodes.iter().enumerate().map(|(position, (peer, _))| Binding {
        name: name(position),
        peer: Some(peer.clone()),
        decision: 1,
    });
    TunnelTable::build(&topology, &admitted, &Directory::load(bindings, []))
}

/// A virtio header without offloads and an IPv4 packet with UDP's protocol number and that payload.
pub(crate) fn record(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 10];
    let total = u16::try_from(20 + payload.len()).unwrap();
    bytes.extend_from_slice(&[0x45, 0]);
    bytes.extend_from_slice(&total.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    bytes.extend_from_slice(&source);
    bytes.extend_from_slice(&destination);
    bytes.extend_from_slice(payload);
    bytes
}

/// The same for IPv6.
pub(crate) fn record_v6(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut bytes = vec![0; 10];
    bytes.extend_from_slice(&[0x60, 0, 0, 0]);
    bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(&[17, 64]);
    bytes.extend_from_slice(&octets(source));
    bytes.extend_from_slice(&octets(destination));
    bytes.extend_from_slice(payload);
    bytes
}
