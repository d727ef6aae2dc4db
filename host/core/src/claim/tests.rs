//! What the ledger promises, by example; `tests/invariants` plays whole clusters.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::address::Family;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn peer(name: &str) -> PeerId {
    PeerId(format!("peer-{name}"))
}

fn pools() -> Vec<Pool> {
    vec![Pool { range: net("10.244.0.0/16"), block_length: 24 }, Pool { range: net("fd10::/32"), block_length: 64 }]
}

fn ledger() -> Ledger {
    Ledger::new(pools(), vec![net("10.244.240.0/20")])
}

fn request(name: &str, block: &str, standing: Standing) -> ClaimRequest {
    ClaimRequest { block: net(block), holder: name.to_owned(), peer: peer(name), standing }
}

fn claim(name: &str, block: &str, standing: Standing) -> Claim {
    Claim { block: net(block), holder: name.to_owned(), peer: peer(name), standing }
}

fn with(requests: &[(&str, &str, Standing)]) -> Ledger {
    let mut ledger = ledger();
    for (name, block, standing) in requests {
        assert_eq!(ledger.decide(&request(name, block, *standing)), ClaimOutcome::Granted);
    }
    ledger
}

const BLOCK: &str = "10.244.1.0/24";

#[test]
fn blocks_are_whole_aligned_and_inside_a_pool() {
    let admit = |block: &str| admit_block(&pools(), &[net("10.244.240.0/20")], &net(block));
    assert_eq!(admit(BLOCK), Ok(()));
    assert_eq!(admit("fd10:0:0:7::/64"), Ok(()));
    let host_bits = BlockRefusal::HostBits { block: net("10.244.1.1/24"), network: net(BLOCK) };
    assert_eq!(admit("10.244.1.1/24"), Err(host_bits));
    assert_eq!(admit("10.245.1.0/24"), Err(BlockRefusal::OutsidePools { block: net("10.245.1.0/24") }));
    assert_eq!(admit("0.0.0.0/0"), Err(BlockRefusal::OutsidePools { block: net("0.0.0.0/0") }));
    for block in ["10.244.0.0/16", "10.244.1.0/25", "10.244.1.0/32"].map(net) {
        let pool = net("10.244.0.0/16");
        let wrong = BlockRefusal::WrongLength { block, pool, expected: 24 };
        assert_eq!(admit_block(&pools(), &[], &block), Err(wrong));
    }
    let service = BlockRefusal::Service { block: net("10.244.241.0/24"), service: net("10.244.240.0/20") };
    assert_eq!(admit("10.244.241.0/24"), Err(service));
}

#[test]
fn a_pool_over_addresses_no_pod_can_have_gives_no_block() {
    for range in ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/8", "0.0.0.0/8", "240.0.0.0/8", "fe80::/64", "ff02::/64"]
    {
        let range = net(range);
        let pool = Pool { range, block_length: range.prefix_len() };
        assert_eq!(admit_block(&[pool], &[], &range), Err(BlockRefusal::NotUnicast { block: range }));
    }
}

#[test]
fn the_first_claim_gets_the_block_and_asking_again_changes_nothing() {
    for standing in [Standing::Final, Standing::Provisional] {
        let mut ledger = with(&[("b", BLOCK, standing)]);
        let before = ledger.clone();
        assert_eq!(ledger.decide(&request("b", BLOCK, standing)), ClaimOutcome::Granted);
        let held = ClaimOutcome::HeldBy(claim("b", BLOCK, standing));
        assert_eq!(ledger.decide(&request("a", BLOCK, Standing::Final)), held);
        assert_eq!(ledger.decide(&request("a", BLOCK, Standing::Provisional)), held);
        assert_eq!(ledger, before);
    }
}

#[test]
fn a_provisional_claim_becomes_final_and_never_the_other_way() {
    let mut ledger = with(&[("a", BLOCK, Standing::Provisional), ("a", BLOCK, Standing::Final)]);
    assert_eq!(ledger.claim(&net(BLOCK)), Some(claim("a", BLOCK, Standing::Final)));
    assert_eq!(ledger.decide(&request("a", BLOCK, Standing::Provisional)), ClaimOutcome::Granted);
    assert_eq!(ledger.claim(&net(BLOCK)), Some(claim("a", BLOCK, Standing::Final)));
}

