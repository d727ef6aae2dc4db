//! What the directory promises.

use super::*;
use crate::claim::{ClaimOutcome, ClaimRequest};
use crate::reach::{Connection, ReachEvent};
use crate::topology::SiteKind;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn peer(name: &str) -> PeerId {
    PeerId(format!("peer-{name}"))
}

fn record(name: &str, sequence: u64) -> NodeRecord {
    NodeRecord {
        name: name.to_owned(),
        peer: peer(name),
        sequence,
        addresses: vec![ip("203.0.113.7"), ip("192.168.1.2")],
        port: 7_946,
        blocks: vec![],
        site_kind: SiteKind::Edge,
        zone: "hall-1".to_owned(),
        labels: [("rack".to_owned(), "7".to_owned())].into(),
    }
}

fn ledger(claims: &[(&str, &str, Standing)]) -> Ledger {
    let pool = Pool { range: net("10.244.0.0/16"), block_length: 24 };
    let mut ledger = Ledger::new(vec![pool], vec![net("10.96.0.0/12")]);
    for (name, block, standing) in claims {
        let (holder, peer) = ((*name).to_owned(), peer(name));
        let request = ClaimRequest { block: net(block), holder, peer, standing: *standing };
        assert_eq!(ledger.decide(&request), ClaimOutcome::Granted);
    }
    ledger
}

fn with(names: &[&str]) -> Directory {
    let mut directory = Directory::default();
    for name in names {
        assert_eq!(directory.register(&record(name, 1), &ledger(&[])), Ok(Registered::New));
    }
    directory
}

#[test]
fn a_name_belongs_to_the_first_identity_that_asks_until_an_operator_releases_it() {
    let mut directory = with(&["edge-1"]);
    let thief = NodeRecord { peer: peer("thief"), sequence: 99, ..record("edge-1", 1) };
    let before = directory.clone();
    let refusal = directory.register(&thief, &ledger(&[])).unwrap_err();
    let name = "edge-1".to_owned();
    assert_eq!(refusal, MembershipRefusal::NameTaken { name, holder: peer("edge-1"), peer: peer("thief") });
    assert_eq!(
        refusal.to_string(),
        "name \"edge-1\" belongs to peer peer-edge-1, but peer peer-thief asked for it: give the node another name, \
         or, when peer-edge-1 is gone for good, an operator releases the name with `culvertctl release-name edge-1`"
    );
    assert_eq!(directory, before);

    assert_eq!(directory.release("edge-1"), Some(peer("edge-1")));
    assert_eq!(directory.release("edge-1"), None);
    assert_eq!((directory.record("edge-1"), directory.name_of(&peer("edge-1"))), (None, None));
    assert_eq!(directory.register(&thief, &ledger(&[])), Ok(Registered::New));
    assert_eq!(directory.peer_of("edge-1"), Some(&peer("thief")));
}

#[test]
fn an_identity_has_one_name() {
    let mut directory = with(&["edge-1"]);
    let second = NodeRecord { peer: peer("edge-1"), ..record("edge-2", 1) };
    let (name, asked) = ("edge-1".to_owned(), "edge-2".to_owned());
    let refusal = MembershipRefusal::OtherName { peer: peer("edge-1"), name, asked };
    assert_eq!(directory.register(&second, &ledger(&[])), Err(refusal));
}

#[test]
fn the_higher_sequence_wins_and_replays_are_ignored() {
    let mut directory = with(&["edge-1"]);
    let newer = NodeRecord { zone: "hall-2".to_owned(), ..record("edge-1", 5) };
    assert_eq!(directory.register(&newer, &ledger(&[])), Ok(Registered::Updated));
    for replay in [1, 4, 5] {
        assert_eq!(directory.register(&record("edge-1", replay), &ledger(&[])), Ok(Registered::Ignored));
    }
    assert_eq!(directory.record("edge-1"), Some(&newer));
}

#[test]
fn a_record_lists_only_blocks_its_identity_holds_for_good() {
    let ledger = ledger(&[
        ("a", "10.244.1.0/24", Standing::Final),
        ("b", "10.244.2.0/24", Standing::Final),
        ("a", "10.244.3.0/24", Standing::Provisional),
    ]);
    let claims = |block: &str| {
        let record = NodeRecord { blocks: vec![net("10.244.1.0/24"), net(block)], ..record("a", 1) };
        Directory::default().register(&record, &ledger)
    };
    assert_eq!(claims("10.244.1.0/24"), Ok(Registered::New));
    for (block, held_by) in [("10.244.2.0/24", Some("b")), ("10.244.3.0/24", None), ("10.244.9.0/24", None)] {
        let held_by = held_by.map(str::to_owned);
        let refusal = MembershipRefusal::BlockNotHeld { name: "a".to_owned(), block: net(block), held_by };
        assert_eq!(claims(block), Err(refusal));
    }
}

