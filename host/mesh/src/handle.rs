//! Starting a mesh, and the handle by which its owner speaks to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use culvert_core::membership;
use culvert_core::tunnel_table::TunnelTable;
use culvert_datagram::agreement::Terms;
use culvert_datagram::key::has_aes_instructions;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::Config;
use libp2p::{Multiaddr, Swarm, TransportError, relay};
use tokio::sync::{mpsc, oneshot};

use crate::address::{quic, socket_of, tcp};
use crate::admission::Door;
use crate::behaviour::{self, Behaviour};
use crate::config::{MeshConfig, MeshLimits, PeerEndpoint, TunDevice};
use crate::control::{ANSWER_LIMIT, AskError};
use crate::counters::{Count, MeshCounters};
use crate::event::{MeshEvent, PeerStatus};
use crate::identity::{from_core, to_core};
use crate::message::{Answer, Ask};
use crate::own_endpoints::OwnEndpoints;
use crate::packet_threads::{PacketLinks, PacketThreads};
use crate::probe::Prober;
use crate::proof::Purpose;
use crate::record::CountersignedRecord;
use crate::relay::{Relay, RelayError};
use crate::swarm::{Audience, Command, Inputs, MAX_WAITING, Mesh, Published, RelayLimits};
use crate::transport;

/// Our handlers never ask for more than this; libp2p's own streams are opened one at a time.
const IDLE_CONNECTION_LIMIT: Duration = Duration::from_secs(60);

