//! The configured relays: where they are, who they are, and the place this node holds at each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_core::membership;
use libp2p::PeerId;
use libp2p::core::transport::ListenerId;

use crate::address::{AddressError, AdvertisedAddress};
use crate::config::RelayAddress;
use crate::dial::DialState;
use crate::identity::from_core;
use crate::swarm::DialKind;

/// Names are looked up again after this long while the relay is away.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);

/// A relay is told to be unreachable when it is away for this long.
const REPORT_AFTER: Duration = Duration::from_secs(5);

/// The first and the longest pause before a reservation is asked for again.
const FIRST_RESERVE_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_RESERVE_PAUSE: Duration = Duration::from_secs(30);

/// Why a configured relay is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// It has no address.
    #[error("relay node {node_name} has no advertised address; give at least one")]
    NoAddress {
        /// The relay's node name.
        node_name: String,
    },
    /// An address is none.
    #[error("relay node {node_name}: {source}")]
    Address {
        /// The relay's node name.
        node_name: String,
        /// What is wrong.
        source: AddressError,
    },
    /// The pinned identity is none.
    #[error("relay node {node_name}: `{peer}` is no peer id; copy it from `culvertctl status` on that node")]
    Peer {
        /// The relay's node name.
        node_name: String,
        /// What was given.
        peer: membership::PeerId,
    },
}

/// A configured relay.
pub(crate) struct Relay {
    pub(crate) node_name: String,
    advertised: Vec<AdvertisedAddress>,
    /// Addresses that can be dialed.
    pub(crate) sockets: Vec<SocketAddr>,
    /// Pinned, or learnt from the first answer.
    pub(crate) peer: Option<PeerId>,
    /// This node is that relay.
    pub(crate) is_self: bool,
    /// For a relay whose identity is not known yet.
    pub(crate) dial: DialState,
    pub(crate) resolving: bool,
    resolve_at: Instant,
    /// Where this node listens through the relay.
    pub(crate) listener: Option<ListenerId>,
    /// Whether the relay has confirmed that.
    pub(crate) ready: bool,
    reserve_at: Instant,
    reserve_failures: u32,
    /// The identity that was refused last.
    pub(crate) refused: Option<PeerId>,
    /// The last fault of each kind of dial: what failed by QUIC often explains more than what failed after it.
    faults: BTreeMap<DialKind, String>,
    away_since: Instant,
    reported: bool,
}

impl Relay {
    /// Checks a configured relay. Addresses without a name can be dialed at once.
    pub(crate) fn new(config: &RelayAddress, local: PeerId, now: Instant) -> Result<Self, RelayError> {
        let node_name = config.node_name.clone();
        if config.addresses.is_empty() {
            return Err(RelayError::NoAddress { node_name });
        }
        let advertised =
            config.addresses.iter().map(|text| AdvertisedAddress::parse(text)).collect::<Result<Vec<_>, _>>();
        let advertised = advertised.map_err(|source| RelayError::Address { node_name: node_name.clone(), source })?;
        let peer = match &config.peer {
            None => None,
            Some(peer) => match from_core(peer) {
                Some(known) => Some(known),
                None => return Err(RelayError::Peer { node_name, peer: peer.clone() }),
            },
        };
        Ok(Self {
            sockets: advertised.iter().filter_map(as_socket).collect(),
            is_self: peer == Some(local),
            node_name,
            advertised,
            peer,
            dial: DialState::new(now),
            resolving: false,
            resolve_at: now,
            listener: None,
            ready: false,
            reserve_at: now,
            reserve_failures: 0,
            refused: None,
            faults: BTreeMap::new(),
            away_since: now,
            reported: false,
        })
    }

    /// Names to look up now; looking up counts as begun.
    pub(crate) fn names_due(&mut self, now: Instant) -> Vec<(String, u16)> {
        if self.resolving || now < self.resolve_at {
            return Vec::new();
        }
        self.resolve_at = now + RESOLVE_INTERVAL;
        let names: Vec<_> = self.advertised.iter().filter_map(as_name).collect();
        self.resolving = !names.is_empty();
        names
    }

    /// What the names stand for. An empty answer keeps what was known before.
    pub(crate) fn resolved(&mut self, found: Vec<SocketAddr>) {
        self.resolving = false;
        if !found.is_empty() {
            self.sockets = self.advertised.iter().filter_map(as_socket).chain(found).collect();
        }
    }

    /// The relay is connected, directly.
    pub(crate) fn connected(&mut self, now: Instant) {
        (self.reported, self.refused) = (false, None);
        self.faults.clear();
        (self.reserve_at, self.reserve_failures) = (now, 0);
    }

