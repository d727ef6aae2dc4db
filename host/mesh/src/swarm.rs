//! The one task that owns the libp2p swarm, the peers and the relays. Everything else asks it by
//! bounded channels and is answered by events; it never waits for anybody.
//!
//! ```text
//! handle ──commands──┐                       ┌── events ──> owner
//! streams' tasks ────┼──> [ Mesh: one task ] ┼── lanes, dials ──> libp2p
//! TUN reader ─kicks──┘                       └── queues, paths ──> packet tasks
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use culvert_core::membership;
use culvert_datagram::agreement::Terms;
use culvert_datagram::frame::RelayPrefix;
use futures::StreamExt as _;
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, Stream, Swarm};
use tokio::sync::{mpsc, oneshot};

use crate::admission::Refusal;
use crate::behaviour::Behaviour;
use crate::config::PeerEndpoint;
use crate::control::AskError;
use crate::counters::{Count, Counters};
use crate::data_message::{DataAsk, DataTopic};
use crate::datagram::Notice;
use crate::event::{MeshEvent, PeerStatus};
use crate::identity::from_core;
use crate::lanes::Lane;
use crate::message::{Answer, Ask, Reply};
use crate::own_endpoints::OwnEndpoints;
use crate::packet_threads::TunEnds;
use crate::peer::Peer;
use crate::record::CountersignedRecord;
use crate::relay::Relay;
use crate::stream_head::StreamHead;

mod commands;
mod datagrams;
mod dialing;
mod events;
mod relayed;
mod streams;

/// How often dials, reservations and spare connections are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Events that wait behind the owner's queue. Beyond this the swarm is not polled until the owner
/// has caught up, so peers wait.
const MAX_BACKLOG: usize = 1024;

/// Behind this many waiting events, those that only inform are left out.
const QUIET_BACKLOG: usize = 64;

/// Commands, task reports and kicks that wait for this task. Their senders wait, or give up.
pub(crate) const MAX_WAITING: usize = 256;

/// What the handle asks for.
pub(crate) enum Command {
    SetPeers(Vec<PeerEndpoint>),
    Ask { peer: membership::PeerId, ask: Ask, reply: oneshot::Sender<Result<Answer, AskError>> },
    Tell { audience: Audience, records: Vec<CountersignedRecord> },
    Shutdown(oneshot::Sender<()>),
}

/// Whom news is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Every connected peer.
    All,
    /// One peer, if it is connected.
    Peer(membership::PeerId),
}

/// What this task's own tasks report.
pub(crate) enum Report {
    /// A stream of ours ended.
    LaneEnded { peer: PeerId, lane: Lane, serial: u64 },
    /// The head of an inbound stream was read, or could not be.
    Head { peer: PeerId, connection: ConnectionId, lane: Lane, outcome: io::Result<(StreamHead, Stream)> },
    /// An inbound control stream ended.
    HearingEnded { peer: PeerId },
    /// A peer asks about the data path.
    DataAsked { peer: PeerId, ask: DataAsk, reply: oneshot::Sender<Reply> },
    /// What a peer answered about the data path.
    DataAnswered { peer: PeerId, topic: DataTopic, outcome: Result<Reply, AskError> },
    /// A relay's names were looked up.
    Resolved { relay: usize, found: Vec<SocketAddr> },
}

/// What a dial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DialKind {
    Quic,
    Tcp,
    Circuit,
}

/// A dial under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    /// The relay by position, when it is dialed to learn who it is.
    pub(crate) relay: Option<usize>,
    /// The peer, when it is known.
    pub(crate) peer: Option<PeerId>,
    pub(crate) kind: DialKind,
}

/// A peer's status with its live count of refused packets.
pub(crate) type CountedStatus = (PeerStatus, Arc<Count>);

/// What one peer may use of this node as a relay of datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelayLimits {
    pub(crate) pairs_per_peer: usize,
    pub(crate) bytes_per_second: u64,
}

/// What others may read at any time.
#[derive(Clone, Default)]
pub(crate) struct Published {
    /// Each with the live count behind its `refused_packets`.
    pub(crate) peers: Arc<ArcSwap<Vec<CountedStatus>>>,
    pub(crate) listening: Arc<ArcSwap<Vec<libp2p::Multiaddr>>>,
    pub(crate) counters: Arc<Counters>,
}

/// The channels into this task.
pub(crate) struct Inputs {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) refusals: mpsc::Receiver<Refusal>,
    pub(crate) kicks: mpsc::Receiver<membership::PeerId>,
    pub(crate) notices: mpsc::Receiver<Notice>,
}

