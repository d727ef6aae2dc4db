//! Where datagrams may reach this node: its own addresses, and those that peers saw it by.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::data_message::DataEndpoints;

/// Addresses that peers saw this node by and that are told on. A NAT that gives each peer another one makes none of
/// them useful, so the newest few are enough.
const MAX_OBSERVED: usize = 4;

/// Addresses told in one message: a node's interfaces, and what was observed.
const MAX_TOLD: usize = 16;

/// What this node tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnEndpoints {
    /// The port that the data sockets listen on.
    port: u16,
    local: Vec<IpAddr>,
    /// The newest first.
    observed: VecDeque<SocketAddr>,
}

impl OwnEndpoints {
    pub(crate) fn new(port: u16) -> Self {
        Self { port, ..Self::default() }
    }

    /// The addresses of this node's interfaces.
    pub(crate) fn set_local(&mut self, mut local: Vec<IpAddr>) {
        local.sort_unstable();
        local.dedup();
        self.local = local;
    }

    /// A peer saw this node by that address.
    pub(crate) fn note_observed(&mut self, address: SocketAddr) {
        let is_own = address.port() == self.port && self.local.contains(&address.ip());
        if is_own || !can_be_told(address.ip()) || self.observed.contains(&address) {
            return;
        }
        self.observed.push_front(address);
        self.observed.truncate(MAX_OBSERVED);
    }

    /// What to tell a peer. `is_inside` says of an address that it is one of the pod network, which no datagram must
    /// take; a peer on this very machine (`is_here`) is told loopback addresses too.
    pub(crate) fn for_peer(&self, is_here: bool, is_inside: impl Fn(IpAddr) -> bool) -> DataEndpoints {
        let fits = |ip: &IpAddr| (can_be_told(*ip) || (is_here && ip.is_loopback())) && !is_inside(*ip);
        let local = self.local.iter().filter(|ip| fits(ip)).map(|ip| SocketAddr::new(*ip, self.port));
        let addresses = self.observed.iter().copied().chain(local).take(MAX_TOLD).collect();
        DataEndpoints { port: self.port, addresses }
    }
}

/// Where to try to reach a peer: what it told, and its known addresses with the port it told.
pub(crate) fn candidates(
    told: &DataEndpoints,
    known: impl IntoIterator<Item = IpAddr>,
    is_here: bool,
    is_inside: impl Fn(IpAddr) -> bool,
) -> Vec<SocketAddr> {
    let known = known.into_iter().map(|ip| SocketAddr::new(ip.to_canonical(), told.port));
    let mut candidates = Vec::new();
    for address in known.chain(told.addresses.iter().copied()) {
        let ip = address.ip();
        let fits = (can_be_told(ip) || (is_here && ip.is_loopback())) && !is_inside(ip) && address.port() != 0;
        if fits && !candidates.contains(&address) {
            candidates.push(address);
        }
    }
    candidates
}

/// Whether an address means the same node elsewhere.
fn can_be_told(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    !(is_link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn is_inside(address: IpAddr) -> bool {
        address.to_string().starts_with("10.244.")
    }

    fn own() -> OwnEndpoints {
        let mut own = OwnEndpoints::new(7);
        own.set_local(["192.168.1.2", "127.0.0.1", "10.244.1.1", "fe80::1", "192.168.1.2"].map(ip).to_vec());
        own
    }

    #[test]
    fn addresses_that_mean_the_node_elsewhere_are_told_and_those_inside_the_pod_network_never() {
        assert_eq!(own().for_peer(false, is_inside).addresses, [socket("192.168.1.2:7")]);
        let here = own().for_peer(true, is_inside);
        assert_eq!(here.addresses, [socket("127.0.0.1:7"), socket("192.168.1.2:7")]);
    }

    #[test]
    fn what_peers_saw_is_told_newest_first_and_bounded() {
        let mut own = own();
        for port in 1..=6 {
            own.note_observed(socket(&format!("203.0.113.1:{port}")));
        }
        for useless in ["192.168.1.2:7", "127.0.0.1:9", "203.0.113.1:6", "[fe80::2]:1"] {
            own.note_observed(socket(useless));
        }
        let told = own.for_peer(false, is_inside).addresses;
        let expected = ["203.0.113.1:6", "203.0.113.1:5", "203.0.113.1:4", "203.0.113.1:3", "192.168.1.2:7"];
        assert_eq!(told, expected.map(socket));
    }

    #[test]
    fn a_peer_is_tried_where_it_is_known_and_where_it_says_each_once() {
        let addresses = ["192.168.1.3:7", "203.0.113.9:4000", "10.244.2.1:7", "127.0.0.1:7", "192.168.1.4:0"];
        let told = DataEndpoints { port: 7, addresses: addresses.map(socket).to_vec() };
        let known = [ip("198.51.100.1"), ip("::ffff:192.168.1.3")];
        let expected = ["198.51.100.1:7", "192.168.1.3:7", "203.0.113.9:4000"];
        assert_eq!(candidates(&told, known, false, is_inside), expected.map(socket));
        assert_eq!(candidates(&told, known, true, is_inside).last(), Some(&socket("127.0.0.1:7")));
    }
}
