//! What the packet path asks for every packet: which peer a destination belongs to, and whether a
//! packet from a peer may come in.
//!
//! A table is an immutable snapshot that the packet threads read through an `Arc`. The two
//! directions are independent: what comes in is judged by who holds source and destination, never
//! by how we would answer, so that policies may differ between two nodes while one of them swaps.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::decision::{AdmittedRoutes, Route, Via};
use crate::membership::{Directory, PeerId};
use crate::packet::IpPacket;
use crate::prefix_table::PrefixTable;
use crate::topology::{Holders, Topology};

/// A peer's position in one table. Meaningless in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u32);

/// Why a packet from a peer was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum InboundDrop {
    /// The source is in no block of the peer.
    #[error("its source is in no block of the peer that sent it")]
    ForeignSource,
    /// The destination is in no block of this node.
    #[error("its destination is in no block of this node")]
    ForeignDestination,
    /// The destination is a loopback, link-local, multicast, unspecified, network or broadcast address.
    #[error("its destination is an address that no pod can have")]
    ForbiddenDestination,
}

impl InboundDrop {
    /// A stable word for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::ForeignSource => "foreign-source",
            Self::ForeignDestination => "foreign-destination",
            Self::ForbiddenDestination => "forbidden-destination",
        }
    }
}

/// Who holds a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// This node.
    Local,
    /// This node, but the address is its block's network or broadcast address.
    LocalEdge,
    /// A peer.
    Peer(PeerIndex),
    /// A node whose identity is not known: nobody may speak for it.
    Nobody,
}

/// The snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelTable {
    peers: Vec<PeerId>,
    indexes: BTreeMap<PeerId, PeerIndex>,
    outbound: PrefixTable<Option<PeerIndex>>,
    owners: PrefixTable<Owner>,
    generation: u64,
}

impl TunnelTable {
    /// Builds the snapshot. `topology` is the one the answer was admitted for.
    #[must_use]
    pub fn build(topology: &Topology, admitted: &AdmittedRoutes, directory: &Directory) -> Self {
        let peers: Vec<PeerId> = remote_peers(topology, directory).map(|(_, peer)| peer.clone()).collect();
        let position = |index: usize| u32::try_from(index).map(PeerIndex).ok();
        let indexes: BTreeMap<PeerId, PeerIndex> =
            peers.iter().enumerate().filter_map(|(index, peer)| Some((peer.clone(), position(index)?))).collect();
        let by_node: BTreeMap<usize, PeerIndex> = remote_peers(topology, directory)
            .filter_map(|(node, peer)| indexes.get(peer).map(|index| (node, *index)))
            .collect();
        let holders = Holders::new(topology);
        let outbound = admitted.routes().iter().map(|route| {
            let node = tunnel_node(route, &holders);
            (route.to, node.and_then(|node| by_node.get(&node).copied()))
        });
        let owners = topology.nodes.iter().enumerate().flat_map(|(node, record)| {
            let owner = if node == topology.local {
                Owner::Local
            } else {
                by_node.get(&node).map_or(Owner::Nobody, |index| Owner::Peer(*index))
            };
            record.blocks.iter().map(move |block| (*block, owner))
        });
        let own = topology.local_node().map(|node| node.blocks.as_slice()).unwrap_or_default();
        let edges = own.iter().flat_map(edges_of).map(|edge| (edge, Owner::LocalEdge));
        Self {
            outbound: PrefixTable::new(outbound),
            // Of two entries for one prefix the first counts: a carve-out keeps its holder.
            owners: PrefixTable::new(owners.chain(edges)),
            generation: admitted.generation(),
            peers,
            indexes,
        }
    }

    /// The generation of the topology this table was built from.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All peers, by index.
    #[must_use]
    pub fn peers(&self) -> &[PeerId] {
        &self.peers
    }

    /// The identity of a peer.
    #[must_use]
    pub fn peer(&self, index: PeerIndex) -> Option<&PeerId> {
        self.peers.get(usize::try_from(index.0).ok()?)
    }

