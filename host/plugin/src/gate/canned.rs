//! Made-up inputs for the self-test: small, and between them every shape a policy must expect.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_core::address::IpNet;
use culvert_core::bandwidth::{Limits, Rate};
use culvert_core::claim::{ClaimView, Pool, Space};
use culvert_core::policy::{PickRequest, PodView, ShapeRequest};
use culvert_core::topology::{Node, Reach, SiteKind, Topology};

/// A made-up input with the name it has in messages.
pub(super) struct Canned<T> {
    pub name: &'static str,
    pub input: T,
}

const CLUSTER: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
const SERVICES: [&str; 2] = ["10.96.0.0/12", "fd00:96::/112"];

/// Prefixes written in this file; one that does not parse would be missing from the input, which the test
/// below rules out.
fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn words(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn topology(local: usize, nodes: Vec<Node>) -> Topology {
    Topology { generation: 1, local, nodes, cluster_prefixes: nets(&CLUSTER), service_prefixes: nets(&SERVICES) }
}

fn node(name: &str, reach: Reach, address_texts: &[&str], blocks: &[&str]) -> Node {
    Node {
        name: name.to_owned(),
        site_kind: SiteKind::Edge,
        ready: true,
        reach,
        addresses: addresses(address_texts),
        blocks: nets(blocks),
        ..Node::default()
    }
}

pub(super) fn topologies() -> Vec<Canned<Topology>> {
    let lone = || node("edge-1", Reach::Unknown, &["192.168.1.11"], &["10.244.1.0/24"]);
    let blockless = Node { ready: false, ..node("new", Reach::Unknown, &[], &[]) };
    vec![
        Canned { name: "a cluster of one node", input: topology(0, vec![lone()]) },
        Canned { name: "a cluster of three sites", input: three_sites() },
        Canned { name: "a cluster with a node that holds no block", input: topology(1, vec![lone(), blockless]) },
    ]
}

fn three_sites() -> Topology {
    let cloud = Node {
        site_kind: SiteKind::Cloud,
        zone: "cloud".to_owned(),
        labels: words(&[("topology.kubernetes.io/zone", "cloud"), ("culvert.dev/rtt-us", "21000")]),
        ..node("cloud-1", Reach::Routed, &["203.0.113.10", "2001:db8::10"], &["10.244.10.0/24", "fd00:244:0:10::/64"])
    };
    let here = node("edge-1", Reach::Unknown, &["192.168.1.11", "fd00:1::11"], &["10.244.1.0/24", "fd00:244:0:1::/64"]);
    let beside =
        node("edge-2", Reach::SameLink, &["192.168.1.12", "fd00:1::12"], &["10.244.2.0/24", "fd00:244:0:2::/64"]);
    let far = node("far-1", Reach::TunnelOnly, &["192.168.1.11"], &["10.244.3.0/24", "10.244.4.0/24"]);
    let silent = Node { ready: false, ..node("far-2", Reach::Unknown, &[], &["10.244.5.0/24"]) };
    topology(1, vec![cloud, here, beside, far, silent])
}

pub(super) fn spaces() -> Vec<Canned<Space>> {
    vec![
        Canned { name: "an empty space", input: space("10.244.0.0/16", 24, &[]) },
        Canned {
            name: "a space with claims",
            input: space("10.244.0.0/16", 24, &["10.244.1.0/24", "10.244.2.0/24", "10.244.248.0/24"]),
        },
        Canned { name: "a full space", input: space("10.244.0.0/23", 24, &["10.244.0.0/24", "10.244.1.0/24"]) },
    ]
}

fn space(v4_range: &str, block_length: u8, claimed: &[&str]) -> Space {
    let pool = |range, block_length| Pool { range, block_length };
    let v4 = nets(&[v4_range]).into_iter().map(|range| pool(range, block_length));
    let v6 = nets(&["fd00:244::/48"]).into_iter().map(|range| pool(range, 64));
    let claims = nets(claimed).into_iter().enumerate();
    let claims = claims.map(|(index, block)| ClaimView { block, holder: format!("edge-{index}"), in_use: 1 });
    Space { pools: v4.chain(v6).collect(), claims: claims.collect() }
}

/// The live topology as a space: its cluster prefixes are the pools, its nodes' blocks the claims.
pub(super) fn space_of(topology: &Topology) -> Space {
    let blocks = || topology.nodes.iter().flat_map(|node| node.blocks.iter().map(move |block| (block, &node.name)));
    let length_in = |range: &IpNet| {
        let common = if range.addr().is_ipv4() { 24 } else { 64 };
        let held = blocks().find(|(block, _)| range.contains(*block)).map(|(block, _)| block.prefix_len());
        held.unwrap_or(common).max(range.prefix_len())
    };
    let pools = topology.cluster_prefixes.iter();
    let pools = pools.map(|range| Pool { range: *range, block_length: length_in(range) }).collect();
    let claims = blocks().map(|(block, holder)| ClaimView { block: *block, holder: holder.clone(), in_use: 0 });
    let mut claims: Vec<ClaimView> = claims.collect();
    claims.sort_by_key(|claim| claim.block);
    Space { pools, claims }
}

pub(super) fn picks() -> Vec<Canned<PickRequest>> {
    let free = addresses(&["10.244.1.2", "10.244.1.3", "10.244.1.7", "10.244.1.254"]);
    let pod = PodView {
        namespace: "default".to_owned(),
        name: "web-0".to_owned(),
        labels: words(&[("app", "web")]),
        annotations: BTreeMap::new(),
    };
    let wanted = free.get(2).copied();
    vec![
        Canned { name: "no free address", input: PickRequest::default() },
        Canned {
            name: "four free addresses",
            input: PickRequest { pod: PodView::default(), free: free.clone(), wanted: None },
        },
        Canned { name: "a wanted address", input: PickRequest { pod, free, wanted } },
    ]
}

pub(super) fn pods() -> Vec<Canned<ShapeRequest>> {
    let annotated = PodView {
        namespace: "default".to_owned(),
        name: "web-0".to_owned(),
        labels: words(&[("app", "web")]),
        annotations: words(&[("kubernetes.io/ingress-bandwidth", "10M"), ("kubernetes.io/egress-bandwidth", "5M")]),
    };
    let rate = Rate { bits_per_second: 1_000_000, burst_bytes: 65_536 };
    let requested = Limits { ingress: Some(rate), egress: None };
    vec![
        Canned { name: "a pod without a name", input: ShapeRequest::default() },
        Canned {
            name: "a pod with annotations",
            input: ShapeRequest { pod: annotated, requested: Limits::default(), minute_of_week: Some(0) },
        },
        Canned {
            name: "a pod with requested rates",
            input: ShapeRequest { pod: PodView::default(), requested, minute_of_week: Some(10_079) },
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_the_made_up_inputs_is_read() {
        let topologies: Vec<Topology> = topologies().into_iter().map(|canned| canned.input).collect();
        let blocks: Vec<usize> = topologies.iter().flat_map(|t| t.nodes.iter().map(|node| node.blocks.len())).collect();
        assert_eq!(blocks, [1, 2, 2, 2, 2, 1, 1, 0]);
        let known: Vec<usize> =
            topologies.iter().flat_map(|t| t.nodes.iter().map(|node| node.addresses.len())).collect();
        assert_eq!(known, [1, 2, 2, 2, 1, 0, 1, 0]);
        assert!(topologies.iter().all(|t| t.cluster_prefixes.len() == 2 && t.service_prefixes.len() == 2));
        assert!(topologies.iter().all(|t| t.nodes.is_sorted_by(|left, right| left.name < right.name)));
        let claims: Vec<usize> = spaces().iter().map(|canned| canned.input.claims.len()).collect();
        assert_eq!(claims, [0, 3, 2]);
        let free: Vec<usize> = picks().iter().map(|canned| canned.input.free.len()).collect();
        assert_eq!(free, [0, 4, 4]);
    }

    #[test]
    fn a_live_topology_makes_a_space_of_its_blocks() {
        let space = space_of(&three_sites());
        assert_eq!(space.pools.iter().map(|pool| pool.block_length).collect::<Vec<_>>(), [24, 64]);
        assert_eq!(space.claims.len(), 9);
        assert!(space.claims.is_sorted_by_key(|claim| claim.block));
    }
}
