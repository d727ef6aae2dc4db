//! The cluster as one node sees it: what route and IPAM policies decide from.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::labels::Labels;
use crate::prefix::covers;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of a prefix.
    #[must_use]
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The family of an address.
    #[must_use]
    pub fn of_address(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// **Units** bits of an address.
    #[must_use]
    pub fn width(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// "IPv4" or "IPv6".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Which side of the network a node stands on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SiteKind {
    /// In a data centre, usually with a public address.
    Cloud,
    /// At a site, usually behind NAT.
    #[default]
    Edge,
}

/// What the host knows of its own way to another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// The same layer-2 segment: the node proved who it is at an on-link address.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Which side of the network it stands on.
    pub site_kind: SiteKind,
    /// The LAN or failure domain; "" when it carries no zone label.
    pub zone: String,
    /// False while it is not Ready or its agent has gone silent.
    pub ready: bool,
    /// Seen from the node that asks.
    pub reach: Reach,
    /// Underlay addresses, preferred first; with [`Reach::SameLink`] the on-link ones come first.
    pub addresses: Vec<IpAddr>,
    /// The blocks whose pods live on this node.
    pub blocks: Vec<IpNet>,
    /// The labels that were asked for and granted.
    pub labels: Labels,
}

/// A consistent snapshot of the cluster, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Grows with every change.
    pub generation: u64,
    /// The position in `nodes` of the node that asks.
    pub local: usize,
    /// Sorted by name.
    pub nodes: Vec<Node>,
    /// Everything a pod address can be.
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

    /// Every other node with its position, in the order of `nodes`.
    pub fn peers(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(index, _)| *index != self.local)
    }

    /// Whether all of `prefix` can be pod addresses.
    #[must_use]
    pub fn holds(&self, prefix: &IpNet) -> bool {
        self.cluster_prefixes.iter().any(|cluster| covers(cluster, prefix))
    }
}
