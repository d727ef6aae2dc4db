//! Between the records of the contract and the types of this crate.
//!
//! What comes from the host is checked here once: a prefix with a length or host bits that cannot be is a defect of
//! the host, and the policy says so instead of deciding from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::bandwidth::{Limits, Pod, Rate, Shaping};
use crate::description::{Description, Want};
use crate::error::PolicyError;
use crate::export::{bandwidth_wire, ipam_wire, lifecycle_wire, router_wire, types_wire};
use crate::ipam::{Claim, PickRequest, Pool, Space};
use crate::labels::Labels;
use crate::prefix::has_no_host_bits;
use crate::route::{Route, Via};
use crate::topology::{Family, Node, Reach, SiteKind, Topology};

/// A position as the contract carries it. One that does not fit becomes the highest, which the host refuses like
/// any other position that does not exist.
pub(crate) fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

fn position(index: u32) -> usize {
    index as usize
}

fn address(wire: types_wire::IpAddress) -> IpAddr {
    match wire {
        types_wire::IpAddress::V4(bits) => IpAddr::V4(Ipv4Addr::from_bits(bits)),
        types_wire::IpAddress::V6((high, low)) => {
            IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)))
        }
    }
}

fn address_to_wire(address: IpAddr) -> types_wire::IpAddress {
    match address {
        IpAddr::V4(address) => types_wire::IpAddress::V4(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            types_wire::IpAddress::V6(((bits >> 64) as u64, bits as u64))
        }
    }
}

/// What `collect` into a `Result` does, in a third of its code: guests pay for every byte.
fn each<A, B>(items: Vec<A>, convert: impl Fn(A) -> Result<B, PolicyError>) -> Result<Vec<B>, PolicyError> {
    let mut converted = Vec::with_capacity(items.len());
    for item in items {
        converted.push(convert(item)?);
    }
    Ok(converted)
}

fn addresses(wire: Vec<types_wire::IpAddress>) -> Vec<IpAddr> {
    wire.into_iter().map(address).collect()
}

fn prefix(wire: types_wire::Prefix) -> Result<IpNet, PolicyError> {
    match IpNet::new(address(wire.address), wire.length) {
        Ok(prefix) if has_no_host_bits(&prefix) => Ok(prefix),
        Ok(_) => Err(PolicyError::internal(format!("the host passed a /{} with host bits set", wire.length))),
        Err(_) => Err(PolicyError::internal(format!("the host passed a /{}, longer than an address", wire.length))),
    }
}

fn prefixes(wire: Vec<types_wire::Prefix>) -> Result<Vec<IpNet>, PolicyError> {
    each(wire, prefix)
}

fn labels(wire: Vec<types_wire::Label>) -> Labels {
    Labels(wire.into_iter().map(|label| (label.key, label.value)).collect())
}

impl From<IpNet> for types_wire::Prefix {
    fn from(prefix: IpNet) -> Self {
        Self { address: address_to_wire(prefix.addr()), length: prefix.prefix_len() }
    }
}

impl From<PolicyError> for types_wire::PolicyError {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::InvalidSettings(text) => Self::InvalidSettings(text),
            PolicyError::Unsupported(text) => Self::Unsupported(text),
            PolicyError::Exhausted(text) => Self::Exhausted(text),
            PolicyError::Internal(text) => Self::Internal(text),
        }
    }
}

impl From<Want> for lifecycle_wire::Want {
    fn from(want: Want) -> Self {
        match want {
            Want::NodeLabel(key) => Self::NodeLabel(key),
            Want::PodLabel(key) => Self::PodLabel(key),
            Want::PodAnnotation(key) => Self::PodAnnotation(key),
            Want::Clock => Self::Clock,
        }
    }
}

impl From<Description> for lifecycle_wire::Description {
    fn from(description: Description) -> Self {
        let wants = description.wants.into_iter().map(lifecycle_wire::Want::from).collect();
        Self { name: description.name, version: description.version, wants }
    }
}

