//! What the swarm's task knows of one peer, and which of its connections is used.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_core::membership;
use libp2p::Stream;
use libp2p::swarm::ConnectionId;
use tokio::sync::mpsc;

use crate::control::Saying;
use crate::counters::Count;
use crate::dial::{DialState, Link};
use crate::event::PeerPath;
use crate::path::PathQueue;
use crate::stream_head::StreamHead;
use crate::stream_path::StreamPath;

/// A connection is used once it has lived this long, unless there is none better: the second of two
/// dials that crossed may be closed at once.
const SETTLE: Duration = Duration::from_millis(300);

/// A connection that is not used is closed when the used one is this old: streams have moved by then.
const PRUNE_AFTER: Duration = Duration::from_secs(3);

/// Addresses of one peer that are dialed. A node has a few; a hostile record may have thousands.
const MAX_ADDRESSES: usize = 8;

/// The first and the longest pause before a broken stream is opened again.
const FIRST_REOPEN: Duration = Duration::from_millis(100);
const LONGEST_REOPEN: Duration = Duration::from_secs(2);

/// A stream that lived this long was good: the next failure is the first again.
const GOOD_STREAM: Duration = Duration::from_secs(5);

/// A connection to a peer.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) path: PeerPath,
    /// The other end in libp2p's form, as it was dialed or seen.
    pub(crate) remote: libp2p::Multiaddr,
    pub(crate) since: Instant,
}

impl Connection {
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.path, PeerPath::Direct { .. })
    }
}

/// The connection to use: a direct one before a relayed one, the newest before older ones, and one
/// that has settled before all others.
pub(crate) fn choose(connections: &[Connection], now: Instant) -> Option<&Connection> {
    let settled = |connection: &&Connection| now.duration_since(connection.since) >= SETTLE;
    let best = connections.iter().filter(settled).max_by_key(|connection| (connection.is_direct(), connection.since));
    // Among those that have not settled the oldest is the steadiest choice.
    best.or_else(|| {
        connections.iter().max_by_key(|connection| (connection.is_direct(), std::cmp::Reverse(connection.since)))
    })
}

/// The connections that nobody needs: those beside the chosen one, once it is old enough.
///
/// Of two direct ones only the peer with the lower id closes one (`decides`), since the two ends may
/// have chosen differently.
pub(crate) fn superfluous(connections: &[Connection], now: Instant, decides: bool) -> Vec<ConnectionId> {
    let Some(chosen) = choose(connections, now) else { return Vec::new() };
    if now.duration_since(chosen.since) < PRUNE_AFTER {
        return Vec::new();
    }
    let others = connections.iter().filter(|other| other.id != chosen.id);
    let spare = others.filter(|other| decides || (chosen.is_direct() && !other.is_direct()));
    // A younger one may be about to be chosen.
    spare.filter(|other| now.duration_since(other.since) >= PRUNE_AFTER).map(|other| other.id).collect()
}

/// One kind of stream to a peer: where it is open, or being opened.
#[derive(Debug)]
pub(crate) struct LaneSlot {
    current: Option<(ConnectionId, u64, Instant)>,
    opening: Option<ConnectionId>,
    retry_at: Instant,
    failures: u32,
}

impl LaneSlot {
    fn new(now: Instant) -> Self {
        Self { current: None, opening: None, retry_at: now, failures: 0 }
    }

    /// Whether a stream must be opened on the chosen connection; it counts as being opened then.
    pub(crate) fn must_open(&mut self, chosen: ConnectionId, now: Instant) -> bool {
        let there = self.current.is_some_and(|(connection, ..)| connection == chosen);
        if there || self.opening == Some(chosen) || now < self.retry_at {
            return false;
        }
        self.opening = Some(chosen);
        true
    }

    /// A stream was opened; false when it is not wanted any more.
    pub(crate) fn opened(&mut self, connection: ConnectionId, serial: u64, now: Instant) -> bool {
        if self.opening != Some(connection) {
            return false;
        }
        self.opening = None;
        self.current = Some((connection, serial, now));
        true
    }

    /// A stream could not be opened.
    pub(crate) fn failed(&mut self, connection: ConnectionId, now: Instant) {
        if self.opening == Some(connection) {
            self.opening = None;
            self.pause(now);
        }
    }

