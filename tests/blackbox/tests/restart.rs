//! A daemon that ends, however, and comes back: what the kernel carries never notices, and nothing is forgotten.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use culvert_blackbox::ways::{INTERVAL, Way, wait_way};
use culvert_lab::pod::Family;
use culvert_lab::three_sites::{EDGE_1, EDGE_2, EDGE_3};
use culvert_lab::{Node, Pod, PodSetup, ThreeSites};

/// Ends the daemon of edge-1 while pings and streams run from one of its pods, and starts it again.
fn disturb(end: impl FnOnce(&mut Node)) {
    let mut sites = ThreeSites::running().unwrap();
    let till = sites.pod(EDGE_1, "till").unwrap();
    let others =
        [(EDGE_1, "camera"), (EDGE_2, "printer"), (EDGE_3, "scale")].map(|(node, name)| sites.pod(node, name).unwrap());
    let addresses = others.each_ref().map(|pod| pod.address(Family::V4).unwrap());
    let _serving = others.each_ref().map(|pod| pod.vantage().serve().unwrap());
    let node = sites.node(EDGE_1).unwrap().namespace();
    for (address, way) in addresses.into_iter().zip([Way::Kernel, Way::Kernel, Way::Tunnel]) {
        wait_way(&till.vantage(), node, address, way).unwrap();
    }
    let pings = addresses.map(|address| till.vantage().pinging(address, INTERVAL).unwrap());
    let streams = addresses.map(|address| till.vantage().streaming(address).unwrap());

    let node = sites.node_mut(EDGE_1).unwrap();
    end(node);
    node.start().unwrap();
    node.wait_ready().unwrap();
    till.vantage().wait_reachable(addresses[2]).unwrap();

    let [same_node, same_link, tunnel] = pings.map(|ping| ping.finish().unwrap());
    assert_eq!((same_node.lost, same_link.lost), (0, 0));
    assert!(tunnel.received > 0, "{tunnel:?}");
    for stream in streams {
        let report = stream.finish().unwrap();
        assert!(!report.broken && report.sent == report.echoed, "{report:?}");
    }
}

#[test]
fn a_daemon_that_is_stopped_and_started_breaks_no_connection_and_loses_nothing_on_the_link() {
    disturb(|node| node.stop().unwrap());
}

#[test]
fn a_daemon_that_is_killed_and_started_breaks_no_connection_and_loses_nothing_on_the_link() {
    disturb(|node| node.kill().unwrap());
}

#[test]
fn a_node_starts_and_serves_with_relay_and_peers_away() {
    let mut sites = ThreeSites::running().unwrap();
    let before = sites.pod(EDGE_1, "before").unwrap();
    let neighbour = sites.pod(EDGE_2, "neighbour").unwrap();
    let to_neighbour = neighbour.address(Family::V4).unwrap();
    wait_way(&before.vantage(), sites.node(EDGE_1).unwrap().namespace(), to_neighbour, Way::Kernel).unwrap();
    let blocks = sites.node(EDGE_1).unwrap().ctl(&["status"]).unwrap()["blocks"].clone();
    for node in sites.nodes_mut() {
        node.stop().unwrap();
    }
    let node = sites.node_mut(EDGE_1).unwrap();
    node.start().unwrap();
    node.wait_ready().unwrap();
    let node = sites.node(EDGE_1).unwrap();
    assert_eq!(node.ctl(&["status"]).unwrap()["blocks"], blocks);

    let after = Pod::attach(sites.lab(), node, PodSetup::named("after")).unwrap();
    let own = after.address(Family::V4).unwrap();
    assert_ne!(own, before.address(Family::V4).unwrap());
    assert_eq!(before.vantage().ping(own, 5, INTERVAL).unwrap().lost, 0);
    // The neighbour's daemon is away too: the last good routes carry the link.
    assert_eq!(after.vantage().ping(to_neighbour, 5, INTERVAL).unwrap().lost, 0);
    before.remove().unwrap();
    after.remove().unwrap();
    assert_eq!(sites.node(EDGE_1).unwrap().ctl(&["ipam"]).unwrap()["leases"].as_array().unwrap().len(), 0);
}

#[test]
fn a_restarted_daemon_knows_its_pods_and_lets_go_of_them() {
    let mut sites = culvert_lab::SingleNode::running().unwrap();
    let (first, second) = (sites.pod("first").unwrap(), sites.pod("second").unwrap());
    let leases = sites.node().ctl(&["ipam"]).unwrap()["leases"].clone();
    sites.node_mut().kill().unwrap();
    sites.node_mut().start().unwrap();
    sites.node_mut().wait_ready().unwrap();
    let ipam = sites.node().ctl(&["ipam"]).unwrap();
    assert_eq!((&ipam["leases"], ipam["findings"].as_array().unwrap().len()), (&leases, 0));
    first.remove().unwrap();
    let third = sites.pod("third").unwrap();
    assert_ne!(third.addresses(), second.addresses());
    assert_eq!(third.vantage().ping(second.address(Family::V6).unwrap(), 3, INTERVAL).unwrap().lost, 0);
}
