//! The ways a connection can be made: QUIC, TCP with Noise and Yamux, and circuits through a relay
//! (Noise and Yamux again, end to end). Behind each of them stands the same door.

use std::io;
use std::time::Duration;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport as _, noise, quic, relay, tcp, yamux};

use crate::admission::{Channel, Door};

/// Streams open at once on one connection, each way. A relay carries every circuit of a client on
/// a stream of the client's connection, so this also bounds those. The connection's other end sees
/// an error for one stream more.
const MAX_STREAMS: u32 = 512;

/// After this much silence a QUIC connection is dead. **Units** ms.
const QUIC_IDLE_LIMIT_MS: u32 = 10_000;

/// Three lost in a row still leave the connection alive.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Connecting and encrypting; the door has a limit of its own.
const SETUP_LIMIT: Duration = Duration::from_secs(5);

/// All transports behind the door. Without `circuits` it cannot use relays, which is what a prober wants.
///
/// # Errors
/// When the node's key cannot be used for Noise.
pub(crate) fn build(
    key: &Keypair,
    door: Door,
    circuits: Option<relay::client::Transport>,
) -> io::Result<Boxed<Channel>> {
    let direct = quic_transport(key).or_transport(tcp_transport(key)?).map(|either, _| either.into_inner()).boxed();
    let all = match circuits {
        None => direct,
        // Circuits come first: an address through a relay also contains one that the others would take.
        Some(circuits) => {
            circuit_transport(key, circuits)?.or_transport(direct).map(|either, _| either.into_inner()).boxed()
        }
    };
    Ok(all.and_then(move |channel, endpoint| door.admit(channel, endpoint)).boxed())
}

fn quic_transport(key: &Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
    let mut config = quic::Config::new(key);
    config.handshake_timeout = SETUP_LIMIT;
    config.max_idle_timeout = QUIC_IDLE_LIMIT_MS;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_concurrent_stream_limit = MAX_STREAMS;
    quic::tokio::Transport::new(config).map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed()
}

fn tcp_transport(key: &Keypair) -> io::Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let noise = noise::Config::new(key).map_err(io::Error::other)?;
    Ok(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1)
        .authenticate(noise)
        .multiplex(yamux())
        .timeout(SETUP_LIMIT)
        .boxed())
}

fn circuit_transport(key: &Keypair, circuits: relay::client::Transport) -> io::Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let noise = noise::Config::new(key).map_err(io::Error::other)?;
    Ok(circuits.upgrade(Version::V1).authenticate(noise).multiplex(yamux()).timeout(SETUP_LIMIT).boxed())
}

fn yamux() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS as usize);
    config
}
