//! The protocols of a node, each with every limit written out.

use std::num::NonZeroU32;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{identify, ping, relay};

use crate::config::MeshLimits;
use crate::lanes::Lanes;

/// A half-open connection is found within two of these.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Longer than any path's round trip, shorter than the interval.
const PING_LIMIT: Duration = Duration::from_secs(4);

/// Identify is needed once a connection; the repetition only carries changed addresses.
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(3600);

/// All protocols.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub(crate) struct Behaviour {
    /// First, so that it refuses before others count.
    pub(crate) limits: connection_limits::Behaviour,
    pub(crate) lanes: Lanes,
    pub(crate) ping: ping::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) relay_client: relay::client::Behaviour,
    pub(crate) relay_server: Toggle<relay::Behaviour>,
}

/// The protocols of a node with this key; a relay also serves others.
pub(crate) fn behaviour(
    key: &Keypair,
    relay_client: relay::client::Behaviour,
    serve_relay: bool,
    limits: &MeshLimits,
) -> Behaviour {
    let local = key.public().to_peer_id();
    let server = serve_relay.then(|| {
        let mut server = relay::Behaviour::new(local, relay_config(limits));
        // Not only once an address is confirmed from outside: the operator said that this is a relay.
        server.set_status(Some(relay::Status::Enable));
        server
    });
    Behaviour {
        limits: connection_limits::Behaviour::new(connection_limits(limits)),
        lanes: Lanes::default(),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_LIMIT)),
        identify: identify::Behaviour::new(
            identify::Config::new("/culvert/1".to_owned(), key.public())
                .with_agent_version(concat!("culvert/", env!("CARGO_PKG_VERSION")).to_owned())
                .with_interval(IDENTIFY_INTERVAL)
                .with_hide_listen_addrs(true)
                .with_cache_size(0),
        ),
        relay_client,
        relay_server: server.into(),
    }
}

fn connection_limits(limits: &MeshLimits) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.pending_incoming))
        .with_max_pending_outgoing(Some(limits.pending_outgoing))
        .with_max_established_per_peer(Some(limits.connections_per_peer))
        .with_max_established(Some(limits.connections))
}

fn relay_config(limits: &MeshLimits) -> relay::Config {
    const MINUTE: Duration = Duration::from_secs(60);
    // Built from nothing: the defaults' own rate limiters would stay in force beside ours.
    let config = relay::Config {
        max_reservations: limits.relay_reservations,
        max_reservations_per_peer: limits.relay_reservations_per_peer,
        reservation_duration: limits.relay_reservation_duration,
        reservation_rate_limiters: Vec::new(),
        max_circuits: limits.relay_circuits,
        max_circuits_per_peer: limits.relay_circuits_per_peer,
        max_circuit_duration: limits.relay_circuit_duration,
        max_circuit_bytes: limits.relay_circuit_bytes,
        circuit_src_rate_limiters: Vec::new(),
    };
    let or_one = |limit| NonZeroU32::new(limit).unwrap_or(NonZeroU32::MIN);
    config
        .reservation_rate_per_peer(or_one(limits.relay_reservations_per_peer_minute), MINUTE)
        .reservation_rate_per_ip(or_one(limits.relay_reservations_per_address_minute), MINUTE)
        .circuit_src_per_peer(or_one(limits.relay_circuits_per_peer_minute), MINUTE)
        .circuit_src_per_ip(or_one(limits.relay_circuits_per_address_minute), MINUTE)
}
