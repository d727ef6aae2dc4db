//! What an ADD may ask of the allocator, and which whole blocks have to be this node's for it (DESIGN §4).
//!
//! ```text
//! subnet, range, static address ──cover──> blocks ──claim, all or none──> places inside them ──policy──> address
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::address::{AddressRange, Family, gateway, is_assignable};
use crate::claim::Pool;

/// The most blocks that one configuration may cover: a node that asks for more wants a pool, not a range.
pub const MAX_COVERED_BLOCKS: usize = 16;

/// What a pod asks for besides "any address".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressWish {
    /// One address from each set; each set is a list of ranges, tried in order. Empty means one address of
    /// each family, from anywhere.
    pub sets: Vec<Vec<AddressRange>>,
    /// Exactly these addresses. With sets, each lies in one of them and counts for it.
    pub addresses: Vec<IpAddr>,
    /// The gateways that the configuration counts on. Each must be its block's own.
    pub gateways: Vec<IpAddr>,
}

/// Part of a block that an address may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The block: gives prefix length and gateway.
    pub block: IpNet,
    /// The part; inside the block.
    pub range: AddressRange,
}

impl From<IpNet> for Place {
    fn from(block: IpNet) -> Self {
        Self { block, range: AddressRange::of_prefix(&block) }
    }
}

/// Why a wish can never be served here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// Not one address of it is in a pool.
    #[error("{range} lies outside every pool ({pools}): choose a range inside one, or add a pool")]
    OutsidePools {
        /// The range or address.
        range: AddressRange,
        /// The pools there are.
        pools: String,
    },
    /// It is too wide.
    #[error(
        "{range} covers {blocks} blocks, and one node may claim {MAX_COVERED_BLOCKS} for its ranges: narrow them, or \
         leave them out and let the node use the pool"
    )]
    TooWide {
        /// The range that is one too many.
        range: AddressRange,
        /// How many blocks.
        blocks: usize,
    },
    /// The address is one that no pod gets.
    #[error("address {address} is the network, gateway or broadcast address of block {block}: choose another one")]
    NotAssignable {
        /// The address.
        address: IpAddr,
        /// Its block.
        block: IpNet,
    },
    /// Another gateway than the bridge's is named.
    #[error(
        "gateway {asked} is not that of block {block}, which is {ours}: leave \"gateway\" out, or set it to {ours}"
    )]
    Gateway {
        /// The one named.
        asked: IpAddr,
        /// Its block.
        block: IpNet,
        /// The block's own.
        ours: IpAddr,
    },
    /// A requested address is in none of the configured ranges.
    #[error("address {address} lies in none of the configured ranges: choose one inside them")]
    OutsideRanges {
        /// The address.
        address: IpAddr,
    },
}

impl AddressWish {
    /// Whether any address will do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.addresses.is_empty()
    }

    /// The whole blocks that cover the wish, ascending.
    ///
    /// # Errors
    /// When no claim could ever make it possible.
    pub fn cover(&self, pools: &[Pool]) -> Result<Vec<IpNet>, WishError> {
        let mut blocks = BTreeSet::new();
        for range in self.sets.iter().flatten() {
            cover_range(pools, range, &mut blocks)?;
        }
        for address in &self.addresses {
            cover_range(pools, &AddressRange::single(*address), &mut blocks)?;
            let block = blocks.iter().find(|block| block.contains(address));
            if let Some(block) = block.filter(|block| !is_assignable(block, *address)) {
                return Err(WishError::NotAssignable { address: *address, block: *block });
            }
            if !self.sets.is_empty() && self.set_of(*address).is_none() {
                return Err(WishError::OutsideRanges { address: *address });
            }
        }
        for asked in &self.gateways {
            let block = blocks.iter().find(|block| block.contains(asked));
            if let Some((block, ours)) = block.map(|block| (*block, gateway(block))).filter(|(_, ours)| ours != asked) {
                return Err(WishError::Gateway { asked: *asked, block, ours });
            }
        }
        Ok(blocks.into_iter().collect())
    }

    /// For each address of the pod, where it may come from. `blocks` are those this node may give addresses from,
    /// `families` those that a pod gets an address of when no set says otherwise.
    #[must_use]
    pub fn choices(&self, blocks: &[IpNet], families: &BTreeSet<Family>) -> Vec<Choice> {
        if self.sets.is_empty() {
            let asked = self.addresses.iter().copied().map(Family::of);
            let families: BTreeSet<Family> = families.iter().copied().chain(asked).collect();
            return families.into_iter().map(|family| self.anywhere(family, blocks)).collect();
        }
        self.sets.iter().filter_map(|set| self.of_set(set, blocks)).collect()
    }

    fn anywhere(&self, family: Family, blocks: &[IpNet]) -> Choice {
        let wanted = self.addresses.iter().copied().find(|address| Family::of(*address) == family);
        match wanted {
            Some(address) => exactly(address, blocks),
            None => {
                let own = blocks.iter().filter(|block| Family::of_prefix(block) == family);
                Choice { family, places: own.map(|block| Place::from(*block)).collect(), wanted: None }
            }
        }
    }

    fn of_set(&self, set: &[AddressRange], blocks: &[IpNet]) -> Option<Choice> {
        let inside = |address: &IpAddr| set.iter().any(|range| range.contains(*address));
        if let Some(address) = self.addresses.iter().copied().find(inside) {
            return Some(exactly(address, blocks));
        }
        let places = set.iter().flat_map(|range| places(blocks, range)).collect();
        Some(Choice { family: set.first()?.family(), places, wanted: None })
    }

    fn set_of(&self, address: IpAddr) -> Option<usize> {
        self.sets.iter().position(|set| set.iter().any(|range| range.contains(address)))
    }
}

