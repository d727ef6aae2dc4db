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

/// A run of addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// The range from `first` to `last`; `None` when they are of two families or in the wrong order.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// One address.
    #[must_use]
    pub fn single(address: IpAddr) -> Self {
        Self { first: address, last: address }
    }

    /// Everything in a prefix.
    #[must_use]
    pub fn of_prefix(prefix: &IpNet) -> Self {
        Self { first: prefix.network(), last: prefix.broadcast() }
    }

    /// The lowest address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The family of its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether it holds the address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// What it shares with a prefix.
    #[must_use]
    pub fn within(&self, prefix: &IpNet) -> Option<Self> {
        if Family::of_prefix(prefix) != self.family() {
            return None;
        }
        Self::new(self.first.max(prefix.network()), self.last.min(prefix.broadcast()))
    }

    /// Its addresses, ascending. Lazy: a /64 has no end in practice.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let last = self.last;
        std::iter::successors(Some(self.first), move |address| if *address < last { next(*address) } else { None })
    }
}

impl std::fmt::Display for AddressRange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            return write!(formatter, "{}", self.first);
        }
        write!(formatter, "{}-{}", self.first, self.last)
    }
}

/// The address after this one.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}
