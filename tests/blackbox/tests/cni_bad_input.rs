//! What senseless calls are answered: the right code, words that name the fault, and nothing touched.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::net::IpAddr;

use culvert_blackbox::attachments::{address_in, addresses, block, host_ends, leases, refusal};
use culvert_blackbox::links::LinkWatch;
use culvert_lab::cni::Answer;
use culvert_lab::{Sandbox, SharedNode, SingleNode};
use serde_json::{Value, json};

static NODE: SharedNode = SharedNode::new();

const VERBS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

/// Calls ADD once for each of these configurations, given as a field and its value, and checks that each is refused
/// with its code, without a link of the node or of the container having been touched.
fn expect_refusals(single: &SingleNode, table: &[(&str, Value, u64)]) {
    let sandbox = Sandbox::new(single, "till").unwrap();
    let watch = LinkWatch::begin(single.node()).unwrap();
    for (key, value, code) in table {
        let mut config = sandbox.config();
        config[*key] = value.clone();
        let answer = sandbox.run(&sandbox.call("ADD").config(&config)).unwrap();
        refusal(&answer, *code, &[]).unwrap_or_else(|error| panic!("{key}: {value}: {error}"));
    }
    assert_eq!(touched(watch), Vec::<String>::new());
    expect_only_loopback(&sandbox);
}

/// The last pod of a test before takes the bridge's carrier along, a moment after it is gone: that is nobody's doing.
fn touched(watch: LinkWatch<'_>) -> Vec<String> {
    let mut lines = watch.finish().unwrap();
    lines.retain(|line| !line.contains(": cni0: <NO-CARRIER"));
    lines
}

fn expect_only_loopback(sandbox: &Sandbox) {
    let inside = sandbox.namespace().ip("-o link show").unwrap();
    assert_eq!(inside.lines().count(), 1, "only the loopback: {inside}");
}

#[test]
fn a_command_that_is_missing_unknown_or_not_in_capitals_is_an_error_of_the_environment() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    refusal(&sandbox.run(&sandbox.call("").without("CNI_COMMAND")).unwrap(), 4, &["CNI_COMMAND"]).unwrap();
    for command in ["", "add", "Add", "PLUG", "ADD "] {
        refusal(&sandbox.run(&sandbox.call(command)).unwrap(), 4, &["CNI_COMMAND", command]).unwrap();
    }
}

#[test]
fn container_ids_and_interface_names_outside_the_rules_are_errors_of_the_environment() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let faults = [
        ("CNI_CONTAINERID", ["../x", "a/b", "-a", "a b", "ä"]),
        ("CNI_IFNAME", [".", "..", "a/b", "a:b", "sixteen_bytes_xx"]),
    ];
    for (name, values) in faults {
        for value in values {
            for command in ["ADD", "DEL", "CHECK"] {
                refusal(&sandbox.run(&sandbox.call(command).env(name, value)).unwrap(), 4, &[name, value]).unwrap();
            }
        }
    }
}

#[test]
fn what_is_no_json_object_or_has_a_head_of_wrong_types_cannot_be_decoded() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let nested = format!("{{\"name\":\"net\",\"a\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let inputs: [&[u8]; 10] = [
        b"",
        b"{\"name\":\"net\"",
        b"name: net",
        b"[]",
        b"null",
        b"\xef\xbb\xbf{\"name\":\"net\"}",
        b"{\"name\":\"\xff\"}",
        nested.as_bytes(),
        b"{\"name\":7}",
        b"{\"name\":\"net\",\"cniVersion\":1.0}",
    ];
    for input in inputs {
        for command in VERBS {
            let answer = sandbox.run(&sandbox.call(command).input(input)).unwrap();
            let shown = String::from_utf8_lossy(&input[..input.len().min(40)]);
            refusal(&answer, 6, &[]).unwrap_or_else(|error| panic!("{command} {shown}: {error}"));
        }
    }
}

#[test]
fn a_network_without_a_proper_name_is_a_senseless_configuration() {
    let single = NODE.running().unwrap();
    for name in [Value::Null, json!(""), json!("../x"), json!("a\0b"), json!("-a"), json!("a b")] {
        let sandbox = Sandbox::new(&single, "till").unwrap().with("name", name);
        for command in VERBS {
            refusal(&sandbox.run(&sandbox.call(command)).unwrap(), 7, &["name"]).unwrap();
        }
    }
}

