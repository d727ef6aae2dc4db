//! What the lease table promises, first by example and then against random histories.

use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(container: u32) -> AttachmentKey {
    AttachmentKey { network: "culvert".to_owned(), container_id: format!("c{container}"), ifname: "eth0".to_owned() }
}

fn table(blocks: &[&str]) -> LeaseTable {
    let mut table = LeaseTable::new(1_000);
    table.set_blocks(blocks.iter().map(|block| net(block)));
    table
}

#[test]
fn network_gateway_and_broadcast_are_never_offered() {
    let table = table(&["10.244.1.0/29"]);
    let free = table.free(&net("10.244.1.0/29").into(), 64, 0, None);
    assert_eq!(free, ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6"].map(ip));
}

#[test]
fn a_large_block_is_offered_from_its_start() {
    let table = table(&["fd10::/64", "10.0.0.0/8"]);
    let v6 = table.free(&net("fd10::/64").into(), 3, 0, None);
    assert_eq!(v6, ["fd10::2", "fd10::3", "fd10::4"].map(ip));
    assert_eq!(table.free(&net("10.0.0.0/8").into(), 1_000, 0, None).len(), MAX_OFFERED);
    assert_eq!(table.longest_unused(&net("fd10::/64").into(), 0, None), Some(ip("fd10::2")));
}

#[test]
fn nothing_is_offered_from_a_block_that_may_not_be_used() {
    let table = table(&["10.244.1.0/24"]);
    assert_eq!(table.free(&net("10.244.2.0/24").into(), 64, 0, None), Vec::<IpAddr>::new());
    assert_eq!(table.longest_unused(&net("10.244.2.0/24").into(), 0, None), None);
}

#[test]
fn each_refusal_names_the_object() {
    let mut table = table(&["10.244.1.0/24"]);
    table.set_carved_out([ip("10.244.1.9")]);
    table.take(ip("10.244.1.2"), &key(1), None).unwrap();
    table.take(ip("10.244.1.3"), &key(2), Some("shop/db-0")).unwrap();
    table.release(&key(2), 0);
    let refused = |address: &str| table.clone().take(ip(address), &key(3), Some("shop/db-1")).unwrap_err();
    let (block, held) = (net("10.244.1.0/24"), ip("10.244.1.2"));
    assert_eq!(refused("10.244.1.2"), LeaseRefusal::Held { address: held, holder: key(1) });
    let pod = "shop/db-0".to_owned();
    assert_eq!(refused("10.244.1.3"), LeaseRefusal::Reserved { address: ip("10.244.1.3"), pod });
    assert_eq!(refused("10.244.2.2"), LeaseRefusal::OutsideBlocks { address: ip("10.244.2.2") });
    for address in ["10.244.1.0", "10.244.1.1", "10.244.1.255", "10.244.1.9"].map(ip) {
        assert_eq!(refused(&address.to_string()), LeaseRefusal::NotAssignable { address, block });
    }
}

#[test]
fn a_released_address_rests_and_the_longest_unused_one_comes_first() {
    let block = net("10.244.1.0/29");
    let mut table = table(&["10.244.1.0/29"]);
    for (container, address) in
        ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6"].into_iter().enumerate()
    {
        table.take(ip(address), &key(u32::try_from(container).unwrap()), None).unwrap();
    }
    assert_eq!(table.release(&key(2), 100), [ip("10.244.1.4")]);
    assert_eq!(table.release(&key(0), 200), [ip("10.244.1.2")]);
    assert_eq!(table.longest_unused(&block.into(), 1_099, None), None);
    assert_eq!(table.free(&block.into(), 64, 1_100, None), [ip("10.244.1.4")]);
    assert_eq!(table.free(&block.into(), 64, 1_200, None), ["10.244.1.2", "10.244.1.4"].map(ip));
    assert_eq!(table.longest_unused(&block.into(), 1_200, None), Some(ip("10.244.1.4")));
}

#[test]
fn a_clock_that_jumps_back_does_not_lock_addresses_up() {
    let block = net("10.244.1.0/30");
    let mut table = table(&["10.244.1.0/30"]);
    table.take(ip("10.244.1.2"), &key(1), None).unwrap();
    table.release(&key(1), 10_000_000_000);
    assert_eq!(table.free(&block.into(), 64, 5, None), [ip("10.244.1.2")]);
}

#[test]
fn an_address_kept_for_a_pod_is_offered_to_it_at_once_and_to_nobody_else() {
    let block = net("10.244.1.0/24");
    let mut table = table(&["10.244.1.0/24"]);
    table.take(ip("10.244.1.200"), &key(1), Some("shop/db-0")).unwrap();
    table.release(&key(1), 100);
    assert_eq!(table.wanted("shop/db-0", Family::V4), Some(ip("10.244.1.200")));
    let offered = table.free(&block.into(), 2, 101, Some("shop/db-0"));
    assert_eq!(offered, ["10.244.1.2", "10.244.1.200"].map(ip));
    assert_eq!(table.longest_unused(&block.into(), 101, Some("shop/db-0")), Some(ip("10.244.1.200")));
    let pick = table.admit_pick(&block.into(), &offered, None, 101);
    assert_eq!(pick, Pick { address: Some(ip("10.244.1.200")), violation: None });
    assert!(!table.free(&block.into(), 64, 1_000_000, Some("shop/db-1")).contains(&ip("10.244.1.200")));
    assert_eq!(table.forget_reservation("shop/db-0"), [ip("10.244.1.200")]);
    assert_eq!(table.wanted("shop/db-0", Family::V4), None);
}

#[test]
fn addresses_of_a_sticky_pod_are_given_up_when_it_stays_away_too_long() {
    let mut table = table(&["10.244.1.0/24", "fd10::/64"]);
    for (pod, container, v4, v6) in
        [("shop/db-0", 1, "10.244.1.2", "fd10::2"), ("shop/db-1", 2, "10.244.1.3", "fd10::3")]
    {
        table.take(ip(v4), &key(container), Some(pod)).unwrap();
        table.take(ip(v6), &key(container), Some(pod)).unwrap();
    }
    table.release(&key(1), 1_000);
    assert_eq!(table.forget_reservations_before(1_000), []);
    let given_up = [("shop/db-0".to_owned(), ["10.244.1.2", "fd10::2"].map(ip).to_vec())];
    assert_eq!(table.forget_reservations_before(1_001), given_up);
    assert_eq!(table.wanted("shop/db-0", Family::V4), None);
    assert_eq!(table.wanted("shop/db-1", Family::V4), Some(ip("10.244.1.3")));
}

#[test]
fn a_pick_that_points_nowhere_leaves_the_choice_to_the_host() {
    let table = table(&["10.244.1.0/24"]);
    let block = net("10.244.1.0/24");
    let offered = table.free(&block.into(), 3, 0, None);
    let pick = |answer| table.admit_pick(&block.into(), &offered, answer, 0);
    assert_eq!(pick(Some(2)), Pick { address: Some(ip("10.244.1.4")), violation: None });
    assert_eq!(pick(None), Pick { address: Some(ip("10.244.1.2")), violation: None });
    for picked in [3, u32::MAX] {
        let violation = Some(PickViolation::OutOfRange { picked, offered: 3 });
        assert_eq!(pick(Some(picked)), Pick { address: Some(ip("10.244.1.2")), violation });
    }
}

#[test]
fn release_takes_back_all_addresses_of_an_attachment_and_only_once() {
    let mut table = table(&["10.244.1.0/24", "fd10::/64"]);
    table.take(ip("10.244.1.2"), &key(1), None).unwrap();
    table.take(ip("fd10::2"), &key(1), None).unwrap();
    table.take(ip("10.244.1.3"), &key(2), None).unwrap();
    assert_eq!(table.in_use(&net("10.244.1.0/24")), 2);
    assert_eq!(table.addresses_of(&key(1)).collect::<Vec<_>>(), ["10.244.1.2", "fd10::2"].map(ip));
    assert_eq!(table.release(&key(1), 0), ["10.244.1.2", "fd10::2"].map(ip));
    assert_eq!(table.release(&key(1), 0), Vec::<IpAddr>::new());
    assert_eq!(table.held().collect::<Vec<_>>(), [(ip("10.244.1.3"), &key(2))]);
}

#[test]
fn leases_in_a_block_that_was_lost_stay_until_they_are_released() {
    let mut table = table(&["10.244.1.0/24"]);
    table.take(ip("10.244.1.2"), &key(1), None).unwrap();
    table.set_blocks([]);
    assert_eq!(table.holder(ip("10.244.1.2")), Some(&key(1)));
    let outside = LeaseRefusal::OutsideBlocks { address: ip("10.244.1.3") };
    assert_eq!(table.take(ip("10.244.1.3"), &key(2), None), Err(outside));
    assert_eq!(table.release(&key(1), 0), [ip("10.244.1.2")]);
}

#[test]
fn stored_rows_that_contradict_each_other_are_refused() {
    let row =
        |container| LeaseRow { address: ip("10.244.1.2"), state: LeaseState::Held(key(container)), reserved_for: None };
    let duplicate = DuplicateLease { address: ip("10.244.1.2"), first: Box::new(key(1)), second: Box::new(key(2)) };
    assert_eq!(LeaseTable::load(0, [row(1), row(2)]), Err(duplicate));
    assert!(LeaseTable::load(0, [row(1), row(1)]).is_ok());
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Action {
    Take { offset: u8, container: u32, sticky: bool },
    Offer { container: u32, answer: Option<u32> },
    Release { container: u32 },
    Reload,
    Wait { ms: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (any::<u8>(), 0_u32..12, any::<bool>()).prop_map(|(offset, container, sticky)| Action::Take {
            offset,
            container,
            sticky
        }),
        (0_u32..12, proptest::option::of(0_u32..20))
            .prop_map(|(container, answer)| Action::Offer { container, answer }),
        (0_u32..12).prop_map(|container| Action::Release { container }),
        Just(Action::Reload),
        (0_u64..1_500).prop_map(|ms| Action::Wait { ms }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn no_history_gives_an_address_twice(actions in proptest::collection::vec(action(), 1..80)) {
        let block = net("10.244.1.0/28");
        let mut table = table(&["10.244.1.0/28"]);
        let mut model: BTreeMap<IpAddr, AttachmentKey> = BTreeMap::new();
        let mut released: BTreeMap<IpAddr, u64> = BTreeMap::new();
        let mut now_ms = 0;
        for action in actions {
            match action {
                Action::Take { offset, container, sticky } => {
                    let address = IpAddr::V4((0x0af4_0100 + u32::from(offset % 18)).into());
                    let pod = format!("pod-{container}");
                    if table.take(address, &key(container), sticky.then_some(pod.as_str())).is_ok() {
                        let before = model.insert(address, key(container));
                        prop_assert!(before.is_none_or(|before| before == key(container)));
                    }
                }
                Action::Offer { container, answer } => {
                    let free = table.free(&block.into(), 64, now_ms, None);
                    prop_assert!(free.is_sorted());
                    for address in &free {
                        let rested = released.get(address).is_none_or(|at| now_ms - at >= 1_000);
                        prop_assert!(rested && !model.contains_key(address));
                    }
                    if let Some(address) = table.admit_pick(&block.into(), &free, answer, now_ms).address {
                        prop_assert!(table.take(address, &key(container), None).is_ok());
                        prop_assert_eq!(model.insert(address, key(container)), None);
                    }
                }
                Action::Release { container } => {
                    let given_back = table.release(&key(container), now_ms);
                    let (mine, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
                        model.into_iter().partition(|(_, holder)| *holder == key(container));
                    model = rest;
                    prop_assert_eq!(given_back, mine.keys().copied().collect::<Vec<_>>());
                    released.extend(mine.keys().map(|address| (*address, now_ms)));
                }
                Action::Reload => {
                    let mut loaded = LeaseTable::load(1_000, table.rows()).unwrap();
                    loaded.set_blocks([block]);
                    prop_assert_eq!(&loaded, &table);
                    table = loaded;
                }
                Action::Wait { ms } => now_ms += ms,
            }
            let held: BTreeMap<IpAddr, AttachmentKey> =
                table.held().map(|(address, holder)| (address, holder.clone())).collect();
            prop_assert_eq!(&held, &model);
            prop_assert!(held.keys().all(|address| is_assignable(&block, *address)));
        }
    }
}
