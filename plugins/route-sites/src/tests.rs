//! The vectors of the policy: a topology in, the whole table out.

use super::*;

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(name: &str, reach: Reach, addresses: &[&str], blocks: &[&str]) -> Node {
    Node {
        name: name.to_owned(),
        ready: true,
        reach,
        addresses: addresses.iter().map(|text| address(text)).collect(),
        blocks: blocks.iter().map(|text| prefix(text)).collect(),
        ..Node::default()
    }
}

/// `a` asks.
fn topology(nodes: Vec<Node>) -> Topology {
    Topology {
        generation: 1,
        local: 0,
        nodes,
        cluster_prefixes: vec![prefix("10.244.0.0/16"), prefix("fd00:244::/48")],
        service_prefixes: vec![prefix("10.96.0.0/12")],
    }
}

fn policy(settings: &str) -> RouteSites {
    RouteSites::configure(settings).unwrap().0
}

fn plan(settings: &str, nodes: Vec<Node>) -> Vec<Route> {
    policy(settings).plan(&topology(nodes)).unwrap()
}

fn local() -> Node {
    node("a", Reach::Unknown, &["192.0.2.1"], &["10.244.1.0/24", "fd00:244:0:1::/64"])
}

#[test]
fn own_blocks_go_to_the_bridge() {
    assert_eq!(
        plan("{}", vec![local()]),
        [Route::new(prefix("10.244.1.0/24"), Via::Local), Route::new(prefix("fd00:244:0:1::/64"), Via::Local)]
    );
}

#[test]
fn a_peer_on_the_link_is_reached_directly_and_through_the_tunnel_while_that_is_dead() {
    let peer = node("b", Reach::SameLink, &["192.0.2.2", "192.0.2.3"], &["10.244.2.0/24"]);
    assert_eq!(
        plan("{}", vec![local(), peer])[1],
        Route::new(prefix("10.244.2.0/24"), Via::Direct(address("192.0.2.2"))).or(Via::Tunnel(1))
    );
}

#[test]
fn each_family_needs_an_on_link_address_of_its_own() {
    let both = node("b", Reach::SameLink, &["192.0.2.2", "fe80::2"], &["10.244.2.0/24", "fd00:244:0:2::/64"]);
    let only_v4 = node("c", Reach::SameLink, &["192.0.2.3"], &["10.244.3.0/24", "fd00:244:0:3::/64"]);
    assert_eq!(
        plan("{}", vec![local(), both, only_v4]),
        [
            Route::new(prefix("10.244.1.0/24"), Via::Local),
            Route::new(prefix("10.244.2.0/24"), Via::Direct(address("192.0.2.2"))).or(Via::Tunnel(1)),
            Route::new(prefix("10.244.3.0/24"), Via::Direct(address("192.0.2.3"))).or(Via::Tunnel(2)),
            Route::new(prefix("fd00:244:0:1::/64"), Via::Local),
            Route::new(prefix("fd00:244:0:2::/64"), Via::Direct(address("fe80::2"))).or(Via::Tunnel(1)),
            Route::new(prefix("fd00:244:0:3::/64"), Via::Tunnel(2)),
        ]
    );
}

#[test]
fn a_peer_that_is_not_on_the_link_is_reached_through_the_tunnel() {
    for reach in [Reach::Routed, Reach::TunnelOnly, Reach::Unknown] {
        let peer = node("b", reach, &["192.0.2.2"], &["10.244.2.0/24"]);
        assert_eq!(
            plan("{}", vec![local(), peer])[1],
            Route::new(prefix("10.244.2.0/24"), Via::Tunnel(1)),
            "{reach:?}"
        );
    }
}