impl From<types_wire::IpFamily> for Family {
    fn from(family: types_wire::IpFamily) -> Self {
        match family {
            types_wire::IpFamily::V4 => Self::V4,
            types_wire::IpFamily::V6 => Self::V6,
        }
    }
}

impl From<types_wire::SiteKind> for SiteKind {
    fn from(kind: types_wire::SiteKind) -> Self {
        match kind {
            types_wire::SiteKind::Cloud => Self::Cloud,
            types_wire::SiteKind::Edge => Self::Edge,
        }
    }
}

impl From<types_wire::Reach> for Reach {
    fn from(reach: types_wire::Reach) -> Self {
        match reach {
            types_wire::Reach::SameLink => Self::SameLink,
            types_wire::Reach::Routed => Self::Routed,
            types_wire::Reach::TunnelOnly => Self::TunnelOnly,
            types_wire::Reach::Unknown => Self::Unknown,
        }
    }
}

impl TryFrom<types_wire::Node> for Node {
    type Error = PolicyError;

    fn try_from(node: types_wire::Node) -> Result<Self, PolicyError> {
        Ok(Self {
            name: node.name,
            site_kind: node.site_kind.into(),
            zone: node.zone,
            ready: node.ready,
            reach: node.reach.into(),
            addresses: addresses(node.addresses),
            blocks: prefixes(node.pod_blocks)?,
            labels: labels(node.labels),
        })
    }
}

impl TryFrom<types_wire::Topology> for Topology {
    type Error = PolicyError;

    fn try_from(topology: types_wire::Topology) -> Result<Self, PolicyError> {
        Ok(Self {
            generation: topology.generation,
            local: position(topology.local),
            nodes: each(topology.nodes, Node::try_from)?,
            cluster_prefixes: prefixes(topology.cluster_prefixes)?,
            service_prefixes: prefixes(topology.service_prefixes)?,
        })
    }
}

impl From<Via> for router_wire::Via {
    fn from(via: Via) -> Self {
        match via {
            Via::Local => Self::Local,
            Via::Direct(next_hop) => Self::Direct(address_to_wire(next_hop)),
            Via::Underlay => Self::Underlay,
            Via::Tunnel(node) => Self::Tunnel(index(node)),
            Via::Reject => Self::Reject,
        }
    }
}

impl From<Route> for router_wire::Route {
    fn from(route: Route) -> Self {
        Self { to: route.to.into(), via: route.via.into(), otherwise: route.otherwise.map(router_wire::Via::from) }
    }
}

impl TryFrom<ipam_wire::Space> for Space {
    type Error = PolicyError;

    fn try_from(space: ipam_wire::Space) -> Result<Self, PolicyError> {
        let pool = |pool: ipam_wire::Pool| Pool::new(prefix(pool.range)?, pool.block_length);
        let claim = |claim: ipam_wire::Claim| {
            Ok(Claim { block: prefix(claim.block)?, holder: claim.holder, in_use: claim.in_use })
        };
        Ok(Self { pools: each(space.pools, pool)?, claims: each(space.claims, claim)? })
    }
}

impl From<ipam_wire::Request> for PickRequest {
    fn from(request: ipam_wire::Request) -> Self {
        Self {
            pod_namespace: request.pod_namespace,
            pod_name: request.pod_name,
            labels: labels(request.labels),
            annotations: labels(request.annotations),
            free: addresses(request.free),
            wanted: request.wanted.map(address),
        }
    }
}

impl From<bandwidth_wire::Rate> for Rate {
    fn from(rate: bandwidth_wire::Rate) -> Self {
        Self { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst_bytes }
    }
}

impl From<Rate> for bandwidth_wire::Rate {
    fn from(rate: Rate) -> Self {
        Self { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst_bytes }
    }
}

impl From<bandwidth_wire::Limits> for Limits {
    fn from(limits: bandwidth_wire::Limits) -> Self {
        Self { ingress: limits.ingress.map(Rate::from), egress: limits.egress.map(Rate::from) }
    }
}

impl From<Limits> for bandwidth_wire::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            ingress: limits.ingress.map(bandwidth_wire::Rate::from),
            egress: limits.egress.map(bandwidth_wire::Rate::from),
        }
    }
}