/// Why a mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A configured relay is wrong.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// A circuit's longest life cannot be told to others.
    #[error("a circuit's duration of {seconds} s is out of range; use 1 to {}", u32::MAX)]
    CircuitDuration {
        /// What was given.
        seconds: u64,
    },
    /// No address could be listened on, or the port belongs to somebody else.
    #[error("cannot listen on {address}: {reason}; choose another listen port, or stop what uses this one")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The key cannot be used.
    #[error("the node key cannot be used: {0}")]
    Key(#[source] io::Error),
    /// The TUN cannot be prepared.
    #[error("cannot prepare the tun: {0}")]
    Tun(#[source] io::Error),
    /// The TUN has no queue, or more than there may be.
    #[error("a tun with {queues} queues cannot be served; open it with 1 to 64")]
    TunQueues {
        /// How many it has.
        queues: usize,
    },
    /// The port for datagrams belongs to somebody else.
    #[error("cannot use UDP port {port} for datagrams: {source}; choose another data port, or stop what uses this one")]
    DataPort {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a packet thread: {0}; raise the limit on threads")]
    Thread(#[source] io::Error),
    /// The system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

/// A running mesh. Clones speak to the same one; it ends when the last is dropped, or by
/// [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct MeshHandle {
    inner: Arc<Inner>,
}

struct Inner {
    peer: membership::PeerId,
    commands: mpsc::Sender<Command>,
    published: Published,
    prober: Prober,
    threads: std::sync::Mutex<Option<PacketThreads>>,
}

/// Starts a mesh on the current tokio runtime.
///
/// `tun` was opened with a virtio header of 10 bytes; it becomes non-blocking. `table` is read
/// for every packet and may be replaced at any time. Whoever starts the process must remove
/// `SSLKEYLOGFILE` from its environment before: QUIC would write its session keys there.
///
/// # Errors
/// [`StartError`]; nothing runs then.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn start(
    config: MeshConfig,
    tun: Option<TunDevice>,
    table: Arc<ArcSwap<TunnelTable>>,
) -> Result<(MeshHandle, mpsc::Receiver<MeshEvent>), StartError> {
    let MeshConfig { key, pre_shared_keys, listen_port, data_port, carry_datagrams, relays, serve_relay, limits } =
        config;
    check_limits(&limits)?;
    let now = Instant::now();
    let local = key.pair().public().to_peer_id();
    let relays = relays.iter().map(|relay| Relay::new(relay, local, now)).collect::<Result<Vec<_>, _>>()?;
    let keys = Arc::new(pre_shared_keys);
    let published = Published::default();
    let (refusal_sender, refusals) = mpsc::channel(MAX_WAITING);
    let counters = Arc::clone(&published.counters);
    let door = Door { local, keys: Arc::clone(&keys), purpose: Purpose::Ordinary, refusals: refusal_sender, counters };
    let (circuits, relay_client) = relay::client::new(local);
    let transport = transport::build(key.pair(), door, Some(circuits)).map_err(StartError::Key)?;
    let behaviour = behaviour::behaviour(key.pair(), relay_client, serve_relay, &limits);
    let swarm_config = Config::with_tokio_executor().with_idle_connection_timeout(IDLE_CONNECTION_LIMIT);
    let mut swarm = Swarm::new(transport, behaviour, local, swarm_config);
    let failed = listen(&mut swarm, listen_port)?;

    let (kick_sender, kicks) = mpsc::channel(MAX_WAITING);
    let links = PacketLinks { table, kicks: kick_sender, counters: Arc::clone(&published.counters) };
    let started = tun.map(|tun| PacketThreads::start(tun, data_port, links)).transpose()?;
    let (tun, notices, threads) = match started {
        None => (None, mpsc::channel(1).1, None),
        Some((ends, notices, threads)) => (Some(ends), notices, Some(threads)),
    };
    let terms = tun.as_ref().filter(|_| carry_datagrams).map(|tun| {
        Arc::new(Terms { queues: tun.datagrams.queues, has_aes: has_aes_instructions(), salts: keys.salts() })
    });
    let own_endpoints = tun.as_ref().map(|tun| OwnEndpoints::new(tun.datagrams.port));
    let (command_sender, commands) = mpsc::channel(MAX_WAITING);
    let (report_sender, reports) = mpsc::channel(MAX_WAITING);
    let (events, event_receiver) = mpsc::channel(limits.events.max(1));
    let mut mesh = Mesh {
        swarm,
        local,
        local_name: key.peer_id(),
        serve_relay,
        session: session()?,
        serial: 0,
        peers: Default::default(),
        relays,
        dials: Default::default(),
        tun,
        terms,
        own_endpoints,
        reservations: Default::default(),
        relay_limits: RelayLimits {
            pairs_per_peer: limits.relay_datagram_pairs_per_peer,
            bytes_per_second: limits.relay_datagram_bytes_per_second,
        },
        started: now,
        ticks: 0,
        events,
        backlog: failed.into(),
        reports: report_sender,
        published: published.clone(),
        changed: true,
    };
    mesh.adopt_relays(now);
    tokio::spawn(mesh.run(Inputs { commands, refusals, kicks, notices }, reports));
    let prober = Prober { keys, counters: Arc::clone(&published.counters), key: key.clone() };
    let threads = std::sync::Mutex::new(threads);
    let inner = Inner { peer: key.peer_id(), commands: command_sender, published, prober, threads };
    Ok((MeshHandle { inner: Arc::new(inner) }, event_receiver))
}

impl MeshHandle {
    /// This node's identity.
    #[must_use]
    pub fn peer_id(&self) -> &membership::PeerId {
        &self.inner.peer
    }

    /// The peers to keep a connection to, all of them at once; those left out are not dialed any more,
    /// but their connections stay as long as they like. Configured relays are kept in any case.
    pub async fn set_peers(&self, peers: Vec<PeerEndpoint>) {
        self.command(Command::SetPeers(peers)).await;
    }

    /// Asks a connected peer.
    ///
    /// **Bounds** 10 s. **Cancel safety** dropping the call does not take the question back.
    ///
    /// # Errors
    /// [`AskError`]: not connected, busy, broken off or too late.
    pub async fn ask(&self, peer: &membership::PeerId, ask: Ask) -> Result<Answer, AskError> {
        let (reply, answer) = oneshot::channel();
        if !self.command(Command::Ask { peer: peer.clone(), ask, reply }).await {
            return Err(AskError::ShutDown);
        }
        // The stream's own limit begins when the question is sent; this one covers the wait before.
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(AskError::Interrupted { peer: peer.clone() }),
            Err(_) => Err(AskError::TimedOut { peer: peer.clone() }),
        }
    }

    /// Passes records on. Nobody confirms them: tell again when it matters.
    pub async fn tell(&self, audience: Audience, records: Vec<CountersignedRecord>) {
        self.command(Command::Tell { audience, records }).await;
    }

    /// Whether that very peer answers at exactly that address, proved by a fresh connection that is
    /// closed at once. Ordinary connections are left alone. **Bounds** 2 s.
    pub async fn probe_on_link(&self, peer: &membership::PeerId, address: SocketAddr) -> bool {
        match from_core(peer) {
            Some(id) => self.inner.prober.probe(id, address).await,
            None => false,
        }
    }

    /// All counters since the start.
    #[must_use]
    pub fn counters(&self) -> MeshCounters {
        self.inner.published.counters.snapshot()
    }

    /// All peers that are wanted or connected, by id.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.inner.published.peers.load();
        let current = |(status, refused): &(PeerStatus, Arc<Count>)| PeerStatus {
            refused_packets: refused.read(),
            ..status.clone()
        };
        peers.iter().map(current).collect()
    }

    /// The addresses this node listens on for QUIC, one an interface.
    #[must_use]
    pub fn quic_addresses(&self) -> Vec<SocketAddr> {
        self.listening(|part| matches!(part, Protocol::Udp(_)))
    }

    /// The addresses this node listens on for TCP, one an interface.
    #[must_use]
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.listening(|part| matches!(part, Protocol::Tcp(_)))
    }

    /// Closes all connections and stops the packet threads. The TUN itself is left as it is.
    pub async fn shutdown(self) {
        let (done, closed) = oneshot::channel();
        if self.command(Command::Shutdown(done)).await {
            // The mesh answers within its own bound, or is gone already.
            let _ = closed.await;
        }
        let threads = self.inner.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(threads) = threads {
            // The threads end within a few writes; joining them must not block the runtime.
            let _ = tokio::task::spawn_blocking(move || threads.join()).await;
        }
    }

    async fn command(&self, command: Command) -> bool {
        self.inner.commands.send(command).await.is_ok()
    }

    fn listening(&self, wanted: impl Fn(&Protocol<'_>) -> bool) -> Vec<SocketAddr> {
        let addresses = self.inner.published.listening.load();
        let chosen = addresses.iter().filter(|address| address.iter().any(|part| wanted(&part)));
        chosen.filter_map(socket_of).collect()
    }
}

