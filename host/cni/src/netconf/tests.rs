//! Tables of configurations and what is made of them.

use serde_json::{Value, json};

use super::{AttachmentName, NetConf, Options, answer_version};
use crate::ipam::{AddressRange, Ipam, IpamKind};
use crate::result::{AddResult, Dns, RouteConfig};
use crate::route::RouteWish;
use crate::runtime_config::{Bandwidth, RateLimit, RuntimeConfig};
use crate::version::{SpecVersion, Verb};

fn decode(verb: Verb, document: &Value) -> Result<NetConf, (u32, String)> {
    NetConf::decode(document.to_string().as_bytes(), verb).map_err(|error| (error.code().number(), error.to_string()))
}

fn bare(version: SpecVersion) -> NetConf {
    NetConf {
        cni_version: version,
        name: "net".into(),
        plugin_type: "culvert".into(),
        options: Options::default(),
        runtime: RuntimeConfig::default(),
        sets: Vec::new(),
        previous: None,
        valid_attachments: None,
    }
}

fn with(key: &str, value: Value) -> Value {
    let mut document = json!({"cniVersion": "1.1.0", "name": "net", "type": "culvert"});
    document[key] = value;
    document
}

#[test]
fn the_conflist_of_the_guides_is_read_with_its_options() {
    let document = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "culvert", "bridge": "cni0", "isGateway": true, "ipMasq": true,
        "promiscMode": true, "hairpinMode": true, "isDefaultGateway": true, "forceAddress": false, "mtu": 1400,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
        "capabilities": {"portMappings": true}, "args": {"cni": {}}, "unknown": [1], "dns": {"nameservers": ["10.0.0.1"]},
    });
    let sets = vec![vec![AddressRange {
        subnet: "10.244.1.0/24".parse().unwrap(),
        first: "10.244.1.1".parse().unwrap(),
        last: "10.244.1.254".parse().unwrap(),
        gateway: None,
    }]];
    let routes = vec![RouteConfig { gw: None, ..RouteConfig::default_via("10.244.1.1".parse().unwrap()) }];
    let options = Options {
        bridge: Some("cni0".into()),
        mtu_bytes: Some(1400),
        is_gateway: Some(true),
        is_default_gateway: Some(true),
        force_address: Some(false),
        ip_masq: Some(true),
        hairpin_mode: Some(true),
        promisc_mode: Some(true),
        ipam: Ipam { kind: IpamKind::HostLocal, sets: sets.clone(), routes, dns: Dns::default() },
        args: document["args"].as_object().cloned(),
        dns: Dns { nameservers: vec!["10.0.0.1".into()], ..Dns::default() },
    };
    assert_eq!(decode(Verb::Add, &document), Ok(NetConf { options, sets, ..bare(SpecVersion::V1_0_0) }));
}

#[test]
fn bytes_that_are_no_json_object_are_answered_six() {
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000)).into_bytes();
    let table: [&[u8]; 9] = [
        b"",
        b"{\"name\":",
        b"name: net",
        b"[]",
        b"null",
        b"7",
        b"\xef\xbb\xbf{\"name\":\"net\"}",
        b"{\"name\":\"\xff\"}",
        &nested,
    ];
    for stdin in table {
        for verb in [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status] {
            let code = NetConf::decode(stdin, verb).map_err(|error| error.code().number());
            assert_eq!(code, Err(6), "{verb} {}", String::from_utf8_lossy(&stdin[..stdin.len().min(40)]));
        }
    }
}

#[test]
fn the_head_is_checked_in_the_references_order() {
    let table = [
        (Verb::Add, json!({"name": 7, "cniVersion": "9"}), 6, "name: expected a string, found 7"),
        (Verb::Add, json!({"name": "net", "cniVersion": 1}), 6, "cniVersion: expected a string, found 1"),
        (Verb::Add, json!({"cniVersion": "9"}), 7, "network configuration has no \"name\""),
        (Verb::Add, json!({"cniVersion": 1}), 7, "network configuration has no \"name\""),
        (Verb::Add, json!({"name": "../x", "cniVersion": 1}), 7, "network name \"../x\" must"),
        (Verb::Add, json!({"name": "", "cniVersion": "9"}), 7, "network configuration has no \"name\""),
        (Verb::Add, json!({"name": "../x"}), 7, "network name \"../x\" must"),
        (Verb::Add, json!({"name": "a\u{0}"}), 7, "network name \"a\\0\" must"),
        (Verb::Gc, json!({"name": "net", "cniVersion": "9.9.9"}), 1, "cniVersion \"9.9.9\" is not supported"),
        (Verb::Add, json!({"name": "net", "cniVersion": "1.0"}), 1, "cniVersion \"1.0\" is not supported"),
        (Verb::Check, json!({"name": "net", "cniVersion": "0.3.1"}), 1, "cniVersion 0.3.1 does not have CHECK"),
        (Verb::Status, json!({"name": "net", "cniVersion": "1.0.0"}), 1, "cniVersion 1.0.0 does not have STATUS"),
        (Verb::Gc, json!({"name": "net"}), 1, "cniVersion 0.1.0 does not have GC; set cniVersion to 1.1.0 or newer"),
    ];
    for (verb, document, code, message) in table {
        let (found, text) = decode(verb, &document).unwrap_err();
        assert_eq!(found, code, "{document}");
        assert!(text.contains(message), "{text}");
    }
}