    /// The position of a peer.
    #[must_use]
    pub fn index_of(&self, peer: &PeerId) -> Option<PeerIndex> {
        self.indexes.get(peer).copied()
    }

    /// The peer a packet from the TUN goes to; `None` means drop it.
    ///
    /// A prefix that is routed `direct` still has its holder here: a packet that was queued before
    /// the kernel's route changed arrives instead of being lost.
    #[must_use]
    pub fn peer_for(&self, destination: IpAddr) -> Option<PeerIndex> {
        self.outbound.get(destination).flatten()
    }

    /// Whether `peer` may send from `source`: the longest block that contains it is the peer's.
    #[must_use]
    pub fn source_allowed(&self, peer: PeerIndex, source: IpAddr) -> bool {
        self.owners.get(source) == Some(Owner::Peer(peer))
    }

    /// Whether a packet from the tunnel may go to `destination`: in a block this node holds, and
    /// of a kind that a pod can have.
    #[must_use]
    pub fn destination_allowed(&self, destination: IpAddr) -> bool {
        is_unicast(destination) && self.owners.get(destination) == Some(Owner::Local)
    }

    /// Judges a packet from a peer.
    ///
    /// # Errors
    /// Why it must be dropped.
    pub fn check_inbound(&self, peer: PeerIndex, packet: &IpPacket<'_>) -> Result<(), InboundDrop> {
        if !self.source_allowed(peer, packet.source()) {
            return Err(InboundDrop::ForeignSource);
        }
        let destination = packet.destination();
        let owner = self.owners.get(destination);
        if !is_unicast(destination) || owner == Some(Owner::LocalEdge) {
            return Err(InboundDrop::ForbiddenDestination);
        }
        if owner != Some(Owner::Local) {
            return Err(InboundDrop::ForeignDestination);
        }
        Ok(())
    }
}

/// The other nodes whose identity is known, in the topology's order.
fn remote_peers<'a>(topology: &'a Topology, directory: &'a Directory) -> impl Iterator<Item = (usize, &'a PeerId)> {
    let nodes = topology.nodes.iter().enumerate().filter(|(node, _)| *node != topology.local);
    nodes.filter_map(|(node, record)| directory.peer_of(&record.name).map(|peer| (node, peer)))
}

/// The node a packet of this route goes to when it comes out of the TUN.
fn tunnel_node(route: &Route, holders: &Holders) -> Option<usize> {
    let node = |via: Via| match via {
        Via::Tunnel(node) => Some(node),
        Via::Direct(_) => holders.holder_of(&route.to),
        Via::Local | Via::Underlay | Via::Reject => None,
    };
    node(route.via).or_else(|| route.otherwise.and_then(node))
}

/// The addresses of a block that no attachment has: its network address and, with IPv4, its
/// broadcast address. A block of one address has neither.
fn edges_of(block: &IpNet) -> impl Iterator<Item = IpNet> + use<> {
    let last = block.broadcast();
    let edges = [Some(block.network()), last.is_ipv4().then_some(last)];
    let several = block.prefix_len() < block.max_prefix_len();
    edges.into_iter().flatten().filter(move |_| several).map(IpNet::from)
}

/// Whether an address names one host beyond the own link.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_unicast_v4(address),
        IpAddr::V6(address) => is_unicast_v6(address),
    }
}

fn is_unicast_v4(address: Ipv4Addr) -> bool {
    // 0.0.0.0/8 means "this network", 240.0.0.0/4 is reserved and holds the broadcast address.
    let first = address.octets()[0];
    !(address.is_loopback() || address.is_link_local() || address.is_multicast() || first == 0 || first >= 240)
}

fn is_unicast_v6(address: Ipv6Addr) -> bool {
    let mapped = address.to_ipv4_mapped().is_some();
    !(address.is_loopback()
        || address.is_unicast_link_local()
        || address.is_multicast()
        || address.is_unspecified()
        || mapped)
}