impl Mesh {
    /// Makes peers of the relays whose identity is known.
    fn adopt_relays(&mut self, now: Instant) {
        let known: Vec<_> = self.relays.iter().filter(|relay| !relay.is_self).collect();
        let known: Vec<_> = known.into_iter().filter_map(|relay| Some((relay.peer?, relay.sockets.clone()))).collect();
        for (id, sockets) in known {
            self.peer_entry(id, now).relay = Some(sockets);
        }
        for relay in self.relays.iter().filter(|relay| relay.is_self) {
            self.backlog.push_back(MeshEvent::RelayIsSelf { node_name: relay.node_name.clone() });
        }
        tracing::info!(peer = %to_core(&self.local), "the mesh starts");
    }
}

fn check_limits(limits: &MeshLimits) -> Result<(), StartError> {
    let seconds = limits.relay_circuit_duration.as_secs();
    if seconds == 0 || u32::try_from(seconds).is_err() {
        return Err(StartError::CircuitDuration { seconds });
    }
    Ok(())
}

fn session() -> Result<u64, StartError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(StartError::Random)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Listens on all addresses, by both transports and both families. A family that the system lacks is
/// told as an event; a port that is taken is an error, because peers would reach somebody else.
fn listen(swarm: &mut Swarm<Behaviour>, port: u16) -> Result<Vec<MeshEvent>, StartError> {
    let v4 = SocketAddr::from(([0, 0, 0, 0], port));
    let v6 = SocketAddr::from(([0; 16], port));
    let mut failed = Vec::new();
    let wanted: [(SocketAddr, Multiaddr); 4] = [(v4, quic(v4)), (v4, tcp(v4)), (v6, quic(v6)), (v6, tcp(v6))];
    for (socket, address) in wanted {
        if let Err(error) = swarm.listen_on(address.clone()) {
            let (address, reason) = (address.to_string(), reason_of(error));
            if socket.is_ipv4() || is_address_in_use(&reason) {
                return Err(StartError::Listen { address, reason });
            }
            failed.push(MeshEvent::ListenFailed { address, reason });
        }
    }
    Ok(failed)
}

/// libp2p's own text for a system error is empty.
fn reason_of(error: TransportError<io::Error>) -> String {
    match error {
        TransportError::MultiaddrNotSupported(address) => format!("no transport for {address}"),
        TransportError::Other(error) => error.to_string(),
    }
}

/// The transports wrap the system's error in texts only.
fn is_address_in_use(reason: &str) -> bool {
    reason.contains(&io::Error::from(rustix::io::Errno::ADDRINUSE).to_string())
}
