//! What the mesh's task keeps about the datagrams of one peer: the agreement on keys, the paths, and what the packet
//! threads see of both.
//!
//! ```text
//! control stream ──offers, accepts──> agreement ──keys──┐
//! packet threads ──probes, answers──> paths ──best path─┴──> DatagramPeer ──> packet threads
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_core::membership::PeerId;
use culvert_core::path::{Endpoint, Health, PathId, PathSet, ProbeSize, Reason};
use culvert_datagram::agreement::{Agreement, AgreementError, KeysChanged, Sealing};
use culvert_datagram::frame::{
    Flags, HEADER_BYTES, Kind, OVERHEAD_BYTES, RELAY_PREFIX_BYTES, ReceiverIndex, RelayIndex, RelayPrefix, TAG_BYTES,
};
use culvert_datagram::key::SealKey;
use culvert_datagram::probe::{ANSWER_BYTES, Answer, Probe};
use zeroize::Zeroizing;

use crate::data_message::{DataEndpoints, RelayPlace};
use crate::datagram::{DatagramPeer, Outbound, ReceiveKeys, SendKeys};
use crate::event::DatagramStatus;

/// Packets lately: a path is probed often for this long after the last one.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Probes of one peer that are answered between two ticks of 100 ms. Its own paths ask for ten at most.
const ANSWERS_PER_TICK: u32 = 16;

/// How long a direct path is looked for before relays are asked. Punching two NATs takes a second or two.
const DIRECT_FIRST: Duration = Duration::from_secs(2);
/// Between two rounds of asking relays.
const RELAYS_AGAIN: Duration = Duration::from_secs(5);

/// IP and UDP headers around a frame. **Units** bytes.
const V4_HEADERS_BYTES: usize = 28;
const V6_HEADERS_BYTES: usize = 48;

/// A datagram that is ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// The path of packets has changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// `None` is the stream.
    pub(crate) from: Option<Endpoint>,
    /// `None` is the stream.
    pub(crate) to: Option<Endpoint>,
    pub(crate) reason: Reason,
}

/// The datagrams of one peer. Time is counted from the start of the mesh.
pub(crate) struct DatagramLink {
    peer: Arc<DatagramPeer>,
    agreement: Agreement,
    paths: PathSet,
    probe_key: Option<SealKey>,
    send_keys: Option<Arc<SendKeys>>,
    /// Of the path in use, on the wire, when it was last published.
    published_mtu_bytes: Option<u16>,
    busy_at: Option<Duration>,
    answers_left: u32,
    /// What the peer told of itself last.
    direct: Vec<Endpoint>,
    /// Its places at relays.
    relays: BTreeMap<PeerId, Endpoint>,
    /// Since when packets could go by datagrams, and go by no direct path.
    indirect_since: Option<Duration>,
    relays_asked_at: Option<Duration>,
    /// What the peer was told last of where datagrams reach this node.
    pub(crate) told: Option<DataEndpoints>,
}

impl DatagramLink {
    /// No keys and no paths yet.
    pub(crate) fn new(peer: Arc<DatagramPeer>, agreement: Agreement) -> Self {
        Self {
            peer,
            agreement,
            paths: PathSet::default(),
            probe_key: None,
            send_keys: None,
            published_mtu_bytes: None,
            busy_at: None,
            answers_left: ANSWERS_PER_TICK,
            direct: Vec::new(),
            relays: BTreeMap::new(),
            indirect_since: None,
            relays_asked_at: None,
            told: None,
        }
    }

    /// Our number for the peer.
    pub(crate) fn receiver(&self) -> ReceiverIndex {
        self.agreement.receiver()
    }

    /// The offer to make, when one is due.
    pub(crate) fn offer(&mut self, now: Duration) -> Option<Vec<u8>> {
        let secret = self.agreement.offer_due(now).then(random_secret).flatten()?;
        self.agreement.offer(now, secret).inspect_err(|error| tracing::warn!(%error, "no offer of data keys")).ok()
    }

    /// Answers the peer's offer. Its frames open by the new keys when this returns.
    pub(crate) fn on_offer(&mut self, now: Duration, offer: &[u8]) -> Result<Vec<u8>, AgreementError> {
        let secret = random_secret().ok_or(AgreementError::Library)?;
        let (accept, changed) = self.agreement.handle_offer(now, offer, secret)?;
        self.take(changed);
        Ok(accept)
    }

    /// Takes the answer to our offer and returns the confirmation.
    pub(crate) fn on_accept(&mut self, now: Duration, accept: &[u8]) -> Result<Vec<u8>, AgreementError> {
        let (confirm, changed) = self.agreement.handle_accept(now, accept)?;
        self.take(changed);
        Ok(confirm)
    }