#[test]
fn a_block_across_another_one_is_refused_with_its_holder() {
    let rows: Vec<LedgerRow> = with(&[("a", BLOCK, Standing::Final)]).rows().cloned().collect();
    let wider = vec![Pool { range: net("10.244.0.0/16"), block_length: 20 }];
    let mut ledger = Ledger::load(wider, vec![], rows);
    let refused = BlockRefusal::Overlap { block: net("10.244.0.0/20"), other: net(BLOCK), holder: "a".to_owned() };
    let outcome = ledger.decide(&request("b", "10.244.0.0/20", Standing::Final));
    assert_eq!(outcome, ClaimOutcome::Refused(refused));
}

#[test]
fn one_node_cannot_empty_a_pool() {
    let mut ledger = ledger();
    for block in 0..MAX_BLOCKS_PER_PEER {
        let request = request("greedy", &format!("10.244.{block}.0/24"), Standing::Final);
        assert_eq!(ledger.decide(&request), ClaimOutcome::Granted);
    }
    let refused = BlockRefusal::TooMany { holder: "greedy".to_owned(), limit: MAX_BLOCKS_PER_PEER };
    assert_eq!(ledger.decide(&request("greedy", "10.244.99.0/24", Standing::Final)), ClaimOutcome::Refused(refused));
    assert_eq!(ledger.decide(&request("greedy", "10.244.0.0/24", Standing::Final)), ClaimOutcome::Granted);
}

#[test]
fn a_final_claim_beats_a_provisional_one() {
    let mut ledger = with(&[("a", BLOCK, Standing::Provisional)]);
    let keeper = with(&[("b", BLOCK, Standing::Final)]);
    assert_eq!(
        ledger.merge(&keeper),
        [ClaimEvent::Lost {
            block: net(BLOCK),
            loser: claim("a", BLOCK, Standing::Provisional),
            winner: claim("b", BLOCK, Standing::Final),
        }]
    );
    assert_eq!(ledger.merge(&keeper), []);
}

#[test]
fn of_two_provisional_claims_the_lower_peer_keeps_the_block() {
    let low = with(&[("a", BLOCK, Standing::Provisional)]);
    let high = with(&[("b", BLOCK, Standing::Provisional)]);
    let (mut left, mut right) = (low.clone(), high.clone());
    assert_eq!(left.merge(&high), []);
    assert_eq!(
        right.merge(&low),
        [ClaimEvent::Lost {
            block: net(BLOCK),
            loser: claim("b", BLOCK, Standing::Provisional),
            winner: claim("a", BLOCK, Standing::Provisional),
        }]
    );
    assert_eq!(left, right);
}

#[test]
fn a_block_given_back_or_withdrawn_is_free_again_everywhere() {
    let mut keeper = with(&[("a", BLOCK, Standing::Final)]);
    let mut mirror = keeper.clone();
    assert!(!keeper.release(&net(BLOCK), &peer("b")));
    assert!(keeper.release(&net(BLOCK), &peer("a")) && !keeper.release(&net(BLOCK), &peer("a")));
    assert_eq!(mirror.merge(&keeper), [ClaimEvent::Freed(claim("a", BLOCK, Standing::Final))]);
    assert_eq!(keeper.decide(&request("b", BLOCK, Standing::Final)), ClaimOutcome::Granted);
    assert_eq!(mirror.merge(&keeper), [ClaimEvent::Gained(claim("b", BLOCK, Standing::Final))]);

    let mut own = with(&[("c", "10.244.2.0/24", Standing::Provisional)]);
    let mut other = own.clone();
    assert!(own.withdraw(&net("10.244.2.0/24"), &peer("c")) && !own.withdraw(&net("10.244.2.0/24"), &peer("c")));
    assert_eq!(other.merge(&own), [ClaimEvent::Freed(claim("c", "10.244.2.0/24", Standing::Provisional))]);
}

#[test]
fn an_old_row_replayed_changes_nothing() {
    let old = with(&[("a", BLOCK, Standing::Final)]);
    let mut ledger = old.clone();
    ledger.release(&net(BLOCK), &peer("a"));
    ledger.decide(&request("b", BLOCK, Standing::Final));
    let before = ledger.clone();
    assert_eq!(ledger.merge(&old), []);
    assert_eq!(ledger, before);
}

