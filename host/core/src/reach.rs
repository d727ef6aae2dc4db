//! Whether a peer is on the same link: decided from authenticated probes, never from addresses
//! alone, because two sites may well use the same private subnet.
//!
//! ```text
//! candidates ──probe answers with the peer's identity──> verified (same link, sticky)
//!     ^──(addresses or own subnets changed)───────────────┤
//!     ^──(N probes failed while it is connected elsewhere)┘
//! ```
//! A silent peer keeps what was verified: its daemon may be restarting, and the kernel's routes
//! work without it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::topology::Reach;

/// How many probes in a row must fail, while the peer is connected by another way, before a verified
/// address is given up. Three rule out one lost probe and one lost retry.
pub const FAILED_PROBES_TO_GIVE_UP: u32 = 3;

/// The most addresses of one peer that are probed; the preferred ones come first.
pub const MAX_CANDIDATES: usize = 8;

/// The addresses of a peer that look on-link from here and are worth a probe.
///
/// `own` are this node's interface addresses with their prefix lengths. An address that is our own
/// is left out: it cannot be the peer's here.
#[must_use]
pub fn candidates(own: &[IpNet], peer_addresses: &[IpAddr]) -> Vec<IpAddr> {
    let on_link =
        |address: &IpAddr| own.iter().any(|own| own.contains(address)) && own.iter().all(|own| own.addr() != *address);
    let mut seen = BTreeSet::new();
    let unique = peer_addresses.iter().copied().filter(|address| on_link(address) && is_routable(*address));
    unique.filter(|address| seen.insert(*address)).take(MAX_CANDIDATES).collect()
}

/// Link-local addresses mean nothing without an interface, so they are no next hop for us.
fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local() && !address.is_multicast(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local() && !address.is_multicast(),
    }
}

/// How a peer is connected now, seen from the transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    /// Not at all.
    #[default]
    None,
    /// At one of its own addresses.
    Direct,
    /// Through a relay.
    Relayed,
}

/// What was seen of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReachEvent {
    /// Its candidates as they are now, from [`candidates`].
    Candidates(Vec<IpAddr>),
    /// It proved its identity at this address.
    Verified(IpAddr),
    /// A probe of this address failed, or another identity answered.
    Failed(IpAddr),
    /// Its connection changed.
    Connected(Connection),
}

/// What is known of the way to one peer. Persisted, so that a restart begins with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReach {
    /// In the peer's order of preference.
    candidates: Vec<Candidate>,
    connection: Connection,
}

/// One address under probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Candidate {
    address: IpAddr,
    verified: bool,
    /// In a row; stops counting at [`FAILED_PROBES_TO_GIVE_UP`].
    failures: u32,
}

impl PeerReach {
    /// Takes in what was seen; answers whether [`reach`](Self::reach) or
    /// [`verified`](Self::verified) changed.
    pub fn observe(&mut self, event: &ReachEvent) -> bool {
        let before = (self.reach(), self.verified().collect::<Vec<_>>());
        match event {
            ReachEvent::Candidates(addresses) => self.replace(addresses),
            ReachEvent::Verified(address) => self.verify(*address),
            ReachEvent::Failed(address) => self.fail(*address),
            ReachEvent::Connected(connection) => self.connection = *connection,
        }
        self.give_up();
        before != (self.reach(), self.verified().collect::<Vec<_>>())
    }

    /// The outcome.
    #[must_use]
    pub fn reach(&self) -> Reach {
        if self.candidates.iter().any(|candidate| candidate.verified) {
            return Reach::SameLink;
        }
        let hopeless = self.candidates.iter().all(|candidate| candidate.failures >= FAILED_PROBES_TO_GIVE_UP);
        match self.connection {
            Connection::None => Reach::Unknown,
            // While a probe may still succeed the answer is open, so that a neighbour is not tunnelled
            // to for the moment between connecting and probing.
            Connection::Direct | Connection::Relayed if !hopeless => Reach::Unknown,
            Connection::Direct => Reach::Routed,
            Connection::Relayed => Reach::TunnelOnly,
        }
    }

    /// The addresses at which the peer proved its identity on the link, preferred first.
    pub fn verified(&self) -> impl Iterator<Item = IpAddr> {
        self.candidates.iter().filter(|candidate| candidate.verified).map(|candidate| candidate.address)
    }

    /// The addresses to probe.
    pub fn to_probe(&self) -> impl Iterator<Item = IpAddr> {
        self.candidates.iter().map(|candidate| candidate.address)
    }

    fn replace(&mut self, addresses: &[IpAddr]) {
        let known: BTreeMap<IpAddr, Candidate> =
            self.candidates.iter().map(|candidate| (candidate.address, *candidate)).collect();
        let fresh = |address: IpAddr| Candidate { address, verified: false, failures: 0 };
        let addresses = addresses.iter().take(MAX_CANDIDATES);
        self.candidates =
            addresses.map(|address| known.get(address).copied().unwrap_or_else(|| fresh(*address))).collect();
    }

    /// An address that is no candidate (any more) is ignored: the answer to a probe may be late.
    fn verify(&mut self, address: IpAddr) {
        for candidate in self.candidates.iter_mut().filter(|candidate| candidate.address == address) {
            candidate.verified = true;
            candidate.failures = 0;
        }
    }

