//! What libp2p tells: connections that come and go, dials that fail, places at relays, round trips.

use std::time::Instant;

use culvert_core::membership;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::{ConnectionId, DialError, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, ping, relay};

use super::{Dial, Mesh};
use crate::address::{is_relayed, quic, relay_of, socket_of};
use crate::behaviour::BehaviourEvent;
use crate::dial::Link;
use crate::event::{MeshEvent, PeerPath};
use crate::identity::to_core;
use crate::peer::{Connection, Peer};

impl Mesh {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, connection = %connection_id, ?cause, "a connection closed");
                self.on_closed(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(dial) = self.dials.remove(&connection_id) {
                    self.on_dial_failed(dial, &error);
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                if self.serve_relay && !is_relayed(&address) {
                    // A relay that confirms a place must name an address; clients here use the one they dialed.
                    self.swarm.add_external_address(address);
                }
                self.publish_listening();
            }
            SwarmEvent::ExpiredListenAddr { .. } => self.publish_listening(),
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                self.publish_listening();
                self.on_listener_closed(listener_id, &addresses, reason);
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener failed for a moment"),
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                // Refused strangers are told and counted by the door.
                if matches!(error, ListenError::Denied { .. }) {
                    self.published.counters.connections_denied.add(1);
                }
                tracing::debug!(address = %send_back_addr, %error, "an incoming connection ended early");
            }
            // libp2p's own bookkeeping.
            SwarmEvent::IncomingConnection { .. }
            | SwarmEvent::Dialing { .. }
            | SwarmEvent::NewExternalAddrCandidate { .. }
            | SwarmEvent::ExternalAddrConfirmed { .. }
            | SwarmEvent::ExternalAddrExpired { .. }
            | SwarmEvent::NewExternalAddrOfPeer { .. } => {}
            other => tracing::debug!(?other, "an event of a later libp2p"),
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Lanes((peer, connection, event)) => self.on_lane_event(peer, connection, event),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::RelayClient(event) => self.on_place(event),
            BehaviourEvent::RelayServer(event) => tracing::debug!(?event, "as a relay"),
            // What a peer says about itself by identify is not believed for anything.
            BehaviourEvent::Identify(event) => tracing::trace!(?event, "identify"),
        }
    }

    fn on_connected(&mut self, id: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let now = Instant::now();
        if let Some(position) = self.dials.remove(&connection).and_then(|dial| dial.relay) {
            self.on_relay_identified(position, id);
        }
        let Some(path) = self.path_of(endpoint) else {
            tracing::warn!(peer = %id, ?endpoint, "closing a connection from nowhere");
            self.swarm.close_connection(connection);
            return;
        };
        let direct = matches!(path, PeerPath::Direct { .. });
        let remote = endpoint.get_remote_address().clone();
        let peer = self.peer_entry(id, now);
        peer.connections.push(Connection { id: connection, path, remote, since: now });
        peer.dial.connected(if direct { Link::Direct } else { Link::Relayed }, now);
        self.tend_streams(id, now);
        if direct && self.relays.iter().any(|relay| relay.peer == Some(id)) {
            self.on_relay_connected(id, now);
        }
    }

    /// How a connection reaches its peer; `None` for an address that libp2p should never give.
    fn path_of(&self, endpoint: &ConnectedPoint) -> Option<PeerPath> {
        if !endpoint.is_relayed() {
            return socket_of(endpoint.get_remote_address()).map(|remote| PeerPath::Direct { remote });
        }
        let through = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { local_addr, .. } => local_addr,
        };
        let relay = relay_of(through).map(|relay| to_core(&relay)).or_else(|| self.peer_at(through));
        relay.map(|relay| PeerPath::Relayed { relay })
    }

    /// The peer we are connected to at the socket address in front of `through`: a relay that was dialed
    /// before its identity was known has none in the addresses of its circuits.
    fn peer_at(&self, through: &Multiaddr) -> Option<membership::PeerId> {
        let relay = PeerPath::Direct { remote: socket_of(through)? };
        let connected = |peer: &&Peer| peer.connections.iter().any(|connection| connection.path == relay);
        self.peers.values().find(connected).map(|peer| peer.name.clone())
    }

    /// A relay opens the way to those that only circuits reach.
    fn on_relay_connected(&mut self, id: PeerId, now: Instant) {
        self.relays.iter_mut().filter(|relay| relay.peer == Some(id)).for_each(|relay| relay.connected(now));
        self.peers.values_mut().filter(|peer| peer.connections.is_empty()).for_each(|peer| peer.dial.hurry(now));
        self.on_tick();
    }

    fn on_closed(&mut self, id: PeerId, connection: ConnectionId) {
        let now = Instant::now();
        let lower = self.peers.get(&id).is_some_and(|peer| self.is_lower(peer));
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.connections.retain(|known| known.id != connection);
        if peer.control.closed(connection, now) {
            peer.sayings = None;
        }
        peer.data_lane.closed(connection, now);
        let (lost, lost_directly) = (peer.connections.is_empty(), peer.direct().is_none());
        if lost {
            // What was told may not have arrived.
            if let Some(link) = peer.data.as_mut().and_then(|data| data.link.as_mut()) {
                link.told = None;
            }
            peer.dial.lost(now, lower);
            // Questions among them are answered by this: their waiters learn that the connection broke.
            peer.unsent.clear();
            peer.round_trip = None;
            self.changed = true;
            if self.peers.get_mut(&id).is_some_and(|peer| peer.announced.take().is_some()) {
                self.tell(MeshEvent::Disconnected { peer: to_core(&id) });
            }
        }
        if lost {
            self.release_relays(id);
        }
        if lost_directly {
            self.forget_places(id);
            self.relays.iter_mut().filter(|relay| relay.peer == Some(id)).for_each(|relay| relay.lost(now));
        }
        self.tend_streams(id, now);
        self.forget_if_useless(id);
    }

    pub(super) fn on_dial_failed(&mut self, dial: Dial, error: &DialError) {
        self.published.counters.dials_failed.add(1);
        tracing::debug!(?dial, %error, "a dial failed");
        let names_relay = |relay: Option<PeerId>| relay.is_some() && relay == dial.peer;
        let position = dial.relay.or_else(|| self.relays.iter().position(|relay| names_relay(relay.peer)));
        let Some(relay) = position.and_then(|position| self.relays.get_mut(position)) else { return };
        let node_name = relay.node_name.clone();
        // The swarm does not dial what it listens on itself, and calls that having no address.
        let own = || relay.sockets.iter().all(|socket| self.swarm.listeners().any(|own| *own == quic(*socket)));
        if matches!(error, DialError::LocalPeerId { .. }) || (matches!(error, DialError::NoAddresses) && own()) {
            if !std::mem::replace(&mut relay.is_self, true) {
                self.tell(MeshEvent::RelayIsSelf { node_name });
            }
        } else if let (DialError::WrongPeerId { obtained, .. }, Some(expected)) = (error, relay.peer) {
            relay.note_fault(dial.kind, error.to_string());
            if relay.refused.replace(*obtained) != Some(*obtained) {
                let (expected, found) = (to_core(&expected), to_core(obtained));
                self.tell(MeshEvent::RelayRefused { node_name, expected, found });
            }
        } else {
            relay.note_fault(dial.kind, error.to_string());
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        let Some(peer) = self.peers.get_mut(&event.peer) else { return };
        match event.result {
            Ok(round_trip) => {
                let used = peer.connections.iter().find(|known| Some(&known.path) == peer.announced.as_ref());
                if used.is_some_and(|used| used.id == event.connection) {
                    peer.round_trip = Some(round_trip);
                    self.changed = true;
                    self.inform(MeshEvent::RoundTrip { peer: to_core(&event.peer), round_trip });
                }
            }
            // A peer that refuses pings is there.
            Err(ping::Failure::Unsupported) => {}
            // A peer that answers nothing within the limit is half open: end it, so that it is redialed.
            Err(error) => {
                tracing::debug!(peer = %event.peer, connection = %event.connection, %error, "a ping failed");
                self.swarm.close_connection(event.connection);
            }
        }
    }

    fn on_place(&mut self, event: relay::client::Event) {
        match event {
            relay::client::Event::ReservationReqAccepted { relay_peer_id, renewal, .. } => {
                let Some(relay) = self.relays.iter_mut().find(|relay| relay.peer == Some(relay_peer_id)) else {
                    return;
                };
                relay.reserved();
                let node_name = relay.node_name.clone();
                if !renewal {
                    self.tell(MeshEvent::RelayReady { node_name, peer: to_core(&relay_peer_id) });
                }
            }
            relay::client::Event::OutboundCircuitEstablished { .. }
            | relay::client::Event::InboundCircuitEstablished { .. } => {}
        }
    }

    fn on_listener_closed(
        &mut self,
        listener: ListenerId,
        addresses: &[libp2p::Multiaddr],
        reason: std::io::Result<()>,
    ) {
        let now = Instant::now();
        if let Some(relay) = self.relays.iter_mut().find(|relay| relay.listener == Some(listener)) {
            tracing::info!(relay = relay.node_name, ?reason, "lost the place at a relay");
            relay.unreserved(now);
            return;
        }
        let reason = reason.err().map_or_else(|| "closed".to_owned(), |error| error.to_string());
        let address = addresses.first().map_or_else(|| "a listening address".to_owned(), ToString::to_string);
        self.tell(MeshEvent::ListenFailed { address, reason });
    }

    fn publish_listening(&mut self) {
        let addresses: Vec<_> = self.swarm.listeners().filter(|address| !is_relayed(address)).cloned().collect();
        self.published.listening.store(std::sync::Arc::new(addresses));
        self.refresh_own_endpoints();
    }
}
