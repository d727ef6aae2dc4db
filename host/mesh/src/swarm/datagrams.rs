//! What the packet threads notice about datagrams.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_core::membership;
use culvert_datagram::frame::RelayPrefix;

use super::Mesh;
use crate::datagram::{Notice, Outbound};
use crate::identity::from_core;

impl Mesh {
    pub(super) fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Moved { peer, from, relay } => self.follow(&peer, from, relay),
            Notice::Probe { peer, from, kind, payload, .. } => {
                tracing::trace!(%peer, %from, ?kind, bytes = payload.len(), "a probe came");
            }
        }
    }

    /// A peer's packets come from a new address: its NAT forgot it, or it moved. What is sent goes there from now on.
    fn follow(&mut self, peer: &membership::PeerId, from: SocketAddr, relay: Option<RelayPrefix>) {
        let Some(entry) = from_core(peer).and_then(|id| self.peers.get(&id)) else { return };
        let Some(data) = &entry.data else { return };
        let Some(outbound) = data.ways.datagrams.outbound.load_full() else { return };
        // A packet through a relay says nothing about where the peer is.
        if relay != outbound.relay || relay.is_some() {
            return;
        }
        tracing::info!(%peer, before = %outbound.remote, now = %from, reason = "an authentic packet came from there", "the peer moved");
        let moved = Outbound { remote: from, relay, mtu_bytes: outbound.mtu_bytes, keys: Arc::clone(&outbound.keys) };
        data.ways.datagrams.outbound.store(Some(Arc::new(moved)));
    }
}
