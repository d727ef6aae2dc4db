//! ADD: what a pod gets, in which ways it may ask for something else, and that nothing is left of one that failed.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use culvert_blackbox::attachments::{address, address_in, addresses, block, host_ends, leases, refusal};
use culvert_blackbox::rates::rates_in_force;
use culvert_blackbox::ways::INTERVAL;
use culvert_lab::cni::{Answer, RawCall};
use culvert_lab::{Sandbox, SharedNode, SingleNode, Snapshot, wait};
use ipnet::IpNet;
use serde_json::{Value, json};

static NODE: SharedNode = SharedNode::new();

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What is on the node and in the sandbox.
fn snapshot(single: &SingleNode, sandbox: &Sandbox) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.add_namespace(single.node().namespace().name()).unwrap();
    snapshot.add_namespace(sandbox.namespace().name()).unwrap();
    snapshot
}

/// Containers that ask for an address in each of the three ways a runtime has, and one that asks in all of them, which
/// must get what `runtimeConfig` says.
fn asking_for_addresses(single: &SingleNode, addresses: [IpAddr; 4]) -> [(Sandbox, IpAddr); 4] {
    let [first, second, third, fourth] = addresses;
    let plain = |name: &str| Sandbox::new(single, name).unwrap();
    let args = |address: IpAddr| json!({"cni": {"ips": [address.to_string()]}});
    let all = plain("till-4")
        .asking("ips", json!([format!("{fourth}/24")]))
        .with("args", args(first))
        .env("CNI_ARGS", &format!("IP={second}"));
    [
        (plain("till-1").asking("ips", json!([first.to_string()])), first),
        (plain("till-2").with("args", args(second)), second),
        (plain("till-3").env("CNI_ARGS", &format!("IgnoreUnknown=1;IP={third}")), third),
        (all, fourth),
    ]
}

#[test]
fn a_requested_address_is_given_in_each_way_of_asking() {
    let single = NODE.running().unwrap();
    for v4 in [true, false] {
        let held = block(single.node(), v4).unwrap();
        let wanted = [71, 72, 73, 74].map(|offset| address_in(&held, offset).unwrap());
        for (sandbox, expected) in asking_for_addresses(&single, wanted) {
            let result = sandbox.attach().unwrap();
            assert_eq!(address(&result, v4).unwrap(), expected);
            assert!(sandbox.namespace().ip("address show eth0").unwrap().contains(&expected.to_string()));
            // The family that was not asked for has an address nevertheless.
            assert_eq!(addresses(&result).unwrap().len(), 2);
        }
    }
}

#[test]
fn an_address_that_is_taken_is_refused_and_stays_with_its_holder() {
    let single = NODE.running().unwrap();
    let holder = Sandbox::new(&single, "till").unwrap();
    let held = holder.attach().unwrap();
    let taken = address(&held, true).unwrap().to_string();
    let second = Sandbox::new(&single, "scale").unwrap().asking("ips", json!([taken]));
    let before = snapshot(&single, &second);
    let answer = second.add().unwrap();
    assert!(answer.status != Some(0) && answer.message().contains(&taken), "{answer:?}");
    assert_eq!(before.difference(&snapshot(&single, &second)), Vec::<String>::new());
    assert_eq!(leases(single.node(), second.id()).unwrap(), Vec::<String>::new());
    holder.check(&held).unwrap().success().unwrap();
}

#[test]
fn a_requested_hardware_address_is_given_in_each_way_of_asking() {
    let single = NODE.running().unwrap();
    let macs = ["0a:58:00:00:07:01", "0a:58:00:00:07:02", "0a:58:00:00:07:03", "0a:58:00:00:07:04"];
    let [first, second, third, fourth] = macs;
    let plain = |name: &str| Sandbox::new(&single, name).unwrap();
    let args = |mac: &str| json!({"cni": {"mac": mac}});
    let asked = [
        (plain("till-1").asking("mac", first), first),
        (plain("till-2").with("args", args(second)), second),
        (plain("till-3").env("CNI_ARGS", &format!("MAC={third}")), third),
        (
            plain("till-4").asking("mac", fourth).with("args", args(first)).env("CNI_ARGS", "MAC=0a:58:00:00:07:09"),
            fourth,
        ),
    ];
    for (sandbox, mac) in asked {
        let result = sandbox.attach().unwrap();
        let link = sandbox.namespace().ip("-o link show eth0").unwrap();
        assert!(link.contains(mac) && result.to_string().contains(mac), "{mac} is not in {link} and {result}");
        let neighbour = address(&result, true).unwrap();
        single.node().vantage().wait_reachable(neighbour).unwrap();
    }
}

