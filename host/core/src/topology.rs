//! The cluster as one node sees it: the input of the route and IPAM policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Which side of the network a node stands on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SiteKind {
    /// In a data centre, usually with a public address.
    Cloud,
    /// At a site, usually behind NAT.
    #[default]
    Edge,
}

/// What the host knows of its own way to another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// The same layer-2 segment: the node proved its identity at an on-link address.
    SameLink,
    /// The underlay routes to it.
    Routed,
    /// Only the peer-to-peer transport gets there.
    TunnelOnly,
    /// Not measured yet.
    #[default]
    Unknown,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The node's name, unique in the cluster.
    pub name: String,
    /// Which side of the network it stands on.
    pub site_kind: SiteKind,
    /// The LAN or failure domain; empty when none was given.
    pub zone: String,
    /// False while its agent is silent.
    pub ready: bool,
    /// Seen from the local node.
    pub reach: Reach,
    /// Underlay addresses, preferred first. With [`Reach::SameLink`] the verified on-link addresses
    /// come first, and as nothing else may be a next hop, the host lists no others then.
    pub addresses: Vec<IpAddr>,
    /// The blocks whose attachments live on this node.
    pub blocks: Vec<IpNet>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A consistent snapshot of the cluster, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Grows with every change.
    pub generation: u64,
    /// The position in `nodes` of the node that asks.
    pub local: usize,
    /// Sorted by name, no name twice.
    pub nodes: Vec<Node>,
    /// The pools' ranges: everything a pod address can be.
    pub cluster_prefixes: Vec<IpNet>,
    /// The Service ranges: never a pod's.
    pub service_prefixes: Vec<IpNet>,
}

impl Topology {
    /// The node that asks.
    #[must_use]
    pub fn local_node(&self) -> Option<&Node> {
        self.nodes.get(self.local)
    }

    /// The node that holds the longest block containing all of `prefix`, by position.
    #[must_use]
    pub fn holder_of(&self, prefix: &IpNet) -> Option<usize> {
        let holders = self.nodes.iter().enumerate().flat_map(|(index, node)| {
            node.blocks.iter().filter(|block| block.contains(prefix)).map(move |block| (block.prefix_len(), index))
        });
        holders.max_by_key(|(length, _)| *length).map(|(_, index)| index)
    }
}

/// Who holds what, indexed: answers [`Topology::holder_of`] without a walk over all nodes.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    blocks: BTreeMap<IpNet, usize>,
    v4_lengths: BTreeSet<u8>,
    v6_lengths: BTreeSet<u8>,
}

impl Holders {
    /// Indexes the blocks of all nodes of a topology.
    #[must_use]
    pub fn new(topology: &Topology) -> Self {
        let mut holders = Self::default();
        for (index, node) in topology.nodes.iter().enumerate() {
            for block in &node.blocks {
                let block = block.trunc();
                holders.lengths_mut(&block).insert(block.prefix_len());
                holders.blocks.insert(block, index);
            }
        }
        holders
    }

    /// The longest block that contains all of `prefix`, and its holder's position.
    #[must_use]
    pub fn longest(&self, prefix: &IpNet) -> Option<(IpNet, usize)> {
        let lengths = match prefix {
            IpNet::V4(_) => &self.v4_lengths,
            IpNet::V6(_) => &self.v6_lengths,
        };
        lengths.range(..=prefix.prefix_len()).rev().find_map(|length| {
            let block = IpNet::new(prefix.addr(), *length).ok()?.trunc();
            self.blocks.get(&block).map(|holder| (block, *holder))
        })
    }

    /// The position of the node that holds the longest block containing all of `prefix`.
    #[must_use]
    pub fn holder_of(&self, prefix: &IpNet) -> Option<usize> {
        self.longest(prefix).map(|(_, holder)| holder)
    }

    fn lengths_mut(&mut self, block: &IpNet) -> &mut BTreeSet<u8> {
        match block {
            IpNet::V4(_) => &mut self.v4_lengths,
            IpNet::V6(_) => &mut self.v6_lengths,
        }
    }
}
