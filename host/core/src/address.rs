//! Addresses, prefixes and blocks: the small arithmetic that everything else shares.

use std::net::IpAddr;

pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// An IP version. A block, a pool and a claim belong to exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a prefix.
    #[must_use]
    pub fn of_prefix(prefix: &IpNet) -> Self {
        Self::of(prefix.addr())
    }
}

/// Whether two prefixes share an address.
#[must_use]
pub fn overlap(left: &IpNet, right: &IpNet) -> bool {
    left.contains(right) || right.contains(left)
}

/// The gateway of a block: its first address after the network address.
///
/// It is the bridge's own address on the node that holds the block, so no attachment ever gets it.
#[must_use]
pub fn gateway(block: &IpNet) -> IpAddr {
    match block.network() {
        IpAddr::V4(network) => IpAddr::V4((network.to_bits() | 1).into()),
        IpAddr::V6(network) => IpAddr::V6((network.to_bits() | 1).into()),
    }
}

/// Whether `address` may be given to an attachment of `block`: inside it, and neither its network,
/// gateway nor broadcast address.
#[must_use]
pub fn is_assignable(block: &IpNet, address: IpAddr) -> bool {
    block.contains(&address)
        && address != block.network()
        && address != gateway(block)
        && !(address.is_ipv4() && address == block.broadcast())
}