#[test]
fn a_failed_add_leaves_nothing_and_can_be_tried_again() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    sandbox.namespace().ip("link add eth0 type bridge").unwrap();
    let before = snapshot(&single, &sandbox);
    let asking = sandbox.asking("bandwidth", json!({"ingressRate": 8_000_000, "egressRate": 8_000_000}));
    let asking = asking.asking("portMappings", json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    assert_ne!(asking.add().unwrap().status, Some(0));
    assert_eq!(before.difference(&snapshot(&single, &asking)), Vec::<String>::new());
    assert_eq!(leases(single.node(), asking.id()).unwrap(), Vec::<String>::new());
    asking.namespace().ip("link delete eth0").unwrap();
    let result = asking.attach().unwrap();
    single.node().vantage().wait_reachable(address(&result, true).unwrap()).unwrap();
}

#[test]
fn a_second_add_is_refused_and_disturbs_no_packet_of_the_first() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let first = sandbox.attach().unwrap();
    let reached = address(&first, true).unwrap();
    single.node().vantage().wait_reachable(reached).unwrap();
    let before = snapshot(&single, &sandbox);
    let pinging = single.node().vantage().pinging(reached, INTERVAL).unwrap();
    let answer = sandbox.add().unwrap();
    assert!(answer.code().is_some_and(|code| code >= 100), "{answer:?}");
    let report = pinging.finish().unwrap();
    assert_eq!(report.lost, 0, "{report:?}");
    assert_eq!(before.difference(&snapshot(&single, &sandbox)), Vec::<String>::new());
    assert_eq!(leases(single.node(), sandbox.id()).unwrap().len(), 2);
}

#[test]
fn two_interfaces_of_a_container_are_two_attachments_with_limits_of_their_own() {
    let single = NODE.running().unwrap();
    let limits =
        |rate: u64| json!({"ingressRate": rate, "egressRate": rate, "ingressBurst": rate, "egressBurst": rate});
    let sandbox = Sandbox::new(&single, "till").unwrap().asking("bandwidth", limits(8_000_000));
    let first = sandbox.attach().unwrap();
    let mut config = sandbox.config();
    config["runtimeConfig"]["bandwidth"] = limits(16_000_000);
    let other = |command: &str| sandbox.call(command).env("CNI_IFNAME", "net1").config(&config);
    let second = sandbox.run(&other("ADD")).unwrap().success().unwrap();
    let all: BTreeSet<IpNet> = [&first, &second].into_iter().flat_map(|result| addresses(result).unwrap()).collect();
    assert_eq!(all.len(), 4, "{all:?}");
    assert_eq!(rates_in_force(single.node()).unwrap(), [1_000_000, 1_000_000, 2_000_000, 2_000_000]);
    sandbox.run(&other("DEL")).unwrap().success().unwrap();
    assert_eq!(rates_in_force(single.node()).unwrap(), [1_000_000, 1_000_000]);
    assert_eq!(leases(single.node(), sandbox.id()).unwrap().len(), 2);
    sandbox.check(&first).unwrap().success().unwrap();
}

#[test]
fn limits_hold_in_the_direction_they_are_given_for() {
    let single = NODE.running().unwrap();
    let table = [
        (json!({"ingressRate": 8_000_000, "ingressBurst": 8_000_000}), vec![1_000_000]),
        (json!({"egressRate": 16_000_000, "egressBurst": 8_000_000, "ingressRate": 0}), vec![2_000_000]),
        (json!({"ingressRate": 8_000_000, "egressRate": 16_000_000}), vec![1_000_000, 2_000_000]),
        (json!({"ingressRate": 0, "ingressBurst": 4_294_967_295_u64, "egressRate": 0}), vec![]),
        (json!({}), vec![]),
    ];
    for (limits, expected) in table {
        let sandbox = Sandbox::new(&single, "till").unwrap().asking("bandwidth", limits.clone());
        sandbox.attach().unwrap();
        assert_eq!(rates_in_force(single.node()).unwrap(), expected, "{limits}");
        sandbox.del().unwrap().success().unwrap();
        assert_eq!(rates_in_force(single.node()).unwrap(), Vec::<u64>::new(), "{limits}");
    }
}

#[test]
fn a_limit_of_the_configuration_gives_way_to_one_of_the_runtime() {
    let single = NODE.running().unwrap();
    let limited = |name: &str| {
        let sandbox = Sandbox::new(&single, name).unwrap();
        sandbox.with("ingressRate", 8_000_000).with("ingressBurst", 8_000_000).with("egressRate", 16_000_000)
    };
    let plain = limited("till");
    plain.attach().unwrap();
    assert_eq!(rates_in_force(single.node()).unwrap(), [1_000_000, 2_000_000]);
    plain.del().unwrap().success().unwrap();
    let asking = limited("scale").asking("bandwidth", json!({"ingressRate": 24_000_000}));
    asking.attach().unwrap();
    assert_eq!(rates_in_force(single.node()).unwrap(), [2_000_000, 3_000_000]);
}

