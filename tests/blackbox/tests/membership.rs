//! Who gets in, and under which name.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::sync::Arc;

use culvert_blackbox::ways::INTERVAL;
use culvert_lab::node_config::NodeSetup;
use culvert_lab::pod::Family;
use culvert_lab::three_sites::{CLOUD_1, EDGE_1, EDGE_2};
use culvert_lab::{Lab, Node, ThreeSites, wait};
use serde_json::json;

const BOUND: std::time::Duration = std::time::Duration::from_secs(40);

/// One more machine on the internet that claims a name.
fn newcomer(sites: &ThreeSites, claimed: &str) -> Node {
    let lab: &Lab = sites.lab();
    let mut host = lab.public_host("newcomer", 66).unwrap();
    claimed.clone_into(&mut host.name);
    let relays = vec![(CLOUD_1.to_owned(), "198.51.100.10".to_owned())];
    let setup = NodeSetup { site_kind: "edge", zone: "elsewhere".to_owned(), relays };
    // Its files must not be those of the node whose name it claims.
    let binaries = Arc::clone(sites.nodes()[0].binaries());
    Node::in_folder(lab.folder().join("newcomer"), host, &setup, &binaries).unwrap()
}

fn members(sites: &ThreeSites) -> u64 {
    sites.node(CLOUD_1).unwrap().ctl(&["status"]).unwrap()["members"].as_u64().unwrap()
}

#[test]
fn a_node_with_an_unknown_key_is_counted_and_learns_nothing() {
    let sites = ThreeSites::running().unwrap();
    let before = sites.node(CLOUD_1).unwrap().metric("culvert_strangers_refused_total").unwrap();
    let mut stranger = newcomer(&sites, "edge-9");
    stranger.configuration_mut()["mesh"]["preSharedKeys"] = json!(["another cluster's pre-shared key"]);
    stranger.start().unwrap();
    wait::until_true("the stranger to be counted", BOUND, || {
        Ok(sites.node(CLOUD_1)?.metric("culvert_strangers_refused_total")? > before)
    })
    .unwrap();
    assert_eq!(members(&sites), 4);
    stranger.wait_status("alone and not ready", |status| status["members"] == 1 && status["ready"] == false).unwrap();
    let problems = stranger.ctl(&["status"]).unwrap()["problems"].to_string();
    assert!(problems.contains("pre-shared key") || problems.contains("keeper"), "{problems}");
}

#[test]
fn a_node_under_another_s_name_is_told_so_and_changes_nothing() {
    let sites = ThreeSites::running().unwrap();
    let (from, to) = (sites.pod(EDGE_1, "from").unwrap(), sites.pod(EDGE_2, "to").unwrap());
    let address = to.address(Family::V4).unwrap();
    from.vantage().wait_reachable(address).unwrap();
    let pinging = from.vantage().pinging(address, INTERVAL).unwrap();
    let owner = sites.node(EDGE_2).unwrap().ctl(&["status"]).unwrap();
    let before = sites.node(CLOUD_1).unwrap().metric("culvert_membership_refusals_total").unwrap_or(0.0);

    let mut impostor = newcomer(&sites, EDGE_2);
    impostor.start().unwrap();
    impostor.wait_status("its name to be refused", |status| status["problems"].to_string().contains(EDGE_2)).unwrap();
    let status = impostor.ctl(&["status"]).unwrap();
    assert_eq!((&status["ready"], status["blocks"].as_array().unwrap().len()), (&json!(false), 0), "{status}");
    assert!(status["problems"].to_string().contains("release-name"), "the remedy is named: {status}");
    wait::until_true("the refusal to be counted", BOUND, || {
        Ok(sites.node(CLOUD_1)?.metric("culvert_membership_refusals_total")? > before)
    })
    .unwrap();
    assert_eq!(members(&sites), 4);
    let now = sites.node(EDGE_2).unwrap().ctl(&["status"]).unwrap();
    assert_eq!((&now["blocks"], &now["peer_id"]), (&owner["blocks"], &owner["peer_id"]));
    assert_eq!(pinging.finish().unwrap().lost, 0);
}

#[test]
fn every_node_gets_blocks_of_its_own() {
    let sites = ThreeSites::running().unwrap();
    let mut blocks = Vec::new();
    for node in sites.nodes() {
        let status = node.ctl(&["status"]).unwrap();
        blocks.extend(status["blocks"].as_array().unwrap().iter().map(|block| block.as_str().unwrap().to_owned()));
    }
    let count = blocks.len();
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!((count, blocks.len()), (8, 8), "{blocks:?}");
}