#[test]
fn unknown_versions_and_verbs_newer_than_the_version_are_incompatible() {
    let single = NODE.running().unwrap();
    for version in ["9.9.9", "1.0", "abc", "v1.0.0"] {
        let sandbox = Sandbox::new(&single, "till").unwrap().with("cniVersion", version);
        for command in VERBS {
            refusal(&sandbox.run(&sandbox.call(command)).unwrap(), 1, &[version]).unwrap();
        }
    }
    for (command, versions) in [
        ("CHECK", &["0.1.0", "0.2.0", "0.3.0", "0.3.1"][..]),
        ("GC", &["0.1.0", "0.4.0", "1.0.0"]),
        ("STATUS", &["0.1.0", "0.4.0", "1.0.0"]),
    ] {
        for version in versions {
            let sandbox = Sandbox::new(&single, "till").unwrap().with("cniVersion", *version);
            refusal(&sandbox.run(&sandbox.call(command)).unwrap(), 1, &[command, version]).unwrap();
        }
    }
}

#[test]
fn senseless_address_management_is_refused_and_wrong_types_cannot_be_decoded() {
    let single = NODE.running().unwrap();
    let host_local = |ranges: Value| json!({"type": "host-local", "ranges": ranges});
    let range = |key: &str, value: Value| {
        let mut range = json!({"subnet": "10.244.1.0/24"});
        range[key] = value;
        host_local(json!([[range]]))
    };
    let ipam = |section: Value, code| ("ipam", section, code);
    expect_refusals(
        &single,
        &[
            ipam(json!("host-local"), 6),
            ipam(json!({"type": 7}), 6),
            ipam(json!({"type": "dhcp"}), 7),
            ipam(json!({"type": "calico-ipam"}), 7),
            ipam(host_local(json!({})), 6),
            ipam(host_local(json!([{"subnet": "10.244.1.0/24"}])), 6),
            ipam(host_local(json!([])), 7),
            ipam(host_local(json!([[]])), 7),
            ipam(range("subnet", json!("10.244.1.0/33")), 7),
            ipam(range("subnet", json!("10.244.1.0/31")), 7),
            ipam(range("subnet", json!(10)), 6),
            ipam(range("rangeStart", json!("10.244.2.1")), 7),
            ipam(range("rangeEnd", json!("zork")), 7),
            ipam(range("gateway", json!("10.244.2.1")), 7),
            ipam(host_local(json!([[{"subnet": "10.244.1.0/24"}, {"subnet": "fd00:10:244:1::/64"}]])), 7),
            ipam(host_local(json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "10.244.0.0/16"}]])), 7),
            ipam(
                host_local(
                    json!([[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.8"}]]),
                ),
                7,
            ),
            ipam(json!({"routes": [{"dst": "default"}]}), 7),
            ipam(json!({"type": "static", "addresses": [{"address": "10.244.1.5"}]}), 7),
            ipam(json!({"type": "static"}), 7),
            ("runtimeConfig", json!({"ipRanges": [[{"subnet": "zork"}]]}), 7),
        ],
    );
}

#[test]
fn what_the_bridge_does_not_do_is_refused_and_asking_for_nothing_is_accepted() {
    let single = NODE.running().unwrap();
    expect_refusals(
        &single,
        &[
            ("vlan", json!(100), 7),
            ("vlan", json!("100"), 6),
            ("vlanTrunk", json!([{"id": 5}]), 7),
            ("macspoofchk", json!(true), 7),
            ("macspoofchk", json!("yes"), 6),
            ("disableContainerInterface", json!(true), 7),
            ("portIsolation", json!(true), 7),
            ("mtu", json!(-1), 7),
            ("mtu", json!(67), 7),
            ("mtu", json!("1400"), 6),
            ("isGateway", json!("yes"), 6),
            ("dns", json!([]), 6),
        ],
    );
    let sandbox = Sandbox::new(&single, "till").unwrap().with("vlan", 0).with("macspoofchk", false).with("mtu", 0);
    sandbox.attach().unwrap();
}

#[test]
fn a_namespace_that_is_missing_something_else_or_the_nodes_own_is_refused() {
    let single = NODE.running().unwrap();
    let node = single.node();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let file = node.folder().join("plain-file");
    std::fs::write(&file, "x").unwrap();
    let own = node.namespace().path().display().to_string();
    let places = ["/var/run/netns/none", file.to_str().unwrap(), "/proc/self/ns/uts", "/", &own];
    for place in places {
        for command in ["ADD", "CHECK"] {
            let mut config = sandbox.config();
            config["prevResult"] = json!({"cniVersion": "1.1.0"});
            let call = sandbox.call(command).env("CNI_NETNS", place).config(&config);
            refusal(&sandbox.run(&call).unwrap(), 8, &[place]).unwrap();
        }
    }
    assert_eq!(host_ends(node).unwrap(), Vec::<String>::new());
}