    /// A dial failed.
    pub(crate) fn note_fault(&mut self, kind: DialKind, fault: String) {
        self.faults.insert(kind, fault);
    }

    /// The last connection to the relay is gone.
    pub(crate) fn lost(&mut self, now: Instant) {
        (self.away_since, self.resolve_at) = (now, now);
    }

    /// Whether a reservation should be asked for.
    pub(crate) fn reserves(&self, now: Instant) -> bool {
        self.listener.is_none() && now >= self.reserve_at
    }

    /// The relay confirmed a reservation.
    pub(crate) fn reserved(&mut self) {
        (self.ready, self.reserve_failures) = (true, 0);
    }

    /// The reservation ended or was refused.
    pub(crate) fn unreserved(&mut self, now: Instant) {
        (self.listener, self.ready) = (None, false);
        let doublings = self.reserve_failures.min(8);
        self.reserve_at = now + FIRST_RESERVE_PAUSE.saturating_mul(1 << doublings).min(LONGEST_RESERVE_PAUSE);
        self.reserve_failures = self.reserve_failures.saturating_add(1);
    }

    /// The fault to report, once each time the relay stays away.
    pub(crate) fn fault_due(&mut self, now: Instant) -> Option<String> {
        if self.reported || now.duration_since(self.away_since) < REPORT_AFTER {
            return None;
        }
        self.reported = true;
        let faults: Vec<&str> = self.faults.values().map(String::as_str).collect();
        Some(if faults.is_empty() { "no answer".to_owned() } else { faults.join("; ") })
    }
}

fn as_socket(address: &AdvertisedAddress) -> Option<SocketAddr> {
    match address {
        AdvertisedAddress::Socket(socket) => Some(*socket),
        AdvertisedAddress::Host(..) => None,
    }
}

fn as_name(address: &AdvertisedAddress) -> Option<(String, u16)> {
    match address {
        AdvertisedAddress::Socket(_) => None,
        AdvertisedAddress::Host(name, port) => Some((name.clone(), *port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(addresses: &[&str], peer: Option<&str>) -> Result<Relay, RelayError> {
        let config = RelayAddress {
            node_name: "cloud".into(),
            addresses: addresses.iter().map(|address| (*address).into()).collect(),
            peer: peer.map(|peer| membership::PeerId(peer.into())),
        };
        Relay::new(&config, PeerId::random(), Instant::now())
    }

    fn refusal(outcome: Result<Relay, RelayError>) -> String {
        outcome.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_wrong_relay_is_refused_by_its_name() {
        assert_eq!(refusal(relay(&[], None)), "relay node cloud has no advertised address; give at least one");
        let address = "relay node cloud: `1.2.3.4:0` is no relay address; write IP, IP:port, [IPv6]:port or host:port";
        assert_eq!(refusal(relay(&["1.2.3.4:0"], None)), address);
        let peer = "relay node cloud: `me` is no peer id; copy it from `culvertctl status` on that node";
        assert_eq!(refusal(relay(&["1.2.3.4"], Some("me"))), peer);
    }

    #[test]
    fn names_are_looked_up_while_the_relay_is_away_and_old_answers_are_kept() {
        let mut relay = relay(&["192.0.2.1", "relay.example.org:4001"], None).unwrap();
        let now = Instant::now();
        assert_eq!(relay.sockets, ["192.0.2.1:20006".parse().unwrap()]);
        assert_eq!(relay.names_due(now), [("relay.example.org".to_owned(), 4001)]);
        assert_eq!(relay.names_due(now + RESOLVE_INTERVAL), []);
        relay.resolved(vec!["192.0.2.9:4001".parse().unwrap()]);
        relay.resolved(Vec::new());
        assert_eq!(relay.sockets, ["192.0.2.1:20006".parse().unwrap(), "192.0.2.9:4001".parse().unwrap()]);
        assert_eq!(relay.names_due(now + RESOLVE_INTERVAL).len(), 1);
    }

    #[test]
    fn a_relay_that_stays_away_is_reported_once() {
        let mut relay = relay(&["192.0.2.1"], None).unwrap();
        let now = Instant::now();
        assert_eq!(relay.fault_due(now), None);
        relay.note_fault(DialKind::Tcp, "refused".into());
        relay.note_fault(DialKind::Quic, "timed out".into());
        assert_eq!(relay.fault_due(now + REPORT_AFTER), Some("timed out; refused".into()));
        assert_eq!(relay.fault_due(now + REPORT_AFTER * 2), None);
        relay.connected(now + REPORT_AFTER * 3);
        relay.lost(now + REPORT_AFTER * 4);
        assert_eq!(relay.fault_due(now + REPORT_AFTER * 5), Some("no answer".into()));
    }
}
