//! Prefixes as numbers: the few operations that every policy needs, in a fraction of the code that the general ones of
//! `ipnet` and the formatting of addresses would add to a guest.

use std::net::IpAddr;

use ipnet::IpNet;

/// Whether all addresses of `inner` are addresses of `outer`.
#[must_use]
pub fn covers(outer: &IpNet, inner: &IpNet) -> bool {
    match (outer, inner) {
        (IpNet::V4(outer), IpNet::V4(inner)) => {
            let differing = outer.addr().to_bits() ^ inner.addr().to_bits();
            inner.prefix_len() >= outer.prefix_len() && differing.leading_zeros() >= u32::from(outer.prefix_len())
        }
        (IpNet::V6(outer), IpNet::V6(inner)) => {
            let differing = outer.addr().to_bits() ^ inner.addr().to_bits();
            inner.prefix_len() >= outer.prefix_len() && differing.leading_zeros() >= u32::from(outer.prefix_len())
        }
        (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => false,
    }
}

/// Whether the address has no bit below the prefix: 10.1.0.0/16, not 10.1.2.3/16.
#[must_use]
pub fn has_no_host_bits(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => prefix.addr().to_bits().trailing_zeros() + u32::from(prefix.prefix_len()) >= 32,
        IpNet::V6(prefix) => prefix.addr().to_bits().trailing_zeros() + u32::from(prefix.prefix_len()) >= 128,
    }
}

/// An address as a number; IPv4 has the low 32 bits.
pub(crate) fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(address: IpAddr, length: u8) -> Option<IpNet> {
        IpNet::new(address, length.min(if address.is_ipv4() { 32 } else { 128 })).ok()
    }

    #[test]
    fn families_never_cover_each_other() {
        let (v4, v6): (IpNet, IpNet) = ("0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap());
        assert_eq!(
            [covers(&v4, &v6), covers(&v6, &v4), covers(&v4, &v4), covers(&v6, &v6)],
            [false, false, true, true]
        );
    }

    proptest! {
        #[test]
        fn a_prefix_covers_what_ipnet_says_it_contains(
            outer: IpAddr, inner: IpAddr, near in 0_u8..=128, lengths in (0_u8..=128, 0_u8..=128)
        ) {
            // Half of the addresses are made neighbours: random ones would hardly ever be contained.
            let inner = match (outer, inner) {
                (IpAddr::V4(a), IpAddr::V4(b)) => IpAddr::V4((a.to_bits() ^ b.to_bits().checked_shr(near.into()).unwrap_or(0)).into()),
                (IpAddr::V6(a), IpAddr::V6(b)) => IpAddr::V6((a.to_bits() ^ b.to_bits().checked_shr(near.into()).unwrap_or(0)).into()),
                _ => inner,
            };
            if let (Some(outer), Some(inner)) = (net(outer, lengths.0), net(inner, lengths.1)) {
                prop_assert_eq!(covers(&outer, &inner), outer.contains(&inner));
            }
        }

        #[test]
        fn a_prefix_without_host_bits_is_its_own_network(address: IpAddr, length in 0_u8..=128) {
            if let Some(prefix) = net(address, length) {
                prop_assert_eq!(has_no_host_bits(&prefix), prefix.trunc() == prefix);
                prop_assert!(has_no_host_bits(&prefix.trunc()));
            }
        }
    }
}
