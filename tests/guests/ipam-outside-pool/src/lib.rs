//! A test guest: its first wish lies in no pool, its second is somebody's already, and only then come free blocks. Offered
//! more addresses than a gate's made-up question has, it names a position that does not exist, so it passes the gate and
//! fails with the first pod. No settings.

use std::net::{Ipv4Addr, Ipv6Addr};

use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::ipam::{IpamPolicy, PickRequest, Space};
use culvert_policy_sdk::ipnet::{IpNet, Ipv4Net, Ipv6Net};
use culvert_policy_sdk::settings;
use culvert_policy_sdk::topology::{Family, Node};

/// How many free blocks follow the two wishes that cannot be granted.
const HONEST_WISHES: usize = 8;

/// With so many free addresses or fewer it answers rightly. A gate offers four, a node's block at first 64.
const FEW_ADDRESSES: usize = 8;

/// The policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpamOutsidePool;

impl IpamPolicy for IpamOutsidePool {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        settings::none(settings)?;
        Ok((Self, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn propose(&self, _node: &Node, family: Family, space: &Space) -> Result<Vec<IpNet>, PolicyError> {
        let mut wishes = vec![outside(family)];
        let claimed = space.claims.iter().map(|claim| claim.block).find(|block| Family::of(block) == family);
        wishes.extend(claimed);
        for pool in space.pools_of(family) {
            let taken = space.taken_in(pool);
            let free = taken.free_slots(0, pool.last_slot()).filter_map(|slot| pool.block(slot));
            wishes.extend(free.take(HONEST_WISHES));
        }
        Ok(wishes)
    }

    fn pick(&self, request: &PickRequest) -> Result<Option<usize>, PolicyError> {
        if request.free.len() <= FEW_ADDRESSES {
            return Ok(request.wanted_position());
        }
        Ok(Some(request.free.len()))
    }
}

/// A block for documentation, which no cluster has.
///
/// **Source** RFC 5737, RFC 3849.
fn outside(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::from(Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24)),
        Family::V6 => IpNet::from(Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 64)),
    }
}

culvert_policy_sdk::export_ipam!(IpamOutsidePool);

#[cfg(test)]
mod tests {
    use culvert_policy_sdk::ipam::{Claim, Pool};

    use super::*;

    fn prefix(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_wish_is_outside_the_second_is_taken_and_the_rest_is_free() {
        let claim = Claim { block: prefix("10.244.0.0/24"), holder: "a".to_owned(), in_use: 1 };
        let pool = Pool::new(prefix("10.244.0.0/22"), 24).unwrap();
        let space = Space { pools: vec![pool], claims: vec![claim] };
        assert_eq!(
            IpamOutsidePool.propose(&Node::default(), Family::V4, &space),
            Ok(vec![
                prefix("192.0.2.0/24"),
                prefix("10.244.0.0/24"),
                prefix("10.244.1.0/24"),
                prefix("10.244.2.0/24"),
                prefix("10.244.3.0/24"),
            ])
        );
        assert_eq!(IpamOutsidePool.propose(&Node::default(), Family::V6, &space), Ok(vec![prefix("2001:db8::/64")]));
    }

    #[test]
    fn the_picked_position_does_not_exist_where_many_addresses_are_free() {
        let offered = |count: u8| PickRequest {
            free: (0..count).map(|last| Ipv4Addr::new(10, 244, 1, last).into()).collect(),
            wanted: Some(Ipv4Addr::new(10, 244, 1, 2).into()),
            ..PickRequest::default()
        };
        assert_eq!(IpamOutsidePool.pick(&offered(8)), Ok(Some(2)));
        assert_eq!(IpamOutsidePool.pick(&offered(9)), Ok(Some(9)));
    }
}