    /// Takes the peer's confirmation.
    pub(crate) fn on_confirm(&mut self, now: Duration, confirm: &[u8]) -> Result<(), AgreementError> {
        let changed = self.agreement.handle_confirm(now, confirm)?;
        self.take(changed);
        Ok(())
    }

    /// Our offer came to nothing.
    pub(crate) fn on_failure(&mut self, now: Duration) {
        self.agreement.handle_failure(now);
    }

    /// The peer is another process now.
    pub(crate) fn on_restart(&mut self, now: Duration) -> Option<Moved> {
        let changed = self.agreement.handle_restart(now);
        self.told = None;
        self.take(changed);
        let from = self.paths.current().cloned();
        let change = self.paths.forget(now);
        self.publish();
        change.map(|change| Moved { from, to: None, reason: change.reason })
    }

    /// Takes over where the peer says that datagrams reach it.
    pub(crate) fn on_told(&mut self, now: Duration, endpoints: &[SocketAddr]) {
        self.direct = endpoints.iter().copied().map(Endpoint::Direct).collect();
        self.tell_paths(now);
    }

    /// Whether places at relays should be asked for now: no direct path was found for a while.
    pub(crate) fn seeks_relays(&mut self, now: Duration) -> bool {
        let is_direct = self.probe_key.is_none() || self.paths.current().is_some_and(Endpoint::is_direct);
        let since = if is_direct { None } else { Some(self.indirect_since.unwrap_or(now)) };
        self.indirect_since = since;
        let waited = since.is_some_and(|since| now.saturating_sub(since) >= DIRECT_FIRST);
        let rested = self.relays_asked_at.is_none_or(|at| now.saturating_sub(at) >= RELAYS_AGAIN);
        if waited && rested {
            self.relays_asked_at = Some(now);
        }
        waited && rested
    }

    /// Whether there is a place at that relay.
    pub(crate) fn has_place(&self, relay: &PeerId) -> bool {
        self.relays.contains_key(relay)
    }

    /// A place at a relay, `at` which it takes datagrams.
    pub(crate) fn on_place(&mut self, now: Duration, relay: PeerId, at: SocketAddr, place: RelayPlace) {
        let endpoint = Endpoint::Relayed { relay: relay.clone(), at, index: place.index, tag: place.tag };
        self.relays.insert(relay, endpoint);
        self.tell_paths(now);
    }

    /// The place at that relay is gone.
    pub(crate) fn forget_relay(&mut self, now: Duration, relay: &PeerId) {
        if self.relays.remove(relay).is_some() {
            self.tell_paths(now);
        }
    }

    fn tell_paths(&mut self, now: Duration) {
        let told: Vec<Endpoint> = self.relays.values().chain(&self.direct).cloned().collect();
        self.paths.tell(now, &told);
    }

    /// An authentic packet came from there.
    pub(crate) fn on_seen(&mut self, now: Duration, from: SocketAddr) {
        if self.paths.see(now, from) {
            tracing::debug!(peer = %self.peer.name, %from, "a peer's datagrams come from a new address");
        }
    }

    /// An authentic probe came; the answer goes back the same way.
    pub(crate) fn on_probe(
        &mut self,
        now: Duration,
        from: SocketAddr,
        relay: Option<RelayPrefix>,
        payload: &[u8],
    ) -> Option<Ready> {
        let probe = Probe::parse(payload).ok()?;
        if relay.is_none() {
            self.on_seen(now, from);
        }
        self.answers_left = self.answers_left.checked_sub(1)?;
        let answer = probe.answer(payload.len(), from).encode();
        let bytes = self.seal(Kind::Answer, relay, ANSWER_BYTES, |place| place.copy_from_slice(&answer))?;
        Some(Ready { to: from, bytes })
    }

    /// An authentic answer came. Returns the address that the peer saw this node by, when no relay was on the way.
    pub(crate) fn on_answer(&mut self, now: Duration, payload: &[u8]) -> Option<SocketAddr> {
        let Answer { path, sequence, observed, .. } = Answer::parse(payload).ok()?;
        let counts = self.paths.answered(now, PathId(path), sequence);
        let is_direct = self.paths.endpoint(PathId(path)).is_some_and(Endpoint::is_direct);
        (counts && is_direct).then_some(observed)
    }

    /// What time alone changes: probes to send, and the path when it changes.
    pub(crate) fn on_tick(&mut self, now: Duration) -> (Vec<Ready>, Option<Moved>) {
        self.answers_left = ANSWERS_PER_TICK;
        if let Some(changed) = self.agreement.handle_tick(now) {
            self.take(changed);
        }
        if self.peer.is_busy.swap(false, Ordering::Relaxed) {
            self.busy_at = Some(now);
        }
        if self.probe_key.is_none() {
            return (Vec::new(), None);
        }
        let (from, mtu_bytes) = (self.paths.current().cloned(), self.paths.current_mtu_bytes());
        let change = self.paths.decide(now);
        if change.is_some() || mtu_bytes != self.published_mtu_bytes {
            self.publish();
        }
        let moved = change.map(|change| Moved { from, to: self.paths.current().cloned(), reason: change.reason });
        (self.probes(now), moved)
    }

