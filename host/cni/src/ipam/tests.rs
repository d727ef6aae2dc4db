//! Tables of sections and what is made of them.

use std::net::IpAddr;

use proptest::prelude::{any, prop, proptest};
use proptest::strategy::{Just, Strategy};
use proptest::{prop_assert, prop_assert_eq};
use serde_json::{Value, json};

use super::*;
use crate::fields::Fault;
use crate::result::RouteAttributes;

fn read(section: &Value) -> Result<Ipam, FieldError> {
    Ipam::read(&Fields::of("ipam", section).unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn range(subnet: &str, first: &str, last: &str, gateway: Option<&str>) -> AddressRange {
    AddressRange { subnet: subnet.parse().unwrap(), first: ip(first), last: ip(last), gateway: gateway.map(ip) }
}

/// Reads a section, joins it with ranges of the runtime, and says what is wrong in words.
fn in_force(section: &Value, runtime: &[RangeSet], version: SpecVersion) -> Result<Vec<RangeSet>, String> {
    read(section).and_then(|ipam| ipam.sets_with(runtime, version)).map_err(|error| error.to_string())
}

#[test]
fn without_a_type_of_the_reference_the_own_allocator_decides() {
    for section in [json!({}), json!({"type": "culvert"}), json!({"type": ""}), json!({"type": null, "dataDir": "/x"})]
    {
        assert_eq!(read(&section), Ok(Ipam::default()), "{section}");
        assert_eq!(in_force(&section, &[], SpecVersion::LATEST), Ok(Vec::new()));
    }
}

#[test]
fn ranges_are_read_in_the_old_flat_form_and_as_a_list_of_sets() {
    let section = json!({
        "type": "host-local", "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.17",
        "gateway": "10.1.2.99",
        "ranges": [
            [{"subnet": "10.1.4.0/24"}, {"subnet": "10.1.5.0/30"}],
            [{"subnet": "2001:db8:4860::/64", "rangeStart": "2001:db8:4860::10"}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.99", "priority": 7}],
        "dataDir": "/run/my-orchestrator", "resolvConf": "/etc/resolv.conf",
    });
    let sets = vec![
        vec![range("10.1.2.0/24", "10.1.2.9", "10.1.2.17", Some("10.1.2.99"))],
        vec![range("10.1.4.0/24", "10.1.4.1", "10.1.4.254", None), range("10.1.5.0/30", "10.1.5.1", "10.1.5.2", None)],
        vec![range("2001:db8:4860::/64", "2001:db8:4860::10", "2001:db8:4860:0:ffff:ffff:ffff:ffff", None)],
    ];
    let default = RouteConfig { gw: None, ..RouteConfig::default_via(ip("10.1.2.99")) };
    let other = RouteConfig {
        dst: "10.9.0.0/16".parse().unwrap(),
        gw: Some(ip("10.1.2.99")),
        attributes: RouteAttributes { priority: Some(7), ..RouteAttributes::default() },
    };
    let expected = Ipam { kind: IpamKind::HostLocal, sets, routes: vec![default, other], dns: Dns::default() };
    assert_eq!(read(&section), Ok(expected));
}

#[test]
fn a_subnet_may_have_host_bits() {
    let section = json!({"type": "host-local", "ranges": [[{"subnet": "10.1.2.77/24"}]]});
    let expected = vec![vec![range("10.1.2.0/24", "10.1.2.1", "10.1.2.254", None)]];
    assert_eq!(in_force(&section, &[], SpecVersion::LATEST), Ok(expected));
}

#[test]
fn a_static_address_is_a_range_of_one() {
    let section = json!({
        "type": "static", "addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "fd00::5/64"}],
        "routes": [{"dst": "::/0"}], "dns": {"nameservers": ["10.0.0.10"]},
    });
    let ipam = read(&section).unwrap();
    let sets = vec![
        vec![range("10.10.0.0/24", "10.10.0.1", "10.10.0.1", Some("10.10.0.254"))],
        vec![range("fd00::/64", "fd00::5", "fd00::5", None)],
    ];
    assert_eq!((ipam.kind, &ipam.sets), (IpamKind::Static, &sets));
    assert_eq!(ipam.dns.nameservers, ["10.0.0.10"]);
}

#[test]
fn every_fault_names_its_path_and_is_told_by_type_or_value() {
    let in_range = |field: &str, value: Value| {
        let mut range = json!({"subnet": "10.1.2.0/24"});
        range[field] = value;
        json!({"type": "host-local", "ranges": [[range]]})
    };
    let of = |ranges: Value| json!({"type": "host-local", "ranges": ranges});
    let table = [
        (json!({"type": 7}), Fault::Type, "ipam.type: expected a string"),
        (json!({"type": "dhcp"}), Fault::Value, "ipam.type: expected \"host-local\" with ranges, \"static\" with"),
        (json!({"type": "calico-ipam"}), Fault::Value, "no other plugin is executed, found \"calico-ipam\""),
        (of(json!({})), Fault::Type, "ipam.ranges: expected a list"),
        (of(json!([{}])), Fault::Type, "ipam.ranges[0]: expected a list"),
        (of(json!([[7]])), Fault::Type, "ipam.ranges[0][0]: expected an object"),
        (of(json!([[]])), Fault::Value, "ipam.ranges[0]: expected at least one range"),
        (
            of(json!([[{}]])),
            Fault::Value,
            "ipam.ranges[0][0].subnet: expected a subnet such as 10.244.1.0/24, found null",
        ),
        (in_range("subnet", json!(7)), Fault::Type, "ipam.ranges[0][0].subnet: expected a subnet"),
        (in_range("subnet", json!("10.1.2.0")), Fault::Value, "ipam.ranges[0][0].subnet: expected a subnet"),
        (in_range("subnet", json!("10.1.2.0/33")), Fault::Value, "ipam.ranges[0][0].subnet: expected a subnet"),
        (in_range("subnet", json!("10.1.2.0/31")), Fault::Value, "expected a subnet of at least four addresses"),
        (in_range("subnet", json!("fd00::/127")), Fault::Value, "expected a subnet of at least four addresses"),
        (in_range("rangeStart", json!(1)), Fault::Type, "ipam.ranges[0][0].rangeStart: expected an IP address"),
        (in_range("rangeStart", json!("zork")), Fault::Value, "ipam.ranges[0][0].rangeStart: expected an IP address"),
        (in_range("rangeStart", json!("10.1.3.1")), Fault::Value, "rangeStart: expected an address of 10.1.2.0/24"),
        (in_range("rangeEnd", json!("fd00::1")), Fault::Value, "rangeEnd: expected an address of 10.1.2.0/24"),
        (in_range("gateway", json!("10.1.3.1")), Fault::Value, "gateway: expected an address of 10.1.2.0/24"),
        (
            of(json!([[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"}]])),
            Fault::Value,
            "rangeEnd: expected an address not before the start of the range, 10.1.2.9, found \"10.1.2.8\"",
        ),
        (
            of(json!([[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]])),
            Fault::Value,
            "ipam.ranges[0][1].subnet: expected the family of the first range of its set",
        ),
        (json!({"type": "host-local", "subnet": "x"}), Fault::Value, "ipam.subnet: expected a subnet"),
        (json!({"routes": [{"gw": "10.1.2.1"}]}), Fault::Value, "ipam.routes[0].dst: expected"),
        (json!({"routes": [{"dst": 7}]}), Fault::Type, "ipam.routes[0].dst: expected"),
        (
            json!({"routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}),
            Fault::Value,
            "ipam.routes[0].gw: expected a next hop",
        ),
        (json!({"type": "static", "addresses": [{}]}), Fault::Value, "ipam.addresses[0].address: expected"),
        (json!({"type": "static", "addresses": [{"address": "10.1.2.3"}]}), Fault::Value, "ipam.addresses[0].address"),
        (
            json!({"type": "static", "addresses": [{"address": "10.1.2.3/24", "gateway": "10.1.3.1"}]}),
            Fault::Value,
            "ipam.addresses[0].gateway: expected an address of 10.1.2.0/24",
        ),
        (json!({"type": "static", "dns": []}), Fault::Type, "ipam.dns: expected an object"),
    ];
    for (section, fault, message) in table {
        let error = read(&section).unwrap_err();
        assert_eq!(error.fault, fault, "{section}: {error}");
        assert!(error.to_string().contains(message), "{section}: {error}");
    }
}

#[test]
fn ranges_of_the_runtime_come_first_and_overlap_with_none() {
    let section = json!({"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}]]});
    let runtime = vec![vec![range("10.1.3.0/24", "10.1.3.1", "10.1.3.254", None)]];
    let expected = vec![runtime[0].clone(), vec![range("10.1.2.0/24", "10.1.2.1", "10.1.2.254", None)]];
    assert_eq!(in_force(&section, &runtime, SpecVersion::V0_3_0), Ok(expected));
    let overlapping = vec![vec![range("10.1.0.0/16", "10.1.2.254", "10.1.9.9", None)]];
    let message = in_force(&section, &overlapping, SpecVersion::LATEST).unwrap_err();
    assert!(message.contains("unlike 10.1.2.254 to 10.1.9.9 and 10.1.2.1 to 10.1.2.254"), "{message}");
    let apart = vec![vec![range("10.1.2.0/24", "10.1.2.255", "10.1.2.255", None)]];
    assert!(in_force(&section, &apart, SpecVersion::LATEST).is_ok());
}

#[test]
fn host_local_needs_a_range_of_whichever_origin() {
    let section = json!({"type": "host-local", "dataDir": "/x"});
    let message = in_force(&section, &[], SpecVersion::LATEST).unwrap_err();
    assert!(message.contains("ipam.ranges: expected at least one range"), "{message}");
    let runtime = vec![vec![range("10.1.3.0/24", "10.1.3.1", "10.1.3.254", None)]];
    assert_eq!(in_force(&section, &runtime, SpecVersion::LATEST), Ok(runtime));
}

#[test]
fn versions_before_0_3_0_have_one_address_a_family() {
    let set = |subnet: &str| json!([{"subnet": subnet}]);
    let two = json!({"type": "host-local", "ranges": [set("10.1.2.0/24"), set("10.1.3.0/24")]});
    let dual = json!({"type": "host-local", "ranges": [set("10.1.2.0/24"), set("fd00::/64")]});
    for version in SpecVersion::ALL {
        assert_eq!(in_force(&two, &[], version).is_ok(), version >= SpecVersion::V0_3_0, "{version}");
        assert!(in_force(&dual, &[], version).is_ok(), "{version}");
    }
}

#[test]
fn there_are_at_most_as_many_ranges_as_blocks_of_a_node() {
    let ranges = |count: usize| {
        let set: Vec<Value> = (0..count).map(|index| json!({"subnet": format!("10.1.{index}.0/24")})).collect();
        json!({"type": "host-local", "ranges": [set]})
    };
    assert!(in_force(&ranges(MAX_RANGES), &[], SpecVersion::LATEST).is_ok());
    let message = in_force(&ranges(MAX_RANGES + 1), &[], SpecVersion::LATEST).unwrap_err();
    assert!(message.contains("at most 64 ranges and not 65"), "{message}");
}

#[test]
fn requested_addresses_are_one_of_each_set_and_no_gateway() {
    let sets = vec![
        vec![
            range("10.1.2.0/24", "10.1.2.1", "10.1.2.9", None),
            range("10.1.3.0/24", "10.1.3.1", "10.1.3.9", Some("10.1.3.5")),
        ],
        vec![range("fd00::/64", "fd00::1", "fd00::ff", None)],
    ];
    let wish = |wanted: &[&str]| {
        let wanted = wanted.iter().copied().map(ip).collect();
        AddressWish::new(IpamKind::HostLocal, sets.clone(), wanted).map_err(|error| error.to_string())
    };
    let good = wish(&["fd00::5", "10.1.3.9"]).unwrap();
    assert_eq!(good.wanted_of(&good.sets[0]), Some(ip("10.1.3.9")));
    assert_eq!(good.wanted_of(&good.sets[1]), Some(ip("fd00::5")));
    assert_eq!(wish(&[]).unwrap().wanted_of(&sets[0]), None);
    let table = [
        (
            &["10.1.2.10"][..],
            "expected an address of the configured ranges 10.1.2.1 to 10.1.2.9, 10.1.3.1 to 10.1.3.9, fd00::1 to",
        ),
        (&["10.1.2.2", "10.1.3.9"], "an address of another range set"),
        (&["10.1.2.1"], "an address other than the gateway of 10.1.2.0/24"),
        (&["10.1.3.5"], "an address other than the gateway of 10.1.3.0/24"),
    ];
    for (wanted, message) in table {
        let found = wish(wanted).unwrap_err();
        assert!(found.contains(message) && found.contains(wanted[wanted.len() - 1]), "{found}");
    }
}

#[test]
fn without_sets_one_address_a_family_may_be_requested() {
    let wish = |kind, wanted: &[&str]| AddressWish::new(kind, Vec::new(), wanted.iter().copied().map(ip).collect());
    for kind in [IpamKind::Own, IpamKind::Static] {
        assert!(wish(kind, &["10.1.2.2", "fd00::2"]).is_ok());
        assert!(wish(kind, &["10.1.2.2", "10.1.2.3"]).is_err());
    }
    assert_eq!(wish(IpamKind::Own, &[]), Ok(AddressWish::default()));
    assert!(wish(IpamKind::Static, &[]).unwrap_err().to_string().starts_with("ipam.addresses: expected at least one"));
}

#[test]
fn a_requested_address_takes_the_place_of_static_ones() {
    let sets = vec![vec![range("10.1.2.0/24", "10.1.2.3", "10.1.2.3", None)]];
    let own = AddressWish::new(IpamKind::Static, sets.clone(), Vec::new());
    assert_eq!(own, Ok(AddressWish { sets: sets.clone(), wanted: Vec::new() }));
    let requested = AddressWish::new(IpamKind::Static, sets, vec![ip("10.9.9.9")]);
    assert_eq!(requested, Ok(AddressWish { sets: Vec::new(), wanted: vec![ip("10.9.9.9")] }));
}

fn any_range() -> impl Strategy<Value = Value> {
    let texts = |v4: bool| {
        let address = move |low: u8| if v4 { format!("10.1.2.{low}") } else { format!("fd00::{low:x}") };
        let optional = move || prop::option::of(any::<u8>().prop_map(address));
        let longest = if v4 { 33_u8 } else { 129 };
        (Just(v4), any::<u8>(), 0..longest, optional(), optional(), optional())
    };
    any::<bool>().prop_flat_map(texts).prop_map(|(v4, low, length, start, end, gateway)| {
        let network = if v4 { format!("10.1.2.{low}") } else { format!("fd00::{low:x}") };
        json!({"subnet": format!("{network}/{length}"), "rangeStart": start, "rangeEnd": end, "gateway": gateway})
    })
}

proptest! {
    #[test]
    fn whatever_is_accepted_keeps_the_rules_of_ranges(
        sets in prop::collection::vec(prop::collection::vec(any_range(), 0..3), 0..3),
        probe in any::<u8>(),
    ) {
        let section = json!({"type": "host-local", "ranges": sets});
        let Ok(accepted) = in_force(&section, &[], SpecVersion::LATEST) else { return Ok(()) };
        prop_assert_eq!(accepted.len(), sets.len());
        let all: Vec<&AddressRange> = accepted.iter().flatten().collect();
        for (index, range) in all.iter().enumerate() {
            prop_assert_eq!(range.subnet, range.subnet.trunc());
            prop_assert!(range.first <= range.last);
            prop_assert!(range.subnet.contains(&range.first) && range.subnet.contains(&range.last));
            prop_assert!(range.gateway.is_none_or(|gateway| range.subnet.contains(&gateway)));
            prop_assert!(all.iter().skip(index + 1).all(|other| !range.overlaps(other)));
        }
        let address = ip(&format!("10.1.2.{probe}"));
        prop_assert!(all.iter().filter(|range| range.contains(address)).count() <= 1);
    }
}
