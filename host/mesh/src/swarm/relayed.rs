//! Relayed datagrams, as far as control messages make them: a node that finds no direct path asks its relays for a
//! place, and a relay reserves one for each end.
//!
//! ```text
//! lower id ── reserve-relay {other} ──> relay ── relay-reserved {lower, place} ──> other
//!          <── relay-reserved {place} ──┘
//! ```
//! A reservation lives as long as both ends are connected to the relay.

use std::net::SocketAddr;

use culvert_core::membership;
use culvert_datagram::frame::RelayPrefix;
use culvert_datagram::rate::RateLimit;
use libp2p::PeerId;

use super::Mesh;
use super::datagrams::no_datagrams;
use crate::data_message::{DataAnswer, DataAsk, DataTopic, RelayPlace};
use crate::event::PeerPath;
use crate::identity::{from_core, to_core};

/// What one end may send in a burst: a TUN's queue full of super-packets. **Units** bytes.
const BURST_BYTES: u64 = 4 << 20;

impl Mesh {
    /// Asks the relays for places when no direct path to a peer was found. One of the two ends asks for both.
    pub(super) fn seek_relays(&mut self, id: PeerId) {
        let now = self.now();
        let asks = self.peers.get(&id).is_some_and(|peer| self.is_lower(peer));
        if !asks || !self.link_mut(id).is_some_and(|link| link.seeks_relays(now)) {
            return;
        }
        let relays: Vec<PeerId> = self.relays.iter().filter_map(|relay| relay.peer).collect();
        for relay in relays.into_iter().filter(|relay| *relay != id) {
            let is_near = self.relay_address(relay, 0).is_some();
            let has_place = self.link_mut(id).is_some_and(|link| link.has_place(&to_core(&relay)));
            if is_near && !has_place {
                self.ask_data(relay, DataTopic::Relay(id), DataAsk::ReserveRelay { peer: to_core(&id) });
            }
        }
    }

    /// As a relay: reserves a place for each end, or finds those that are there.
    pub(super) fn reserve_relay(&mut self, one: PeerId, other: &membership::PeerId) -> Result<DataAnswer, String> {
        if !self.serve_relay {
            return Err("this node is no relay".to_owned());
        }
        let other = from_core(other).filter(|other| *other != one && self.is_connected(*other));
        let other = other.ok_or("the other end is not connected to this relay")?;
        let port = self.tun.as_ref().ok_or_else(no_datagrams)?.datagrams.port;
        let [first, second] = self.places(one, other)?;
        let place = |prefix: RelayPrefix| RelayPlace { port, index: prefix.index.number(), tag: prefix.tag };
        let (own, others) = if one < other { (first, second) } else { (second, first) };
        let news = DataAsk::RelayReserved { peer: to_core(&one), place: place(others) };
        self.ask_data(other, DataTopic::Place, news);
        Ok(DataAnswer::RelayReserved { place: place(own) })
    }

    /// The places of a pair, the lower id's first.
    fn places(&mut self, one: PeerId, other: PeerId) -> Result<[RelayPrefix; 2], String> {
        let pair = (one.min(other), one.max(other));
        if let Some(places) = self.reservations.get(&pair) {
            return Ok(*places);
        }
        let most = self.relay_limits.pairs_per_peer;
        let pairs_of =
            |end: PeerId| self.reservations.keys().filter(|(low, high)| [*low, *high].contains(&end)).count();
        if [one, other].into_iter().any(|end| pairs_of(end) >= most) {
            return Err(format!("one end has all the {most} places that this relay gives to a node"));
        }
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| format!("the relay has no random bytes: {error}"))?;
        let [a, b, c, d] = [0, 4, 8, 12].map(|start| {
            bytes.get(start..start + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_ne_bytes)
        });
        let limit = RateLimit::new(self.relay_limits.bytes_per_second, BURST_BYTES);
        let datagrams = &self.tun.as_ref().ok_or_else(no_datagrams)?.datagrams;
        let places = datagrams.reserve(limit, [[a, b], [c, d]]).ok_or("this relay has no place left")?;
        self.reservations.insert(pair, places);
        Ok(places)
    }

    /// As an end: a relay tells of a place that the other end asked for.
    pub(super) fn on_relay_reserved(
        &mut self,
        relay: PeerId,
        peer: &membership::PeerId,
        place: RelayPlace,
    ) -> Result<DataAnswer, String> {
        if !self.relays.iter().any(|known| known.peer == Some(relay)) {
            return Err("the sender is no relay of this node".to_owned());
        }
        let peer = from_core(peer).filter(|peer| self.peers.contains_key(peer)).ok_or("the other end is unknown")?;
        self.take_place(relay, peer, place);
        Ok(DataAnswer::Noted)
    }

    /// Takes a place at a relay as one more path to a peer.
    pub(super) fn take_place(&mut self, relay: PeerId, peer: PeerId, place: RelayPlace) {
        let now = self.now();
        let Some(at) = self.relay_address(relay, place.port) else { return };
        if let Some(link) = self.link_mut(peer) {
            link.on_place(now, to_core(&relay), at, place);
        }
    }

    /// As a relay: a peer is gone, and with it every pair that it was an end of.
    pub(super) fn release_relays(&mut self, id: PeerId) {
        let Some(tun) = &self.tun else { return };
        self.reservations.retain(|(low, high), places| {
            let stays = *low != id && *high != id;
            if let (false, [first, _]) = (stays, *places) {
                tun.datagrams.release(first);
            }
            stays
        });
    }

    /// As an end: a relay is gone, and with it every place there.
    pub(super) fn forget_places(&mut self, relay: PeerId) {
        let (now, relay) = (self.now(), to_core(&relay));
        let links = self.peers.values_mut().filter_map(|peer| peer.data.as_mut()?.link.as_mut());
        links.for_each(|link| link.forget_relay(now, &relay));
    }

    /// Where a relay that we are connected to directly takes datagrams.
    fn relay_address(&self, relay: PeerId, port: u16) -> Option<SocketAddr> {
        match self.peers.get(&relay)?.direct()?.path {
            PeerPath::Direct { remote } => Some(SocketAddr::new(remote.ip().to_canonical(), port)),
            PeerPath::Relayed { .. } => None,
        }
    }

    fn is_connected(&self, id: PeerId) -> bool {
        self.peers.get(&id).is_some_and(|peer| !peer.connections.is_empty())
    }
}