#[test]
fn senseless_fields_are_refused_on_add_and_check_and_make_status_unavailable() {
    let table = [
        (with("ipam", json!("host-local")), 6),
        (with("ipam", json!({"type": 7})), 6),
        (with("ipam", json!({"type": "dhcp"})), 7),
        (with("ipam", json!({"type": "host-local"})), 7),
        (with("ipam", json!({"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/33"}]]})), 7),
        (with("mtu", json!("1500")), 6),
        (with("mtu", json!(-1)), 7),
        (with("mtu", json!(67)), 7),
        (with("vlan", json!(100)), 7),
        (with("vlan", json!("100")), 6),
        (with("macspoofchk", json!(true)), 7),
        (with("ingressRate", json!("1M")), 7),
        (with("egressBurst", json!(-1)), 7),
        (with("isGateway", json!("yes")), 6),
        (with("args", json!([])), 6),
        (with("dns", json!({"nameservers": "x"})), 6),
        (with("runtimeConfig", json!([])), 7),
        (with("runtimeConfig", json!({"portMappings": [{"hostPort": 0}]})), 7),
        (with("runtimeConfig", json!({"bandwidth": {"ingressRate": -1}})), 7),
        (with("prevResult", json!("garbage")), 6),
        (with("prevResult", json!({"cniVersion": "1.0.0", "ips": [{"address": "zork"}]})), 6),
        (with("prevResult", json!({"cniVersion": "9.9.9"})), 6),
    ];
    for (document, code) in table {
        for (verb, expected) in [(Verb::Add, code), (Verb::Check, code), (Verb::Status, 50)] {
            assert_eq!(decode(verb, &document).map_err(|(code, _)| code), Err(expected), "{verb} {document}");
        }
        for verb in [Verb::Del, Verb::Gc] {
            assert_eq!(decode(verb, &document), Ok(bare(SpecVersion::V1_1_0)), "{verb} {document}");
        }
    }
}

#[test]
fn limits_of_the_configuration_hold_in_a_direction_that_the_runtime_leaves_alone() {
    let limit = |bits_per_second| Some(RateLimit { bits_per_second, burst_bits: Some(8_000) });
    let bandwidth = |document: &Value| decode(Verb::Add, document).map(|config| config.runtime.bandwidth);
    let mut document = with("ingressRate", json!(1_000));
    document["ingressBurst"] = json!(8_000);
    document["egressRate"] = json!(2_000);
    document["egressBurst"] = json!(8_000);
    assert_eq!(bandwidth(&document), Ok(Bandwidth { ingress: limit(1_000), egress: limit(2_000) }));
    document["runtimeConfig"] = json!({"bandwidth": {"ingressRate": 3_000, "ingressBurst": 8_000, "egressRate": 0}});
    assert_eq!(bandwidth(&document), Ok(Bandwidth { ingress: limit(3_000), egress: limit(2_000) }));
}

