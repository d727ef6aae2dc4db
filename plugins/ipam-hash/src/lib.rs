//! The shipped IPAM policy for clusters that number their nodes by a hash: each node prefers one slot of the pool, the
//! same one wherever and whenever it is asked.
//!
//! # Which slot
//! A pool of *n* blocks has the slots 0 to *n* - 1; 10.244.0.0/16 in /24 blocks has 256.
//!
//! - Up to 256 slots: the formula of the KubeEdge guides, the first octet of `md5(node name)`, modulo *n* - 2, plus 1.
//!   `edge-1` gets 248, `edge-2` 41, `edge-3` 192, so 10.244.248.0/24 and so on.
//! - More slots: the first eight octets as one big-endian number, modulo *n* - 2, plus 1.
//! - One or two slots: modulo *n*. More than 2^64: as if there were 2^64.
//!
//! The first and the last slot are nobody's preference, as in the guides. With dual stack the first pools of both
//! families count with the smaller *n* of the two, so that a node has the same slot number in both.
//!
//! # When it is taken
//! Two nodes prefer the same slot with a probability of 16 % at 10 nodes and 99 % at 50. So the preference is only the
//! first of up to 64 wishes: from there upwards, around the end, over all free slots, and last the two edge slots. A
//! second pool of the family follows the first. The host takes the first wish that wins the claim.
//!
//! # Settings
//! None: `{}`.

use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::ipam::{IpamPolicy, MOST_WISHES, Pool, Space, Taken};
use culvert_policy_sdk::ipnet::IpNet;
use culvert_policy_sdk::settings;
use culvert_policy_sdk::topology::{Family, Node};
use md5::{Digest, Md5};

/// The policy, configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpamHash;

impl IpamPolicy for IpamHash {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        settings::none(settings)?;
        Ok((Self, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn propose(&self, node: &Node, family: Family, space: &Space) -> Result<Vec<IpNet>, PolicyError> {
        let mut wishes = Vec::new();
        let mut pools = space.pools_of(family).peekable();
        if pools.peek().is_none() {
            return Err(PolicyError::unsupported(format!("no {} pool is configured", family.name())));
        }
        let mut last_slot_counted = smaller_of_first_pools(space);
        for pool in pools {
            let last_counted = last_slot_counted.take().unwrap_or(pool.last_slot());
            let preferred = preferred_slot(&node.name, last_counted);
            wishes.extend(free_blocks(pool, &space.taken_in(pool), preferred).take(MOST_WISHES - wishes.len()));
        }
        if wishes.is_empty() {
            return Err(PolicyError::exhausted(format!("every {} block is claimed", family.name())));
        }
        Ok(wishes)
    }
}

/// The highest slot that both first pools have; that of the only first pool when there is one family.
fn smaller_of_first_pools(space: &Space) -> Option<u128> {
    let first = |family| space.pools_of(family).next().map(Pool::last_slot);
    [first(Family::V4), first(Family::V6)].into_iter().flatten().min()
}

/// The slot of a node in a pool whose highest slot is `last`.
///
/// **Source** KubeEdge's guide for EdgeMesh with containerd: `md5(node)[0..1 byte] % 254 + 1`.
fn preferred_slot(node: &str, last: u128) -> u128 {
    let digest = Md5::digest(node.as_bytes());
    let octets = if last <= 255 { 1 } else { 8 };
    let number = digest.iter().take(octets).fold(0_u64, |number, octet| number << 8 | u64::from(*octet));
    let last = u64::try_from(last).unwrap_or(u64::MAX);
    let slot = match last {
        0 | 1 => number % (last + 1),
        _ => number % (last - 1) + 1,
    };
    u128::from(slot)
}

/// The free blocks of a pool in the order of preference.
fn free_blocks(pool: &Pool, taken: &Taken, preferred: u128) -> impl Iterator<Item = IpNet> {
    let last = pool.last_slot();
    let inner_last = last.saturating_sub(1);
    let upwards = taken.free_slots(preferred, inner_last.max(preferred));
    let around = preferred.checked_sub(1).into_iter().flat_map(move |before| taken.free_slots(1, before));
    let is_free = move |slot: u128| taken.next_free(slot, slot).is_some();
    let edges = [0, last].into_iter().filter(move |edge| *edge != preferred && is_free(*edge));
    upwards.chain(around).chain(edges).filter_map(|slot| pool.block(slot))
}

culvert_policy_sdk::export_ipam!(IpamHash);

#[cfg(test)]
mod tests;