#[test]
fn the_mtu_of_the_configuration_is_that_of_both_ends() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap().with("mtu", 1400);
    let result = sandbox.attach().unwrap();
    assert!(sandbox.namespace().ip("link show eth0").unwrap().contains("mtu 1400"));
    for name in host_ends(single.node()).unwrap() {
        assert!(single.node().namespace().ip(&format!("link show {name}")).unwrap().contains("mtu 1400"));
    }
    for interface in result["interfaces"].as_array().unwrap() {
        assert_eq!(interface["mtu"], 1400, "{interface}");
    }
}

#[test]
fn name_resolution_is_answered_as_the_runtime_or_the_network_says() {
    let single = NODE.running().unwrap();
    let network =
        Sandbox::new(&single, "till").unwrap().with("dns", json!({"nameservers": ["10.0.0.2"], "domain": "a.b"}));
    assert_eq!(network.attach().unwrap()["dns"], json!({"nameservers": ["10.0.0.2"], "domain": "a.b"}));
    let asked = Sandbox::new(&single, "scale")
        .unwrap()
        .with("dns", json!({"nameservers": ["10.0.0.2"]}))
        .asking("dns", json!({"servers": ["10.0.0.1"], "searches": ["svc"], "options": ["ndots:5"]}));
    let expected = json!({"nameservers": ["10.0.0.1"], "search": ["svc"], "options": ["ndots:5"]});
    assert_eq!(asked.attach().unwrap()["dns"], expected);
}

/// A result of another main plugin, in the schema of a version.
fn foreign_result(version: &str) -> Value {
    let interface = json!({"name": "net9", "mac": "0a:00:00:00:00:09", "sandbox": "/var/run/netns/other"});
    let mut address = json!({"interface": 0, "address": "192.0.2.9/24", "gateway": "192.0.2.1"});
    match version {
        "0.1.0" | "0.2.0" => json!({"cniVersion": version, "ip4": {"ip": "192.0.2.9/24", "gateway": "192.0.2.1"}}),
        _ => {
            if version < "1.0.0" {
                address["version"] = json!("4");
            }
            json!({"cniVersion": version, "interfaces": [interface], "ips": [address], "dns": {"domain": "a.b"}})
        }
    }
}

#[test]
fn the_result_of_plugins_before_is_kept_in_front_whatever_its_version() {
    let single = NODE.running().unwrap();
    for version in VERSIONS {
        let sandbox = Sandbox::new(&single, "till").unwrap().with("prevResult", foreign_result(version));
        let result = sandbox.attach().unwrap();
        let shown = addresses(&result).unwrap();
        assert_eq!((shown.len(), shown[0].to_string()), (3, "192.0.2.9/24".to_owned()), "{version}: {result}");
        let interfaces = result["interfaces"].as_array().unwrap();
        let own = interfaces.iter().position(|interface| interface["name"] == "eth0").unwrap();
        assert!(result["ips"].as_array().unwrap()[1..].iter().all(|config| config["interface"] == own), "{result}");
        if version >= "0.3.0" {
            assert_eq!((&interfaces[0]["name"], &result["dns"]["domain"]), (&json!("net9"), &json!("a.b")), "{result}");
        }
    }
}

#[test]
fn a_second_add_after_another_plugin_is_refused_and_changes_nothing() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let pod = sandbox.namespace().name();
    single.node().namespace().ip(&format!("link add foreign0 up type veth peer name eth0 netns {pod}")).unwrap();
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "foreign0"}, {"name": "eth0", "sandbox": sandbox.namespace().path()}],
        "ips": [{"address": "10.99.0.2/24", "interface": 1}],
    });
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let sandbox = sandbox.with("prevResult", previous).asking("portMappings", ports);
    sandbox.attach().unwrap();
    let before = snapshot(&single, &sandbox);
    refusal(&sandbox.add().unwrap(), 100, &[sandbox.id(), "eth0"]).unwrap();
    assert_eq!(before.difference(&snapshot(&single, &sandbox)), Vec::<String>::new());
    sandbox.del().unwrap().success().unwrap();
    single.node().namespace().ip("link delete foreign0").unwrap();
}