    /// The stream with that serial number ended; false when another one is in use already.
    pub(crate) fn ended(&mut self, serial: u64, now: Instant) -> bool {
        let Some((_, _, since)) = self.current.take_if(|(_, current, _)| *current == serial) else { return false };
        if now.duration_since(since) >= GOOD_STREAM {
            self.failures = 0;
        }
        self.pause(now);
        true
    }

    /// A connection closed; true when the stream in use was on it.
    pub(crate) fn closed(&mut self, connection: ConnectionId, now: Instant) -> bool {
        if self.opening == Some(connection) {
            self.opening = None;
        }
        let was_current = self.current.take_if(|(current, ..)| *current == connection).is_some();
        if was_current {
            (self.retry_at, self.failures) = (now, 0);
        }
        was_current
    }

    fn pause(&mut self, now: Instant) {
        self.retry_at = now + FIRST_REOPEN.saturating_mul(1 << self.failures.min(8)).min(LONGEST_REOPEN);
        self.failures = self.failures.saturating_add(1);
    }
}

/// The ends of a peer's data path that the swarm's task holds.
pub(crate) struct DataEnds {
    pub(crate) queue: Arc<PathQueue>,
    pub(crate) paths: mpsc::Sender<(u64, StreamPath)>,
    pub(crate) streams: mpsc::Sender<(StreamHead, Stream)>,
    /// Packets from the peer that failed the source or destination check.
    pub(crate) refused: Arc<Count>,
}

/// A peer.
pub(crate) struct Peer {
    pub(crate) name: membership::PeerId,
    /// Where it is wanted to be reached, when a connection to it is wanted.
    pub(crate) wanted: Option<Vec<SocketAddr>>,
    /// Its addresses as a relay, when it is one of the configured relays.
    pub(crate) relay: Option<Vec<SocketAddr>>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) dial: DialState,
    pub(crate) control: LaneSlot,
    pub(crate) sayings: Option<mpsc::Sender<Saying>>,
    /// Said while the control stream was being opened.
    pub(crate) unsent: VecDeque<Saying>,
    pub(crate) data_lane: LaneSlot,
    /// `None` on a node without a TUN.
    pub(crate) data: Option<DataEnds>,
    /// Inbound streams whose head has not been read.
    pub(crate) heads_pending: usize,
    /// Inbound control streams.
    pub(crate) hearing: usize,
    /// The peer's process, as its streams tell.
    pub(crate) session: Option<u64>,
    pub(crate) round_trip: Option<Duration>,
    /// The path that was told last.
    pub(crate) announced: Option<PeerPath>,
}

impl Peer {
    pub(crate) fn new(name: membership::PeerId, data: Option<DataEnds>, now: Instant) -> Self {
        Self {
            name,
            wanted: None,
            relay: None,
            connections: Vec::new(),
            dial: DialState::new(now),
            control: LaneSlot::new(now),
            sayings: None,
            unsent: VecDeque::new(),
            data_lane: LaneSlot::new(now),
            data,
            heads_pending: 0,
            hearing: 0,
            session: None,
            round_trip: None,
            announced: None,
        }
    }

    /// Whether the mesh should keep a connection to it.
    pub(crate) fn is_kept(&self) -> bool {
        self.wanted.is_some() || self.relay.is_some()
    }