/// Where one address of a pod comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The address's family.
    pub family: Family,
    /// Where to look, in order.
    pub places: Vec<Place>,
    /// The only address that will do.
    pub wanted: Option<IpAddr>,
}

/// This address and no other.
fn exactly(address: IpAddr, blocks: &[IpNet]) -> Choice {
    let places = places(blocks, &AddressRange::single(address)).collect();
    Choice { family: Family::of(address), places, wanted: Some(address) }
}

fn places(blocks: &[IpNet], range: &AddressRange) -> impl Iterator<Item = Place> {
    blocks.iter().filter_map(|block| Some(Place { block: *block, range: range.within(block)? }))
}

fn cover_range(pools: &[Pool], range: &AddressRange, blocks: &mut BTreeSet<IpNet>) -> Result<(), WishError> {
    let inside = |pool: &&Pool| pool.range.contains(&range.first()) && pool.range.contains(&range.last());
    let Some(pool) = pools.iter().find(inside) else {
        let pools = pools.iter().map(|pool| pool.range.to_string()).collect::<Vec<_>>().join(", ");
        return Err(WishError::OutsidePools { range: *range, pools });
    };
    let mut next = block_of(pool, range.first());
    while let Some(block) = next.filter(|block| block.network() <= range.last()) {
        blocks.insert(block);
        if blocks.len() > MAX_COVERED_BLOCKS {
            return Err(WishError::TooWide { range: *range, blocks: count(pool, range) });
        }
        next = AddressRange::new(block.broadcast(), range.last())
            .and_then(|rest| rest.addresses().nth(1))
            .and_then(|address| block_of(pool, address));
    }
    Ok(())
}

/// The block of a pool that an address lies in.
fn block_of(pool: &Pool, address: IpAddr) -> Option<IpNet> {
    IpNet::new(address, pool.block_length).ok().map(|block| block.trunc())
}

