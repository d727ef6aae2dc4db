//! Results in every schema.

use proptest::prelude::{any, prop, proptest};
use proptest::strategy::Strategy;
use proptest::{option, prop_assert_eq};
use serde_json::{Value, json};

use super::*;

fn example() -> AddResult {
    AddResult {
        interfaces: vec![
            Interface { name: "cv0".into(), mac: "0a:00:00:00:00:01".into(), mtu: Some(1400), ..Interface::default() },
            Interface {
                name: "eth0".into(),
                mac: "0a:00:00:00:00:02".into(),
                mtu: Some(1400),
                sandbox: Some("/run/netns/x".into()),
                ..Interface::default()
            },
        ],
        ips: vec![
            IpConfig {
                address: "10.244.1.5/24".parse().unwrap(),
                gateway: Some("10.244.1.1".parse().unwrap()),
                interface: Some(1),
            },
            IpConfig { address: "fd00::5/64".parse().unwrap(), gateway: None, interface: Some(1) },
        ],
        routes: vec![
            RouteConfig {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("10.244.1.1".parse().unwrap()),
                attributes: RouteAttributes { priority: Some(10), ..RouteAttributes::default() },
            },
            RouteConfig { dst: "::/0".parse().unwrap(), gw: None, attributes: RouteAttributes::default() },
        ],
        dns: Dns { nameservers: vec!["10.0.0.10".into()], search: vec!["svc".into()], ..Dns::default() },
    }
}

fn written(version: SpecVersion) -> Value {
    let dns = json!({"nameservers": ["10.0.0.10"], "search": ["svc"]});
    let interfaces = json!([
        {"name": "cv0", "mac": "0a:00:00:00:00:01"},
        {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/x"},
    ]);
    let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}, {"dst": "::/0"}]);
    match version {
        SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => json!({
            "cniVersion": version.as_str(), "dns": dns,
            "ip4": {"ip": "10.244.1.5/24", "gateway": "10.244.1.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]},
            "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0"}]},
        }),
        SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => json!({
            "cniVersion": version.as_str(), "dns": dns, "interfaces": interfaces, "routes": routes, "ips": [
                {"version": "4", "interface": 1, "address": "10.244.1.5/24", "gateway": "10.244.1.1"},
                {"version": "6", "interface": 1, "address": "fd00::5/64"},
            ],
        }),
        SpecVersion::V1_0_0 => json!({
            "cniVersion": "1.0.0", "dns": dns, "interfaces": interfaces, "routes": routes, "ips": [
                {"interface": 1, "address": "10.244.1.5/24", "gateway": "10.244.1.1"},
                {"interface": 1, "address": "fd00::5/64"},
            ],
        }),
        SpecVersion::V1_1_0 => json!({
            "cniVersion": "1.1.0", "dns": dns, "interfaces": [
                {"name": "cv0", "mac": "0a:00:00:00:00:01", "mtu": 1400},
                {"name": "eth0", "mac": "0a:00:00:00:00:02", "mtu": 1400, "sandbox": "/run/netns/x"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1", "priority": 10}, {"dst": "::/0"}],
            "ips": [
                {"interface": 1, "address": "10.244.1.5/24", "gateway": "10.244.1.1"},
                {"interface": 1, "address": "fd00::5/64"},
            ],
        }),
    }
}

#[test]
fn every_version_has_its_own_schema() {
    for version in SpecVersion::ALL {
        assert_eq!(example().to_json(version), Ok(written(version)));
    }
}

#[test]
fn a_result_of_any_version_is_read_again() {
    let without_novelties = |mut result: AddResult| {
        result.interfaces.iter_mut().for_each(|interface| interface.mtu = None);
        result.routes.iter_mut().for_each(|route| route.attributes = RouteAttributes::default());
        result
    };
    for version in SpecVersion::ALL {
        let expected = match version {
            SpecVersion::V1_1_0 => example(),
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 | SpecVersion::V1_0_0 => {
                without_novelties(example())
            }
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => {
                let mut result = AddResult { interfaces: Vec::new(), ..without_novelties(example()) };
                result.ips.iter_mut().for_each(|config| config.interface = None);
                result
            }
        };
        assert_eq!(AddResult::parse(&written(version), SpecVersion::LATEST), Ok(expected.clone()));
        let mut unversioned = written(version);
        unversioned["cniVersion"] = json!("");
        assert_eq!(AddResult::parse(&unversioned, version), Ok(expected));
    }
}

#[test]
fn old_versions_keep_the_first_address_of_each_family_and_need_one() {
    let mut result = example();
    result.ips.push(IpConfig { address: "10.9.9.9/24".parse().unwrap(), gateway: None, interface: None });
    assert_eq!(result.to_json(SpecVersion::V0_2_0), Ok(written(SpecVersion::V0_2_0)));
    result.ips.clear();
    for version in [SpecVersion::V0_1_0, SpecVersion::V0_2_0] {
        assert_eq!(result.to_json(version), Err(ResultError::NoAddress(version)));
    }
}

#[test]
fn empty_dns_is_left_out_from_one_zero_on() {
    let result = AddResult::default();
    assert_eq!(result.to_json(SpecVersion::V0_4_0), Ok(json!({"cniVersion": "0.4.0", "dns": {}})));
    assert_eq!(result.to_json(SpecVersion::V1_0_0), Ok(json!({"cniVersion": "1.0.0"})));
}