#[test]
fn pods_come_and_go_without_changing_the_bridges_hardware_address() {
    let single = NODE.running().unwrap();
    let mac = || {
        let listed: Vec<Value> =
            serde_json::from_str(&single.node().namespace().ip("-json link show cni0").unwrap()).unwrap();
        listed[0]["address"].clone()
    };
    let before = mac();
    let low = Sandbox::new(&single, "till").unwrap().asking("mac", "02:00:00:00:00:01");
    low.attach().unwrap();
    let other = Sandbox::new(&single, "scale").unwrap();
    other.attach().unwrap();
    assert_eq!(mac(), before);
    low.del().unwrap().success().unwrap();
    assert_eq!(mac(), before);
}

/// A node of its own, prepared before its daemon starts.
fn prepared(prepare: impl FnOnce(&mut SingleNode)) -> SingleNode {
    let mut single = SingleNode::build().unwrap();
    prepare(&mut single);
    single.node_mut().start().unwrap();
    single
}

#[test]
fn a_bridge_that_an_earlier_daemon_made_is_used_and_its_pods_keep_theirs() {
    let mut single = SingleNode::running().unwrap();
    let before = Sandbox::new(&single, "till").unwrap();
    let result = before.attach().unwrap();
    let shown = single.node().namespace().ip("-o link show cni0").unwrap();
    single.node_mut().kill().unwrap();
    single.node_mut().ensure_running().unwrap();
    let after = Sandbox::new(&single, "scale").unwrap();
    let other = after.attach().unwrap();
    assert_eq!(single.node().namespace().ip("-o link show cni0").unwrap(), shown);
    before.check(&result).unwrap().success().unwrap();
    before.vantage().wait_reachable(address(&other, true).unwrap()).unwrap();
}

#[test]
fn a_link_of_the_bridges_name_that_others_made_is_left_alone_and_named() {
    for made in ["veth peer name other", "bridge"] {
        let single = prepared(|single| {
            single.node().namespace().ip(&format!("link add cni0 address 0a:00:00:00:00:77 type {made}")).unwrap();
        });
        wait::until_true("the daemon to name the link", Duration::from_secs(30), || {
            Ok(single.node().log().contains("link cni0 exists"))
        })
        .unwrap();
        let sandbox = Sandbox::new(&single, "till").unwrap();
        refusal(&sandbox.add().unwrap(), 11, &["bridge"]).unwrap();
        refusal(&sandbox.run(&sandbox.call("STATUS")).unwrap(), 50, &["bridge"]).unwrap();
        let shown = single.node().namespace().ip("-d link show cni0").unwrap();
        assert!(shown.contains("0a:00:00:00:00:77") && shown.contains(&made[..4]), "{shown}");
    }
}

#[test]
fn a_pod_gets_the_families_that_the_cluster_has_pools_of() {
    let pools = [
        (json!([{"range": "10.244.0.0/16", "blockLength": 24}]), true),
        (json!([{"range": "fd00:10:244::/48", "blockLength": 64}]), false),
    ];
    for (pools, v4) in pools {
        let mut single = prepared(|single| {
            single.node_mut().configuration_mut()["cluster"]["static"]["pools"] = pools.clone();
        });
        single.node_mut().wait_ready().unwrap();
        let sandbox = Sandbox::new(&single, "till").unwrap();
        let result = sandbox.attach().unwrap();
        assert_eq!(addresses(&result).unwrap().len(), 1, "{result}");
        single.node().vantage().wait_reachable(address(&result, v4).unwrap()).unwrap();
        // Version 0.2.0 has a place for each family and needs neither in particular.
        sandbox.del().unwrap().success().unwrap();
        let oldest = Sandbox::new(&single, "scale").unwrap().with("cniVersion", "0.2.0");
        assert!(oldest.attach().unwrap()[if v4 { "ip4" } else { "ip6" }]["ip"].is_string());
    }
}

#[test]
fn the_loopback_goes_up_and_down_without_a_daemon() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let loopback = |command: &str| {
        let call = RawCall::of(&single.node().binaries().program("loopback"), command)
            .env("CNI_CONTAINERID", sandbox.id())
            .env("CNI_NETNS", &sandbox.namespace().path().display().to_string())
            .env("CNI_IFNAME", "lo")
            .config(&json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}));
        sandbox.run(&call).unwrap()
    };
    let is_up = || sandbox.namespace().ip("-o link show lo").unwrap().contains(",UP");
    assert!(!is_up());
    let result = loopback("ADD").success().unwrap();
    assert!(is_up() && result["interfaces"][0]["name"] == "lo", "{result}");
    for _ in 0..2 {
        assert_eq!(loopback("DEL"), Answer { status: Some(0), body: Value::Null });
        assert!(!is_up());
    }
}
