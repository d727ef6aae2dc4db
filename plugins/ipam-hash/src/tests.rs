//! The vectors of the policy: a node and a space in, the wishes out.

use std::collections::BTreeSet;

use culvert_policy_sdk::ipam::{Claim, PickRequest};
use culvert_policy_sdk::topology::Topology;

use super::*;

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn pool(range: &str, block_length: u8) -> Pool {
    Pool::new(prefix(range), block_length).unwrap()
}

fn node(name: &str) -> Node {
    Node { name: name.to_owned(), ..Node::default() }
}

fn claims(blocks: &[&str]) -> Vec<Claim> {
    let claim = |block: &&str| Claim { block: prefix(block), holder: "somebody".to_owned(), in_use: 1 };
    blocks.iter().map(claim).collect()
}

fn space(pools: &[Pool], claimed: &[&str]) -> Space {
    Space { pools: pools.to_vec(), claims: claims(claimed) }
}

fn usual() -> Pool {
    pool("10.244.0.0/16", 24)
}

fn propose(name: &str, family: Family, space: &Space) -> Vec<IpNet> {
    IpamHash.propose(&node(name), family, space).unwrap()
}

#[test]
fn the_first_wish_is_the_slot_of_the_kubeedge_guides() {
    for (name, block) in [("edge-1", "10.244.248.0/24"), ("edge-2", "10.244.41.0/24"), ("edge-3", "10.244.192.0/24")] {
        assert_eq!(propose(name, Family::V4, &space(&[usual()], &[]))[0], prefix(block), "{name}");
    }
}

#[test]
fn the_wishes_go_upwards_from_the_preferred_slot_and_around_the_end() {
    let wishes = propose("edge-1", Family::V4, &space(&[usual()], &[]));
    let slots = (248..=254).chain(1..=57);
    let expected: Vec<IpNet> = slots.map(|slot| prefix(&format!("10.244.{slot}.0/24"))).collect();
    assert_eq!(wishes, expected);
    assert_eq!(wishes.len(), MOST_WISHES);
}

#[test]
fn claimed_blocks_are_no_wishes() {
    let claimed = ["10.244.248.0/24", "10.244.249.0/24", "10.244.251.0/24"];
    assert_eq!(
        propose("edge-1", Family::V4, &space(&[usual()], &claimed))[..3],
        [prefix("10.244.250.0/24"), prefix("10.244.252.0/24"), prefix("10.244.253.0/24")]
    );
}

#[test]
fn a_claim_of_another_size_takes_every_slot_it_overlaps() {
    let claimed = ["10.244.248.0/22", "10.244.252.128/25"];
    assert_eq!(
        propose("edge-1", Family::V4, &space(&[usual()], &claimed))[..2],
        [prefix("10.244.253.0/24"), prefix("10.244.254.0/24")]
    );
}

#[test]
fn the_edge_slots_are_the_last_resort() {
    let claimed: Vec<String> = (1..255).map(|slot| format!("10.244.{slot}.0/24")).collect();
    let claimed: Vec<&str> = claimed.iter().map(String::as_str).collect();
    assert_eq!(
        propose("edge-1", Family::V4, &space(&[usual()], &claimed)),
        [prefix("10.244.0.0/24"), prefix("10.244.255.0/24")]
    );
}

#[test]
fn ipv6_prefers_the_same_slot_number_as_ipv4() {
    let dual = space(&[usual(), pool("fd00:244::/48", 64)], &[]);
    assert_eq!(propose("edge-1", Family::V4, &dual)[0], prefix("10.244.248.0/24"));
    assert_eq!(propose("edge-1", Family::V6, &dual)[0], prefix("fd00:244:0:f8::/64"));
}

#[test]
fn a_wide_pool_alone_uses_the_wide_formula() {
    // The first octets of the md5 sums are f793fc7bad4341d0, 284282faaa18ac61 and bf13770498f48c5f: slots 19,189,
    // 20,116 and 37,634 of 65,536.
    let wide = space(&[pool("10.0.0.0/8", 24)], &[]);
    for (name, block) in [("edge-1", "10.74.245.0/24"), ("edge-2", "10.78.148.0/24"), ("edge-3", "10.147.2.0/24")] {
        assert_eq!(propose(name, Family::V4, &wide)[0], prefix(block), "{name}");
    }
}

