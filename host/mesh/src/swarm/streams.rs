//! The streams of each peer: opens ours on the connection in use, takes the peer's, and starts the
//! tasks that speak, hear, feed and receive on them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use culvert_datagram::agreement::Agreement;
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, Stream};
use tokio::sync::mpsc;

use super::{Mesh, Report};
use crate::control::{self, ControlContext};
use crate::counters::Count;
use crate::datagram::DatagramPeer;
use crate::datagram_link::DatagramLink;
use crate::event::MeshEvent;
use crate::identity::to_core;
use crate::lanes::{Lane, LaneEvent};
use crate::path::{FeedContext, PathQueue, PeerPaths, WAITING_PATHS, feed};
use crate::peer::{DataEnds, Peer};
use crate::receive::{ReceiveContext, receive};
use crate::stream_head::StreamHead;
use crate::stream_path::StreamPath;

/// Things to say that wait for one peer's control stream.
const MAX_SAYINGS: usize = 64;

/// Inbound streams of one peer whose head has not come, and inbound control streams of one peer: one
/// is normal, two while it moves, four leave room. More are reset and counted.
const MAX_HEADS: usize = 8;
const MAX_HEARING: usize = 4;

/// Inbound data streams that wait to follow the one being read.
const MAX_FOLLOWING: usize = 4;

impl Mesh {
    /// The peer's entry, made when there is none.
    pub(crate) fn peer_entry(&mut self, id: PeerId, now: Instant) -> &mut Peer {
        if !self.peers.contains_key(&id) {
            let data = self.start_data(id);
            if let (Some(tun), Some(data)) = (&self.tun, &data) {
                let mut rings = BTreeMap::clone(&tun.directory.load());
                rings.insert(to_core(&id), data.ways.clone());
                tun.directory.store(Arc::new(rings));
            }
            self.peers.insert(id, Peer::new(to_core(&id), data, now));
            self.changed = true;
        }
        self.peers.entry(id).or_insert_with(|| Peer::new(to_core(&id), None, now))
    }

    /// Drops a peer that is neither connected nor wanted.
    pub(super) fn forget_if_useless(&mut self, id: PeerId) {
        if self.peers.get(&id).is_none_or(|peer| peer.is_kept() || !peer.connections.is_empty()) {
            return;
        }
        let link = self.peers.remove(&id).and_then(|peer| peer.data).and_then(|data| data.link);
        self.changed = true;
        if let Some(tun) = &self.tun {
            if let Some(link) = link {
                tun.datagrams.forget(link.receiver());
            }
            let mut rings = BTreeMap::clone(&tun.directory.load());
            rings.remove(&to_core(&id));
            tun.directory.store(Arc::new(rings));
        }
    }

    /// Starts the two packet tasks of a peer. They end when their channels do, with the peer's entry.
    fn start_data(&self, id: PeerId) -> Option<DataEnds> {
        let tun = self.tun.as_ref()?;
        let (queue, batches) = PathQueue::new();
        let (paths, next_path) = mpsc::channel(WAITING_PATHS);
        let (streams, next_stream) = mpsc::channel(MAX_FOLLOWING);
        let counters = Arc::clone(&self.published.counters);
        let context =
            FeedContext { queue: Arc::clone(&queue), pool: Arc::clone(&tun.pool), counters: Arc::clone(&counters) };
        let reports = self.reports.clone();
        tokio::spawn(feed(context, batches, next_path, move |serial| {
            let reports = reports.clone();
            async move {
                // The mesh may be gone.
                let _ = reports.send(Report::LaneEnded { peer: id, lane: Lane::Data, serial }).await;
            }
        }));
        let (table, pool, to_tun) = (Arc::clone(&tun.table), Arc::clone(&tun.pool), tun.to_tun.clone());
        let refused = Arc::<Count>::default();
        let context =
            ReceiveContext { peer: to_core(&id), table, pool, to_tun, counters, refused: Arc::clone(&refused) };
        tokio::spawn(receive(context, next_stream));
        let datagrams = DatagramPeer::new(to_core(&id), refused);
        let link = self.start_link(id, &datagrams);
        Some(DataEnds { ways: PeerPaths { ring: queue, datagrams }, paths, streams, link })
    }