/// How many blocks of a pool a range touches. **Bounds** saturates.
fn count(pool: &Pool, range: &AddressRange) -> usize {
    let shift = u32::from(pool.range.max_prefix_len() - pool.block_length);
    let number = |address: IpAddr| {
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        bits.checked_shr(shift).unwrap_or(0)
    };
    usize::try_from(number(range.last()) - number(range.first())).unwrap_or(usize::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn range(first: &str, last: &str) -> AddressRange {
        AddressRange::new(ip(first), ip(last)).unwrap()
    }

    fn pools() -> Vec<Pool> {
        vec![
            Pool { range: net("10.244.0.0/16"), block_length: 24 },
            Pool { range: net("fd00:10:244::/48"), block_length: 64 },
        ]
    }

    fn ranges(ranges: &[AddressRange]) -> AddressWish {
        AddressWish {
            sets: ranges.iter().map(|range| vec![*range]).collect(),
            addresses: Vec::new(),
            gateways: Vec::new(),
        }
    }

    #[test]
    fn a_range_is_covered_by_whole_blocks() {
        let subnet = AddressRange::of_prefix(&net("10.244.5.0/24"));
        assert_eq!(ranges(&[subnet]).cover(&pools()), Ok(vec![net("10.244.5.0/24")]));
        let across = range("10.244.5.200", "10.244.7.3");
        let three = ["10.244.5.0/24", "10.244.6.0/24", "10.244.7.0/24"].map(net);
        assert_eq!(ranges(&[across]).cover(&pools()), Ok(three.to_vec()));
        let narrow = AddressRange::of_prefix(&net("10.244.5.64/26"));
        let both = ranges(&[narrow, range("fd00:10:244:9::5", "fd00:10:244:9::9")]);
        assert_eq!(both.cover(&pools()), Ok(vec![net("10.244.5.0/24"), net("fd00:10:244:9::/64")]));
    }

    #[test]
    fn sixteen_blocks_are_the_most() {
        let wide = |last: &str| ranges(&[range("10.244.0.0", last)]).cover(&pools());
        assert_eq!(wide("10.244.15.255").map(|blocks| blocks.len()), Ok(16));
        let too_wide = |last, blocks| Err(WishError::TooWide { range: range("10.244.0.0", last), blocks });
        assert_eq!(wide("10.244.16.0"), too_wide("10.244.16.0", 17));
        assert_eq!(wide("10.244.255.255"), too_wide("10.244.255.255", 256));
        let range = AddressRange::of_prefix(&net("fd00:10:244::/48"));
        assert_eq!(ranges(&[range]).cover(&pools()), Err(WishError::TooWide { range, blocks: 65_536 }));
    }

    #[test]
    fn what_lies_outside_the_pools_is_refused_with_the_pools_there_are() {
        let half_out = ranges(&[range("10.244.255.0", "10.245.0.9")]).cover(&pools()).unwrap_err();
        assert_eq!(
            half_out.to_string(),
            "10.244.255.0-10.245.0.9 lies outside every pool (10.244.0.0/16, fd00:10:244::/48): choose a range inside \
             one, or add a pool"
        );
        let wish = AddressWish { addresses: vec![ip("192.168.1.5")], ..AddressWish::default() };
        assert!(matches!(wish.cover(&pools()), Err(WishError::OutsidePools { .. })));
    }

    #[test]
    fn a_requested_address_must_be_one_that_a_pod_can_have_and_lie_in_the_ranges() {
        let wish = |address: &str| AddressWish {
            sets: vec![vec![range("10.244.5.10", "10.244.5.20")]],
            addresses: vec![ip(address)],
            gateways: vec![ip("10.244.5.1")],
        };
        assert_eq!(wish("10.244.5.15").cover(&pools()), Ok(vec![net("10.244.5.0/24")]));
        assert_eq!(wish("10.244.5.30").cover(&pools()), Err(WishError::OutsideRanges { address: ip("10.244.5.30") }));
        for address in ["10.244.5.0", "10.244.5.1", "10.244.5.255"].map(ip) {
            let block = net("10.244.5.0/24");
            let wish = AddressWish { addresses: vec![address], ..AddressWish::default() };
            assert_eq!(wish.cover(&pools()), Err(WishError::NotAssignable { address, block }));
        }
    }

    #[test]
    fn a_gateway_that_is_not_the_bridge_s_is_refused_with_the_one_that_is() {
        let mut wish = ranges(&[AddressRange::of_prefix(&net("10.244.5.0/24"))]);
        wish.gateways = vec![ip("10.244.5.254")];
        let (asked, block, ours) = (ip("10.244.5.254"), net("10.244.5.0/24"), ip("10.244.5.1"));
        assert_eq!(wish.cover(&pools()), Err(WishError::Gateway { asked, block, ours }));
    }

    #[test]
    fn a_requested_address_takes_the_place_of_its_set() {
        let wish = AddressWish {
            sets: vec![vec![range("10.244.5.10", "10.244.5.20")], vec![range("10.244.6.0", "10.244.7.9")]],
            addresses: vec![ip("10.244.5.15")],
            gateways: Vec::new(),
        };
        let blocks = ["10.244.5.0/24", "10.244.6.0/24", "10.244.7.0/24"].map(net);
        let exact = Place { block: blocks[0], range: AddressRange::single(ip("10.244.5.15")) };
        let open = [
            Place { block: blocks[1], range: AddressRange::of_prefix(&blocks[1]) },
            Place { block: blocks[2], range: range("10.244.7.0", "10.244.7.9") },
        ];
        assert_eq!(
            wish.choices(&blocks, &[Family::V4, Family::V6].into()),
            [
                Choice { family: Family::V4, places: vec![exact], wanted: Some(ip("10.244.5.15")) },
                Choice { family: Family::V4, places: open.to_vec(), wanted: None },
            ]
        );
    }

    #[test]
    fn without_ranges_a_pod_gets_one_address_of_each_family_and_the_requested_one_of_its_own() {
        let blocks = ["10.244.5.0/24", "fd00:10:244:5::/64"].map(net);
        let wish = AddressWish { addresses: vec![ip("10.244.5.9")], ..AddressWish::default() };
        let choices = wish.choices(&blocks, &[Family::V4, Family::V6].into());
        let wanted: Vec<_> = choices.iter().map(|choice| (choice.family, choice.wanted)).collect();
        assert_eq!(wanted, [(Family::V4, Some(ip("10.244.5.9"))), (Family::V6, None)]);
        assert_eq!(choices[1].places, [Place::from(blocks[1])]);
        assert_eq!(AddressWish::default().choices(&blocks, &[Family::V6].into()).len(), 1);
    }

    proptest! {
        #[test]
        fn the_cover_holds_the_range_and_touches_it_with_every_block(start: u16, length in 0_u16..4_096) {
            let base = u32::from(Ipv4Addr::new(10, 244, 0, 0));
            let first = base + u32::from(start);
            let last = first.saturating_add(u32::from(length)).min(base + 0xffff);
            let range = AddressRange::new(IpAddr::V4(first.into()), IpAddr::V4(last.into())).unwrap();
            let covered = ranges(&[range]).cover(&pools());
            let blocks = usize::try_from((last >> 8) - (first >> 8)).unwrap() + 1;
            if blocks > MAX_COVERED_BLOCKS {
                prop_assert_eq!(covered, Err(WishError::TooWide { range, blocks }));
            } else {
                let covered = covered.unwrap();
                prop_assert_eq!(covered.len(), blocks);
                prop_assert!(covered.iter().all(|block| range.within(block).is_some()));
                prop_assert!(covered[0].contains(&range.first()) && covered[blocks - 1].contains(&range.last()));
            }
        }
    }
}