#[test]
fn an_interface_that_is_there_already_is_named_with_its_container_and_left_alone() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    sandbox.namespace().ip("link add eth0 type bridge").unwrap();
    let answer = sandbox.add().unwrap();
    assert!(answer.code().is_some_and(|code| code >= 100), "{answer:?}");
    assert!(answer.message().contains("eth0") && answer.message().contains(sandbox.id()), "{answer:?}");
    assert!(sandbox.namespace().ip("-d link show eth0").unwrap().contains("bridge"));
    assert_eq!(leases(single.node(), sandbox.id()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_second_add_is_named_with_both_its_names_and_changes_nothing() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let result = sandbox.attach().unwrap();
    let watch = LinkWatch::begin(single.node()).unwrap();
    let answer = sandbox.add().unwrap();
    assert!(answer.code().is_some_and(|code| code >= 100), "{answer:?}");
    assert!(answer.message().contains("eth0") && answer.message().contains(sandbox.id()), "{answer:?}");
    assert_eq!(touched(watch), Vec::<String>::new());
    sandbox.check(&result).unwrap().success().unwrap();
}

#[test]
fn senseless_port_mappings_are_refused_before_the_kernel_is_touched() {
    let single = NODE.running().unwrap();
    let mapping = |key: &str, value: Value| {
        let mut mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
        mapping[key] = value;
        ("runtimeConfig", json!({"portMappings": [mapping]}), 7)
    };
    expect_refusals(
        &single,
        &[
            mapping("hostPort", json!(0)),
            mapping("hostPort", json!(65_536)),
            mapping("hostPort", json!("8080")),
            mapping("hostPort", Value::Null),
            mapping("containerPort", json!(0)),
            mapping("containerPort", json!(-1)),
            mapping("containerPort", json!("80")),
            mapping("protocol", json!("icmp")),
            mapping("protocol", Value::Null),
            mapping("hostIP", json!("zork")),
            ("runtimeConfig", json!({"portMappings": {}}), 7),
        ],
    );
}

#[test]
fn senseless_rates_are_refused_and_a_rate_without_a_burst_is_given_one() {
    let single = NODE.running().unwrap();
    let rate = |key: &str, value: Value| ("runtimeConfig", json!({"bandwidth": {key: value}}), 7);
    expect_refusals(
        &single,
        &[
            rate("ingressRate", json!(-1)),
            rate("egressRate", json!("1M")),
            rate("ingressBurst", json!(34_359_738_368_u64)),
            ("ingressRate", json!(-1), 7),
            ("egressRate", json!("1M"), 7),
            ("runtimeConfig", json!({"bandwidth": 7}), 7),
        ],
    );
    let sandbox = Sandbox::new(&single, "till").unwrap().asking("bandwidth", json!({"egressRate": 8_000_000}));
    sandbox.attach().unwrap();
}

#[test]
fn a_previous_result_that_cannot_be_read_is_an_error_of_add_and_check() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let broken = [
        json!("garbage"),
        json!([]),
        json!({"cniVersion": "9.9.9"}),
        json!({"cniVersion": "1.0.0", "ips": [{"address": "zork"}]}),
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8", "interface": 3}]}),
        json!({"cniVersion": "0.2.0", "ip4": {"ip": "zork"}}),
    ];
    for previous in broken {
        for command in ["ADD", "CHECK"] {
            let mut config = sandbox.config();
            config["prevResult"] = previous.clone();
            let answer = sandbox.run(&sandbox.call(command).config(&config)).unwrap();
            refusal(&answer, 6, &["prevResult"]).unwrap_or_else(|error| panic!("{command} {previous}: {error}"));
        }
    }
    assert_eq!(leases(single.node(), sandbox.id()).unwrap(), Vec::<String>::new());
}

#[test]
fn arguments_that_are_unknown_are_ignored_and_malformed_ones_refused() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    for malformed in ["FOO", "A=B=C"] {
        refusal(&sandbox.run(&sandbox.call("ADD").env("CNI_ARGS", malformed)).unwrap(), 4, &[malformed]).unwrap();
    }
    let unknown = sandbox.call("ADD").env("CNI_ARGS", "WHAT=ever;K8S_POD_NAME=web");
    sandbox.run(&unknown).unwrap().success().unwrap();
}