#[test]
fn small_pools_are_used_to_the_last_block() {
    for (block_length, slots) in [(24, 1), (25, 2), (26, 4), (27, 8)] {
        let small = pool("10.244.7.0/24", block_length);
        let expected: BTreeSet<IpNet> = (0..slots).filter_map(|slot| small.block(slot)).collect();
        for name in ["edge-1", "edge-2", "edge-3", "cloud-1"] {
            let wishes = propose(name, Family::V4, &space(&[small], &[]));
            assert_eq!(wishes.len(), expected.len(), "/{block_length} for {name}: {wishes:?}");
            assert_eq!(wishes.into_iter().collect::<BTreeSet<_>>(), expected, "/{block_length} for {name}");
        }
    }
}

#[test]
fn the_second_pool_follows_when_the_first_is_short() {
    let pools = [pool("10.244.0.0/23", 24), pool("10.250.0.0/23", 24)];
    let wishes = propose("edge-1", Family::V4, &space(&pools, &["10.244.0.0/24"]));
    assert_eq!(wishes[0], prefix("10.244.1.0/24"));
    assert_eq!(
        wishes[1..].iter().copied().collect::<BTreeSet<_>>(),
        BTreeSet::from([prefix("10.250.0.0/24"), prefix("10.250.1.0/24")])
    );
}

#[test]
fn a_full_space_is_exhausted() {
    assert_eq!(
        IpamHash.propose(&node("edge-1"), Family::V4, &space(&[usual()], &["10.244.0.0/16"])),
        Err(PolicyError::exhausted("every IPv4 block is claimed"))
    );
}

#[test]
fn a_family_without_a_pool_is_unsupported() {
    assert_eq!(
        IpamHash.propose(&node("edge-1"), Family::V6, &space(&[usual()], &[])),
        Err(PolicyError::unsupported("no IPv6 pool is configured"))
    );
}

#[test]
fn a_thousand_nodes_that_claim_their_first_wish_in_turn_never_collide() {
    let pool = pool("10.0.0.0/8", 24);
    let mut space = space(&[pool], &[]);
    let mut held = BTreeSet::new();
    for number in 0..1_000 {
        let block = propose(&format!("edge-{number}"), Family::V4, &space)[0];
        assert!(held.insert(block), "{block} twice");
        space.claims.push(Claim { block, holder: format!("edge-{number}"), in_use: 0 });
    }
    assert_eq!(held.len(), 1_000);
}

#[test]
fn pick_takes_the_wanted_address_if_it_is_free_and_leaves_the_rest_to_the_host() {
    let free = vec!["10.244.248.9".parse().unwrap(), "10.244.248.12".parse().unwrap()];
    let request = |wanted: Option<&str>| PickRequest {
        free: free.clone(),
        wanted: wanted.map(|text| text.parse().unwrap()),
        ..PickRequest::default()
    };
    assert_eq!(IpamHash.pick(&request(Some("10.244.248.12"))), Ok(Some(1)));
    assert_eq!(IpamHash.pick(&request(Some("10.244.248.13"))), Ok(None));
    assert_eq!(IpamHash.pick(&request(None)), Ok(None));
}

#[test]
fn nothing_is_given_back() {
    assert_eq!(IpamHash.reclaim(&Topology::default(), &space(&[usual()], &["10.244.3.0/24"])), Ok(Vec::new()));
}

#[test]
fn there_are_no_settings() {
    assert_eq!(IpamHash::configure("{}"), Ok((IpamHash, Description::new("ipam-hash", "0.1.0"))));
    assert_eq!(
        IpamHash::configure(r#"{"slots": 3}"#),
        Err(PolicyError::invalid_settings("this policy has no settings: leave them out, or write {}"))
    );
}