#[test]
fn of_two_results_of_one_decision_the_first_stays_and_the_other_is_named() {
    let mut ledger = with(&[("b", BLOCK, Standing::Final)]);
    let forged = with(&[("a", BLOCK, Standing::Final)]);
    let (kept, refused) = (claim("b", BLOCK, Standing::Final), claim("a", BLOCK, Standing::Final));
    assert_eq!(ledger.merge(&forged), [ClaimEvent::Conflict { kept: kept.clone(), refused }]);
    assert_eq!(ledger.claim(&net(BLOCK)), Some(kept));
}

#[test]
fn an_answer_of_the_keeper_never_outruns_the_keepers_own_row() {
    let mut keeper = with(&[("a", BLOCK, Standing::Final)]);
    let mut node = ledger();
    let answer = claim("a", BLOCK, Standing::Final);
    assert_eq!(node.learn(&answer), [ClaimEvent::Gained(answer.clone())]);
    for _ in 0..3 {
        assert_eq!(node.learn(&answer), []);
    }
    assert_eq!(node, keeper);
    keeper.release(&net(BLOCK), &peer("a"));
    assert_eq!(node.merge(&keeper), [ClaimEvent::Freed(answer)]);
    assert_eq!(node.learn(&claim("b", BLOCK, Standing::Provisional)), []);
}

#[test]
fn a_member_speaks_for_its_own_provisional_claim_only() {
    let theirs = with(&[("b", BLOCK, Standing::Provisional), ("c", "10.244.2.0/24", Standing::Final)]);
    let mut ledger = ledger();
    for row in theirs.rows() {
        assert_eq!(ledger.merge_row_from_member(&peer("c"), row), []);
    }
    assert_eq!(ledger.claims().count(), 0);
    let row = theirs.row(&net(BLOCK)).unwrap();
    let gained = ClaimEvent::Gained(claim("b", BLOCK, Standing::Provisional));
    assert_eq!(ledger.merge_row_from_member(&peer("b"), row), [gained]);
}

#[test]
fn a_row_for_a_block_outside_the_pools_is_not_taken_over() {
    let pool = Pool { range: net("10.9.0.0/16"), block_length: 24 };
    let mut foreign = Ledger::new(vec![pool], vec![]);
    foreign.decide(&request("a", "10.9.1.0/24", Standing::Final));
    let mut ledger = ledger();
    let refusal = BlockRefusal::OutsidePools { block: net("10.9.1.0/24") };
    assert_eq!(ledger.merge(&foreign), [ClaimEvent::Refused(refusal)]);
    assert_eq!(ledger, self::ledger());
}

#[test]
fn stored_rows_give_the_same_ledger() {
    let before = with(&[("a", BLOCK, Standing::Final), ("b", "10.244.2.0/24", Standing::Provisional)]);
    let after = Ledger::load(pools(), vec![net("10.244.240.0/20")], before.rows().cloned());
    assert_eq!(after, before);
}

#[test]
fn a_policy_sees_every_claim_with_its_use() {
    let ledger = with(&[("b", "10.244.2.0/24", Standing::Provisional), ("a", BLOCK, Standing::Final)]);
    let view = |name: &str, block: &str, in_use| ClaimView { block: net(block), holder: name.to_owned(), in_use };
    assert_eq!(
        ledger.space_view(&[(net(BLOCK), 7)].into()),
        Space { pools: pools(), claims: vec![view("a", BLOCK, 7), view("b", "10.244.2.0/24", 0)] }
    );
    assert_eq!(ledger.space_view(&BTreeMap::new()).claims[0].in_use, 0);
}

#[test]
fn proposals_keep_their_order_and_lose_what_cannot_be_had() {
    let ledger = with(&[("b", "10.244.2.0/24", Standing::Final), ("a", "10.244.3.0/24", Standing::Final)]);
    let proposals =
        ["10.244.9.0/24", "10.245.0.0/24", "10.244.2.0/24", "fd10::/64", "10.244.3.0/24", "10.244.9.0/24"].map(net);
    let (admitted, refused) = ledger.admit_proposals(Family::V4, &peer("a"), &proposals);
    assert_eq!(admitted, ["10.244.9.0/24", "10.244.3.0/24"].map(net));
    assert_eq!(refused, [BlockRefusal::OutsidePools { block: net("10.245.0.0/24") }]);
    let many: Vec<IpNet> = (0..100).map(|block| net(&format!("10.244.{block}.0/24"))).collect();
    let (admitted, _) = self::ledger().admit_proposals(Family::V4, &peer("a"), &many);
    assert_eq!(admitted, many[..MAX_PROPOSALS]);
}