/// Whether a range may hold pods at all: unicast from its first address to its last.
pub(crate) fn is_unicast_range(range: &IpNet) -> bool {
    is_unicast(range.network()) && is_unicast(range.broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::admit;
    use crate::membership::Binding;
    use crate::topology::{Node, Reach};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// This node is `a`; `c` has one address of `b`'s block; nobody knows who `d` is.
    fn topology() -> Topology {
        let node = |name: &str, reach: Reach, blocks: &[&str]| Node {
            name: name.to_owned(),
            reach,
            addresses: vec![ip("192.168.1.2")],
            blocks: blocks.iter().map(|block| net(block)).collect(),
            ..Node::default()
        };
        Topology {
            generation: 5,
            local: 0,
            nodes: vec![
                node("a", Reach::Unknown, &["10.244.1.0/24", "fd10:1::/64"]),
                node("b", Reach::SameLink, &["10.244.2.0/24", "fd10:2::/64"]),
                node("c", Reach::TunnelOnly, &["10.244.3.0/24", "10.244.2.9/32"]),
                node("d", Reach::TunnelOnly, &["10.244.4.0/24", "10.244.2.10/32"]),
            ],
            cluster_prefixes: vec![net("10.244.0.0/16"), net("fd10::/16")],
            service_prefixes: vec![],
        }
    }

    fn directory() -> Directory {
        let binding =
            |name: &str| Binding { name: name.to_owned(), peer: Some(PeerId(format!("peer-{name}"))), decision: 1 };
        Directory::load(["a", "b", "c"].map(binding), [])
    }

    fn build(routes: Vec<Route>) -> TunnelTable {
        TunnelTable::build(&topology(), &admit(&topology(), routes, 5).unwrap(), &directory())
    }

    fn peer(name: &str) -> PeerId {
        PeerId(format!("peer-{name}"))
    }

    fn packet(source: &str, destination: &str) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[0] = 0x45;
        bytes[3] = 20;
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (ip(source), ip(destination)) else {
            unreachable!("the tests use IPv4 here")
        };
        bytes[12..16].copy_from_slice(&source.octets());
        bytes[16..20].copy_from_slice(&destination.octets());
        bytes
    }

    #[test]
    fn peers_are_the_other_nodes_whose_identity_is_known() {
        let table = build(vec![]);
        assert_eq!(table.peers(), [peer("b"), peer("c")]);
        assert_eq!(table.index_of(&peer("c")), Some(PeerIndex(1)));
        assert_eq!(table.peer(PeerIndex(1)), Some(&peer("c")));
        assert_eq!(table.index_of(&peer("a")), None);
        assert_eq!(table.generation(), 5);
    }

    #[test]
    fn packets_go_to_the_peer_of_the_longest_route_that_may_use_the_tunnel() {
        let next_hop = Via::Direct(ip("192.168.1.2"));
        let table = build(vec![
            Route { to: net("10.244.2.0/24"), via: next_hop, otherwise: Some(Via::Tunnel(1)) },
            Route { to: net("10.244.2.9/32"), via: Via::Tunnel(2), otherwise: None },
            Route { to: net("10.244.2.128/25"), via: Via::Reject, otherwise: None },
            Route { to: net("10.244.3.0/24"), via: Via::Underlay, otherwise: Some(Via::Tunnel(2)) },
            Route { to: net("10.244.4.0/24"), via: Via::Tunnel(3), otherwise: None },
            Route { to: net("fd10:2::/64"), via: Via::Tunnel(1), otherwise: None },
        ]);
        let got = [
            "10.244.2.1",
            "10.244.2.9",
            "10.244.2.129",
            "10.244.3.1",
            "10.244.4.1",
            "fd10:2::5",
            "10.244.9.1",
            "8.8.8.8",
        ]
        .map(|destination| table.peer_for(ip(destination)));
        let (b, c) = (Some(PeerIndex(0)), Some(PeerIndex(1)));
        assert_eq!(got, [b, c, None, c, None, b, None, None]);
    }

    #[test]
    fn a_packet_queued_before_its_route_became_direct_still_arrives() {
        let next_hop = Via::Direct(ip("192.168.1.2"));
        let table = build(vec![Route { to: net("10.244.2.0/24"), via: next_hop, otherwise: None }]);
        assert_eq!(table.peer_for(ip("10.244.2.1")), Some(PeerIndex(0)));
    }

    #[test]
    fn a_source_belongs_to_the_holder_of_its_longest_block() {
        let table = build(vec![]);
        let allowed = |index: u32, source: &str| table.source_allowed(PeerIndex(index), ip(source));
        assert!(allowed(0, "10.244.2.1") && allowed(0, "fd10:2::7") && allowed(1, "10.244.2.9"));
        for (index, source) in [
            // Carved out for another node, known or not.
            (0, "10.244.2.9"),
            (0, "10.244.2.10"),
            (1, "10.244.2.10"),
            // Another peer's, ours, nobody's, and no pod's.
            (1, "10.244.2.1"),
            (0, "10.244.1.1"),
            (0, "10.244.9.1"),
            (0, "127.0.0.1"),
            (0, "::1"),
            (0, "::ffff:10.244.2.1"),
            (9, "10.244.2.1"),
        ] {
            assert!(!allowed(index, source), "{index} {source}");
        }
    }

    #[test]
    fn what_comes_in_is_judged_without_regard_to_our_own_routes() {
        let reject = Route { to: net("10.244.2.0/24"), via: Via::Reject, otherwise: None };
        for table in [build(vec![]), build(vec![reject])] {
            let bytes = packet("10.244.2.1", "10.244.1.5");
            let packet = IpPacket::new_checked(&bytes).unwrap();
            assert_eq!(table.check_inbound(PeerIndex(0), &packet), Ok(()));
        }
    }

    #[test]
    fn inbound_packets_need_a_source_of_the_peer_and_a_destination_of_ours() {
        let table = build(vec![]);
        for (source, destination, expected) in [
            ("10.244.2.1", "10.244.1.5", Ok(())),
            ("10.244.2.1", "10.244.1.1", Ok(())),
            ("10.244.3.1", "10.244.1.5", Err(InboundDrop::ForeignSource)),
            ("192.168.1.2", "10.244.1.5", Err(InboundDrop::ForeignSource)),
            ("10.244.2.1", "10.244.3.5", Err(InboundDrop::ForeignDestination)),
            ("10.244.2.1", "10.244.2.5", Err(InboundDrop::ForeignDestination)),
            ("10.244.2.1", "192.168.1.1", Err(InboundDrop::ForeignDestination)),
            ("10.244.2.1", "127.0.0.1", Err(InboundDrop::ForbiddenDestination)),
            ("10.244.2.1", "169.254.169.254", Err(InboundDrop::ForbiddenDestination)),
            ("10.244.2.1", "224.0.0.1", Err(InboundDrop::ForbiddenDestination)),
            ("10.244.2.1", "255.255.255.255", Err(InboundDrop::ForbiddenDestination)),
            ("10.244.2.1", "0.0.0.0", Err(InboundDrop::ForbiddenDestination)),
            ("10.244.2.1", "10.244.1.0", Err(InboundDrop::ForbiddenDestination)),
            ("10.244.2.1", "10.244.1.255", Err(InboundDrop::ForbiddenDestination)),
        ] {
            let bytes = packet(source, destination);
            let packet = IpPacket::new_checked(&bytes).unwrap();
            assert_eq!(table.check_inbound(PeerIndex(0), &packet), expected, "{source} {destination}");
            let allowed = table.destination_allowed(ip(destination));
            let refused_for_destination =
                matches!(expected, Err(InboundDrop::ForeignDestination | InboundDrop::ForbiddenDestination));
            assert_eq!(allowed, !refused_for_destination, "{destination}");
        }
    }

    #[test]
    fn ipv6_destinations_that_no_pod_has_are_refused() {
        let table = build(vec![]);
        for destination in ["::", "::1", "fe80::1", "ff02::1", "::ffff:10.244.1.5", "fd10:2::1"] {
            assert!(!table.destination_allowed(ip(destination)), "{destination}");
        }
        assert!(table.destination_allowed(ip("fd10:1::5")));
    }
}
