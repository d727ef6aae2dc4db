//! Conflists as users have them, and what the words of the reference's plugins mean to Culvert.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_blackbox::attachments::{address_in, addresses, block, default_gateways, leases, refusal};
use culvert_blackbox::conflist::netconf;
use culvert_blackbox::rates::rates_in_force;
use culvert_lab::node_config::NodeSetup;
use culvert_lab::three_sites::CLOUD_1;
use culvert_lab::{Node, Sandbox, SharedNode, SingleNode};
use ipnet::IpNet;
use serde_json::{Value, json};

/// The pools of the labs, and the documentation range that the dual-stack conflist of the guides is written with.
static NODE: SharedNode = SharedNode::configured(|config| {
    config["cluster"]["static"]["pools"] = json!([
        {"range": "10.244.0.0/16", "blockLength": 24},
        {"range": "fd00:10:244::/48", "blockLength": 64},
        {"range": "2001:db8:4860::/56", "blockLength": 64},
    ]);
});

const GUIDE: &str = include_str!("../../../host/cni/src/migrate/fixtures/guide.conflist");
const GUIDE_DUAL_STACK: &str = include_str!("../../../host/cni/src/migrate/fixtures/guide-dual-stack.conflist");

/// The range sets of a section of `host-local`, each of one range.
fn host_local(ranges: &[(String, String, String)]) -> Value {
    let set = |(subnet, start, end): &(String, String, String)| json!([{"subnet": subnet, "rangeStart": start, "rangeEnd": end}]);
    json!({"type": "host-local", "ranges": ranges.iter().map(set).collect::<Value>()})
}

/// A range of the node's own block of IPv4.
fn own_range(single: &SingleNode, first: u32, last: u32) -> (String, String, String) {
    let held = block(single.node(), true).unwrap();
    let text = |offset| address_in(&held, offset).unwrap().to_string();
    (held.to_string(), text(first), text(last))
}

fn texts(result: &Value) -> Vec<String> {
    addresses(result).unwrap().iter().map(|address| address.addr().to_string()).collect()
}

/// A container whose calls are made of a plugin's entry of a conflist.
fn sandbox_of(single: &SingleNode, list: &Value, version: &str, runtime: &Value) -> Sandbox {
    Sandbox::new(single, "till").unwrap().with_config(&netconf(list, 0, version, runtime).unwrap())
}