impl From<Shaping> for bandwidth_wire::Shaping {
    fn from(shaping: Shaping) -> Self {
        Self { total: shaping.total.into(), tunnel: shaping.tunnel.into() }
    }
}

impl From<bandwidth_wire::Pod> for Pod {
    fn from(pod: bandwidth_wire::Pod) -> Self {
        Self {
            namespace: pod.namespace,
            name: pod.name,
            labels: labels(pod.labels),
            annotations: labels(pod.annotations),
            requested: pod.requested.into(),
            minute_of_week: pod.minute_of_week,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire_prefix(text: &str) -> types_wire::Prefix {
        text.parse::<IpNet>().unwrap().into()
    }

    #[test]
    fn a_prefix_with_host_bits_is_the_host_s_defect() {
        let wrong = types_wire::Prefix { address: types_wire::IpAddress::V4(0x0af4_0701), length: 24 };
        assert_eq!(prefix(wrong), Err(PolicyError::internal("the host passed a /24 with host bits set")));
    }

    #[test]
    fn a_prefix_longer_than_an_address_is_the_host_s_defect() {
        let wrong = types_wire::Prefix { address: types_wire::IpAddress::V4(0), length: 33 };
        assert_eq!(prefix(wrong), Err(PolicyError::internal("the host passed a /33, longer than an address")));
    }

    #[test]
    fn a_topology_arrives_whole() {
        let wire = types_wire::Topology {
            generation: 7,
            local: 0,
            nodes: vec![types_wire::Node {
                name: "edge-1".to_owned(),
                site_kind: types_wire::SiteKind::Edge,
                zone: "lan-a".to_owned(),
                ready: true,
                reach: types_wire::Reach::SameLink,
                addresses: vec![types_wire::IpAddress::V4(0x0a00_0001), types_wire::IpAddress::V6((0xfd00 << 48, 1))],
                pod_blocks: vec![wire_prefix("10.244.248.0/24")],
                labels: vec![types_wire::Label { key: "tier".to_owned(), value: "gold".to_owned() }],
            }],
            cluster_prefixes: vec![wire_prefix("10.244.0.0/16")],
            service_prefixes: vec![wire_prefix("fd00:96::/112")],
        };
        let expected = Topology {
            generation: 7,
            local: 0,
            nodes: vec![Node {
                name: "edge-1".to_owned(),
                site_kind: SiteKind::Edge,
                zone: "lan-a".to_owned(),
                ready: true,
                reach: Reach::SameLink,
                addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                blocks: vec!["10.244.248.0/24".parse().unwrap()],
                labels: Labels::from([("tier", "gold")]),
            }],
            cluster_prefixes: vec!["10.244.0.0/16".parse().unwrap()],
            service_prefixes: vec!["fd00:96::/112".parse().unwrap()],
        };
        assert_eq!(Topology::try_from(wire), Ok(expected));
    }

    #[test]
    fn a_pool_that_cannot_be_is_refused_on_arrival() {
        let pools = vec![ipam_wire::Pool { range: wire_prefix("10.244.0.0/16"), block_length: 8 }];
        assert_eq!(
            Space::try_from(ipam_wire::Space { pools, claims: Vec::new() }),
            Err(PolicyError::internal("a /16 pool cannot have /8 blocks"))
        );
    }

    #[test]
    fn a_position_beyond_the_contract_becomes_one_that_does_not_exist() {
        assert_eq!((index(3), index(usize::MAX)), (3, u32::MAX));
    }

    proptest! {
        #[test]
        fn addresses_and_prefixes_survive_the_way_there_and_back(any_address: IpAddr, length in 0_u8..=128) {
            let length = length.min(if any_address.is_ipv4() { 32 } else { 128 });
            prop_assert_eq!(address(address_to_wire(any_address)), any_address);
            let there = IpNet::new(any_address, length).map(|prefix| prefix.trunc());
            if let Ok(there) = there {
                prop_assert_eq!(prefix(there.into()), Ok(there));
            }
        }
    }
}