#[test]
fn malformed_records_are_refused_with_the_field_at_fault() {
    let fault = |record: NodeRecord| match Directory::default().register(&record, &ledger(&[])) {
        Err(MembershipRefusal::Malformed { fault, .. }) => fault,
        other => format!("{other:?}"),
    };
    let named = |name: &str| fault(NodeRecord { name: name.to_owned(), ..record("a", 1) });
    for name in ["", "Edge", "a b", "../a", "-a", "a-", "a..b", "a/b", "a\n", "ä", &"a".repeat(254)] {
        let expected = format!("name {name:?} is no node name of lower case letters, digits, '-' and '.'");
        assert_eq!(named(name), expected);
    }
    assert_eq!(named("node-1.example.org"), "Ok(New)");
    assert_eq!(fault(NodeRecord { port: 0, ..record("a", 1) }), "port 0 cannot be dialled");
    for address in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "ff02::1", "::ffff:127.0.0.1"]
    {
        let addresses = vec![ip("192.168.1.2"), ip(address)];
        let expected = format!("{} is no address of a node", ip(address));
        assert_eq!(fault(NodeRecord { addresses, ..record("a", 1) }), expected);
    }
    let addresses = vec![ip("192.168.1.2"); 65];
    assert_eq!(fault(NodeRecord { addresses, ..record("a", 1) }), "65 addresses are more than 64");
    let labels: BTreeMap<String, String> = (0..257).map(|label| (label.to_string(), String::new())).collect();
    assert_eq!(fault(NodeRecord { labels, ..record("a", 1) }), "257 labels are more than 256");
    let zone = "hall\u{1b}[2J".to_owned();
    let expected = "label or zone \"hall\\u{1b}[2J\" is too long or has control characters";
    assert_eq!(fault(NodeRecord { zone, ..record("a", 1) }), expected);
}

#[test]
fn a_full_directory_names_the_remedy_and_still_updates_its_nodes() {
    let names: Vec<String> = (0..MAX_NODES).map(|node| format!("n{node}")).collect();
    let mut directory = with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let full = MembershipRefusal::Full { name: "late".to_owned(), limit: MAX_NODES };
    assert_eq!(directory.register(&record("late", 1), &ledger(&[])), Err(full));
    assert_eq!(directory.register(&record("n0", 2), &ledger(&[])), Ok(Registered::Updated));
}

#[test]
fn the_keepers_later_decision_about_a_name_wins_everywhere() {
    let mut keeper = with(&["edge-1"]);
    let mut member = Directory::load(keeper.bindings().cloned(), keeper.records().cloned());
    assert_eq!(member, keeper);
    keeper.release("edge-1");
    let heir = NodeRecord { peer: peer("heir"), ..record("edge-1", 1) };
    keeper.register(&heir, &ledger(&[])).unwrap();
    assert!(member.register(&heir, &ledger(&[])).is_err());
    let old: Vec<Binding> = member.bindings().cloned().collect();
    let new: Vec<Binding> = keeper.bindings().cloned().collect();
    assert!(member.merge_binding(&new[0]) && !member.merge_binding(&new[0]) && !member.merge_binding(&old[0]));
    assert_eq!(member.record("edge-1"), None);
    assert_eq!(member.register(&heir, &ledger(&[])), Ok(Registered::New));
    assert_eq!(member, keeper);
}

#[test]
fn a_stored_record_without_its_binding_is_dropped() {
    let directory = with(&["a", "b"]);
    let bindings = directory.bindings().filter(|binding| binding.name == "a").cloned();
    let loaded = Directory::load(bindings, directory.records().cloned());
    assert_eq!(loaded.records().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn the_topology_is_sorted_and_lists_verified_addresses_of_neighbours_only() {
    let directory = with(&["c", "a", "b"]);
    let mut neighbour = PeerReach::default();
    neighbour.observe(&ReachEvent::Candidates(vec![ip("192.168.1.2")]));
    neighbour.observe(&ReachEvent::Verified(ip("192.168.1.2")));
    let mut far = PeerReach::default();
    far.observe(&ReachEvent::Connected(Connection::Relayed));
    let ledger = ledger(&[
        ("a", "10.244.1.0/24", Standing::Final),
        ("b", "10.244.2.0/24", Standing::Provisional),
        ("stranger", "10.244.9.0/24", Standing::Final),
    ]);
    let view = View {
        local: "b",
        ready: &["a".to_owned()].into(),
        reach: &[("a".to_owned(), neighbour), ("c".to_owned(), far)].into(),
        ledger: &ledger,
        generation: 42,
    };
    let both = vec![ip("203.0.113.7"), ip("192.168.1.2")];
    let node = |name: &str, ready, reach, addresses, blocks: &[&str]| Node {
        name: name.to_owned(),
        site_kind: SiteKind::Edge,
        zone: "hall-1".to_owned(),
        ready,
        reach,
        addresses,
        blocks: blocks.iter().map(|block| net(block)).collect(),
        labels: [("rack".to_owned(), "7".to_owned())].into(),
    };
    let expected = Topology {
        generation: 42,
        local: 1,
        nodes: vec![
            node("a", true, Reach::SameLink, vec![ip("192.168.1.2")], &["10.244.1.0/24"]),
            node("b", true, Reach::Unknown, both.clone(), &["10.244.2.0/24"]),
            node("c", false, Reach::TunnelOnly, both, &[]),
        ],
        cluster_prefixes: vec![net("10.244.0.0/16")],
        service_prefixes: vec![net("10.96.0.0/12")],
    };
    assert_eq!(directory.topology(&view), Some(expected));
    assert_eq!(directory.topology(&View { local: "unknown", ..view }), None);
}
