//! Dials, reservations and spare connections: carries out what `dial`, `relay` and `peer` decide.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};

use super::{Dial, DialKind, Mesh, Report};
use crate::address::{circuit, quic, tcp};
use crate::dial::{Dials, Link, Means};
use crate::event::MeshEvent;
use crate::identity::to_core;

/// A name server that does not answer within this is asked again later.
const RESOLVE_LIMIT: Duration = Duration::from_secs(4);

/// Ticks between two publications of what changes all the time.
const TICKS_PER_LOOK: u32 = 10;

/// Addresses taken from one look-up of a relay's name.
const MAX_RESOLVED: usize = 8;

impl Mesh {
    /// Looks at everything that time alone changes.
    pub(super) fn on_tick(&mut self) {
        let now = Instant::now();
        for relay in 0..self.relays.len() {
            self.tend_relay(relay, now);
        }
        self.ticks = self.ticks.wrapping_add(1);
        // Round trips and losses change all the time; once a second is often enough to be looked at.
        self.changed |= self.ticks.is_multiple_of(TICKS_PER_LOOK) && self.terms.is_some();
        let circuits = self.circuits();
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.dial_peer(id, &circuits, now);
            self.tend_streams(id, now);
            self.tend_datagrams(id);
            self.prune(id, now);
        }
    }

    /// Places to reach others by circuit: every relay that is connected directly.
    fn circuits(&self) -> Vec<(PeerId, Multiaddr)> {
        let known = self.relays.iter().filter_map(|relay| relay.peer);
        known.filter_map(|id| Some((id, circuit(&self.peers.get(&id)?.direct()?.remote, id)))).collect()
    }

    fn dial_peer(&mut self, id: PeerId, circuits: &[(PeerId, Multiaddr)], now: Instant) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.is_kept()) else { return };
        let through: Vec<Multiaddr> = circuits
            .iter()
            .filter(|(relay, _)| *relay != id)
            .map(|(_, address)| address.clone().with(Protocol::P2p(id)))
            .collect();
        let addresses = peer.addresses();
        let means = Means { addresses: !addresses.is_empty(), relays: !through.is_empty() };
        let Dials { quic: by_quic, tcp: by_tcp, circuit } = peer.dial.due(now, peer.link(), means, chance());
        // Each address is a dial of its own: one that belongs to somebody else here must not fail the others.
        if by_quic && !self.is_dialing(id, DialKind::Quic) {
            addresses.iter().for_each(|address| self.dial_known(id, vec![quic(*address)], DialKind::Quic));
        }
        if by_tcp && !self.is_dialing(id, DialKind::Tcp) {
            addresses.iter().for_each(|address| self.dial_known(id, vec![tcp(*address)], DialKind::Tcp));
        }
        if circuit && !self.is_dialing(id, DialKind::Circuit) {
            self.dial_known(id, through, DialKind::Circuit);
        }
    }

    fn is_dialing(&self, id: PeerId, kind: DialKind) -> bool {
        self.dials.values().any(|dial| dial.peer == Some(id) && dial.kind == kind)
    }

    fn dial_known(&mut self, id: PeerId, addresses: Vec<Multiaddr>, kind: DialKind) {
        let options = DialOpts::peer_id(id).condition(PeerCondition::Always).addresses(addresses);
        // TCP would meet its own closed connections when it used the listening port again.
        let options = if kind == DialKind::Tcp { options.allocate_new_port() } else { options };
        self.dial(options.build(), Dial { relay: None, peer: Some(id), kind });
    }

    fn dial(&mut self, options: DialOpts, dial: Dial) {
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(connection, dial);
            }
            Err(error) => self.on_dial_failed(dial, &error),
        }
    }

    fn tend_relay(&mut self, position: usize, now: Instant) {
        let Some(relay) = self.relays.get_mut(position).filter(|relay| !relay.is_self) else { return };
        let id = relay.peer;
        let connected = id.and_then(|id| self.peers.get(&id)).and_then(|peer| peer.direct());
        if let (Some(connection), Some(id)) = (connected, id) {
            let place = circuit(&connection.remote, id);
            if !self.serve_relay && relay.reserves(now) {
                self.reserve(position, place, now);
            }
            return;
        }
        let names = relay.names_due(now);
        let fault = relay.fault_due(now);
        let node_name = relay.node_name.clone();
        if let Some(reason) = fault {
            self.tell(MeshEvent::RelayUnreachable { node_name, reason });
        }
        if !names.is_empty() {
            self.resolve(position, names);
        }
        if id.is_none() {
            self.discover(position, now);
        }
    }

    fn reserve(&mut self, position: usize, place: Multiaddr, now: Instant) {
        let outcome = self.swarm.listen_on(place);
        let Some(relay) = self.relays.get_mut(position) else { return };
        match outcome {
            Ok(listener) => relay.listener = Some(listener),
            Err(error) => {
                tracing::warn!(relay = relay.node_name, %error, "cannot ask the relay for a place");
                relay.unreserved(now);
            }
        }
    }

    fn resolve(&self, relay: usize, names: Vec<(String, u16)>) {
        let reports = self.reports.clone();
        tokio::spawn(async move {
            let mut found: Vec<SocketAddr> = Vec::new();
            for (name, port) in names {
                let lookup = tokio::net::lookup_host((name.as_str(), port));
                match tokio::time::timeout(RESOLVE_LIMIT, lookup).await {
                    Ok(Ok(addresses)) => found.extend(addresses.take(MAX_RESOLVED)),
                    Ok(Err(error)) => tracing::warn!(name, %error, "a relay's name was not found"),
                    Err(_) => tracing::warn!(name, "a relay's name was not looked up in time"),
                }
            }
            // The mesh may be gone.
            let _ = reports.send(Report::Resolved { relay, found }).await;
        });
    }

    /// Takes over what a relay's names stand for.
    pub(super) fn on_resolved(&mut self, position: usize, found: Vec<SocketAddr>) {
        let Some(relay) = self.relays.get_mut(position) else { return };
        relay.resolved(found);
        relay.dial.hurry(Instant::now());
        let (peer, sockets) = (relay.peer, relay.sockets.clone());
        if let Some(peer) = peer.and_then(|id| self.peers.get_mut(&id)) {
            peer.relay = Some(sockets);
        }
    }

    /// Dials a relay whose identity is not known, to learn it.
    fn discover(&mut self, position: usize, now: Instant) {
        let Some(relay) = self.relays.get_mut(position) else { return };
        let means = Means { addresses: !relay.sockets.is_empty(), relays: false };
        let Dials { quic: by_quic, tcp: by_tcp, .. } = relay.dial.due(now, Link::Apart, means, chance());
        let sockets = relay.sockets.clone();
        let under_way =
            |mesh: &Self, kind| mesh.dials.values().any(|dial| dial.relay == Some(position) && dial.kind == kind);
        if by_quic && !under_way(self, DialKind::Quic) {
            sockets.iter().for_each(|socket| self.dial_unknown(position, quic(*socket), DialKind::Quic));
        }
        if by_tcp && !under_way(self, DialKind::Tcp) {
            sockets.iter().for_each(|socket| self.dial_unknown(position, tcp(*socket), DialKind::Tcp));
        }
    }

    fn dial_unknown(&mut self, position: usize, address: Multiaddr, kind: DialKind) {
        let options = DialOpts::unknown_peer_id().address(address).build();
        self.dial(options, Dial { relay: Some(position), peer: None, kind });
    }

    /// The relay at a configured address has shown who it is.
    pub(super) fn on_relay_identified(&mut self, position: usize, id: PeerId) {
        let Some(relay) = self.relays.get_mut(position).filter(|relay| relay.peer.is_none()) else { return };
        relay.peer = Some(id);
        let (node_name, sockets) = (relay.node_name.clone(), relay.sockets.clone());
        self.tell(MeshEvent::RelayIdentified { node_name, peer: to_core(&id) });
        self.peer_entry(id, Instant::now()).relay = Some(sockets);
    }

    /// Closes connections that nobody needs.
    fn prune(&mut self, id: PeerId, now: Instant) {
        // The place at a relay and all circuits through it live on one of these connections and end with it, and
        // libp2p does not say on which. A spare one costs less than an outage of every relayed peer.
        if self.serve_relay || self.relays.iter().any(|relay| relay.peer == Some(id)) {
            return;
        }
        let Some(peer) = self.peers.get(&id).filter(|peer| peer.connections.len() > 1) else { return };
        for connection in peer.superfluous(now, self.is_lower(peer)) {
            tracing::debug!(peer = %id, %connection, "closing a spare connection");
            self.swarm.close_connection(connection);
        }
    }
}

/// A number between 0 and 1. Without randomness all nodes pause alike, which is no worse than that.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
