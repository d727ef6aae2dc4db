//! The vectors of the policy: a space in, the wishes out.

use culvert_policy_sdk::ipam::Claim;
use culvert_policy_sdk::topology::Topology;

use super::*;

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| prefix(text)).collect()
}

fn space(pools: &[(&str, u8)], claimed: &[&str]) -> Space {
    let claim = |block: &&str| Claim { block: prefix(block), holder: "somebody".to_owned(), in_use: 1 };
    Space {
        pools: pools.iter().map(|(range, length)| Pool::new(prefix(range), *length).unwrap()).collect(),
        claims: claimed.iter().map(claim).collect(),
    }
}

fn propose(settings: &str, family: Family, space: &Space) -> Result<Vec<IpNet>, PolicyError> {
    IpamPool::configure(settings)?.0.propose(&Node::default(), family, space)
}

#[test]
fn the_wishes_are_the_free_blocks_in_the_order_of_their_addresses() {
    assert_eq!(
        propose(
            "{}",
            Family::V4,
            &space(&[("10.244.0.0/21", 24)], &["10.244.0.0/24", "10.244.2.0/24", "10.244.4.0/23"])
        ),
        Ok(prefixes(&["10.244.1.0/24", "10.244.3.0/24", "10.244.6.0/24", "10.244.7.0/24"]))
    );
}

#[test]
fn there_are_at_most_64_wishes() {
    let wishes = propose("{}", Family::V4, &space(&[("10.244.0.0/16", 24)], &[])).unwrap();
    let expected: Vec<IpNet> = (0..64).map(|slot| prefix(&format!("10.244.{slot}.0/24"))).collect();
    assert_eq!(wishes, expected);
}

#[test]
fn reserved_prefixes_are_nobody_s() {
    let settings = r#"{"reserved": ["10.244.0.0/23", "10.244.3.64/26", "fd00:244::/64"]}"#;
    let dual = space(&[("10.244.0.0/22", 24), ("fd00:244::/62", 64)], &["fd00:244:0:2::/64"]);
    assert_eq!(propose(settings, Family::V4, &dual), Ok(prefixes(&["10.244.2.0/24"])));
    assert_eq!(propose(settings, Family::V6, &dual), Ok(prefixes(&["fd00:244:0:1::/64", "fd00:244:0:3::/64"])));
}

#[test]
fn pools_are_used_in_their_order() {
    let two = space(&[("10.250.0.0/24", 24), ("10.244.0.0/23", 24)], &["10.244.0.0/24"]);
    assert_eq!(propose("{}", Family::V4, &two), Ok(prefixes(&["10.250.0.0/24", "10.244.1.0/24"])));
}

#[test]
fn a_huge_pool_of_which_nearly_all_is_claimed_is_searched_by_claims_not_by_slots() {
    let huge = space(&[("fd00::/8", 64)], &["fd00::/9", "fd80::/10", "fdc0::/11"]);
    assert_eq!(propose("{}", Family::V6, &huge).unwrap()[..2], prefixes(&["fde0::/64", "fde0:0:0:1::/64"]));
}

#[test]
fn a_full_space_is_exhausted() {
    assert_eq!(
        propose(r#"{"reserved": ["10.244.1.0/24"]}"#, Family::V4, &space(&[("10.244.0.0/23", 24)], &["10.244.0.0/24"])),
        Err(PolicyError::exhausted("every IPv4 block is claimed or reserved"))
    );
}

#[test]
fn a_family_without_a_pool_is_unsupported() {
    assert_eq!(
        propose("{}", Family::V6, &space(&[("10.244.0.0/16", 24)], &[])),
        Err(PolicyError::unsupported("no IPv6 pool is configured"))
    );
}

#[test]
fn pick_takes_the_wanted_address_if_it_is_free_and_else_the_lowest() {
    let free = vec!["10.244.1.9".parse().unwrap(), "10.244.1.12".parse().unwrap()];
    let request = |wanted: Option<&str>| PickRequest {
        free: free.clone(),
        wanted: wanted.map(|text| text.parse().unwrap()),
        ..PickRequest::default()
    };
    let policy = IpamPool::default();
    assert_eq!(policy.pick(&request(Some("10.244.1.12"))), Ok(Some(1)));
    assert_eq!(policy.pick(&request(Some("10.244.1.13"))), Ok(Some(0)));
    assert_eq!(policy.pick(&request(None)), Ok(Some(0)));
    assert_eq!(policy.pick(&PickRequest::default()), Ok(None));
}

#[test]
fn nothing_is_given_back() {
    let space = space(&[("10.244.0.0/16", 24)], &["10.244.3.0/24"]);
    assert_eq!(IpamPool::default().reclaim(&Topology::default(), &space), Ok(Vec::new()));
}

#[test]
fn wrong_settings_are_refused_by_key() {
    assert_eq!(
        IpamPool::configure(r#"{"reserved": "10.244.0.0/24"}"#),
        Err(PolicyError::invalid_settings("`reserved`: expected a list, found text"))
    );
    assert_eq!(
        IpamPool::configure(r#"{"reserve": []}"#),
        Err(PolicyError::invalid_settings("unknown key `reserve`; known keys: reserved"))
    );
}
