//! A peer that is let in and lies: its lies are dropped and counted, its honest packets pass in the same run.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_blackbox::ways::INTERVAL;
use culvert_lab::pod::Family;
use culvert_lab::three_sites::{EDGE_1, EDGE_2, EDGE_3};
use culvert_lab::{Node, Pod, ThreeSites, wait};
use ipnet::IpNet;

/// What one node counted of another's packets that failed the checks.
fn refused_packets(node: &Node, of: &str) -> u64 {
    let peers = node.ctl(&["peers"]).unwrap();
    let listed = peers["peers"].as_array().unwrap();
    listed.iter().find(|peer| peer["node"] == of).unwrap()["refused_packets"].as_u64().unwrap()
}

#[test]
fn a_source_that_the_peer_does_not_hold_is_dropped_and_counted() {
    let sites = ThreeSites::running().unwrap();
    let (victim, honest) = (sites.pod(EDGE_1, "victim").unwrap(), sites.pod(EDGE_3, "honest").unwrap());
    let other = sites.pod(EDGE_2, "other").unwrap();
    let liar = sites.node(EDGE_3).unwrap();
    for family in Family::BOTH {
        let (target, stolen) = (victim.address(family).unwrap(), other.address(family).unwrap());
        honest.vantage().wait_reachable(target).unwrap();
        let before = refused_packets(sites.node(EDGE_1).unwrap(), EDGE_3);
        let seen = echoes_seen(&victim, family);
        // The peer's owner takes the address of a pod elsewhere and speaks from it into the tunnel.
        liar.namespace().ip(&format!("address add {stolen} dev lo")).unwrap();
        let spoofed = liar.vantage().ping_from(stolen, target, 100, INTERVAL).unwrap();
        let truthful = honest.vantage().ping(target, 20, INTERVAL).unwrap();
        liar.namespace().ip(&format!("address del {stolen} dev lo")).unwrap();
        assert_eq!((spoofed.sent, spoofed.unsent, spoofed.received), (100, 0, 0));
        assert_eq!(truthful.lost, 0);
        assert_eq!(echoes_seen(&victim, family) - seen, 20, "only the honest requests arrived");
        wait::until_true("the lies to be counted", std::time::Duration::from_secs(10), || {
            Ok(refused_packets(sites.node(EDGE_1)?, EDGE_3) >= before + 100)
        })
        .unwrap();
    }
}

/// Echo requests that a pod's own kernel counted.
fn echoes_seen(pod: &Pod, family: Family) -> u64 {
    let (file, name) = match family {
        Family::V4 => ("net/snmp", "InEchos"),
        Family::V6 => ("net/snmp6", "Icmp6InEchos"),
    };
    let text = pod.namespace().run(&format!("cat /proc/{file}")).unwrap();
    if family == Family::V6 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        return line.split_whitespace().nth(1).unwrap().parse().unwrap();
    }
    let mut lines = text.lines().filter(|line| line.starts_with("Icmp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let position = names.split_whitespace().position(|word| word == name).unwrap();
    values.split_whitespace().nth(position).unwrap().parse().unwrap()
}

#[test]
fn a_node_s_own_ports_cannot_be_reached_through_the_tunnel_and_its_echo_can() {
    const KUBELET: u16 = 10250;
    let sites = ThreeSites::running().unwrap();
    let (near, far) = (sites.pod(EDGE_1, "near").unwrap(), sites.pod(EDGE_3, "far").unwrap());
    far.vantage().wait_reachable(near.address(Family::V4).unwrap()).unwrap();
    let node = sites.node(EDGE_1).unwrap();
    let _kubelet = node.vantage().serve_on(KUBELET).unwrap();
    for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let before = dropped_by_rule(node, program);
        let near_address = near.address(family).unwrap();
        let block = near.addresses().iter().find(|address| address.addr() == near_address).unwrap();
        let gateway = gateway(block);
        assert!(node.vantage().connect(gateway, KUBELET).unwrap().connected, "it listens at {gateway}");
        assert!(!far.vantage().connect(gateway, KUBELET).unwrap().connected, "{gateway}");
        assert_eq!(far.vantage().ping(gateway, 5, INTERVAL).unwrap().lost, 0, "{gateway}");
        assert!(dropped_by_rule(node, program) > before, "{program} counts what it drops");
    }
    // Replies to the node's own connections come back.
    let _serving = far.vantage().serve().unwrap();
    let report = node.vantage().fetch(far.address(Family::V4).unwrap(), 1_000_000).unwrap();
    assert!(report.ok, "{report:?}");
}

/// What the rule that keeps peers from the node's own ports has dropped.
fn dropped_by_rule(node: &Node, program: &str) -> u64 {
    let listed = node.namespace().run(&format!("{program} -t mangle -S CULVERT-INPUT -v")).unwrap();
    let last = listed.lines().find(|line| line.starts_with("-A CULVERT-INPUT -i culvert0 -c ")).unwrap();
    last.split_whitespace().skip_while(|word| *word != "-c").nth(1).unwrap().parse().unwrap()
}

/// The bridge's own address in a block: the first after the network address.
fn gateway(block: &IpNet) -> IpAddr {
    match block.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() | 1).into(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() | 1).into(),
    }
}