/// Asks for an address or a hardware address in each of the three ways a runtime has, and expects a refusal.
fn expect_refusals_in_three_ways(single: &SingleNode, asked: &Value, arguments: &str) {
    let sandbox = Sandbox::new(single, "till").unwrap();
    let [mut by_runtime, mut by_args] = [sandbox.config(), sandbox.config()];
    by_runtime["runtimeConfig"] = asked.clone();
    by_args["args"] = json!({"cni": asked});
    let calls = [
        sandbox.call("ADD").config(&by_runtime),
        sandbox.call("ADD").config(&by_args),
        sandbox.call("ADD").env("CNI_ARGS", arguments),
    ];
    for call in calls {
        refusal(&sandbox.run(&call).unwrap(), 7, &[]).unwrap_or_else(|error| panic!("{arguments}: {error}"));
        expect_only_loopback(&sandbox);
    }
}

#[test]
fn a_malformed_hardware_address_is_refused_in_each_way_of_asking() {
    let single = NODE.running().unwrap();
    for mac in ["zork", "0a:58:0a:f4:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
        expect_refusals_in_three_ways(&single, &json!({"mac": mac}), &format!("MAC={mac}"));
    }
}

#[test]
fn a_hardware_address_of_the_bridge_or_of_another_pod_is_refused_and_named() {
    let single = NODE.running().unwrap();
    let own = "0a:58:00:00:00:07";
    let holder = Sandbox::new(&single, "holder").unwrap().asking("mac", own);
    holder.attach().unwrap();
    let bridge = single.node().namespace().ip("-o link show cni0").unwrap();
    let bridge = bridge.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    for (mac, named) in [(bridge, "bridge"), (own, holder.id())] {
        let sandbox = Sandbox::new(&single, "till").unwrap().asking("mac", mac);
        refusal(&sandbox.add().unwrap(), 7, &[mac, named]).unwrap();
        expect_only_loopback(&sandbox);
    }
    holder.del().unwrap().success().unwrap();
}

#[test]
fn an_address_that_is_none_or_lies_outside_the_pool_is_refused_in_each_way_of_asking() {
    let single = NODE.running().unwrap();
    let held = block(single.node(), true).unwrap();
    let network = held.network().to_string();
    let gateway = address_in(&held, 1).unwrap().to_string();
    let broadcast = held.broadcast().to_string();
    for address in ["zork", "192.0.2.7", "2001:db8::7", &network, &gateway, &broadcast] {
        expect_refusals_in_three_ways(&single, &json!({"ips": [address]}), &format!("IP={address}"));
    }
}

#[test]
fn an_address_outside_the_ranges_of_the_network_is_refused_and_named() {
    let single = NODE.running().unwrap();
    let held = block(single.node(), true).unwrap();
    let [start, end, outside] = [100, 110, 120].map(|offset| address_in(&held, offset).unwrap().to_string());
    let range = json!({"subnet": held.to_string(), "rangeStart": start, "rangeEnd": end});
    let ipam = json!({"type": "host-local", "ranges": [[range]]});
    let sandbox = Sandbox::new(&single, "till").unwrap().with("ipam", ipam).asking("ips", json!([outside]));
    refusal(&sandbox.add().unwrap(), 7, &[&outside, &start, &end]).unwrap();
}

#[test]
fn del_cleans_up_whatever_is_wrong_with_the_rest_of_the_call() {
    let single = NODE.running().unwrap();
    let file = single.node().folder().join("plain-file");
    std::fs::write(&file, "x").unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let wrongs = [
        ("prevResult", json!("garbage")),
        ("prevResult", json!({"cniVersion": "9.9.9", "ips": 7})),
        ("runtimeConfig", json!([])),
        ("runtimeConfig", json!({"portMappings": [{"hostPort": "x"}], "bandwidth": -1})),
        ("ipam", json!({"type": "dhcp"})),
        ("vlan", json!(100)),
        ("args", json!(7)),
        ("mtu", json!("x")),
    ];
    for (key, value) in wrongs {
        let result = sandbox.attach().unwrap();
        let taken: Vec<IpAddr> = addresses(&result).unwrap().iter().map(|address| address.addr()).collect();
        assert_eq!(taken.len(), leases(single.node(), sandbox.id()).unwrap().len());
        let mut config = sandbox.config();
        config[key] = value.clone();
        let call = sandbox.call("DEL").config(&config).env("CNI_ARGS", "FOO").env("CNI_NETNS", file.to_str().unwrap());
        let answer = sandbox.run(&call).unwrap();
        assert_eq!(answer, Answer { status: Some(0), body: Value::Null }, "{key}: {value}");
        assert_eq!(leases(single.node(), sandbox.id()).unwrap(), Vec::<String>::new(), "{key}: {value}");
    }
    assert_eq!(host_ends(single.node()).unwrap(), Vec::<String>::new());
}