    fn start_link(&self, id: PeerId, peer: &Arc<DatagramPeer>) -> Option<DatagramLink> {
        let mut random = [0; 4];
        // Without randomness numbers of peers that went are given out again sooner, which costs nothing but time.
        let _ = getrandom::fill(&mut random);
        let receiver = self.tun.as_ref()?.datagrams.number(Arc::clone(peer), u32::from_ne_bytes(random))?;
        let agreement =
            Agreement::new(self.local_name.clone(), to_core(&id), receiver, Arc::clone(self.terms.as_ref()?));
        Some(DatagramLink::new(Arc::clone(peer), agreement))
    }

    /// Announces the connection in use and opens our streams on it.
    pub(super) fn tend_streams(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        let Some(chosen) = peer.chosen(now, self.is_lower(peer)) else { return };
        let (connection, path) = (chosen.id, chosen.path.clone());
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let control = peer.control.must_open(connection, now);
        let data = peer.data.is_some() && peer.data_lane.must_open(connection, now);
        let before = (peer.announced.as_ref() != Some(&path)).then(|| peer.announced.replace(path.clone()));
        if control {
            self.swarm.behaviour_mut().lanes.open(id, connection, Lane::Control);
        }
        if data {
            self.swarm.behaviour_mut().lanes.open(id, connection, Lane::Data);
        }
        if let Some(before) = before {
            self.changed = true;
            let peer = to_core(&id);
            self.tell(match before {
                None => MeshEvent::Connected { peer, path },
                Some(_) => MeshEvent::PathChanged { peer, path },
            });
        }
    }

    pub(super) fn on_lane_event(&mut self, id: PeerId, connection: ConnectionId, event: LaneEvent) {
        let now = Instant::now();
        match event {
            LaneEvent::Inbound(lane, stream) => self.on_inbound(id, connection, lane, stream),
            LaneEvent::Opened(lane, stream) => self.on_opened(id, connection, lane, stream),
            LaneEvent::Failed(lane, error) => {
                tracing::debug!(peer = %id, ?lane, error, "a stream could not be opened");
                let Some(peer) = self.peers.get_mut(&id) else { return };
                match lane {
                    Lane::Control => peer.control.failed(connection, now),
                    Lane::Data => peer.data_lane.failed(connection, now),
                }
            }
        }
    }

    fn on_opened(&mut self, id: PeerId, connection: ConnectionId, lane: Lane, stream: Stream) {
        self.serial += 1;
        let head = StreamHead { session: self.session, serial: self.serial };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let slot = match lane {
            Lane::Control => &mut peer.control,
            Lane::Data => &mut peer.data_lane,
        };
        if !slot.opened(connection, head.serial, Instant::now()) {
            return;
        }
        match lane {
            Lane::Control => self.speak(id, stream, head),
            Lane::Data => self.use_path(id, stream, head),
        }
    }

    /// Speaks on a new control stream of ours. The one before takes the answers that are due, and ends.
    fn speak(&mut self, id: PeerId, stream: Stream, head: StreamHead) {
        let context = self.control_context(id);
        let reports = self.reports.clone();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let (sayings, next) = mpsc::channel(MAX_SAYINGS);
        for saying in peer.unsent.drain(..) {
            // As many wait as the fresh channel takes; dropping one tells its waiter.
            let _ = sayings.try_send(saying);
        }
        peer.sayings = Some(sayings);
        tokio::spawn(async move {
            if let Err(error) = control::speak(context, stream, head, next).await {
                tracing::debug!(peer = %id, %error, "a control stream ended");
            }
            // The mesh may be gone.
            let _ = reports.send(Report::LaneEnded { peer: id, lane: Lane::Control, serial: head.serial }).await;
        });
    }