#[test]
fn a_default_route_is_ours_to_give_and_the_references_to_ask_for() {
    let default = |ipam: Value, asked: Value| {
        let mut document = with("ipam", ipam);
        document["isDefaultGateway"] = asked;
        decode(Verb::Add, &document).map(|config| config.routes())
    };
    let wish = |default| Ok(RouteWish { routes: Vec::new(), default });
    for own in [Value::Null, json!({}), json!({"type": "culvert"}), json!({"ranges": [[{"subnet": "10.1.2.0/24"}]]})] {
        assert_eq!(default(own.clone(), Value::Null), wish(true), "{own}");
        assert_eq!(default(own.clone(), json!(true)), wish(true), "{own}");
        assert_eq!(default(own.clone(), json!(false)), wish(false), "{own}");
    }
    let host_local = json!({"type": "host-local", "subnet": "10.1.2.0/24"});
    let fixed = json!({"type": "static", "addresses": [{"address": "10.1.2.3/24"}]});
    for section in [host_local, fixed] {
        assert_eq!(default(section.clone(), Value::Null), wish(false), "{section}");
        assert_eq!(default(section.clone(), json!(false)), wish(false), "{section}");
        assert_eq!(default(section.clone(), json!(true)), wish(true), "{section}");
        let mut with_route = section;
        with_route["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]);
        let routes = vec![RouteConfig::default_via("10.1.2.1".parse().unwrap())];
        assert_eq!(default(with_route, json!(true)), Ok(RouteWish { routes, default: true }));
    }
}

#[test]
fn names_are_resolved_as_the_runtime_says_else_the_network_else_ipam() {
    let dns = |server: &str| Dns { nameservers: vec![server.to_owned()], ..Dns::default() };
    let of = |document: &Value| decode(Verb::Add, document).map(|config| config.dns().clone());
    let addresses = json!([{"address": "10.1.2.3/24"}]);
    let mut document =
        with("ipam", json!({"type": "static", "addresses": addresses, "dns": {"nameservers": ["10.0.0.3"]}}));
    assert_eq!(of(&document), Ok(dns("10.0.0.3")));
    document["dns"] = json!({"nameservers": ["10.0.0.2"]});
    assert_eq!(of(&document), Ok(dns("10.0.0.2")));
    document["runtimeConfig"] = json!({"dns": {"servers": ["10.0.0.1"]}});
    assert_eq!(of(&document), Ok(dns("10.0.0.1")));
}

#[test]
fn a_configuration_of_the_port_map_or_bandwidth_plugin_is_accepted_by_changing_its_type() {
    let portmap = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "culvert", "capabilities": {"portMappings": true}, "snat": true,
        "masqAll": false, "markMasqBit": 13, "externalSetMarkChain": "KUBE-MARK-MASQ", "conditionsV4": [],
        "backend": "nftables", "runtimeConfig": {"portMappings": []}, "prevResult": {"cniVersion": "0.3.1"},
    });
    let expected = NetConf { previous: Some(AddResult::default()), ..bare(SpecVersion::V1_0_0) };
    assert_eq!(decode(Verb::Add, &portmap), Ok(expected));
    let mut restricted = portmap;
    restricted["conditionsV4"] = json!(["!", "-d", "192.0.2.0/24"]);
    let (code, message) = decode(Verb::Add, &restricted).unwrap_err();
    assert!(code == 7 && message.contains("conditionsV4"), "{message}");
}

#[test]
fn check_needs_the_previous_result_and_add_does_not() {
    let document = with("unknown", json!(1));
    assert_eq!(decode(Verb::Add, &document), Ok(bare(SpecVersion::V1_1_0)));
    let missing = (7, "CHECK of network \"net\" needs the \"prevResult\" of its ADD".to_owned());
    assert_eq!(decode(Verb::Check, &document), Err(missing));
    let previous = Some(AddResult::default());
    let expected = NetConf { previous, ..bare(SpecVersion::V1_1_0) };
    assert_eq!(decode(Verb::Check, &with("prevResult", json!({}))), Ok(expected));
}

#[test]
fn garbage_collection_tells_no_list_from_an_empty_one_and_refuses_a_broken_one() {
    const KEY: &str = "cni.dev/valid-attachments";
    let attachments = |document: &Value| decode(Verb::Gc, document).map(|config| config.valid_attachments);
    assert_eq!(attachments(&with("x", json!(1))), Ok(None));
    assert_eq!(attachments(&with("cni.dev/attachments", json!([]))), Ok(None));
    assert_eq!(attachments(&with(KEY, json!([]))), Ok(Some(Vec::new())));
    let one = AttachmentName { container_id: "a".into(), ifname: "eth0".into() };
    assert_eq!(attachments(&with(KEY, json!([{"containerID": "a", "ifname": "eth0"}]))), Ok(Some(vec![one])));
    for broken in [json!({}), json!("all"), json!([7]), json!([{"containerID": "a"}]), json!([{"ifname": "eth0"}])] {
        assert_eq!(attachments(&with(KEY, broken)).map_err(|(code, _)| code), Err(6));
    }
}

#[test]
fn an_answer_has_the_configurations_version_however_broken_the_rest_is() {
    let table: [(&[u8], SpecVersion); 6] = [
        (br#"{"cniVersion": "0.3.1", "name": 7}"#, SpecVersion::V0_3_1),
        (br#"{"name": "net"}"#, SpecVersion::V0_1_0),
        (br#"{"cniVersion": "9.9.9"}"#, SpecVersion::LATEST),
        (br#"{"cniVersion": 1}"#, SpecVersion::LATEST),
        (b"[]", SpecVersion::LATEST),
        (b"", SpecVersion::LATEST),
    ];
    for (stdin, version) in table {
        assert_eq!(answer_version(stdin), version);
        assert_eq!(NetConf::for_version(stdin).cni_version, version);
    }
}
