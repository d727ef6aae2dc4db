//! What a mesh is started with.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use culvert_core::membership::PeerId;

use crate::identity::NodeKey;
use crate::pre_shared_key::PreSharedKeys;

/// What a mesh is started with.
#[derive(Debug)]
pub struct MeshConfig {
    /// The node's identity.
    pub key: NodeKey,
    /// The keys that let nodes in.
    pub pre_shared_keys: PreSharedKeys,
    /// UDP for QUIC and TCP for Noise, IPv4 and IPv6, on all addresses. 0 lets the system choose,
    /// each of the four differently.
    pub listen_port: u16,
    /// UDP for datagrams with packets, on all addresses. 0 lets the system choose. Not used without a TUN.
    pub data_port: u16,
    /// Whether packets may travel as datagrams. Otherwise streams carry them all.
    pub carry_datagrams: bool,
    /// The relays, the keeper first. This node may be one of them.
    pub relays: Vec<RelayAddress>,
    /// Whether this node relays for others.
    pub serve_relay: bool,
    /// Every bound.
    pub limits: MeshLimits,
}

/// The TUN that a mesh serves.
#[derive(Debug)]
pub struct TunDevice {
    /// A descriptor for each queue. **Bounds** 1 to 64.
    pub queues: Vec<OwnedFd>,
    /// Whether the device takes UDP super-packets.
    pub takes_udp: bool,
}

/// A configured relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayAddress {
    /// The relay's node name.
    pub node_name: String,
    /// Where it can be reached: `IP`, `IP:port`, `[IPv6]:port` or `host:port`, port 20006 unless given.
    pub addresses: Vec<String>,
    /// Its identity, when it is known. Otherwise the first identity that answers and proves a
    /// pre-shared key is taken, and told by `MeshEvent::RelayIdentified`.
    pub peer: Option<PeerId>,
}

/// A peer that a connection should be kept to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEndpoint {
    /// The peer.
    pub peer: PeerId,
    /// Its addresses, preferred first; may be empty, then only a circuit is dialed. **Bounds** the
    /// first 8 are used.
    pub addresses: Vec<SocketAddr>,
}

/// Every bound of a mesh. What each default is chosen for stands beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshLimits {
    /// Incoming connections that have not proved a key yet. One more is refused. Default 256: a
    /// hundred edges that come back at once, and strangers beside them.
    pub pending_incoming: u32,
    /// Outgoing connections under way. Default 1,024: a round of dials to a hundred peers with eight addresses.
    pub pending_outgoing: u32,
    /// Connections to one peer. Default 8: direct and relayed, doubled while both ends dial at once, and again.
    pub connections_per_peer: u32,
    /// Connections in all. Default 2,048: a relay of a thousand nodes.
    pub connections: u32,
    /// Reservations on this relay. Default 1,024.
    pub relay_reservations: usize,
    /// Reservations of one peer. Default 4: a new connection while an old one times out.
    pub relay_reservations_per_peer: usize,
    /// How long a reservation holds before it is renewed. Default 1 h.
    pub relay_reservation_duration: Duration,
    /// Reservations asked for by one peer in a minute. Default 60.
    pub relay_reservations_per_peer_minute: u32,
    /// Reservations asked for from one address in a minute. Default 6,000: a hundred edges behind one NAT.
    pub relay_reservations_per_address_minute: u32,
    /// Circuits through this relay. Default 4,096.
    pub relay_circuits: usize,
    /// Circuits of one peer. Default 256: the peers of an edge that sees everybody through this relay.
    pub relay_circuits_per_peer: usize,
    /// Circuits asked for by one peer in a minute. Default 600: redials with back-off to a hundred peers.
    pub relay_circuits_per_peer_minute: u32,
    /// Circuits asked for from one address in a minute. Default 60,000.
    pub relay_circuits_per_address_minute: u32,
    /// How long a circuit lives; it is redialed then. Default 365 days. **Bounds** below 2^32 s.
    pub relay_circuit_duration: Duration,
    /// **Units** bytes a circuit may carry; 0 is no limit, the default, since packets travel on circuits.
    pub relay_circuit_bytes: u64,
    /// **Units** bytes a second that one end of a relayed pair may send as datagrams. Default 125,000,000: 1 Gbit/s.
    pub relay_datagram_bytes_per_second: u64,
    /// Pairs of one peer for which datagrams are relayed. Default 256, as circuits.
    pub relay_datagram_pairs_per_peer: usize,
    /// Events that wait for the owner. When they are full, peers' messages wait, and events about
    /// strangers and round trips are left out. Default 1,024.
    pub events: usize,
}

impl Default for MeshLimits {
    fn default() -> Self {
        Self {
            pending_incoming: 256,
            pending_outgoing: 1024,
            connections_per_peer: 8,
            connections: 2048,
            relay_reservations: 1024,
            relay_reservations_per_peer: 4,
            relay_reservation_duration: Duration::from_secs(3600),
            relay_reservations_per_peer_minute: 60,
            relay_reservations_per_address_minute: 6000,
            relay_circuits: 4096,
            relay_circuits_per_peer: 256,
            relay_circuits_per_peer_minute: 600,
            relay_circuits_per_address_minute: 60_000,
            relay_circuit_duration: Duration::from_secs(365 * 24 * 3600),
            relay_circuit_bytes: 0,
            relay_datagram_bytes_per_second: 125_000_000,
            relay_datagram_pairs_per_peer: 256,
            events: 1024,
        }
    }
}
