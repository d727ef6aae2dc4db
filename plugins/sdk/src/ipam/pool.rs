//! A pool as numbered slots, and which of them are taken: what every block strategy counts with.
//!
//! ```text
//! pool 10.244.0.0/16 in /24 blocks:   slot 0 = 10.244.0.0/24   slot 1 = 10.244.1.0/24   …   slot 255
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::error::PolicyError;
use crate::prefix::{bits_of, covers};
use crate::topology::Family;

/// A range that may be handed out, in blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    range: IpNet,
    block_length: u8,
}

impl Pool {
    /// Blocks of the prefix length `block_length` in `range`.
    ///
    /// # Errors
    /// [`PolicyError::Internal`] when such blocks do not fit into the range.
    pub fn new(range: IpNet, block_length: u8) -> Result<Self, PolicyError> {
        if block_length < range.prefix_len() || block_length > Family::of(&range).width() {
            return Err(PolicyError::internal(format!(
                "a /{} pool cannot have /{block_length} blocks",
                range.prefix_len()
            )));
        }
        Ok(Self { range: range.trunc(), block_length })
    }

    /// The whole range.
    #[must_use]
    pub fn range(&self) -> IpNet {
        self.range
    }

    /// The prefix length of a block.
    #[must_use]
    pub fn block_length(&self) -> u8 {
        self.block_length
    }

    /// The family of its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(&self.range)
    }

    /// The highest slot; slots count from 0. One less than their number, because 2^128 is no `u128`.
    #[must_use]
    pub fn last_slot(&self) -> u128 {
        let bits = u32::from(self.block_length.saturating_sub(self.range.prefix_len()));
        if bits == 0 { 0 } else { u128::MAX >> (128 - bits) }
    }

    /// The block in a slot; `None` beyond the last.
    #[must_use]
    pub fn block(&self, slot: u128) -> Option<IpNet> {
        if slot > self.last_slot() {
            return None;
        }
        let first = bits_of(self.range.addr()) | slot.checked_shl(self.host_bits()).unwrap_or(0);
        IpNet::new(address_of(self.family(), first), self.block_length).ok()
    }

    /// The slots that `prefix` covers or lies in, first and last; `None` when it is elsewhere.
    #[must_use]
    pub fn slots_of(&self, prefix: &IpNet) -> Option<(u128, u128)> {
        if covers(prefix, &self.range) {
            return Some((0, self.last_slot()));
        }
        if !covers(&self.range, prefix) {
            return None;
        }
        let offset = bits_of(prefix.addr()) ^ bits_of(self.range.addr());
        let first = offset.checked_shr(self.host_bits()).unwrap_or(0);
        let covered = u32::from(self.block_length.saturating_sub(prefix.prefix_len()));
        let more = if covered == 0 { 0 } else { u128::MAX >> (128 - covered) };
        Some((first & !more, first | more))
    }

    /// **Units** bits of an address below its block.
    fn host_bits(&self) -> u32 {
        u32::from(self.family().width() - self.block_length)
    }
}

/// The address with these bits; IPv4 has the low 32.
fn address_of(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

/// The slots of one pool that are not free, as sorted ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    ranges: Vec<(u128, u128)>,
}

