//! The shipped IPAM policy for clusters with one central pool: every node takes the next free blocks, in the order of
//! their addresses.
//!
//! Blocks stay dense and readable, at the price that nodes which ask at the same time wish for the same block; the
//! claim decides, and the others take their next wish.
//!
//! # Settings
//! ```json
//! { "reserved": ["10.244.0.0/24", "fd00:244::/64"] }
//! ```
//! `reserved`: prefixes that no node shall take, empty when absent. A block that overlaps one of them is no wish.
//!
//! # Addresses
//! A pod gets the address it wants if that is free, otherwise the lowest free one.

use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::ipam::{IpamPolicy, MOST_WISHES, PickRequest, Pool, Space, Taken};
use culvert_policy_sdk::ipnet::IpNet;
use culvert_policy_sdk::settings::Settings;
use culvert_policy_sdk::topology::{Family, Node};

/// The policy, configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpamPool {
    /// What no node shall take.
    reserved: Vec<IpNet>,
}

impl IpamPolicy for IpamPool {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        let mut settings = Settings::parse(settings)?;
        let reserved = settings.prefixes("reserved")?;
        settings.finish()?;
        Ok((Self { reserved }, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn propose(&self, _node: &Node, family: Family, space: &Space) -> Result<Vec<IpNet>, PolicyError> {
        let mut pools = space.pools_of(family).peekable();
        if pools.peek().is_none() {
            return Err(PolicyError::unsupported(format!("no {} pool is configured", family.name())));
        }
        let mut wishes = Vec::new();
        for pool in pools {
            let taken = self.not_for_nodes(pool, space);
            let free = taken.free_slots(0, pool.last_slot()).filter_map(|slot| pool.block(slot));
            wishes.extend(free.take(MOST_WISHES - wishes.len()));
        }
        if wishes.is_empty() {
            return Err(PolicyError::exhausted(format!("every {} block is claimed or reserved", family.name())));
        }
        Ok(wishes)
    }

    fn pick(&self, request: &PickRequest) -> Result<Option<usize>, PolicyError> {
        let lowest = if request.free.is_empty() { None } else { Some(0) };
        Ok(request.wanted_position().or(lowest))
    }
}

impl IpamPool {
    fn not_for_nodes(&self, pool: &Pool, space: &Space) -> Taken {
        let claimed = space.claims.iter().map(|claim| &claim.block);
        Taken::of(pool, claimed.chain(&self.reserved))
    }
}

culvert_policy_sdk::export_ipam!(IpamPool);

#[cfg(test)]
mod tests;
