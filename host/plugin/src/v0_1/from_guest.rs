//! The guest's words as core's: the door for everything that a guest says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_core::address::{Family, IpNet};
use culvert_core::bandwidth::{Limits, Rate, Shaping};
use culvert_core::decision::{Route, Via};
use culvert_core::policy::PolicyError;

use super::bandwidth::exports::culvert::policy::bandwidth as wit_bandwidth;
use super::route::exports::culvert::policy::router as wit_router;
use super::types;
use crate::text::cut;

/// What in an answer is not valid, for a person to read.
pub(crate) type Violation = String;

pub(crate) fn policy_error(error: types::PolicyError) -> PolicyError {
    match error {
        types::PolicyError::InvalidSettings(text) => PolicyError::InvalidSettings(cut(&text)),
        types::PolicyError::Unsupported(text) => PolicyError::Unsupported(cut(&text)),
        types::PolicyError::Exhausted(text) => PolicyError::Exhausted(cut(&text)),
        types::PolicyError::Internal(text) => PolicyError::Internal(cut(&text)),
    }
}

pub(crate) fn routes(routes: &[wit_router::Route]) -> Result<Vec<Route>, Violation> {
    routes.iter().map(route).collect()
}

fn route(route: &wit_router::Route) -> Result<Route, Violation> {
    let otherwise = route.otherwise.as_ref().map(via);
    Ok(Route { to: prefix(&route.to)?, via: via(&route.via), otherwise })
}

fn via(via: &wit_router::Via) -> Via {
    match via {
        wit_router::Via::Local => Via::Local,
        wit_router::Via::Direct(next_hop) => Via::Direct(address(next_hop)),
        wit_router::Via::Underlay => Via::Underlay,
        wit_router::Via::Tunnel(node) => Via::Tunnel(*node as usize),
        wit_router::Via::Reject => Via::Reject,
    }
}

fn address(address: &types::IpAddress) -> IpAddr {
    match address {
        types::IpAddress::V4(bits) => IpAddr::V4(Ipv4Addr::from_bits(*bits)),
        types::IpAddress::V6((high, low)) => {
            IpAddr::V6(Ipv6Addr::from_bits((u128::from(*high) << 64) | u128::from(*low)))
        }
    }
}

fn prefix(prefix: &types::Prefix) -> Result<IpNet, Violation> {
    let address = address(&prefix.address);
    let net = IpNet::new(address, prefix.length)
        .map_err(|_| format!("prefix {address}/{} is longer than its address", prefix.length))?;
    let network = net.trunc();
    if net != network {
        return Err(format!("prefix {net} has host bits set, {network} does not"));
    }
    Ok(network)
}

/// Blocks a policy names, the first `limit` of them.
pub(crate) fn blocks(blocks: &[types::Prefix], limit: usize) -> Result<Vec<IpNet>, Violation> {
    blocks.iter().take(limit).map(prefix).collect()
}

/// Blocks that must be of one family.
pub(crate) fn blocks_of(family: Family, proposed: &[types::Prefix], limit: usize) -> Result<Vec<IpNet>, Violation> {
    let blocks = blocks(proposed, limit)?;
    match blocks.iter().find(|block| Family::of_prefix(block) != family) {
        Some(foreign) => Err(format!("block {foreign} is not of the family asked for ({family:?})")),
        None => Ok(blocks),
    }
}

/// A position in a list of `length` entries.
pub(crate) fn position(index: Option<u32>, length: usize) -> Result<Option<u32>, Violation> {
    match index {
        Some(index) if index as usize >= length => {
            Err(format!("position {index} in a list of {length} free addresses"))
        }
        Some(index) => Ok(Some(index)),
        None => Ok(None),
    }
}

pub(crate) fn shaping(shaping: wit_bandwidth::Shaping) -> Result<Shaping, Violation> {
    Ok(Shaping { total: limits(shaping.total)?, tunnel: limits(shaping.tunnel)? })
}

fn limits(limits: wit_bandwidth::Limits) -> Result<Limits, Violation> {
    Ok(Limits { ingress: rate(limits.ingress)?, egress: rate(limits.egress)? })
}

fn rate(rate: Option<wit_bandwidth::Rate>) -> Result<Option<Rate>, Violation> {
    match rate {
        Some(rate) if rate.bits_per_second == 0 => {
            Err("a rate of 0 bits/s would cut the pod off; none means no limit".to_owned())
        }
        Some(rate) => Ok(Some(Rate { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst_bytes })),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(bits: u32, length: u8) -> types::Prefix {
        types::Prefix { address: types::IpAddress::V4(bits), length }
    }

    #[test]
    fn a_prefix_passes_only_when_it_is_one() {
        assert_eq!(prefix(&v4(0x0af4_0100, 24)), Ok("10.244.1.0/24".parse().unwrap()));
        let v6 = types::Prefix { address: types::IpAddress::V6((0xfd00_0244_0000_0000, 0)), length: 64 };
        assert_eq!(prefix(&v6), Ok("fd00:244::/64".parse().unwrap()));
        let refused = Err("prefix 10.244.1.5/24 has host bits set, 10.244.1.0/24 does not".to_owned());
        assert_eq!(prefix(&v4(0x0af4_0105, 24)), refused);
        assert_eq!(prefix(&v4(0, 33)), Err("prefix 0.0.0.0/33 is longer than its address".to_owned()));
    }

    #[test]
    fn blocks_beyond_the_limit_are_not_read_and_the_family_must_match() {
        let wishes = [v4(0x0af4_0100, 24), v4(0x0af4_0200, 24), v4(1, 99)];
        let read = blocks_of(Family::V4, &wishes, 2);
        assert_eq!(read, Ok(vec!["10.244.1.0/24".parse().unwrap(), "10.244.2.0/24".parse().unwrap()]));
        let foreign = Err("block 10.244.1.0/24 is not of the family asked for (V6)".to_owned());
        assert_eq!(blocks_of(Family::V6, &wishes, 1), foreign);
    }

    #[test]
    fn a_position_past_the_end_is_no_answer() {
        assert_eq!(position(None, 0), Ok(None));
        assert_eq!(position(Some(1), 2), Ok(Some(1)));
        assert_eq!(position(Some(2), 2), Err("position 2 in a list of 2 free addresses".to_owned()));
    }

    #[test]
    fn a_rate_of_zero_is_no_rate() {
        let zero = wit_bandwidth::Rate { bits_per_second: 0, burst_bytes: 1 };
        assert!(rate(Some(zero)).is_err());
        assert_eq!(rate(None), Ok(None));
    }
}
