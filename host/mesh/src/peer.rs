//! What the swarm's task knows of one peer, and which of its connections is used.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_core::membership;
use libp2p::Stream;
use libp2p::swarm::ConnectionId;
use tokio::sync::mpsc;

use crate::control::Saying;
use crate::datagram_link::DatagramLink;
use crate::dial::{DialState, Link};
use crate::event::PeerPath;
use crate::lanes::Lane;
use crate::path::PeerPaths;
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

/// The connections that the peer's own newest streams are on: what it uses, whatever we would choose.
#[derive(Debug, Default)]
pub(crate) struct TheirStreams {
    /// By lane, with the serial number of the stream.
    newest: BTreeMap<Lane, (ConnectionId, u64)>,
    moved: Option<Instant>,
}

impl TheirStreams {
    /// Notes a stream of theirs. An older one than is known changes nothing.
    fn note(&mut self, lane: Lane, connection: ConnectionId, serial: u64, now: Instant) {
        let before = self.newest.get(&lane);
        if before.is_some_and(|(_, known)| *known >= serial) {
            return;
        }
        if before.is_none_or(|(known, _)| *known != connection) {
            self.moved = Some(now);
        }
        self.newest.insert(lane, (connection, serial));
    }

    /// The connection of their newest stream.
    fn latest(&self) -> Option<ConnectionId> {
        self.newest.values().max_by_key(|(_, serial)| *serial).map(|(connection, _)| *connection)
    }

    /// Whether something of theirs may still be on its way there.
    fn may_use(&self, connection: ConnectionId, now: Instant) -> bool {
        let moving = self.moved.is_some_and(|moved| now.duration_since(moved) < PRUNE_AFTER);
        moving || self.newest.values().any(|(known, _)| *known == connection)
    }
}

