//! CHECK: it sees whatever is not as ADD made it, tolerates what others added, and changes nothing.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use culvert_blackbox::attachments::{addresses, default_gateways, host_end, refusal};
use culvert_lab::{Node, Sandbox, SharedNode, SingleNode, Snapshot};
use serde_json::{Value, json};

static NODE: SharedNode = SharedNode::new();

/// The code of a difference, ours.
const DIFFERS: u64 = 102;

/// Attaches a container that uses everything there is, breaks something, and checks that CHECK says so, names this,
/// and changes nothing.
fn expect_difference(single: &SingleNode, named: &str, break_it: impl FnOnce(&Node, &Sandbox, &Value)) {
    let sandbox = Sandbox::new(single, "till")
        .unwrap()
        .asking("bandwidth", json!({"ingressRate": 8_000_000, "egressRate": 16_000_000}))
        .asking("portMappings", json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    let result = sandbox.attach().unwrap();
    sandbox.check(&result).unwrap().success().unwrap();
    break_it(single.node(), &sandbox, &result);
    let snapshot = || {
        let mut snapshot = Snapshot::default();
        snapshot.add_namespace(single.node().namespace().name()).unwrap();
        snapshot.add_namespace(sandbox.namespace().name()).unwrap();
        snapshot
    };
    let broken = snapshot();
    refusal(&sandbox.check(&result).unwrap(), DIFFERS, &[named]).unwrap();
    assert_eq!(broken.difference(&snapshot()), Vec::<String>::new());
}

#[test]
fn an_attachment_as_it_was_made_passes_in_every_version_that_has_check() {
    let single = NODE.running().unwrap();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let sandbox = Sandbox::new(&single, "till").unwrap().with("cniVersion", version);
        let result = sandbox.attach().unwrap();
        sandbox.check(&result).unwrap().success().unwrap();
    }
}

#[test]
fn the_previous_result_may_be_of_any_version_and_must_be_there() {
    let single = NODE.running().unwrap();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let sandbox = Sandbox::new(&single, "till").unwrap().with("cniVersion", version);
        let mut result = sandbox.attach().unwrap();
        let newest = sandbox.with("cniVersion", "1.1.0");
        newest.check(&result).unwrap().success().unwrap();
        if version == "1.1.0" {
            // Without one of its own it is in the configuration's.
            result["cniVersion"] = json!("");
            newest.check(&result).unwrap().success().unwrap();
        }
    }
    let sandbox = Sandbox::new(&single, "till").unwrap();
    sandbox.attach().unwrap();
    refusal(&sandbox.run(&sandbox.call("CHECK")).unwrap(), 7, &["prevResult"]).unwrap();
}

#[test]
fn what_others_of_the_chain_added_is_tolerated() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let mut result = sandbox.attach().unwrap();
    let gateway = default_gateways(sandbox.namespace(), true).unwrap().remove(0);
    sandbox.namespace().ip(&format!("route add 192.0.2.0/24 via {gateway}")).unwrap();
    sandbox.namespace().ip("link add net1 type bridge").unwrap();
    sandbox.namespace().ip("address add 192.0.2.200/32 dev eth0").unwrap();
    sandbox.check(&result).unwrap().success().unwrap();
    let interfaces = result["interfaces"].as_array_mut().unwrap();
    interfaces.push(json!({"name": "net1", "sandbox": sandbox.namespace().path().display().to_string()}));
    let last = interfaces.len() - 1;
    result["ips"].as_array_mut().unwrap().push(json!({"address": "192.0.2.9/24", "interface": last}));
    result["routes"].as_array_mut().unwrap().push(json!({"dst": "192.0.2.0/24", "gw": gateway}));
    sandbox.check(&result).unwrap().success().unwrap();
}

#[test]
fn an_attachment_that_is_unknown_or_was_deleted_is_named() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let result = sandbox.attach().unwrap();
    sandbox.del().unwrap().success().unwrap();
    let answer = sandbox.check(&result).unwrap();
    assert!(answer.status != Some(0) && answer.message().contains(sandbox.id()), "{answer:?}");
}

#[test]
fn an_address_that_the_attachment_never_had_is_seen() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let mut result = sandbox.attach().unwrap();
    result["ips"][0]["address"] = json!("192.0.2.77/24");
    refusal(&sandbox.check(&result).unwrap(), DIFFERS, &["192.0.2.77"]).unwrap();
}

#[test]
fn a_missing_interface_is_seen() {
    let single = NODE.running().unwrap();
    expect_difference(&single, "", |_, sandbox, _| {
        sandbox.namespace().ip("link delete eth0").unwrap();
    });
}

#[test]
fn an_interface_of_that_name_that_is_another_is_seen() {
    let single = NODE.running().unwrap();
    expect_difference(&single, "eth0", |_, sandbox, _| {
        sandbox.namespace().ip("link set eth0 down").unwrap();
        sandbox.namespace().ip("link set eth0 name moved").unwrap();
        sandbox.namespace().ip("link add eth0 type bridge").unwrap();
    });
}

#[test]
fn an_interface_that_is_down_is_seen() {
    let single = NODE.running().unwrap();
    expect_difference(&single, "eth0", |_, sandbox, _| {
        sandbox.namespace().ip("link set eth0 down").unwrap();
    });
}

