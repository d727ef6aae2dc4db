//! Who is in the cluster: node records, and the binding of a name to the first identity that asked.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::topology::SiteKind;

/// A node's identity: the text form of its libp2p peer id. Ordered by text; "the lower PeerId" of
/// DESIGN §4 means this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(pub String);

impl fmt::Display for PeerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What a node publishes about itself. `mesh` carries it signed by `peer` and, once the keeper has
/// checked name and blocks, countersigned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's name.
    pub name: String,
    /// Its identity.
    pub peer: PeerId,
    /// Grows with every change of this record; the higher one wins.
    pub sequence: u64,
    /// Its underlay addresses, preferred first.
    pub addresses: Vec<IpAddr>,
    /// The mesh port it listens on at those addresses (UDP for QUIC, TCP for Noise). 1 to 65,535.
    pub port: u16,
    /// The blocks it holds by a final claim.
    pub blocks: Vec<IpNet>,
    /// Which side of the network it stands on.
    pub site_kind: SiteKind,
    /// The LAN or failure domain; may be empty.
    pub zone: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

mod directory;
mod endorsement;

pub use directory::{Binding, Directory, MAX_NODES, MembershipRefusal, Registered, View, is_node_name};
pub use endorsement::{EndorsedBlock, Endorsement};
