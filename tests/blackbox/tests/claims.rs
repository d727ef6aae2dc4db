//! Blocks while nobody can be asked for them: what a node does alone, and what becomes of it when the keeper is there.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_lab::pod::Family;
use culvert_lab::three_sites::{CLOUD_1, EDGE_1, EDGE_2, EDGE_3};
use culvert_lab::{Node, Pod, PodSetup, ThreeSites};
use ipnet::IpNet;
use serde_json::{Value, json};

/// The IPv4 blocks that a node has by its own account, and how each stands.
fn own_blocks(answer: &Value, node: &str) -> BTreeSet<(String, IpNet)> {
    let blocks = answer["blocks"].as_array().cloned().unwrap_or_default();
    let own = blocks.iter().filter(|block| block["holder"] == node);
    let parsed = own.filter_map(|block| {
        let net: IpNet = block["block"].as_str()?.parse().ok()?;
        net.addr().is_ipv4().then(|| (block["standing"].as_str().unwrap_or_default().to_owned(), net))
    });
    parsed.collect()
}

fn standings(answer: &Value, node: &str) -> Vec<String> {
    own_blocks(answer, node).into_iter().map(|(standing, _)| standing).collect()
}

fn blocks_of(node: &Node) -> BTreeSet<(String, IpNet)> {
    own_blocks(&node.ctl(&["ipam"]).unwrap(), node.name())
}

fn address(pod: &Pod) -> IpAddr {
    pod.address(Family::V4).unwrap()
}

/// Starts a node of its own, allowed to take a block while the keeper is away; the policy's first proposal is the same
/// on every node.
fn start_alone(sites: &mut ThreeSites, name: &str) {
    let node = sites.node_mut(name).unwrap();
    node.configuration_mut()["ipam"] = json!({"policy": "ipam-pool", "provisionalClaims": true});
    node.start().unwrap();
    node.wait_ready().unwrap();
    node.wait_answer("a provisional block", &["ipam"], |answer| standings(answer, name) == ["provisional"]).unwrap();
}

#[test]
fn without_a_keeper_and_without_leave_to_go_ahead_an_add_is_told_to_try_again() {
    let mut sites = ThreeSites::build().unwrap();
    let node = sites.node_mut(EDGE_1).unwrap();
    node.start().unwrap();
    node.wait_status("no block", |status| status["ready"] == false && status["blocks"] == json!([])).unwrap();
    let mut pod = Pod::detached(sites.lab(), sites.node(EDGE_1).unwrap(), PodSetup::named("till")).unwrap();
    let answer = pod.add().unwrap();
    assert_eq!(answer.code(), Some(11), "{answer:?}");
    assert!(answer.message().contains("keeper"), "{answer:?}");

    sites.node_mut(CLOUD_1).unwrap().start().unwrap();
    sites.node_mut(EDGE_1).unwrap().wait_ready().unwrap();
    pod.add().unwrap().success().unwrap();
}

#[test]
fn two_nodes_that_took_one_block_without_the_keeper_part_when_it_is_back_and_no_pod_loses_its_address() {
    let mut sites = ThreeSites::build().unwrap();
    for name in [EDGE_1, EDGE_3] {
        start_alone(&mut sites, name);
    }
    let taken = blocks_of(sites.node(EDGE_1).unwrap());
    assert_eq!(taken, blocks_of(sites.node(EDGE_3).unwrap()), "both took the pool's first block");
    let before = [EDGE_1, EDGE_3].map(|name| sites.pod(name, &format!("before-{name}")).unwrap());
    let addresses = before.each_ref().map(address);

    for name in [CLOUD_1, EDGE_2] {
        sites.node_mut(name).unwrap().start().unwrap();
    }
    for name in [EDGE_1, EDGE_3] {
        sites.node_mut(name).unwrap().wait_members(4).unwrap();
        let settled = |answer: &Value| {
            let standings = standings(answer, name);
            standings.contains(&"final".to_owned()) && !standings.contains(&"provisional".to_owned())
        };
        sites.node_mut(name).unwrap().wait_answer("a final block", &["ipam"], settled).unwrap();
    }
    let held = [EDGE_1, EDGE_3].map(|name| {
        let blocks = blocks_of(sites.node(name).unwrap());
        blocks.into_iter().filter(|(standing, _)| standing == "final").map(|(_, block)| block).collect::<BTreeSet<_>>()
    });
    assert!(held[0].is_disjoint(&held[1]), "{held:?}");
    let contested = taken.first().unwrap().1;
    assert_eq!(held.iter().filter(|blocks| blocks.contains(&contested)).count(), 1, "one of them keeps it: {held:?}");

    let after = [EDGE_1, EDGE_3].map(|name| sites.pod(name, &format!("after-{name}")).unwrap());
    for (pod, blocks) in after.iter().zip(&held) {
        assert!(blocks.iter().any(|block| block.contains(&address(pod))), "{} is not of {blocks:?}", address(pod));
    }
    assert_eq!(before.each_ref().map(address), addresses);
    after[0].vantage().wait_reachable(address(&after[1])).unwrap();
    for (old, new) in before.iter().zip(&after) {
        new.vantage().wait_reachable(address(old)).unwrap();
    }
}