#[test]
fn another_hardware_address_is_seen() {
    let single = NODE.running().unwrap();
    expect_difference(&single, "0a:00:00:00:00:77", |_, sandbox, _| {
        sandbox.namespace().ip("link set eth0 address 0a:00:00:00:00:77").unwrap();
    });
}

#[test]
fn a_missing_address_is_seen_in_each_family() {
    let single = NODE.running().unwrap();
    for place in 0..2 {
        let sandbox = Sandbox::new(&single, "till").unwrap();
        let result = sandbox.attach().unwrap();
        let address = addresses(&result).unwrap()[place].to_string();
        sandbox.namespace().ip(&format!("address delete {address} dev eth0")).unwrap();
        let (named, _) = address.split_once('/').unwrap();
        refusal(&sandbox.check(&result).unwrap(), DIFFERS, &[named]).unwrap();
    }
}

#[test]
fn a_missing_route_is_seen_in_each_family() {
    let single = NODE.running().unwrap();
    for family in ["-4", "-6"] {
        expect_difference(&single, "route", |_, sandbox, _| {
            sandbox.namespace().ip(&format!("{family} route delete default")).unwrap();
        });
    }
}

#[test]
fn a_host_end_that_is_down_or_off_the_bridge_is_seen() {
    let single = NODE.running().unwrap();
    for change in ["down", "nomaster"] {
        expect_difference(&single, "cv", |node, _, result| {
            node.namespace().ip(&format!("link set {} {change}", host_end(result).unwrap())).unwrap();
        });
    }
}

#[test]
fn a_missing_limit_towards_the_pod_is_seen() {
    let single = NODE.running().unwrap();
    expect_difference(&single, "ingress", |node, _, result| {
        node.namespace().run(&format!("tc qdisc delete dev {} root", host_end(result).unwrap())).unwrap();
    });
}

#[test]
fn a_missing_limit_away_from_the_pod_is_seen() {
    let single = NODE.running().unwrap();
    expect_difference(&single, "egress", |node, _, result| {
        node.namespace().run(&format!("tc qdisc delete dev {} ingress", host_end(result).unwrap())).unwrap();
    });
}

#[test]
fn a_limit_of_another_rate_is_seen() {
    let single = NODE.running().unwrap();
    expect_difference(&single, "ingress", |node, _, result| {
        let line =
            format!("tc qdisc replace dev {} root tbf rate 1mbit burst 10kb latency 50ms", host_end(result).unwrap());
        node.namespace().run(&line).unwrap();
    });
}

/// A node of its own, because its rules are taken away. The daemon may be quicker than a CHECK.
#[test]
fn a_port_that_somebody_removes_is_seen_and_comes_back_by_itself() {
    let single = SingleNode::running().unwrap();
    let mapping = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let sandbox = Sandbox::new(&single, "till").unwrap().asking("portMappings", mapping);
    let result = sandbox.attach().unwrap();
    let namespace = single.node().namespace();
    let listed = || namespace.run("nft --json list maps").unwrap();
    let before = listed();
    assert!(before.contains("8080"), "{before}");
    let maps: Value = serde_json::from_str(&before).unwrap();
    for map in maps["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("map")) {
        let (family, table, name) = (text(&map["family"]), text(&map["table"]), text(&map["name"]));
        namespace.run(&format!("nft flush map {family} {table} {name}")).unwrap();
    }
    let bound = std::time::Duration::from_secs(30);
    culvert_lab::wait::until_true("the port to be back", bound, || {
        let answer = sandbox.check(&result)?;
        if answer.status != Some(0) {
            refusal(&answer, DIFFERS, &["8080"])?;
        }
        Ok(answer.status == Some(0))
    })
    .unwrap();
    assert_eq!(listed(), before);
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The daemon hears of it and sets them again, so a CHECK may come too late to see it: what counts is that they come back.
#[test]
fn masquerade_rules_that_somebody_removes_come_back_by_themselves() {
    let single = SingleNode::running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let result = sandbox.attach().unwrap();
    let namespace = single.node().namespace();
    for program in ["iptables", "ip6tables"] {
        namespace.run(&format!("{program} -t nat -F")).unwrap();
    }
    let bound = std::time::Duration::from_secs(30);
    culvert_lab::wait::until_true("the rules to be back", bound, || Ok(sandbox.check(&result)?.status == Some(0)))
        .unwrap();
    for program in ["iptables", "ip6tables"] {
        assert!(namespace.run(&format!("{program}-save -t nat")).unwrap().contains("MASQUERADE"), "{program}");
    }
}

#[test]
fn without_the_daemon_it_is_to_be_tried_again() {
    let mut single = SingleNode::running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let result = sandbox.attach().unwrap();
    single.node_mut().stop().unwrap();
    let socket = single.node().cni_socket().display().to_string();
    refusal(&sandbox.check(&result).unwrap(), 11, &[&socket]).unwrap();
    let other = Sandbox::new(&single, "scale").unwrap();
    refusal(&other.add().unwrap(), 11, &[&socket]).unwrap();
    refusal(&other.run(&other.call("STATUS")).unwrap(), 50, &[&socket]).unwrap();
    refusal(&other.collect(&[]).unwrap(), 11, &[&socket]).unwrap();
}