/// The conflists of the guides with only the type of the bridge changed, and the subnets they ask for.
fn changed_by_type() -> [(Value, &'static str, &'static [&'static str]); 2] {
    let changed = |text: &str| {
        let mut list: Value = serde_json::from_str(text).unwrap();
        list["plugins"][0]["type"] = json!("culvert");
        list
    };
    [
        (changed(GUIDE), "1.0.0", &["10.244.41.0/24"]),
        (changed(GUIDE_DUAL_STACK), "0.4.0", &["10.244.2.0/24", "2001:db8:4860::/64"]),
    ]
}

fn expect_addresses_in(result: &Value, subnets: &[&str]) {
    let found = addresses(result).unwrap();
    assert_eq!(found.len(), subnets.len(), "{result}");
    for subnet in subnets {
        let subnet: IpNet = subnet.parse().unwrap();
        assert!(found.iter().any(|address| subnet.contains(&address.addr())), "nothing of {subnet} in {result}");
    }
}

#[test]
fn the_conflists_of_the_guides_work_after_changing_only_the_type() {
    let single = NODE.running().unwrap();
    for (list, version, subnets) in changed_by_type() {
        let sandbox = sandbox_of(&single, &list, version, &json!({}));
        let result = sandbox.attach().unwrap();
        assert_eq!(result["cniVersion"], version);
        expect_addresses_in(&result, subnets);
        for (subnet, v4) in subnets.iter().zip([true, false]) {
            let gateway = address_in(&subnet.parse().unwrap(), 1).unwrap();
            assert_eq!(default_gateways(sandbox.namespace(), v4).unwrap(), [gateway.to_string()]);
            single.node().vantage().wait_reachable(addresses(&result).unwrap()[usize::from(!v4)].addr()).unwrap();
        }
        sandbox.check(&result).unwrap().success().unwrap();
    }
}

#[test]
fn the_conflists_of_the_guides_are_migrated_in_place_and_work_with_ports_and_limits() {
    let single = NODE.running().unwrap();
    for (text, subnets) in
        [(GUIDE, &["10.244.41.0/24"][..]), (GUIDE_DUAL_STACK, &["10.244.2.0/24", "2001:db8:4860::/64"])]
    {
        let file = single.node().folder().join("10-net.conflist");
        let backup = file.with_extension("conflist.before-culvert");
        std::fs::write(&file, text).unwrap();
        let path = file.display().to_string();
        let answer = single.node().ctl(&["migrate", "conflist", "--in-place", &path]).unwrap();
        assert_eq!((&answer["changed"], &answer["backup"]), (&json!(true), &json!(backup.display().to_string())));
        assert_eq!(std::fs::read_to_string(&backup).unwrap(), text);
        std::fs::remove_file(&backup).unwrap();
        let list: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(list, answer["conflist"]);
        assert_eq!((list["plugins"].as_array().unwrap().len(), &list["plugins"][0]["type"]), (1, &json!("culvert")));
        let runtime = json!({
            "portMappings": [{"hostPort": 8080, "containerPort": 5201, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 4_294_967_295_u64},
        });
        let sandbox = sandbox_of(&single, &list, "1.1.0", &runtime);
        expect_addresses_in(&sandbox.attach().unwrap(), subnets);
        assert_eq!(rates_in_force(single.node()).unwrap(), [1_000_000]);
        let _serving = sandbox.vantage().serve().unwrap();
        let reached = single.node().host().addresses[0];
        let bound = std::time::Duration::from_secs(30);
        culvert_lab::wait::until_true("the host port to lead to the pod", bound, || {
            Ok(single.node().vantage().connect(reached, 8080)?.connected)
        })
        .unwrap();
    }
}

#[test]
fn what_cannot_be_migrated_is_told_and_stays_untouched() {
    let single = NODE.running().unwrap();
    let file = single.node().folder().join("20-other.conflist");
    let text = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp"}]}"#;
    std::fs::write(&file, text).unwrap();
    let error = single.node().ctl(&["migrate", "conflist", "--in-place", &file.display().to_string()]).unwrap_err();
    assert!(error.to_string().contains("no plugin of type bridge"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn a_range_limits_the_choice_and_a_full_one_is_to_be_tried_again() {
    let single = NODE.running().unwrap();
    let (subnet, first, last) = own_range(&single, 100, 101);
    let ipam = host_local(&[(subnet, first.clone(), last.clone())]);
    let sandboxes =
        ["till", "scale", "camera"].map(|name| Sandbox::new(&single, name).unwrap().with("ipam", ipam.clone()));
    let given: BTreeSet<String> = sandboxes[..2].iter().flat_map(|sandbox| texts(&sandbox.attach().unwrap())).collect();
    assert_eq!(given, BTreeSet::from([first, last]));
    refusal(&sandboxes[2].add().unwrap(), 11, &[]).unwrap();
    assert_eq!(leases(single.node(), sandboxes[2].id()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_pod_gets_one_address_of_each_set_in_their_order_and_the_runtimes_first() {
    let single = NODE.running().unwrap();
    let [asked, first, second] = [150, 110, 130].map(|begin| own_range(&single, begin, begin + 9));
    let runtime = json!([[{"subnet": asked.0, "rangeStart": asked.1, "rangeEnd": asked.2}]]);
    let sandbox = Sandbox::new(&single, "till")
        .unwrap()
        .with("ipam", host_local(&[first.clone(), second.clone()]))
        .asking("ipRanges", runtime);
    let result = sandbox.attach().unwrap();
    let found = addresses(&result).unwrap();
    assert_eq!(found.len(), 3, "{result}");
    for (address, (_, begin, end)) in found.iter().zip([asked, first, second]) {
        assert!(
            (begin.parse::<IpAddr>().unwrap()..=end.parse().unwrap()).contains(&address.addr()),
            "{address} is not of {begin}"
        );
    }
    // A version that has place for one of a family does not get two.
    let old = Sandbox::new(&single, "scale").unwrap().with_config(&sandbox.config()).with("cniVersion", "0.2.0");
    refusal(&old.add().unwrap(), 7, &["0.2.0"]).unwrap();
}

#[test]
fn a_requested_address_is_taken_of_its_range_and_the_others_are_chosen() {
    let single = NODE.running().unwrap();
    let [first, second] = [160, 180].map(|begin| own_range(&single, begin, begin + 9));
    let wanted = own_range(&single, 185, 185).1;
    let sandbox = Sandbox::new(&single, "till").unwrap().with("ipam", host_local(&[first, second]));
    let sandbox = sandbox.asking("ips", json!([wanted]));
    assert_eq!(texts(&sandbox.attach().unwrap())[1], wanted);
}

#[test]
fn static_addresses_are_given_as_they_are_and_requested_ones_instead() {
    let single = NODE.running().unwrap();
    let [fixed, asked] = [201, 202].map(|offset| own_range(&single, offset, offset).1);
    let ipam = json!({"type": "static", "addresses": [{"address": format!("{fixed}/24")}]});
    let sandbox = Sandbox::new(&single, "till").unwrap().with("ipam", ipam.clone());
    assert_eq!(texts(&sandbox.attach().unwrap()), std::slice::from_ref(&fixed));
    let other = Sandbox::new(&single, "scale").unwrap().with("ipam", ipam.clone());
    let answer = other.add().unwrap();
    assert!(answer.status != Some(0) && answer.message().contains(&fixed), "one address, one pod: {answer:?}");
    let asking = Sandbox::new(&single, "camera").unwrap().with("ipam", ipam).asking("ips", json!([asked]));
    assert!(texts(&asking.attach().unwrap()).contains(&asked));
}

#[test]
fn the_bridge_takes_in_every_frame_once_a_network_asks_for_it() {
    let single = NODE.running().unwrap();
    let promiscuous = || single.node().namespace().ip("-d -o link show cni0").unwrap().contains("PROMISC");
    let plain = Sandbox::new(&single, "scale").unwrap();
    plain.attach().unwrap();
    assert!(!promiscuous());
    Sandbox::new(&single, "till").unwrap().with("promiscMode", true).attach().unwrap();
    assert!(promiscuous());
}

#[test]
fn default_routes_are_ours_to_give_and_the_references_to_ask_for() {
    let single = NODE.running().unwrap();
    let (subnet, first, last) = own_range(&single, 210, 219);
    let gateway = address_in(&block(single.node(), true).unwrap(), 1).unwrap().to_string();
    let section = |routes: Value| {
        let mut section = host_local(&[(subnet.clone(), first.clone(), last.clone())]);
        section["routes"] = routes;
        section
    };
    let default = json!([{"dst": "0.0.0.0/0"}]);
    let table = [
        (Value::Null, Value::Null, true),
        (Value::Null, json!(false), false),
        (json!({"type": "culvert"}), json!(true), true),
        (section(json!([])), Value::Null, false),
        (section(json!([])), json!(true), true),
        (section(default.clone()), json!(false), true),
        // The reference's bridge of some distributions refuses both together.
        (section(default), json!(true), true),
    ];
    for (ipam, asked, expected) in table {
        let sandbox =
            Sandbox::new(&single, "till").unwrap().with("ipam", ipam.clone()).with("isDefaultGateway", asked.clone());
        let result = sandbox.attach().unwrap();
        let found = default_gateways(sandbox.namespace(), true).unwrap();
        let gateways: &[String] = if expected { std::slice::from_ref(&gateway) } else { &[] };
        assert_eq!(found, gateways, "{ipam} {asked}");
        let is_default = |route: &&Value| route["dst"] == "0.0.0.0/0";
        let told = result["routes"].as_array().map_or(0, |routes| routes.iter().filter(is_default).count());
        assert_eq!(told, gateways.len(), "{result}");
    }
}

#[test]
fn other_routes_are_made_and_told() {
    let single = NODE.running().unwrap();
    let routes = json!([{"dst": "192.0.2.0/24"}, {"dst": "2001:db8:1::/48"}]);
    let sandbox = Sandbox::new(&single, "till").unwrap().with("ipam", json!({"routes": routes}));
    let result = sandbox.attach().unwrap();
    for (family, dst, v4) in [("-4", "192.0.2.0/24", true), ("-6", "2001:db8:1::/48", false)] {
        let shown = sandbox.namespace().ip(&format!("{family} route show {dst}")).unwrap();
        let gateway = default_gateways(sandbox.namespace(), v4).unwrap().remove(0);
        assert!(shown.contains(&format!("via {gateway}")), "{shown}");
        assert!(result["routes"].as_array().unwrap().iter().any(|route| route["dst"] == dst), "{result}");
    }
    sandbox.namespace().ip("route delete 192.0.2.0/24").unwrap();
    refusal(&sandbox.check(&result).unwrap(), 102, &["192.0.2.0/24"]).unwrap();
}

#[test]
fn a_range_outside_the_pools_is_refused_and_named() {
    let single = NODE.running().unwrap();
    for (subnet, named) in [("192.0.2.0/24", "192.0.2.1-192.0.2.254"), ("2001:db8:9999::/64", "2001:db8:9999::1-")] {
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": subnet}]]});
        let sandbox = Sandbox::new(&single, "till").unwrap().with("ipam", ipam);
        refusal(&sandbox.add().unwrap(), 7, &[named]).unwrap();
    }
}

#[test]
fn a_range_of_more_blocks_than_a_node_may_claim_is_refused_and_named() {
    let single = NODE.running().unwrap();
    let ipam = json!({"type": "host-local", "subnet": "10.244.0.0/16"});
    let sandbox = Sandbox::new(&single, "till").unwrap().with("ipam", ipam);
    refusal(&sandbox.add().unwrap(), 7, &["10.244.0.1-10.244.255.254", "256", "16"]).unwrap();
}

#[test]
fn a_range_that_another_node_holds_is_refused_with_the_holders_name() {
    let single = SingleNode::running().unwrap();
    let host = single.lab().public_host("edge-9", 19).unwrap();
    let relays = vec![(CLOUD_1.to_owned(), single.node().host().addresses[0].to_string())];
    let setup = NodeSetup { site_kind: "edge", zone: "nine".to_owned(), relays };
    let mut other = Node::new(single.lab(), host, &setup, single.node().binaries()).unwrap();
    other.ensure_running().unwrap();
    let theirs = block(&other, true).unwrap().to_string();
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": theirs}]]});
    let sandbox = Sandbox::new(&single, "till").unwrap().with("ipam", ipam);
    refusal(&sandbox.add().unwrap(), 7, &[&theirs, "edge-9"]).unwrap();
}