impl Taken {
    /// The slots of `pool` that any of `prefixes` overlaps.
    #[must_use]
    pub fn of<'a>(pool: &Pool, prefixes: impl Iterator<Item = &'a IpNet>) -> Self {
        let mut taken = Self::default();
        for (first, last) in prefixes.filter_map(|prefix| pool.slots_of(prefix)) {
            taken.insert(first, last);
        }
        taken
    }

    /// Adds a range and joins it with those it touches. Claims come sorted by address, so this is nearly always an
    /// addition at the end; a sort would be more code than the rest of this file.
    fn insert(&mut self, first: u128, last: u128) {
        let start = self.ranges.partition_point(|range| range.1 < first.saturating_sub(1));
        let joined = self.ranges.get(start..).unwrap_or_default().iter();
        let joined = joined.take_while(|range| range.0 <= last.saturating_add(1));
        let (count, first, last) =
            joined.fold((0, first, last), |(count, from, to), range| (count + 1, from.min(range.0), to.max(range.1)));
        self.ranges.splice(start..start + count, [(first, last)]);
    }

    /// The first free slot in `from..=last`.
    #[must_use]
    pub fn next_free(&self, from: u128, last: u128) -> Option<u128> {
        let following = self.ranges.partition_point(|range| range.1 < from);
        let free = match self.ranges.get(following) {
            Some((first, end)) if *first <= from => end.checked_add(1)?,
            Some(_) | None => from,
        };
        (free <= last).then_some(free)
    }

    /// The free slots of `from..=last`, ascending.
    pub fn free_slots(&self, from: u128, last: u128) -> impl Iterator<Item = u128> {
        std::iter::successors(self.next_free(from, last), move |slot| self.next_free(slot.checked_add(1)?, last))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pool(range: &str, block_length: u8) -> Pool {
        Pool::new(range.parse().unwrap(), block_length).unwrap()
    }

    fn prefix(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn slots_are_the_blocks_in_the_order_of_their_addresses() {
        let pool = pool("10.244.0.0/16", 24);
        assert_eq!(pool.last_slot(), 255);
        assert_eq!(pool.block(0), Some(prefix("10.244.0.0/24")));
        assert_eq!(pool.block(248), Some(prefix("10.244.248.0/24")));
        assert_eq!(pool.block(255), Some(prefix("10.244.255.0/24")));
        assert_eq!(pool.block(256), None);
    }

    #[test]
    fn a_pool_of_one_block_has_one_slot() {
        let pool = pool("10.244.7.0/24", 24);
        assert_eq!((pool.last_slot(), pool.block(0), pool.block(1)), (0, Some(prefix("10.244.7.0/24")), None));
    }

    #[test]
    fn the_widest_pool_that_there_is_counts_without_overflow() {
        let pool = pool("::/0", 128);
        assert_eq!(pool.last_slot(), u128::MAX);
        assert_eq!(pool.block(u128::MAX), Some(prefix("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128")));
        assert_eq!(pool.slots_of(&prefix("::/0")), Some((0, u128::MAX)));
        assert_eq!(Taken::of(&pool, [prefix("::/0")].iter()).next_free(0, u128::MAX), None);
    }

    #[test]
    fn a_block_as_wide_as_the_whole_family_is_one_slot() {
        let pool = pool("::/0", 0);
        assert_eq!((pool.last_slot(), pool.block(0)), (0, Some(prefix("::/0"))));
        assert_eq!(pool.slots_of(&prefix("2001:db8::/32")), Some((0, 0)));
    }

    #[test]
    fn blocks_that_do_not_fit_are_refused_by_their_lengths() {
        assert_eq!(
            Pool::new(prefix("10.244.0.0/16"), 12),
            Err(PolicyError::internal("a /16 pool cannot have /12 blocks"))
        );
        assert_eq!(
            Pool::new(prefix("10.244.0.0/16"), 33),
            Err(PolicyError::internal("a /16 pool cannot have /33 blocks"))
        );
    }

    #[test]
    fn a_claim_wider_than_a_block_takes_all_its_slots_and_a_narrower_one_takes_one() {
        let pool = pool("10.244.0.0/16", 24);
        assert_eq!(pool.slots_of(&prefix("10.244.4.0/22")), Some((4, 7)));
        assert_eq!(pool.slots_of(&prefix("10.244.9.128/25")), Some((9, 9)));
        assert_eq!(pool.slots_of(&prefix("10.0.0.0/8")), Some((0, 255)));
        assert_eq!(pool.slots_of(&prefix("10.245.0.0/24")), None);
        assert_eq!(pool.slots_of(&prefix("fd00::/64")), None);
    }

    #[test]
    fn free_slots_leave_out_what_is_taken() {
        let pool = pool("10.244.0.0/29", 32);
        let claims = [prefix("10.244.0.1/32"), prefix("10.244.0.2/31"), prefix("10.244.0.6/32")];
        let taken = Taken::of(&pool, claims.iter());
        assert_eq!(taken.free_slots(0, 7).collect::<Vec<_>>(), [0, 4, 5, 7]);
        assert_eq!(taken.free_slots(2, 5).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(taken.next_free(6, 6), None);
    }

    proptest! {
        #[test]
        fn free_and_taken_slots_make_up_the_pool(claimed in proptest::collection::vec((0_u32..256, 0_u8..=4), 0..40)) {
            let pool = Pool { range: prefix("10.244.0.0/16"), block_length: 24 };
            let mut expected: BTreeSet<u128> = (0..256).collect();
            let mut claims = Vec::new();
            for (slot, wider) in claimed {
                let claim = prefix(&format!("10.244.{slot}.0/{}", 24 - wider)).trunc();
                let start = u128::from(slot >> wider << wider);
                for covered in start..start + (1 << wider) {
                    expected.remove(&covered);
                }
                claims.push(claim);
            }
            let taken = Taken::of(&pool, claims.iter());
            prop_assert_eq!(taken.free_slots(0, 255).collect::<BTreeSet<_>>(), expected);
        }

        #[test]
        fn a_block_lies_in_the_slot_it_was_made_of(slot in any::<u128>(), length in 48_u8..=128) {
            let pool = Pool { range: prefix("fd00:244::/48"), block_length: length };
            let slot = slot & pool.last_slot();
            let block = pool.block(slot);
            prop_assert_eq!(block.and_then(|block| pool.slots_of(&block)), Some((slot, slot)));
        }
    }
}
