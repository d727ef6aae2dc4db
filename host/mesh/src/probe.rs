//! Sees whether one very peer answers at one very address: a fresh connection that proves identity
//! and pre-shared key on both sides, and is closed at once. It never meets the swarm of either side,
//! so the ordinary connection stays as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::select_ok;
use libp2p::core::Endpoint;
use libp2p::core::muxing::StreamMuxerExt as _;
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::{Multiaddr, PeerId, Transport as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::address::{quic, tcp};
use crate::admission::Door;
use crate::counters::Counters;
use crate::identity::NodeKey;
use crate::pre_shared_key::PreSharedKeys;
use crate::proof::Purpose;
use crate::transport;

/// A peer on the same link answers within milliseconds; a busy one within this.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// How long the goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_millis(200);

/// What a probe proves itself with.
pub(crate) struct Prober {
    pub(crate) key: NodeKey,
    pub(crate) keys: Arc<PreSharedKeys>,
    pub(crate) counters: Arc<Counters>,
}

/// Why a probe failed. Only the log sees it.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("the transport refused: {0}")]
    Transport(String),
    #[error("{0} answered instead")]
    SomebodyElse(PeerId),
}

impl Prober {
    /// Whether `peer` answers at `address`, by QUIC or by TCP.
    pub(crate) async fn probe(&self, peer: PeerId, address: SocketAddr) -> bool {
        let attempts = [self.attempt(peer, quic(address)).boxed(), self.attempt(peer, tcp(address)).boxed()];
        match timeout(PROBE_LIMIT, select_ok(attempts)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %address, %error, "a probe failed");
                false
            }
            Err(_) => false,
        }
    }

    async fn attempt(&self, peer: PeerId, address: Multiaddr) -> Result<(), ProbeError> {
        let fault = |error: &dyn std::fmt::Display| ProbeError::Transport(error.to_string());
        let local = self.key.pair().public().to_peer_id();
        // Nothing is accepted here, so nobody is ever refused.
        let (refusals, _) = mpsc::channel(1);
        let counters = Arc::clone(&self.counters);
        let door = Door { local, keys: Arc::clone(&self.keys), purpose: Purpose::Probe, refusals, counters };
        let mut transport = transport::build(self.key.pair(), door, None).map_err(|error| fault(&error))?;
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = transport.dial(address, options).map_err(|error| fault(&error))?;
        let (found, muxer) = dial.await.map_err(|error| fault(&error))?;
        // The answer was heard; that the goodbye is too only spares the other side a timer.
        let _ = timeout(CLOSE_LIMIT, muxer.close()).await;
        if found == peer { Ok(()) } else { Err(ProbeError::SomebodyElse(found)) }
    }
}