    fn fail(&mut self, address: IpAddr) {
        for candidate in self.candidates.iter_mut().filter(|candidate| candidate.address == address) {
            candidate.failures = (candidate.failures + 1).min(FAILED_PROBES_TO_GIVE_UP);
        }
    }

    /// A verified address goes only when the peer is alive elsewhere: then silence there means that
    /// it has left the link.
    fn give_up(&mut self) {
        if self.connection == Connection::None {
            return;
        }
        for candidate in &mut self.candidates {
            candidate.verified &= candidate.failures < FAILED_PROBES_TO_GIVE_UP;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn after(events: &[ReachEvent]) -> PeerReach {
        let mut peer = PeerReach::default();
        for event in events {
            peer.observe(event);
        }
        peer
    }

    fn candidate(address: &str) -> ReachEvent {
        ReachEvent::Candidates(vec![ip(address)])
    }

    const LAN: &str = "192.168.1.2";

    fn verified() -> ReachEvent {
        ReachEvent::Verified(ip(LAN))
    }

    fn failed() -> ReachEvent {
        ReachEvent::Failed(ip(LAN))
    }

    const RELAYED: ReachEvent = ReachEvent::Connected(Connection::Relayed);
    const SILENT: ReachEvent = ReachEvent::Connected(Connection::None);

    #[test]
    fn candidates_are_the_peers_addresses_in_our_subnets_except_our_own() {
        let own = ["192.168.1.1/24", "fd00::1/64", "127.0.0.1/8", "fe80::1/64"].map(|net| net.parse().unwrap());
        let peer = [
            "203.0.113.7",
            "fd00::2",
            "192.168.1.1",
            "192.168.1.2",
            "192.168.1.2",
            "fe80::2",
            "127.0.0.1",
            "192.168.2.2",
        ]
        .map(ip);
        assert_eq!(candidates(&own, &peer), ["fd00::2", "192.168.1.2"].map(ip));
        let many: Vec<IpAddr> = (2..100).map(|host| ip(&format!("192.168.1.{host}"))).collect();
        assert_eq!(candidates(&own, &many), many[..MAX_CANDIDATES]);
    }

    #[test]
    fn the_same_subnet_alone_proves_nothing() {
        let probing = after(&[candidate(LAN), RELAYED]);
        assert_eq!(probing.reach(), Reach::Unknown);
        assert_eq!(probing.to_probe().collect::<Vec<_>>(), [ip(LAN)]);
        let elsewhere = after(&[candidate(LAN), RELAYED, failed(), failed(), failed()]);
        assert_eq!(elsewhere.reach(), Reach::TunnelOnly);
    }

    #[test]
    fn without_candidates_the_connection_decides() {
        let got = [Connection::None, Connection::Direct, Connection::Relayed]
            .map(|connection| after(&[ReachEvent::Connected(connection)]).reach());
        assert_eq!(got, [Reach::Unknown, Reach::Routed, Reach::TunnelOnly]);
    }

    #[test]
    fn a_proved_neighbour_that_falls_silent_stays_a_neighbour() {
        let mut events = vec![candidate(LAN), verified(), SILENT];
        events.extend(std::iter::repeat_n(failed(), 100));
        let peer = after(&events);
        assert_eq!(peer.reach(), Reach::SameLink);
        assert_eq!(peer.verified().collect::<Vec<_>>(), [ip(LAN)]);
    }

    #[test]
    fn a_neighbour_that_answers_elsewhere_only_is_given_up_after_three_probes() {
        let mut peer = after(&[candidate(LAN), verified(), RELAYED]);
        let changes = [failed(), failed(), failed()].map(|event| peer.observe(&event));
        assert_eq!(changes, [false, false, true]);
        assert_eq!(peer.reach(), Reach::TunnelOnly);
        assert!(peer.observe(&verified()));
        assert_eq!(peer.reach(), Reach::SameLink);
    }

    #[test]
    fn failures_count_in_a_row_only() {
        let peer = after(&[candidate(LAN), verified(), RELAYED, failed(), failed(), verified(), failed(), failed()]);
        assert_eq!(peer.reach(), Reach::SameLink);
    }

    #[test]
    fn failures_while_it_was_silent_count_once_it_answers_elsewhere() {
        let mut peer = after(&[candidate(LAN), verified(), failed(), failed(), failed()]);
        assert_eq!(peer.reach(), Reach::SameLink);
        assert!(peer.observe(&RELAYED));
        assert_eq!(peer.reach(), Reach::TunnelOnly);
    }

    #[test]
    fn new_addresses_start_unproved_and_those_that_stay_keep_their_proof() {
        let mut peer = after(&[candidate(LAN), verified(), RELAYED]);
        let both = ReachEvent::Candidates(vec![ip("192.168.1.3"), ip(LAN)]);
        assert!(!peer.observe(&both));
        assert_eq!(peer.verified().collect::<Vec<_>>(), [ip(LAN)]);
        assert!(peer.observe(&candidate("192.168.1.3")));
        assert_eq!(peer.reach(), Reach::Unknown);
        assert!(peer.observe(&ReachEvent::Candidates(vec![])));
        assert_eq!(peer.reach(), Reach::TunnelOnly);
    }

    #[test]
    fn a_late_answer_from_a_former_address_is_ignored() {
        let mut peer = after(&[candidate("192.168.1.3"), RELAYED]);
        assert!(!peer.observe(&verified()));
        assert_eq!(peer.reach(), Reach::Unknown);
    }
}