    /// Lets packets take a new data stream of ours, once its head is sent.
    fn use_path(&mut self, id: PeerId, mut stream: Stream, head: StreamHead) {
        let Some(data) = self.peers.get(&id).and_then(|peer| peer.data.as_ref()) else { return };
        let (paths, reports) = (data.paths.clone(), self.reports.clone());
        tokio::spawn(async move {
            let sent = head.write(&mut stream).await;
            let used = sent.is_ok() && paths.send((head.serial, StreamPath::new(stream))).await.is_ok();
            if !used {
                // The mesh may be gone.
                let _ = reports.send(Report::LaneEnded { peer: id, lane: Lane::Data, serial: head.serial }).await;
            }
        });
    }

    fn on_inbound(&mut self, id: PeerId, connection: ConnectionId, lane: Lane, mut stream: Stream) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.heads_pending < MAX_HEADS) else {
            self.published.counters.streams_refused.add(1);
            return;
        };
        peer.heads_pending += 1;
        let reports = self.reports.clone();
        tokio::spawn(async move {
            let outcome = StreamHead::read(&mut stream).await.map(|head| (head, stream));
            // The mesh may be gone.
            let _ = reports.send(Report::Head { peer: id, connection, lane, outcome }).await;
        });
    }

    pub(super) fn on_report(&mut self, report: Report) {
        match report {
            Report::LaneEnded { peer: id, lane, serial } => self.on_lane_ended(id, lane, serial),
            Report::Head { peer, connection, lane, outcome } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.heads_pending = peer.heads_pending.saturating_sub(1);
                }
                match outcome {
                    Ok((head, stream)) => self.on_head(peer, connection, (lane, head), stream),
                    Err(error) => tracing::debug!(%peer, ?lane, %error, "an inbound stream had no head"),
                }
            }
            Report::HearingEnded { peer } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.hearing = peer.hearing.saturating_sub(1);
                }
            }
            Report::DataAsked { peer, ask, reply } => self.on_data_asked(peer, ask, reply),
            Report::DataAnswered { peer, topic, outcome } => self.on_data_answered(peer, topic, outcome),
            Report::Resolved { relay, found } => self.on_resolved(relay, found),
        }
    }

    fn on_lane_ended(&mut self, id: PeerId, lane: Lane, serial: u64) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match lane {
            Lane::Control => {
                if peer.control.ended(serial, now) {
                    peer.sayings = None;
                }
            }
            Lane::Data => {
                peer.data_lane.ended(serial, now);
            }
        }
    }

    fn on_head(&mut self, id: PeerId, connection: ConnectionId, (lane, head): (Lane, StreamHead), stream: Stream) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let before = peer.session;
        let dead = peer.note_head(connection, lane, head, now);
        if before.is_some_and(|before| before != head.session) {
            self.on_peer_restarted(id);
        }
        for dead in dead {
            tracing::info!(peer = %id, connection = %dead, "the peer restarted; closing its old connection");
            self.swarm.close_connection(dead);
        }
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let taken = match lane {
            Lane::Control if peer.hearing < MAX_HEARING => {
                peer.hearing += 1;
                self.hear(id, stream);
                true
            }
            Lane::Control => false,
            Lane::Data => peer.data.as_ref().is_some_and(|data| data.streams.try_send((head, stream)).is_ok()),
        };
        if !taken {
            self.published.counters.streams_refused.add(1);
        }
    }

    fn hear(&self, id: PeerId, stream: Stream) {
        let context = self.control_context(id);
        let reports = self.reports.clone();
        tokio::spawn(async move {
            if let Err(error) = control::hear(context, stream).await {
                tracing::debug!(peer = %id, %error, "a peer's control stream ended");
            }
            // The mesh may be gone.
            let _ = reports.send(Report::HearingEnded { peer: id }).await;
        });
    }

    fn control_context(&self, id: PeerId) -> ControlContext {
        let counters = Arc::clone(&self.published.counters);
        let (events, reports) = (self.events.clone(), self.reports.clone());
        ControlContext { peer: to_core(&id), id, events, reports, counters }
    }
}
