//! What the mesh tells its owner.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_core::membership::PeerId;
use culvert_core::path::Endpoint;
use tokio::sync::oneshot;

use crate::message::{Answer, Ask};
use crate::record::CountersignedRecord;

/// How a peer is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerPath {
    /// By a connection of its own.
    Direct {
        /// The other end, as seen from here.
        remote: SocketAddr,
    },
    /// By a circuit through a relay, which cannot read it.
    Relayed {
        /// The relay.
        relay: PeerId,
    },
}

/// How datagrams reach a peer now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatagramStatus {
    /// Where they are sent.
    pub endpoint: Endpoint,
    /// The smoothed round trip of the path's probes.
    pub round_trip: Option<Duration>,
    /// Probes without an answer. **Units** per thousand.
    pub loss_permille: u32,
    /// The largest packet inside a datagram. **Units** bytes.
    pub mtu_bytes: usize,
}

/// A peer as the mesh knows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub peer: PeerId,
    /// The path its messages take, and its packets while no datagrams reach it; `None` while it is not connected.
    pub path: Option<PeerPath>,
    /// How datagrams with packets reach it; `None` while the stream carries them.
    pub datagrams: Option<DatagramStatus>,
    /// The last round trip measured on that path.
    pub round_trip: Option<Duration>,
    /// Packets from it that failed the source or destination check since it was first seen.
    pub refused_packets: u64,
}

/// Something happened.
#[derive(Debug)]
pub enum MeshEvent {
    /// A peer that was not connected is now.
    Connected {
        /// The peer.
        peer: PeerId,
        /// How.
        path: PeerPath,
    },
    /// A connected peer is reached by another path now.
    PathChanged {
        /// The peer.
        peer: PeerId,
        /// The path in use.
        path: PeerPath,
    },
    /// The last connection to a peer is gone. The mesh dials it again while it is wanted.
    Disconnected {
        /// The peer.
        peer: PeerId,
    },
    /// A peer passes on records. None is verified yet.
    Told {
        /// Who told.
        from: PeerId,
        /// The records.
        records: Vec<CountersignedRecord>,
    },
    /// A peer asks. Dropping `reply` refuses.
    Asked {
        /// Who asks.
        from: PeerId,
        /// What.
        ask: Ask,
        /// Where the answer goes, within 10 s.
        reply: oneshot::Sender<Answer>,
    },
    /// Others can reach this node through the relay.
    RelayReady {
        /// The relay's node name.
        node_name: String,
        /// The relay.
        peer: PeerId,
    },
    /// A relay without a pinned identity showed one. Keep it as the relay's pinned identity from now on.
    RelayIdentified {
        /// The relay's node name.
        node_name: String,
        /// Its identity.
        peer: PeerId,
    },
    /// Somebody else answers at the address of a relay whose identity is pinned. Nothing is sent there.
    RelayRefused {
        /// The relay's node name.
        node_name: String,
        /// The pinned identity.
        expected: PeerId,
        /// The one that answered.
        found: PeerId,
    },
    /// A relay cannot be reached, told once until it could be. The mesh keeps trying.
    RelayUnreachable {
        /// The relay's node name.
        node_name: String,
        /// The last attempt's fault.
        reason: String,
    },
    /// This node is one of the configured relays itself.
    RelayIsSelf {
        /// The relay's node name.
        node_name: String,
    },
    /// A connection that proved no pre-shared key was ended. When many come at once some are only counted.
    StrangerRefused {
        /// Where it came from.
        address: String,
        /// What it lacked.
        reason: String,
    },
    /// A round trip to a peer was measured. Left out while the owner is behind with its events.
    RoundTrip {
        /// The peer.
        peer: PeerId,
        /// How long.
        round_trip: Duration,
    },
    /// One of the listening addresses could not be used; others are.
    ListenFailed {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
}