#[test]
fn a_result_behind_another_keeps_both_and_points_at_its_own_interfaces() {
    let one = |name: &str, address: &str| AddResult {
        interfaces: vec![Interface { name: name.into(), ..Interface::default() }],
        ips: vec![IpConfig { address: address.parse().unwrap(), gateway: None, interface: Some(0) }],
        ..AddResult::default()
    };
    let dns = Dns { domain: "first".into(), ..Dns::default() };
    let first = AddResult { dns: dns.clone(), ..one("net1", "192.168.1.5/24") };
    let both = one("eth0", "10.244.1.5/24").behind(first.clone());
    assert_eq!(both.interfaces.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>(), ["net1", "eth0"]);
    assert_eq!(both.ips.iter().map(|config| config.interface).collect::<Vec<_>>(), [Some(0), Some(1)]);
    assert_eq!(both.dns, dns);
    assert_eq!(first.clone().behind(AddResult::default()), first);
    assert_eq!(AddResult::default().behind(first.clone()), first);
}

#[test]
fn host_bits_of_an_address_stay() {
    let read = AddResult::parse(&json!({"ips": [{"address": "10.1.2.3/8"}]}), SpecVersion::V1_0_0).unwrap();
    assert_eq!(read.ips[0].address.to_string(), "10.1.2.3/8");
}

#[test]
fn garbage_names_its_path() {
    let table = [
        (json!(7), "prevResult: expected an object, found 7"),
        (json!({"cniVersion": 1}), "prevResult.cniVersion: expected a string, found 1"),
        (json!({"cniVersion": "2.0.0"}), "prevResult has unknown cniVersion \"2.0.0\""),
        (json!({"ips": {}}), "prevResult.ips: expected a list, found {}"),
        (json!({"ips": [{}]}), "prevResult.ips[0].address: expected an IP address with prefix length, found null"),
        (json!({"ips": [{"address": "10.0.0.1"}]}), "prevResult.ips[0].address: expected"),
        (json!({"ips": [{"address": "10.0.0.1/33"}]}), "prevResult.ips[0].address: expected"),
        (json!({"ips": [{"address": "10.0.0.1/8", "interface": -1}]}), "prevResult.ips[0].interface: expected"),
        (
            json!({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
            "prevResult.ips[0].interface is 0, but there are 0 interfaces",
        ),
        (
            json!({"interfaces": [{"mac": "x"}]}),
            "prevResult.interfaces[0].name: expected an interface's name, found null",
        ),
        (json!({"routes": [{"dst": "default"}]}), "prevResult.routes[0].dst: expected"),
        (json!({"cniVersion": "0.2.0", "ip4": {"ip": "x"}}), "prevResult.ip4.ip: expected"),
    ];
    for (value, expected) in table {
        let error = AddResult::parse(&value, SpecVersion::V1_0_0).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(error.code(), Code::Decode);
    }
}

#[test]
fn the_version_list_is_complete() {
    let supported = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    let expected = json!({"cniVersion": "1.0.0", "supportedVersions": supported});
    assert_eq!(version_list(SpecVersion::V1_0_0), expected);
}

fn address() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>()
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let prefix = |(address, length): (IpAddr, u8)| {
        IpNet::new(address, length % if address.is_ipv4() { 33 } else { 129 }).unwrap()
    };
    (address(), any::<u8>()).prop_map(prefix)
}

fn any_interface() -> impl Strategy<Value = Interface> {
    let optional = || option::of("[a-z/]{1,8}");
    ("[a-z0-9]{1,15}", "[0-9a-f:]{0,17}", option::of(any::<u32>()), optional(), optional(), optional()).prop_map(
        |(name, mac, mtu, sandbox, socket_path, pci_id)| Interface { name, mac, mtu, sandbox, socket_path, pci_id },
    )
}

fn any_route() -> impl Strategy<Value = RouteConfig> {
    let number = || option::of(any::<u32>());
    let attributes = (number(), number(), number(), number(), option::of(any::<u8>()))
        .prop_map(|(mtu, advmss, priority, table, scope)| RouteAttributes { mtu, advmss, priority, table, scope });
    (prefix(), option::of(address()), attributes).prop_map(|(dst, gw, attributes)| RouteConfig { dst, gw, attributes })
}

fn any_dns() -> impl Strategy<Value = Dns> {
    let texts = || prop::collection::vec(".{0,8}", 0..3);
    (texts(), ".{0,8}", texts(), texts()).prop_map(|(nameservers, domain, search, options)| Dns {
        nameservers,
        domain,
        search,
        options,
    })
}

fn any_result() -> impl Strategy<Value = AddResult> {
    let interfaces = prop::collection::vec(any_interface(), 1..4);
    let ip = (prefix(), option::of(address()), option::of(0_usize..1))
        .prop_map(|(address, gateway, interface)| IpConfig { address, gateway, interface });
    let (ips, routes) = (prop::collection::vec(ip, 0..4), prop::collection::vec(any_route(), 0..4));
    (interfaces, ips, routes, any_dns()).prop_map(|(interfaces, ips, routes, dns)| AddResult {
        interfaces,
        ips,
        routes,
        dns,
    })
}

proptest! {
    #[test]
    fn the_latest_version_loses_nothing(result in any_result()) {
        let json = result.to_json(SpecVersion::LATEST)?;
        prop_assert_eq!(AddResult::parse(&json, SpecVersion::V0_1_0)?, result);
    }

    #[test]
    fn writing_what_was_read_changes_nothing(result in any_result(), version in prop::sample::select(SpecVersion::ALL.to_vec())) {
        if let Ok(json) = result.to_json(version) {
            prop_assert_eq!(AddResult::parse(&json, SpecVersion::LATEST)?.to_json(version)?, json);
        }
    }
}
