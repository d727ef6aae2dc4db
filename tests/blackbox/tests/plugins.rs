//! Plugins from the watched folder: good ones take over without a lost packet, bad ones change nothing.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use culvert_blackbox::losses::losses;
use culvert_blackbox::plugins::{active, policy, wait_active, wait_refused};
use culvert_blackbox::rates::rates_in_force;
use culvert_blackbox::ways::{INTERVAL, Way, wait_way};
use culvert_lab::pod::Family;
use culvert_lab::three_sites::{CLOUD_1, EDGE_1, EDGE_2, EDGE_3};
use culvert_lab::{Node, Pod, PodSetup, SingleNode, ThreeSites};
use ipnet::IpNet;
use serde_json::{Value, json};

fn guest(node: &Node, name: &str) -> Vec<u8> {
    std::fs::read(node.binaries().guest(name).unwrap()).unwrap()
}

/// Installs a unit that must be refused while two pods talk, and returns the reason.
fn refused(component: &dyn Fn(&Node) -> Vec<u8>, settings: &Value) -> String {
    let mut single = SingleNode::running().unwrap();
    let (from, to) = (single.pod("from").unwrap(), single.pod("to").unwrap());
    let before = single.node().ctl(&["plugins"]).unwrap();
    let pinging = from.vantage().pinging(to.address(Family::V4).unwrap(), INTERVAL).unwrap();
    let refusals = single.node().metric("culvert_plugin_refusals_total").unwrap();
    let bytes = component(single.node());
    single.node().install_plugin("bad", &bytes, settings).unwrap();
    let reason = wait_refused(single.node_mut(), "bad").unwrap();
    let after = single.node().ctl(&["plugins"]).unwrap();
    for kind in ["route", "ipam", "bandwidth"] {
        assert_eq!(policy(&before, kind).unwrap()["active"], policy(&after, kind).unwrap()["active"], "{reason}");
    }
    assert!(single.node().metric("culvert_plugin_refusals_total").unwrap() > refusals, "{reason}");
    let third = single.pod("third").unwrap();
    assert_eq!(from.vantage().ping(third.address(Family::V6).unwrap(), 3, INTERVAL).unwrap().lost, 0);
    assert_eq!(pinging.finish().unwrap().lost, 0);
    reason
}

fn assert_says(reason: &str, words: &[&str]) {
    let lower = reason.to_lowercase();
    assert!(words.iter().any(|word| lower.contains(word)), "{reason:?} says none of {words:?}");
}

#[test]
fn an_unreadable_component_is_refused() {
    assert_says(&refused(&|_| b"this is no component".to_vec(), &json!({})), &["component", "wasm"]);
}

#[test]
fn a_component_that_imports_wasi_is_refused_by_the_import_s_name() {
    let component = r#"(component (import "wasi:cli/environment@0.2.0" (instance
        (export "get-arguments" (func (result (list string)))))))"#;
    let reason = refused(&|_| wat::parse_str(component).unwrap(), &json!({}));
    assert_says(&reason, &["wasi:cli/environment"]);
}

#[test]
fn settings_that_the_plugin_does_not_know_are_refused_with_its_words() {
    let reason = refused(&|node| guest(node, "bandwidth-fixed"), &json!({"colour": 1}));
    assert_says(&reason, &["colour"]);
}

#[test]
fn a_plugin_that_traps_is_refused() {
    let reason = refused(&|node| guest(node, "route-trap-later"), &json!({"afterGeneration": 0}));
    assert_says(&reason, &["trap", "panick", "unreachable"]);
}

#[test]
fn a_plugin_that_never_answers_is_refused() {
    let reason = refused(&|node| guest(node, "route-spin"), &json!({"afterGeneration": 0}));
    assert_says(&reason, &["ms", "deadline", "time"]);
}

#[test]
fn a_plugin_that_wants_4_gib_is_refused() {
    let reason = refused(&|node| guest(node, "route-hoard"), &json!({"afterGeneration": 0}));
    assert_says(&reason, &["memory"]);
}

#[test]
fn a_plugin_that_routes_a_foreign_prefix_is_refused_by_that_prefix() {
    let reason = refused(&|node| guest(node, "route-foreign-prefix"), &json!({"afterGeneration": 0}));
    assert_says(&reason, &["192.0.2.0/24", "prefix"]);
}

