//! Pods on nodes that cannot reach each other talk, by the shortest way there is.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use culvert_blackbox::ways::{INTERVAL, Way, wait_way};
use culvert_lab::pod::Family;
use culvert_lab::three_sites::{CLOUD_1, EDGE_1, EDGE_2, EDGE_3};
use culvert_lab::{Pod, ThreeSites};

const PODS: [(&str, &str); 5] =
    [("till", EDGE_1), ("camera", EDGE_1), ("printer", EDGE_2), ("scale", EDGE_3), ("shop", CLOUD_1)];

fn pods(sites: &ThreeSites) -> Vec<Pod> {
    PODS.iter().map(|(name, node)| sites.pod(node, name).unwrap()).collect()
}

#[test]
fn every_pod_and_every_node_reaches_every_pod_in_both_families() {
    let sites = ThreeSites::running().unwrap();
    let pods = pods(&sites);
    for family in Family::BOTH {
        for to in &pods {
            let address = to.address(family).unwrap();
            let places = pods.iter().filter(|from| from.full_name() != to.full_name()).map(Pod::vantage);
            for from in places.chain(sites.nodes().iter().map(culvert_lab::Node::vantage)) {
                from.wait_reachable(address).unwrap();
                let report = from.ping(address, 5, INTERVAL).unwrap();
                assert_eq!((report.lost, report.duplicates), (0, 0), "{} to {address}", from.namespace.name());
            }
        }
    }
}

#[test]
fn packets_take_the_kernel_on_one_link_and_the_tunnel_elsewhere() {
    let sites = ThreeSites::running().unwrap();
    let pods = pods(&sites);
    let node = sites.node(EDGE_1).unwrap().namespace();
    for family in Family::BOTH {
        for (to, way) in [(1, Way::Kernel), (2, Way::Kernel), (3, Way::Tunnel), (4, Way::Tunnel)] {
            wait_way(&pods[0].vantage(), node, pods[to].address(family).unwrap(), way).unwrap();
        }
    }
}

#[test]
fn transfers_arrive_whole_between_sites_behind_nat() {
    let sites = ThreeSites::running().unwrap();
    let (till, scale) = (sites.pod(EDGE_1, "till").unwrap(), sites.pod(EDGE_3, "scale").unwrap());
    let _serving = scale.vantage().serve().unwrap();
    for family in Family::BOTH {
        let address = scale.address(family).unwrap();
        till.vantage().wait_reachable(address).unwrap();
        let report = till.vantage().fetch(address, 20_000_000).unwrap();
        assert!(report.ok && report.bytes == 20_000_000, "{report:?}");
    }
}

#[test]
fn a_pod_reaches_the_world_outside_with_its_node_s_address() {
    let sites = ThreeSites::running().unwrap();
    let outside = sites.lab().public_host("outside", 50).unwrap();
    let vantage = culvert_lab::probe::Vantage {
        namespace: &outside.namespace,
        program: sites.nodes()[0].binaries().program("lab-probe"),
    };
    let _serving = vantage.serve().unwrap();
    let till = sites.pod(EDGE_1, "till").unwrap();
    // The outside has no route to pods, nor to the LAN: only a masqueraded connection comes back.
    let report = till.vantage().fetch(outside.addresses[0], 100_000).unwrap();
    assert!(report.ok, "{report:?}");
}

#[test]
fn the_way_between_two_pods_is_explained_with_the_policy_that_decided() {
    let sites = ThreeSites::running().unwrap();
    let (till, printer, scale) = (
        sites.pod(EDGE_1, "till").unwrap(),
        sites.pod(EDGE_2, "printer").unwrap(),
        sites.pod(EDGE_3, "scale").unwrap(),
    );
    let node = sites.node(EDGE_1).unwrap();
    wait_way(&till.vantage(), node.namespace(), printer.address(Family::V4).unwrap(), Way::Kernel).unwrap();
    till.vantage().wait_reachable(scale.address(Family::V4).unwrap()).unwrap();
    let explain = |to: &Pod| {
        let to = to.address(Family::V4).unwrap().to_string();
        node.ctl(&["explain", &till.full_name(), &to]).unwrap()
    };
    let (near, far) = (explain(&printer), explain(&scale));
    assert_eq!((&near["node"], &far["node"]), (&EDGE_2.into(), &EDGE_3.into()));
    assert!(near["decided_by"].as_str().unwrap().contains("route-sites"), "{near}");
    assert!(near["decision"].as_str().unwrap().contains("direct"), "{near}");
    assert!(far["decision"].as_str().unwrap().contains("tunnel"), "{far}");
}