/// The owner of all mesh state.
pub(crate) struct Mesh {
    pub(crate) swarm: Swarm<Behaviour>,
    pub(crate) local: PeerId,
    pub(crate) local_name: membership::PeerId,
    pub(crate) serve_relay: bool,
    /// Random, tells this process from the one before.
    pub(crate) session: u64,
    /// Streams opened so far.
    pub(crate) serial: u64,
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) dials: BTreeMap<ConnectionId, Dial>,
    pub(crate) tun: Option<TunEnds>,
    /// What this node brings into agreements on data keys; there when it carries datagrams.
    pub(crate) terms: Option<Arc<Terms>>,
    /// Where datagrams reach this node; there with a TUN.
    pub(crate) own_endpoints: Option<OwnEndpoints>,
    /// Pairs of peers that this node forwards datagrams between, the lower id first, with the place of each.
    pub(crate) reservations: BTreeMap<(PeerId, PeerId), [RelayPrefix; 2]>,
    pub(crate) relay_limits: RelayLimits,
    pub(crate) started: Instant,
    pub(crate) ticks: u32,
    pub(crate) events: mpsc::Sender<MeshEvent>,
    pub(crate) backlog: VecDeque<MeshEvent>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) published: Published,
    /// Whether the published peers are behind.
    pub(crate) changed: bool,
}

impl Mesh {
    /// Runs until the handle is gone or asks for the end.
    pub(crate) async fn run(mut self, mut inputs: Inputs, mut reports: mpsc::Receiver<Report>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let done = loop {
            let events = self.events.clone();
            tokio::select! {
                event = self.swarm.select_next_some(), if self.backlog.len() < MAX_BACKLOG => self.on_swarm_event(event),
                command = inputs.commands.recv() => match command {
                    None => break None,
                    Some(Command::Shutdown(done)) => break Some(done),
                    Some(command) => self.on_command(command),
                },
                Some(report) = reports.recv() => self.on_report(report),
                Some(refusal) = inputs.refusals.recv() => {
                    let Refusal { address, reason } = refusal;
                    self.inform(MeshEvent::StrangerRefused { address, reason });
                }
                Some(peer) = inputs.kicks.recv() => self.on_kick(&peer),
                Some(notice) = inputs.notices.recv() => self.on_notice(notice),
                place = events.reserve(), if !self.backlog.is_empty() => match (place, self.backlog.pop_front()) {
                    (Ok(place), Some(event)) => place.send(event),
                    (Ok(_), None) => {}
                    // The owner has dropped its end; the handle goes next.
                    (Err(_), _) => self.backlog.clear(),
                },
                _ = tick.tick() => self.on_tick(),
            }
            self.publish();
        };
        self.close(done).await;
    }

    /// Says goodbye to every peer, then ends. What is queued for peers is dropped with the peers.
    async fn close(mut self, done: Option<oneshot::Sender<()>>) {
        /// Closing is a courtesy: peers that miss it find out by themselves.
        const CLOSE_LIMIT: Duration = Duration::from_millis(300);
        self.peers.clear();
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            // It may have gone since.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let gone = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_LIMIT, gone).await;
        drop(self);
        if let Some(done) = done {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }

    /// An event that must arrive.
    fn tell(&mut self, event: MeshEvent) {
        self.backlog.push_back(event);
    }

    /// An event that may be left out while the owner is behind.
    fn inform(&mut self, event: MeshEvent) {
        if self.backlog.len() < QUIET_BACKLOG {
            self.backlog.push_back(event);
        }
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let now = self.now();
        let status = |peer: &Peer| {
            let link = peer.data.as_ref().and_then(|data| data.link.as_ref());
            let datagrams = link.and_then(|link| link.report(now));
            let refused = peer.data.as_ref().map(|data| Arc::clone(&data.ways.datagrams.refused)).unwrap_or_default();
            let (name, path) = (peer.name.clone(), peer.announced.clone());
            let (round_trip, refused_packets) = (peer.round_trip, refused.read());
            (PeerStatus { peer: name, path, datagrams, round_trip, refused_packets }, refused)
        };
        let mut peers: Vec<CountedStatus> = self.peers.values().map(status).collect();
        peers.sort_by(|(left, _), (right, _)| left.peer.cmp(&right.peer));
        self.published.peers.store(Arc::new(peers));
    }

    fn on_kick(&mut self, peer: &membership::PeerId) {
        let known = from_core(peer).and_then(|id| self.peers.get_mut(&id));
        if let Some(peer) = known.filter(|peer| peer.connections.is_empty()) {
            peer.dial.hurry(Instant::now());
        }
    }

    /// Whether this node has the lower id of the two, in DESIGN's sense.
    fn is_lower(&self, peer: &Peer) -> bool {
        self.local_name < peer.name
    }
}
