//! The plugins that ship, through the same gate as any other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_core::decision::{Route, Via};
use culvert_core::topology::{Node, Reach, Topology};
use culvert_plugin::{Gated, Policy};

use crate::guest::unit;
use crate::host::{Host, topology};

#[test]
fn every_shipped_plugin_passes_the_gate_and_names_itself() {
    let host = Host::new();
    let names = culvert_shipped_plugins::all().into_iter().map(|shipped| {
        let unit = unit(shipped.name, shipped.bytes.to_vec());
        match host.host.gate(&unit, Some(&topology(1))).unwrap() {
            Gated::Route(policy) => (shipped.name, policy.description().name.clone()),
            Gated::Ipam(policy) => (shipped.name, policy.description().name.clone()),
            Gated::Bandwidth(policy) => (shipped.name, policy.description().name.clone()),
        }
    });
    let names: Vec<_> = names.collect();
    assert_eq!(names.len(), 4);
    assert!(names.iter().all(|(shipped, own)| shipped == own), "{names:?}");
}

#[test]
fn the_shipped_route_plugin_decides_by_what_reaches_a_node() {
    let host = Host::new();
    let shipped = culvert_shipped_plugins::by_name("route-sites").unwrap();
    let policy = host.route(&unit(shipped.name, shipped.bytes.to_vec()));
    let next_hop: IpAddr = "192.168.1.12".parse().unwrap();
    let node = |name: &str, reach, addresses: &[IpAddr], block: &str| Node {
        name: name.to_owned(),
        ready: true,
        reach,
        addresses: addresses.to_vec(),
        blocks: vec![block.parse().unwrap()],
        ..Node::default()
    };
    let nodes = vec![
        node("a-here", Reach::Unknown, &[], "10.244.1.0/24"),
        node("b-beside", Reach::SameLink, &[next_hop], "10.244.2.0/24"),
        node("c-far", Reach::TunnelOnly, &[], "10.244.3.0/24"),
    ];
    let routes = policy.plan(&Topology { nodes, ..topology(1) }).unwrap();
    let ways: BTreeMap<String, Via> = routes.iter().map(|route: &Route| (route.to.to_string(), route.via)).collect();
    let expected = [
        ("10.244.1.0/24".to_owned(), Via::Local),
        ("10.244.2.0/24".to_owned(), Via::Direct(next_hop)),
        ("10.244.3.0/24".to_owned(), Via::Tunnel(2)),
    ];
    assert_eq!(ways, BTreeMap::from(expected));
}