    /// How datagrams reach the peer; `None` while the stream carries its packets.
    pub(crate) fn report(&self, now: Duration) -> Option<DatagramStatus> {
        self.send_keys.as_ref()?;
        let paths = self.paths.report(now);
        let current = paths.into_iter().find(|path| path.is_current && path.health == Health::Alive)?;
        let mtu_bytes = packet_mtu(&current.endpoint, current.mtu_bytes?);
        let (round_trip, loss_permille) = (current.round_trip, current.loss_permille);
        Some(DatagramStatus { endpoint: current.endpoint, round_trip, loss_permille, mtu_bytes })
    }

    fn probes(&mut self, now: Duration) -> Vec<Ready> {
        let is_busy = self.busy_at.is_some_and(|at| now.saturating_sub(at) < BUSY_FOR);
        let mut ready = Vec::new();
        for order in self.paths.due_probes(now, is_busy) {
            let probe = Probe { path: order.path.0, sequence: order.sequence };
            let relay = relay_prefix(&order.endpoint);
            let length = match order.size {
                ProbeSize::Shortest => ANSWER_BYTES,
                ProbeSize::Packet(bytes) => packet_mtu(&order.endpoint, bytes).max(ANSWER_BYTES),
            };
            // The place is never shorter than the shortest probe.
            let bytes = self.seal(Kind::Probe, relay, length, |place| {
                let _ = probe.write(place);
            });
            ready.extend(bytes.map(|bytes| Ready { to: order.endpoint.socket(), bytes }));
        }
        ready
    }

    fn seal(
        &mut self,
        kind: Kind,
        relay: Option<RelayPrefix>,
        length: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Option<Vec<u8>> {
        let mut bytes = relay.map(|relay| relay.encode().to_vec()).unwrap_or_default();
        let start = bytes.len();
        bytes.resize(start + OVERHEAD_BYTES + length, 0);
        let frame = bytes.get_mut(start..)?;
        write(frame.get_mut(HEADER_BYTES..HEADER_BYTES + length)?);
        let sealed = self.probe_key.as_mut()?.seal(kind, Flags::default(), frame);
        sealed.inspect_err(|error| tracing::debug!(%error, "a probe was not sealed")).ok()?;
        Some(bytes)
    }

    fn take(&mut self, changed: KeysChanged) {
        self.peer.inbound.store(Arc::new(ReceiveKeys::new(changed.accepted)));
        match changed.sealing {
            Sealing::Unchanged => return,
            Sealing::By(outbound) => {
                self.send_keys = Some(SendKeys::new(outbound.packets));
                self.probe_key = Some(outbound.probes);
            }
            Sealing::Nothing => (self.send_keys, self.probe_key) = (None, None),
        }
        self.publish();
    }

    /// Lets the packet threads see path and keys.
    fn publish(&mut self) {
        self.published_mtu_bytes = self.paths.current_mtu_bytes();
        let path = self.paths.current().zip(self.published_mtu_bytes);
        let outbound = path.zip(self.send_keys.as_ref()).map(|((endpoint, on_wire), keys)| {
            let (relay, mtu_bytes) = (relay_prefix(endpoint), packet_mtu(endpoint, on_wire));
            Arc::new(Outbound { remote: endpoint.socket(), relay, mtu_bytes, keys: Arc::clone(keys) })
        });
        self.peer.outbound.store(outbound);
    }
}

/// The largest packet inside datagrams of `on_wire` bytes. **Units** bytes.
fn packet_mtu(endpoint: &Endpoint, on_wire: u16) -> usize {
    let headers = if endpoint.socket().is_ipv4() { V4_HEADERS_BYTES } else { V6_HEADERS_BYTES };
    let relay = if endpoint.is_direct() { 0 } else { RELAY_PREFIX_BYTES };
    usize::from(on_wire).saturating_sub(headers + relay + HEADER_BYTES + TAG_BYTES)
}

fn relay_prefix(endpoint: &Endpoint) -> Option<RelayPrefix> {
    match endpoint {
        Endpoint::Direct(_) => None,
        Endpoint::Relayed { index, tag, .. } => Some(RelayPrefix { index: RelayIndex::new(*index), tag: *tag }),
    }
}

/// Bytes for one ephemeral key.
fn random_secret() -> Option<Zeroizing<[u8; 32]>> {
    let mut secret = Zeroizing::new([0; 32]);
    match getrandom::fill(&mut secret[..]) {
        Ok(()) => Some(secret),
        Err(error) => {
            tracing::warn!(%error, "no random bytes for data keys");
            None
        }
    }
}

#[cfg(test)]
mod tests;