#[test]
fn a_lost_block_gives_no_new_address_and_is_forgotten_when_its_pods_have_ended() {
    let mut ledger = with(&[("b", BLOCK, Standing::Provisional)]);
    let mut held = HeldBlocks::default();
    let block = net(BLOCK);
    let gained = HeldEvent::Gained { block, standing: Standing::Provisional };
    assert_eq!(held.refresh(&ledger, &peer("b")), std::slice::from_ref(&gained));
    assert!(held.usable_for_new(&block) && !held.forget_lost(&block));
    assert_eq!(held.usable(Family::V4).collect::<Vec<_>>(), [block]);
    assert_eq!(held.usable(Family::V6).count(), 0);

    ledger.merge(&with(&[("a", BLOCK, Standing::Provisional)]));
    let lost = HeldEvent::Lost { block, winner: Some("a".to_owned()) };
    assert_eq!(held.refresh(&ledger, &peer("b")), [lost]);
    assert_eq!(held.refresh(&ledger, &peer("b")), []);
    assert!(!held.usable_for_new(&block));
    assert_eq!(held.usable(Family::V4).count(), 0);
    assert_eq!(held.lost().collect::<Vec<_>>(), [(block, Some("a"))]);

    ledger.withdraw(&block, &peer("a"));
    assert_eq!(held.refresh(&ledger, &peer("b")), [gained]);
    assert_eq!(ledger.decide(&request("b", BLOCK, Standing::Final)), ClaimOutcome::Granted);
    assert_eq!(held.refresh(&ledger, &peer("b")), [HeldEvent::Settled { block }]);
    ledger.release(&block, &peer("b"));
    ledger.withdraw(&block, &peer("b"));
    assert_eq!(held.refresh(&ledger, &peer("b")), [HeldEvent::Lost { block, winner: None }]);
    assert!(held.forget_lost(&block) && !held.forget_lost(&block));
    assert_eq!(held.iter().count(), 0);
}

/// One node's history: its own provisional claims and withdrawals, and the keeper's for node 0.
fn history() -> impl Strategy<Value = Vec<(u8, u8, bool)>> {
    proptest::collection::vec((0_u8..4, 0_u8..3, any::<bool>()), 0..30)
}

fn replicas(history: &[(u8, u8, bool)]) -> [Ledger; 4] {
    let mut replicas = std::array::from_fn(|_| ledger());
    for (node, block, claims) in history {
        let name = format!("n{node}");
        let block = format!("10.244.{block}.0/24");
        let replica: &mut Ledger = &mut replicas[usize::from(*node)];
        // Node 0 is the keeper: it decides for itself and for the others, each in turn.
        let standing = if *node == 0 { Standing::Final } else { Standing::Provisional };
        match claims {
            true => drop(replica.decide(&request(&name, &block, standing))),
            false if *node == 0 => drop(replica.release(&net(&block), &peer(&name))),
            false => drop(replica.withdraw(&net(&block), &peer(&name))),
        }
    }
    replicas
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn merges_commute_associate_and_repeat(history in history()) {
        let [a, b, c, d] = replicas(&history);
        let merged = |order: [&Ledger; 4]| {
            let mut ledger = ledger();
            for other in order {
                ledger.merge(other);
            }
            ledger
        };
        let all = merged([&a, &b, &c, &d]);
        prop_assert_eq!(&merged([&d, &c, &b, &a]), &all);
        prop_assert_eq!(&merged([&b, &d, &b, &a]), &merged([&a, &b, &d, &d]));
        let (mut left, mut right) = (a.clone(), c.clone());
        left.merge(&b);
        right.merge(&d);
        left.merge(&right);
        prop_assert_eq!(&left, &all);
        prop_assert_eq!(left.merge(&all), []);
    }
}
