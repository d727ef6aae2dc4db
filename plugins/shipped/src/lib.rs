//! The policies that come with the daemon, as components: what runs when none is configured.
//!
//! They are built from the crates beside this one whenever these change, and no node ever compiles Rust. There is no
//! native twin of any of them.

/// What a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Routes: the world `router-policy`.
    Route,
    /// Blocks and addresses: the world `ipam-policy`.
    Ipam,
    /// Rates: the world `bandwidth-policy`.
    Bandwidth,
}

/// A policy that comes with the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipped {
    /// As a configuration names it, and as it names itself.
    pub name: &'static str,
    /// What it decides.
    pub kind: Kind,
    /// The component.
    pub bytes: &'static [u8],
}

/// The nearest way to each pod block; see the crate `route-sites`.
pub const ROUTE_SITES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/route-sites.wasm"));

/// A slot of the pool by the hash of the node's name; see the crate `ipam-hash`.
pub const IPAM_HASH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ipam-hash.wasm"));

/// The next free blocks of a central pool; see the crate `ipam-pool`.
pub const IPAM_POOL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ipam-pool.wasm"));

/// Kubernetes' annotations with defaults and caps; see the crate `bandwidth-annotations`.
pub const BANDWIDTH_ANNOTATIONS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bandwidth-annotations.wasm"));

/// All of them, by name.
#[must_use]
pub fn all() -> [Shipped; 4] {
    [
        Shipped { name: "bandwidth-annotations", kind: Kind::Bandwidth, bytes: BANDWIDTH_ANNOTATIONS },
        Shipped { name: "ipam-hash", kind: Kind::Ipam, bytes: IPAM_HASH },
        Shipped { name: "ipam-pool", kind: Kind::Ipam, bytes: IPAM_POOL },
        Shipped { name: "route-sites", kind: Kind::Route, bytes: ROUTE_SITES },
    ]
}

/// The one with this name.
#[must_use]
pub fn by_name(name: &str) -> Option<Shipped> {
    all().into_iter().find(|shipped| shipped.name == name)
}

#[cfg(test)]
mod tests;