/// The connection to use: a direct one before a relayed one, the one that the peer leads to before others
/// (`led`, when the peer is the one that chooses), the newest before older ones, and one that has settled
/// before all others.
fn choose(connections: &[Connection], now: Instant, led: Option<ConnectionId>) -> Option<&Connection> {
    let settled =
        |connection: &&Connection| now.duration_since(connection.since) >= SETTLE || Some(connection.id) == led;
    let rank = |connection: &&Connection| (connection.is_direct(), Some(connection.id) == led, connection.since);
    let best = connections.iter().filter(settled).max_by_key(rank);
    // Among those that have not settled the oldest is the steadiest choice.
    best.or_else(|| {
        connections.iter().max_by_key(|connection| (connection.is_direct(), std::cmp::Reverse(connection.since)))
    })
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
    /// What the packet threads see of it.
    pub(crate) ways: PeerPaths,
    pub(crate) paths: mpsc::Sender<(u64, StreamPath)>,
    pub(crate) streams: mpsc::Sender<(StreamHead, Stream)>,
    /// `None` when the node has more peers than it can number.
    pub(crate) link: Option<DatagramLink>,
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
    theirs: TheirStreams,
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
            theirs: TheirStreams::default(),
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

    /// The connection to use. Of two direct ones the node with the lower id chooses (`decides`), and the
    /// other follows its streams: two ends that chose differently would have one close what the other uses.
    pub(crate) fn chosen(&self, now: Instant, decides: bool) -> Option<&Connection> {
        choose(&self.connections, now, self.theirs.latest().filter(|_| !decides))
    }

    /// The connections that nobody needs: those beside the chosen one, once it is old enough and the peer's
    /// streams have left them. Of two direct ones only the node that decides closes one.
    pub(crate) fn superfluous(&self, now: Instant, decides: bool) -> Vec<ConnectionId> {
        let Some(chosen) = self.chosen(now, decides) else { return Vec::new() };
        let old = |connection: &Connection| now.duration_since(connection.since) >= PRUNE_AFTER;
        if !old(chosen) {
            return Vec::new();
        }
        let others = self.connections.iter().filter(|other| other.id != chosen.id);
        let spare = others.filter(|other| decides || (chosen.is_direct() && !other.is_direct()));
        // A younger one may be about to be chosen.
        spare.filter(|other| old(other) && !self.theirs.may_use(other.id, now)).map(|other| other.id).collect()
    }

    /// Notes a stream that the peer opened on `connection`. Returns the connections of the process before
    /// the one that speaks, which are dead.
    pub(crate) fn note_head(
        &mut self,
        connection: ConnectionId,
        lane: Lane,
        head: StreamHead,
        now: Instant,
    ) -> Vec<ConnectionId> {
        let before = self.session.replace(head.session);
        let restarted = before.is_some_and(|before| before != head.session);
        if restarted {
            self.theirs = TheirStreams::default();
        }
        self.theirs.note(lane, connection, head.serial, now);
        if !restarted {
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

    fn peer(connections: Vec<Connection>) -> Peer {
        let mut peer = Peer::new(membership::PeerId("peer".into()), None, Instant::now());
        peer.connections = connections;
        peer
    }

    fn chosen(peer: &Peer, now: Instant, decides: bool) -> Option<ConnectionId> {
        peer.chosen(now, decides).map(|connection| connection.id)
    }

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    fn head(session: u64, serial: u64) -> StreamHead {
        StreamHead { session, serial }
    }

    #[test]
    fn the_newest_settled_direct_connection_is_used() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(chosen(&peer(vec![]), start, true), None);
        let both = vec![connection(1, false, at(0)), connection(2, true, at(1000))];
        assert_eq!(chosen(&peer(both[..1].to_vec()), at(0), true), Some(id(1)));
        let both = peer(both);
        assert_eq!(chosen(&both, at(1000), true), Some(id(1)));
        assert_eq!(chosen(&both, at(1300), true), Some(id(2)));
        let crossed = peer(vec![connection(1, true, at(0)), connection(2, true, at(10))]);
        assert_eq!(chosen(&crossed, at(20), true), Some(id(1)));
        assert_eq!(chosen(&crossed, at(400), true), Some(id(2)));
    }

    #[test]
    fn the_node_that_does_not_decide_follows_the_streams_of_the_one_that_does() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut crossed = peer(vec![connection(1, true, at(0)), connection(2, true, at(10))]);
        assert_eq!(chosen(&crossed, at(400), false), Some(id(2)));
        crossed.note_head(id(1), Lane::Data, head(7, 3), at(400));
        assert_eq!(chosen(&crossed, at(400), false), Some(id(1)));
        assert_eq!(chosen(&crossed, at(400), true), Some(id(2)));
        // A stream that was overtaken leads nowhere, and neither does one on a relayed connection.
        crossed.note_head(id(2), Lane::Data, head(7, 2), at(500));
        assert_eq!(chosen(&crossed, at(500), false), Some(id(1)));
        let mut both = peer(vec![connection(1, false, at(0)), connection(2, true, at(10))]);
        both.note_head(id(1), Lane::Data, head(7, 3), at(400));
        assert_eq!(chosen(&both, at(400), false), Some(id(2)));
    }

    #[test]
    fn spare_connections_go_when_the_used_one_is_old_enough() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let both = peer(vec![connection(1, false, at(0)), connection(2, true, at(1000))]);
        assert_eq!(both.superfluous(at(3999), false), []);
        assert_eq!(both.superfluous(at(4000), false), [id(1)]);
        let crossed = peer(vec![connection(1, true, at(0)), connection(2, true, at(10))]);
        assert_eq!(crossed.superfluous(at(5000), false), []);
        assert_eq!(crossed.superfluous(at(5000), true), [id(1)]);
    }

    #[test]
    fn a_connection_stays_while_the_peer_s_streams_are_on_it_and_a_while_after() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut crossed = peer(vec![connection(1, true, at(0)), connection(2, true, at(10))]);
        crossed.note_head(id(1), Lane::Control, head(7, 1), at(20));
        crossed.note_head(id(1), Lane::Data, head(7, 2), at(20));
        assert_eq!(crossed.superfluous(at(9000), true), []);
        crossed.note_head(id(2), Lane::Data, head(7, 3), at(9000));
        assert_eq!(crossed.superfluous(at(15_000), true), []);
        crossed.note_head(id(2), Lane::Control, head(7, 4), at(15_000));
        assert_eq!(crossed.superfluous(at(17_999), true), []);
        assert_eq!(crossed.superfluous(at(18_000), true), [id(1)]);
    }

    #[test]
    fn a_restarted_peer_takes_its_old_connections_along() {
        let start = Instant::now();
        let mut peer = peer(vec![connection(1, true, start), connection(2, true, start + Duration::from_secs(1))]);
        assert_eq!(peer.note_head(id(1), Lane::Data, head(7, 9), start), []);
        assert_eq!(peer.note_head(id(2), Lane::Data, head(7, 10), start), []);
        // Another process counts its streams anew.
        assert_eq!(peer.note_head(id(2), Lane::Data, head(8, 1), start), [id(1)]);
        assert_eq!(peer.theirs.latest(), Some(id(2)));
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