#[test]
fn blocks_inside_one_prefix_of_either_list_are_left_to_the_underlay() {
    for key in ["cloudCIDR", "edgeCIDR"] {
        let settings = format!(r#"{{"{key}": ["10.244.0.0/18"]}}"#);
        let inside = node("b", Reach::Routed, &["192.0.2.2"], &["10.244.2.0/24"]);
        let outside = node("c", Reach::Routed, &["192.0.2.3"], &["10.244.200.0/24"]);
        assert_eq!(
            plan(&settings, vec![local(), inside, outside])[1..3],
            [Route::new(prefix("10.244.2.0/24"), Via::Underlay), Route::new(prefix("10.244.200.0/24"), Via::Tunnel(2)),],
            "{key}"
        );
    }
}

#[test]
fn a_list_that_covers_only_the_peer_changes_nothing() {
    let settings = r#"{"cloudCIDR": ["10.244.1.0/24"], "edgeCIDR": ["10.244.2.0/24"]}"#;
    let peer = node("b", Reach::Routed, &[], &["10.244.2.0/24"]);
    assert_eq!(plan(settings, vec![local(), peer])[1], Route::new(prefix("10.244.2.0/24"), Via::Tunnel(1)));
}

#[test]
fn the_lists_work_for_each_family_by_itself() {
    let settings = r#"{"edgeCIDR": ["fd00:244::/60"]}"#;
    let peer = node("b", Reach::Routed, &[], &["10.244.2.0/24", "fd00:244:0:2::/64"]);
    assert_eq!(
        plan(settings, vec![local(), peer]),
        [
            Route::new(prefix("10.244.1.0/24"), Via::Local),
            Route::new(prefix("10.244.2.0/24"), Via::Tunnel(1)),
            Route::new(prefix("fd00:244:0:1::/64"), Via::Local),
            Route::new(prefix("fd00:244:0:2::/64"), Via::Underlay),
        ]
    );
}

#[test]
fn the_same_link_comes_before_the_underlay() {
    let peer = node("b", Reach::SameLink, &["192.0.2.2"], &["10.244.2.0/24"]);
    assert_eq!(
        plan(r#"{"edgeCIDR": ["10.244.0.0/16"]}"#, vec![local(), peer])[1],
        Route::new(prefix("10.244.2.0/24"), Via::Direct(address("192.0.2.2"))).or(Via::Tunnel(1))
    );
}

#[test]
fn a_node_that_is_not_ready_keeps_its_routes() {
    let silent = Node { ready: false, ..node("b", Reach::TunnelOnly, &[], &["10.244.2.0/24"]) };
    assert_eq!(plan("{}", vec![local(), silent])[1], Route::new(prefix("10.244.2.0/24"), Via::Tunnel(1)));
}

#[test]
fn a_node_without_blocks_gets_no_route_and_one_with_several_gets_them_all() {
    let none = node("b", Reach::TunnelOnly, &[], &[]);
    let two = node("c", Reach::TunnelOnly, &[], &["10.244.4.0/24", "10.244.3.0/24"]);
    assert_eq!(
        plan("{}", vec![local(), none, two])[1..3],
        [Route::new(prefix("10.244.3.0/24"), Via::Tunnel(2)), Route::new(prefix("10.244.4.0/24"), Via::Tunnel(2))]
    );
}

#[test]
fn a_carved_out_address_has_a_route_beside_the_block_it_lies_in() {
    let holder = node("b", Reach::TunnelOnly, &[], &["10.244.2.0/24"]);
    let moved_to = node("c", Reach::TunnelOnly, &[], &["10.244.2.7/32"]);
    assert_eq!(
        plan("{}", vec![local(), holder, moved_to])[1..3],
        [Route::new(prefix("10.244.2.0/24"), Via::Tunnel(1)), Route::new(prefix("10.244.2.7/32"), Via::Tunnel(2))]
    );
}

#[test]
fn a_block_that_two_nodes_show_stays_with_the_first_and_this_node_before_all() {
    let same_as_local = node("b", Reach::TunnelOnly, &[], &["10.244.1.0/24", "10.244.2.0/24"]);
    let same_as_b = node("c", Reach::TunnelOnly, &[], &["10.244.2.0/24"]);
    assert_eq!(
        plan("{}", vec![local(), same_as_local, same_as_b])[..2],
        [Route::new(prefix("10.244.1.0/24"), Via::Local), Route::new(prefix("10.244.2.0/24"), Via::Tunnel(1))]
    );
}

#[test]
fn a_block_outside_the_cluster_is_left_out_instead_of_spoiling_the_table() {
    let stranger = node("b", Reach::TunnelOnly, &[], &["192.168.0.0/24", "10.244.2.0/24"]);
    assert_eq!(
        plan("{}", vec![local(), stranger]),
        [
            Route::new(prefix("10.244.1.0/24"), Via::Local),
            Route::new(prefix("10.244.2.0/24"), Via::Tunnel(1)),
            Route::new(prefix("fd00:244:0:1::/64"), Via::Local),
        ]
    );
}

#[test]
fn the_local_node_is_found_by_position() {
    let mut topology = topology(vec![node("0", Reach::TunnelOnly, &[], &["10.244.9.0/24"]), local()]);
    topology.local = 1;
    assert_eq!(
        policy("{}").plan(&topology).unwrap()[..2],
        [Route::new(prefix("10.244.1.0/24"), Via::Local), Route::new(prefix("10.244.9.0/24"), Via::Tunnel(0))]
    );
}

#[test]
fn a_topology_without_the_node_that_asks_is_the_host_s_defect() {
    assert_eq!(
        policy("{}").plan(&topology(Vec::new())),
        Err(PolicyError::internal("the topology lacks the node that asks"))
    );
}

#[test]
fn the_policy_wants_no_labels() {
    assert_eq!(RouteSites::configure("{}").unwrap().1, Description::new("route-sites", "0.1.0"));
}

#[test]
fn wrong_settings_are_refused_by_key() {
    assert_eq!(
        RouteSites::configure(r#"{"cloudCidr": []}"#),
        Err(PolicyError::invalid_settings("unknown key `cloudCidr`; known keys: cloudCIDR, edgeCIDR"))
    );
    assert_eq!(
        RouteSites::configure(r#"{"edgeCIDR": ["10.244.0.0/16", "lan-b"]}"#),
        Err(PolicyError::invalid_settings("`edgeCIDR[1]`: \"lan-b\" is no prefix such as 10.1.0.0/16"))
    );
}