#[test]
fn a_block_outside_the_pool_is_never_claimed_and_an_address_that_is_not_free_never_given() {
    let mut single = SingleNode::build().unwrap();
    let node = single.node_mut();
    let component = guest(node, "ipam-outside-pool");
    node.install_plugin("greedy", &component, &json!({})).unwrap();
    node.start().unwrap();
    node.wait_ready().unwrap();
    let (first, second) = (single.pod("first").unwrap(), single.pod("second").unwrap());
    let pools: [IpNet; 2] = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
    let status = single.node().ctl(&["status"]).unwrap();
    let blocks: Vec<IpNet> =
        status["blocks"].as_array().unwrap().iter().map(|block| block.as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(blocks.len(), 2, "{status}");
    for block in &blocks {
        assert!(pools.iter().any(|pool| pool.contains(block)), "{block}");
    }
    for pod in [&first, &second] {
        assert!(pod.addresses().iter().all(|address| blocks.iter().any(|block| block.contains(&address.addr()))));
    }
    assert_ne!(first.addresses(), second.addresses());
}

#[test]
fn a_swapped_route_plugin_moves_the_traffic_and_loses_nothing() {
    let mut sites = ThreeSites::running().unwrap();
    let (from, to) = (sites.pod(EDGE_1, "from").unwrap(), sites.pod(EDGE_2, "to").unwrap());
    let address = to.address(Family::V4).unwrap();
    // A transfer that fills the tunnel loses packets by congestion, which would hide what the swap loses.
    let mut setup = PodSetup::named("archive");
    setup.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "100M".to_owned());
    let archive = Pod::attach(sites.lab(), sites.node(EDGE_2).unwrap(), setup).unwrap();
    let _serving = archive.vantage().serve().unwrap();
    wait_way(&from.vantage(), sites.node(EDGE_1).unwrap().namespace(), address, Way::Kernel).unwrap();
    let pinging = from.vantage().pinging(address, INTERVAL).unwrap();
    let fetching = from.vantage().fetching(archive.address(Family::V4).unwrap()).unwrap();
    let component = guest(sites.node(EDGE_1).unwrap(), "route-tunnel-all");
    for name in [EDGE_1, EDGE_2] {
        let node = sites.node_mut(name).unwrap();
        node.install_plugin("all", &component, &json!({})).unwrap();
        wait_active(node, "route", "all").unwrap();
    }
    wait_way(&from.vantage(), sites.node(EDGE_1).unwrap().namespace(), to.address(Family::V6).unwrap(), Way::Tunnel)
        .unwrap();
    for name in [EDGE_1, EDGE_2] {
        sites.node(name).unwrap().remove_plugin("all").unwrap();
    }
    let idle = to.address(Family::V6).unwrap();
    culvert_lab::wait::until_true("the shipped policy", std::time::Duration::from_secs(30), || {
        Ok(active(sites.node(EDGE_1)?, "route")?["name"] == "route-sites")
    })
    .unwrap();
    let (pinged, fetched) = (pinging.finish().unwrap(), fetching.finish().unwrap());
    assert_eq!(pinged.lost, 0, "{pinged:?}\n{}", losses(sites.nodes()));
    assert!(fetched.ok, "{fetched:?}");
    wait_way(&from.vantage(), sites.node(EDGE_1).unwrap().namespace(), idle, Way::Kernel).unwrap();
}

#[test]
fn a_swapped_bandwidth_plugin_reaches_pods_that_are_there() {
    let mut single = SingleNode::running().unwrap();
    let pod = single.pod("till").unwrap();
    let component = guest(single.node(), "bandwidth-fixed");
    let rates = |node: &Node| rates_in_force(node).unwrap();
    assert_eq!(rates(single.node()), Vec::<u64>::new());
    let settings = json!({"ingress": 16_000_000, "egress": 8_000_000});
    single.node().install_plugin("fixed", &component, &settings).unwrap();
    wait_active(single.node_mut(), "bandwidth", "fixed").unwrap();
    let bound = std::time::Duration::from_secs(20);
    culvert_lab::wait::until_true("the new rates", bound, || Ok(rates(single.node()) == [1_000_000, 2_000_000]))
        .unwrap();
    single.node().remove_plugin("fixed").unwrap();
    culvert_lab::wait::until_true("no rates", bound, || Ok(rates(single.node()).is_empty())).unwrap();
    drop(pod);
}

#[test]
fn a_plugin_that_fails_later_gives_way_to_the_one_before_and_takes_no_route_away() {
    let mut sites = ThreeSites::build().unwrap();
    for name in [CLOUD_1, EDGE_1] {
        sites.node_mut(name).unwrap().start().unwrap();
    }
    for name in [CLOUD_1, EDGE_1] {
        let node = sites.node_mut(name).unwrap();
        node.wait_ready().unwrap();
        node.wait_members(2).unwrap();
    }
    let (from, to) = (sites.pod(EDGE_1, "from").unwrap(), sites.pod(CLOUD_1, "to").unwrap());
    let address = to.address(Family::V4).unwrap();
    from.vantage().wait_reachable(address).unwrap();
    let component = guest(sites.node(EDGE_1).unwrap(), "route-trap-later");
    let node = sites.node_mut(EDGE_1).unwrap();
    let generation = node.ctl(&["status"]).unwrap()["generation"].as_u64().unwrap();
    // Two changes may still come from the two nodes that are there; two more nodes bring more than that.
    node.install_plugin("later", &component, &json!({"afterGeneration": generation + 2})).unwrap();
    wait_active(node, "route", "later").unwrap();
    let pinging = from.vantage().pinging(address, INTERVAL).unwrap();
    // Nodes join, and the plugin traps on every topology from some moment on.
    for name in [EDGE_2, EDGE_3] {
        let node = sites.node_mut(name).unwrap();
        node.start().unwrap();
        node.wait_ready().unwrap();
    }
    let scale = sites.pod(EDGE_3, "scale").unwrap();
    let node = sites.node_mut(EDGE_1).unwrap();
    node.wait_answer("the previous plugin", &["plugins"], |answer| {
        policy(answer, "route")
            .is_ok_and(|route| route["active"]["name"] == "route-sites" && route["rolled_back"] == true)
    })
    .unwrap();
    from.vantage().wait_reachable(scale.address(Family::V4).unwrap()).unwrap();
    assert_eq!(pinging.finish().unwrap().lost, 0);
}
