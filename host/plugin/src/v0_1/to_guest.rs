//! Core's words as the guest's, with only the keys the policy wants.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_core::address::{Family, IpNet};
use culvert_core::bandwidth::{Limits, Rate};
use culvert_core::claim::Space;
use culvert_core::policy::{PickRequest, PodView, ShapeRequest};
use culvert_core::topology::{Node, Reach, SiteKind, Topology};

use super::bandwidth::exports::culvert::policy::bandwidth as wit_bandwidth;
use super::ipam::exports::culvert::policy::ipam as wit_ipam;
use super::types;
use crate::unit::{Description, Want};

/// The keys a policy sees.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    node_labels: BTreeSet<String>,
    pod_labels: BTreeSet<String>,
    pod_annotations: BTreeSet<String>,
    clock: bool,
}

impl Keys {
    pub(crate) fn wanted_by(description: &Description) -> Self {
        let mut keys = Self::default();
        for want in &description.wants {
            match want {
                Want::NodeLabel(key) => _ = keys.node_labels.insert(key.clone()),
                Want::PodLabel(key) => _ = keys.pod_labels.insert(key.clone()),
                Want::PodAnnotation(key) => _ = keys.pod_annotations.insert(key.clone()),
                Want::Clock => keys.clock = true,
            }
        }
        keys
    }

    pub(crate) fn topology(&self, topology: &Topology) -> types::Topology {
        types::Topology {
            generation: topology.generation,
            local: index(topology.local),
            nodes: topology.nodes.iter().map(|node| self.node(node)).collect(),
            cluster_prefixes: topology.cluster_prefixes.iter().map(prefix).collect(),
            service_prefixes: topology.service_prefixes.iter().map(prefix).collect(),
        }
    }

    pub(crate) fn node(&self, node: &Node) -> types::Node {
        types::Node {
            name: node.name.clone(),
            site_kind: match node.site_kind {
                SiteKind::Cloud => types::SiteKind::Cloud,
                SiteKind::Edge => types::SiteKind::Edge,
            },
            zone: node.zone.clone(),
            ready: node.ready,
            reach: match node.reach {
                Reach::SameLink => types::Reach::SameLink,
                Reach::Routed => types::Reach::Routed,
                Reach::TunnelOnly => types::Reach::TunnelOnly,
                Reach::Unknown => types::Reach::Unknown,
            },
            addresses: node.addresses.iter().copied().map(address).collect(),
            pod_blocks: node.blocks.iter().map(prefix).collect(),
            labels: labels(&node.labels, &self.node_labels),
        }
    }

    pub(crate) fn pick_request(&self, request: &PickRequest) -> wit_ipam::Request {
        let PodView { namespace, name, labels: pod_labels, annotations } = &request.pod;
        wit_ipam::Request {
            pod_namespace: namespace.clone(),
            pod_name: name.clone(),
            labels: labels(pod_labels, &self.pod_labels),
            annotations: labels(annotations, &self.pod_annotations),
            free: request.free.iter().copied().map(address).collect(),
            wanted: request.wanted.map(address),
        }
    }

    pub(crate) fn pod(&self, request: &ShapeRequest) -> wit_bandwidth::Pod {
        let PodView { namespace, name, labels: pod_labels, annotations } = &request.pod;
        wit_bandwidth::Pod {
            namespace: namespace.clone(),
            name: name.clone(),
            labels: labels(pod_labels, &self.pod_labels),
            annotations: labels(annotations, &self.pod_annotations),
            requested: limits(request.requested),
            minute_of_week: request.minute_of_week.filter(|_| self.clock),
        }
    }
}

/// A position, which always fits: a topology of 2^32 nodes would need terabytes.
fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

/// The wanted ones of some labels. Looking the few wanted ones up is cheaper than going through all.
fn labels(all: &BTreeMap<String, String>, wanted: &BTreeSet<String>) -> Vec<types::Label> {
    let found = wanted.iter().filter_map(|key| all.get_key_value(key));
    found.map(|(key, value)| types::Label { key: key.clone(), value: value.clone() }).collect()
}

fn address(address: IpAddr) -> types::IpAddress {
    match address {
        IpAddr::V4(address) => types::IpAddress::V4(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            types::IpAddress::V6(((bits >> 64) as u64, bits as u64))
        }
    }
}

fn prefix(net: &IpNet) -> types::Prefix {
    types::Prefix { address: address(net.network()), length: net.prefix_len() }
}

pub(crate) fn family(family: Family) -> types::IpFamily {
    match family {
        Family::V4 => types::IpFamily::V4,
        Family::V6 => types::IpFamily::V6,
    }
}

pub(crate) fn space(space: &Space) -> wit_ipam::Space {
    let pools = space.pools.iter();
    let claims = space.claims.iter();
    wit_ipam::Space {
        pools: pools
            .map(|pool| wit_ipam::Pool { range: prefix(&pool.range), block_length: pool.block_length })
            .collect(),
        claims: claims
            .map(|claim| wit_ipam::Claim {
                block: prefix(&claim.block),
                holder: claim.holder.clone(),
                in_use: claim.in_use,
            })
            .collect(),
    }
}

fn limits(limits: Limits) -> wit_bandwidth::Limits {
    let rate =
        |rate: Rate| wit_bandwidth::Rate { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst_bytes };
    wit_bandwidth::Limits { ingress: limits.ingress.map(rate), egress: limits.egress.map(rate) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_keys_are_shown() {
        let description = Description {
            wants: vec![Want::NodeLabel("zone".to_owned()), Want::NodeLabel("absent".to_owned())],
            ..Description::default()
        };
        let keys = Keys::wanted_by(&description);
        let all = BTreeMap::from([("secret".to_owned(), "1".to_owned()), ("zone".to_owned(), "a".to_owned())]);
        let node = keys.node(&Node { labels: all.clone(), ..Node::default() });
        let shown: Vec<_> = node.labels.into_iter().map(|label| (label.key, label.value)).collect();
        assert_eq!(shown, [("zone".to_owned(), "a".to_owned())]);
        let request = ShapeRequest {
            pod: PodView { labels: all.clone(), annotations: all, ..PodView::default() },
            minute_of_week: Some(7),
            ..ShapeRequest::default()
        };
        let pod = keys.pod(&request);
        assert!(pod.labels.is_empty() && pod.annotations.is_empty());
        assert_eq!(pod.minute_of_week, None);
        let clocked = Keys::wanted_by(&Description { wants: vec![Want::Clock], ..Description::default() });
        assert_eq!(clocked.pod(&request).minute_of_week, Some(7));
    }
}
