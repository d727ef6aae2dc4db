//! The test guests of `tests/guests` as components, for tests that need the bytes of a policy.
//!
//! Guests with a moment take the settings `afterGeneration` and `aboveNodes`; without them they behave for ever, so they
//! pass a gate and fail later. `{"afterGeneration": 0}` makes them fail at the gate.

/// The same rates for every pod: settings `ingress`, `egress`, bits/s.
pub const BANDWIDTH_FIXED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bandwidth-fixed.wasm"));

/// Wishes for a block outside every pool first, then for one that is taken; where more than eight
/// addresses are free it picks a position that does not exist.
pub const IPAM_OUTSIDE_POOL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ipam-outside-pool.wasm"));

/// From its moment on it claims the blocks of others and a prefix outside the cluster.
pub const ROUTE_FOREIGN_PREFIX: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/route-foreign-prefix.wasm"));

/// From its moment on it asks for 4 GiB of memory.
pub const ROUTE_HOARD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/route-hoard.wasm"));

/// From its moment on it never answers.
pub const ROUTE_SPIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/route-spin.wasm"));

/// From its moment on it traps.
pub const ROUTE_TRAP_LATER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/route-trap-later.wasm"));

/// Everything but own blocks goes through the tunnel.
pub const ROUTE_TUNNEL_ALL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/route-tunnel-all.wasm"));

/// All of them with their names, by name.
#[must_use]
pub fn all() -> [(&'static str, &'static [u8]); 7] {
    [
        ("bandwidth-fixed", BANDWIDTH_FIXED),
        ("ipam-outside-pool", IPAM_OUTSIDE_POOL),
        ("route-foreign-prefix", ROUTE_FOREIGN_PREFIX),
        ("route-hoard", ROUTE_HOARD),
        ("route-spin", ROUTE_SPIN),
        ("route-trap-later", ROUTE_TRAP_LATER),
        ("route-tunnel-all", ROUTE_TUNNEL_ALL),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Magic and version of a component.
    ///
    /// **Source** component model, Binary.md.
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn every_guest_is_a_component_of_less_than_64_kib() {
        for (name, bytes) in all() {
            assert!(bytes.starts_with(COMPONENT), "{name}");
            assert!(bytes.len() < 64 * 1_024, "{name} has {} bytes", bytes.len());
        }
    }
}