    /// Where to dial it, none twice.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in self.wanted.iter().chain(&self.relay).flatten() {
            if !addresses.contains(address) && addresses.len() < MAX_ADDRESSES {
                addresses.push(*address);
            }
        }
        addresses
    }

    pub(crate) fn link(&self) -> Link {
        if self.connections.iter().any(Connection::is_direct) {
            Link::Direct
        } else if self.connections.is_empty() {
            Link::Apart
        } else {
            Link::Relayed
        }
    }

    /// A direct connection, the newest.
    pub(crate) fn direct(&self) -> Option<&Connection> {
        self.connections.iter().filter(|connection| connection.is_direct()).max_by_key(|connection| connection.since)
    }

    /// Notes the process that opened a stream on `connection`. Returns the connections of the
    /// process before it, which are dead.
    pub(crate) fn note_session(&mut self, connection: ConnectionId, session: u64) -> Vec<ConnectionId> {
        if self.session.replace(session).is_none_or(|before| before == session) {
            return Vec::new();
        }
        let Some(since) = self.connections.iter().find(|known| known.id == connection).map(|known| known.since) else {
            return Vec::new();
        };
        self.connections.iter().filter(|known| known.since < since).map(|known| known.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: usize, direct: bool, since: Instant) -> Connection {
        let path = if direct {
            PeerPath::Direct { remote: "192.0.2.1:1".parse().unwrap() }
        } else {
            PeerPath::Relayed { relay: membership::PeerId("relay".into()) }
        };
        Connection { id: ConnectionId::new_unchecked(id), path, remote: libp2p::Multiaddr::empty(), since }
    }

    fn chosen(connections: &[Connection], now: Instant) -> Option<ConnectionId> {
        choose(connections, now).map(|connection| connection.id)
    }

    fn id(number: usize) -> Option<ConnectionId> {
        Some(ConnectionId::new_unchecked(number))
    }

    #[test]
    fn the_newest_settled_direct_connection_is_used() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(chosen(&[], start), None);
        let both = [connection(1, false, at(0)), connection(2, true, at(1000))];
        assert_eq!(chosen(&both[..1], at(0)), id(1));
        assert_eq!(chosen(&both, at(1000)), id(1));
        assert_eq!(chosen(&both, at(1300)), id(2));
        let crossed = [connection(1, true, at(0)), connection(2, true, at(10))];
        assert_eq!(chosen(&crossed, at(20)), id(1));
        assert_eq!(chosen(&crossed, at(400)), id(2));
    }

    #[test]
    fn spare_connections_go_when_the_used_one_is_old_enough() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let both = [connection(1, false, at(0)), connection(2, true, at(1000))];
        assert_eq!(superfluous(&both, at(3999), false), []);
        assert_eq!(superfluous(&both, at(4000), false), [ConnectionId::new_unchecked(1)]);
        let crossed = [connection(1, true, at(0)), connection(2, true, at(10))];
        assert_eq!(superfluous(&crossed, at(5000), false), []);
        assert_eq!(superfluous(&crossed, at(5000), true), [ConnectionId::new_unchecked(1)]);
    }

    #[test]
    fn a_restarted_peer_takes_its_old_connections_along() {
        let start = Instant::now();
        let mut peer = Peer::new(membership::PeerId("peer".into()), None, start);
        peer.connections = vec![connection(1, true, start), connection(2, true, start + Duration::from_secs(1))];
        assert_eq!(peer.note_session(ConnectionId::new_unchecked(1), 7), []);
        assert_eq!(peer.note_session(ConnectionId::new_unchecked(2), 7), []);
        assert_eq!(peer.note_session(ConnectionId::new_unchecked(2), 8), [ConnectionId::new_unchecked(1)]);
    }

    #[test]
    fn a_lane_is_opened_once_and_again_after_growing_pauses() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let (one, two) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        let mut lane = LaneSlot::new(start);
        assert!(lane.must_open(one, start));
        assert!(!lane.must_open(one, start));
        lane.failed(one, start);
        assert!(!lane.must_open(one, at(99)));
        assert!(lane.must_open(one, at(100)));
        assert!(lane.opened(one, 5, at(100)));
        assert!(!lane.must_open(one, at(100)));
        assert!(lane.must_open(two, at(100)));
        assert!(lane.opened(two, 6, at(110)));
        assert!(!lane.ended(5, at(120)));
        assert!(lane.ended(6, at(120)));
        assert!(!lane.must_open(two, at(319)));
        assert!(lane.must_open(two, at(320)));
    }

    #[test]
    fn addresses_are_dialed_once_each_and_not_too_many() {
        let mut peer = Peer::new(membership::PeerId("peer".into()), None, Instant::now());
        let socket = |port| SocketAddr::from(([192, 0, 2, 1], port));
        peer.wanted = Some((1..=20).map(socket).collect());
        peer.relay = Some(vec![socket(1)]);
        assert_eq!(peer.addresses(), (1..=8).map(socket).collect::<Vec<_>>());
    }
}
