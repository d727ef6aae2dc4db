//! From admitted routes to the kernel's routing table, and from one table to the next.
//!
//! The policy decides; what it says about this node's own blocks does not matter, because the host
//! routes those to the bridge in any case, and what it says nothing about is refused, never left
//! to the default route.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::address::Family;
use crate::decision::{AdmittedRoutes, Route, Via};
use crate::plan::{KernelRoute, KernelVia, Plan, Step};
use crate::topology::{Holders, Topology};

/// Which ways work right now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    /// Next hops that answer.
    pub direct: BTreeSet<IpAddr>,
    /// Names of the nodes a path of the tunnel leads to.
    pub tunnel: BTreeSet<String>,
}

/// The bridge's own address of each family: the source of the node's own packets to pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeGateways {
    /// IPv4, when this node holds an IPv4 block.
    pub v4: Option<IpAddr>,
    /// IPv6, when this node holds an IPv6 block.
    pub v6: Option<IpAddr>,
}

impl BridgeGateways {
    /// The gateways of the first block of each family.
    #[must_use]
    pub fn of_blocks<'a>(blocks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut gateways = Self::default();
        for block in blocks {
            let gateway = crate::address::gateway(block);
            match block {
                IpNet::V4(_) => gateways.v4 = gateways.v4.or(Some(gateway)),
                IpNet::V6(_) => gateways.v6 = gateways.v6.or(Some(gateway)),
            }
        }
        gateways
    }

    /// The gateway of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// What this node brings to its routes, besides the policy's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalRouting {
    /// The bridge's addresses.
    pub gateways: BridgeGateways,
    /// **Units** bytes; the tunnel's inner MTU.
    pub tunnel_mtu_bytes: Option<u32>,
    /// Addresses of attachments that still live in blocks this node no longer holds: they stay
    /// reachable from this node until they end.
    pub stranded: BTreeSet<IpAddr>,
}

/// The way of a route that is in force: `via` while it is alive, `otherwise` while only that is,
/// and `via` again when both are dead.
#[must_use]
pub fn in_force(route: &Route, topology: &Topology, liveness: &Liveness) -> Via {
    let alive = |via: Via| match via {
        Via::Direct(next_hop) => liveness.direct.contains(&next_hop),
        Via::Tunnel(index) => topology.nodes.get(index).is_some_and(|node| liveness.tunnel.contains(&node.name)),
        Via::Local | Via::Underlay | Via::Reject => true,
    };
    match route.otherwise {
        Some(otherwise) if !alive(route.via) && alive(otherwise) => otherwise,
        Some(_) | None => route.via,
    }
}

/// The table the kernel should hold.
///
/// `topology` is the one the answer was admitted for. Own blocks go to the bridge and every cluster
/// prefix is refused unless something longer says otherwise.
#[must_use]
pub fn desired(
    admitted: &AdmittedRoutes,
    topology: &Topology,
    liveness: &Liveness,
    local: &LocalRouting,
) -> BTreeMap<IpNet, KernelRoute> {
    let holders = Holders::new(topology);
    let mut table = Table { routes: BTreeMap::new(), local };
    for cluster in &topology.cluster_prefixes {
        table.set(cluster.trunc(), KernelVia::Prohibit);
    }
    for carve_out in unnamed_carve_outs(admitted, topology, &holders) {
        table.set(carve_out, KernelVia::Prohibit);
    }
    for route in admitted.routes() {
        if holders.holder_of(&route.to) != Some(topology.local) {
            table.set(route.to, kernel_via(in_force(route, topology, liveness)));
        }
    }
    for address in &local.stranded {
        table.set(IpNet::from(*address), KernelVia::Bridge);
    }
    for block in topology.local_node().map(|node| node.blocks.as_slice()).unwrap_or_default() {
        table.set(block.trunc(), KernelVia::Bridge);
    }
    table.routes
}

/// The steps from one table to another, make-before-break: everything is added or replaced before
/// anything is removed. Equal tables give an empty plan.
#[must_use]
pub fn diff(current: &[KernelRoute], desired: &BTreeMap<IpNet, KernelRoute>) -> Plan {
    let before: BTreeMap<IpNet, KernelRoute> = current.iter().map(|route| (route.to, *route)).collect();
    let set = desired.values().filter_map(|route| {
        let before = before.get(&route.to).copied();
        (before != Some(*route)).then_some(Step::SetRoute { route: *route, before })
    });
    let remove = before
        .values()
        .filter(|route| !desired.contains_key(&route.to))
        .map(|route| Step::RemoveRoute { route: *route });
    Plan { steps: set.chain(remove).collect() }
}

/// How much of what is forwarded now a new table would stop forwarding, for a guard against mass
/// withdrawal.
///
/// **Units** percent of the routes in `old` that forward; 0 when none does.
#[must_use]
pub fn withdrawal_share(old: &BTreeMap<IpNet, KernelRoute>, new: &BTreeMap<IpNet, KernelRoute>) -> u8 {
    let forwards = |route: &&KernelRoute| route.via != KernelVia::Prohibit;
    let forwarded = old.values().filter(forwards).count();
    let kept = old.values().filter(forwards).filter(|route| new.get(&route.to).filter(forwards).is_some()).count();
    let percent = ((forwarded - kept) * 100).checked_div(forwarded).unwrap_or(0);
    u8::try_from(percent).unwrap_or(100)
}

/// The table under construction.
struct Table<'a> {
    routes: BTreeMap<IpNet, KernelRoute>,
    local: &'a LocalRouting,
}

impl Table<'_> {
    fn set(&mut self, to: IpNet, via: KernelVia) {
        let forwards = match via {
            KernelVia::Bridge | KernelVia::NextHop(_) | KernelVia::Tunnel => true,
            KernelVia::Throw | KernelVia::Prohibit => false,
        };
        let source = self.local.gateways.of(Family::of_prefix(&to)).filter(|_| forwards);
        let mtu_bytes = self.local.tunnel_mtu_bytes.filter(|_| via == KernelVia::Tunnel);
        self.routes.insert(to, KernelRoute { to, via, source, mtu_bytes });
    }
}

fn kernel_via(via: Via) -> KernelVia {
    match via {
        Via::Local => KernelVia::Bridge,
        Via::Direct(next_hop) => KernelVia::NextHop(next_hop),
        Via::Underlay => KernelVia::Throw,
        Via::Tunnel(_) => KernelVia::Tunnel,
        Via::Reject => KernelVia::Prohibit,
    }
}

/// Other nodes' carve-outs that no route names: without a route of their own they would follow the
/// block they were carved from, to a node that no longer has them.
fn unnamed_carve_outs(admitted: &AdmittedRoutes, topology: &Topology, holders: &Holders) -> Vec<IpNet> {
    let named = |block: &IpNet| admitted.routes().binary_search_by_key(block, |route| route.to).is_ok();
    let mut unnamed = Vec::new();
    for (index, node) in topology.nodes.iter().enumerate().filter(|(index, _)| *index != topology.local) {
        for block in &node.blocks {
            let around = block.supernet().and_then(|wider| holders.longest(&wider));
            if let Some((_, holder)) = around
                && holder != index
                && !named(&block.trunc())
            {
                unnamed.push(block.trunc());
            }
        }
    }
    unnamed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::admit;
    use crate::topology::{Node, Reach};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(name: &str, address: &str, blocks: &[&str]) -> Node {
        Node {
            name: name.to_owned(),
            reach: Reach::SameLink,
            addresses: vec![ip(address)],
            blocks: blocks.iter().map(|block| net(block)).collect(),
            ..Node::default()
        }
    }

    /// This node is `a`; `c` has one address of `b`'s block and one of `a`'s.
    fn topology() -> Topology {
        Topology {
            generation: 1,
            local: 0,
            nodes: vec![
                node("a", "192.168.1.1", &["10.244.1.0/24", "fd10:1::/64"]),
                node("b", "192.168.1.2", &["10.244.2.0/24", "fd10:2::/64"]),
                node("c", "192.168.1.3", &["10.244.3.0/24", "10.244.2.9/32", "10.244.1.9/32"]),
            ],
            cluster_prefixes: vec![net("10.244.0.0/16"), net("fd10::/16")],
            service_prefixes: vec![],
        }
    }

    fn local() -> LocalRouting {
        let gateways = BridgeGateways::of_blocks(&[net("10.244.1.0/24"), net("fd10:1::/64")]);
        LocalRouting { gateways, tunnel_mtu_bytes: Some(1_280), stranded: BTreeSet::new() }
    }

    fn route(to: &str, via: Via, otherwise: Option<Via>) -> Route {
        Route { to: net(to), via, otherwise }
    }

    fn table(routes: Vec<Route>, liveness: &Liveness, local: &LocalRouting) -> BTreeMap<IpNet, KernelRoute> {
        let admitted = admit(&topology(), routes, 1).unwrap();
        desired(&admitted, &topology(), liveness, local)
    }

    fn vias(table: &BTreeMap<IpNet, KernelRoute>) -> Vec<(String, KernelVia)> {
        table.values().map(|route| (route.to.to_string(), route.via)).collect()
    }

    fn all_alive() -> Liveness {
        Liveness {
            direct: [ip("192.168.1.2"), ip("192.168.1.3")].into(),
            tunnel: ["b".to_owned(), "c".to_owned()].into(),
        }
    }

    fn kernel_route(to: &str, via: KernelVia, source: Option<&str>, mtu_bytes: Option<u32>) -> KernelRoute {
        KernelRoute { to: net(to), via, source: source.map(ip), mtu_bytes }
    }

    #[test]
    fn each_decision_becomes_its_kernel_route() {
        let routes = vec![
            route("10.244.2.0/24", Via::Direct(ip("192.168.1.2")), Some(Via::Tunnel(1))),
            route("10.244.2.9/32", Via::Underlay, None),
            route("10.244.3.0/24", Via::Tunnel(2), None),
            route("10.244.9.0/24", Via::Reject, None),
            route("fd10:2::/64", Via::Tunnel(1), None),
        ];
        let table: Vec<KernelRoute> = table(routes, &all_alive(), &local()).into_values().collect();
        let (v4, v6) = (Some("10.244.1.1"), Some("fd10:1::1"));
        assert_eq!(
            table,
            [
                kernel_route("10.244.0.0/16", KernelVia::Prohibit, None, None),
                kernel_route("10.244.1.0/24", KernelVia::Bridge, v4, None),
                kernel_route("10.244.1.9/32", KernelVia::Prohibit, None, None),
                kernel_route("10.244.2.0/24", KernelVia::NextHop(ip("192.168.1.2")), v4, None),
                kernel_route("10.244.2.9/32", KernelVia::Throw, None, None),
                kernel_route("10.244.3.0/24", KernelVia::Tunnel, v4, Some(1_280)),
                kernel_route("10.244.9.0/24", KernelVia::Prohibit, None, None),
                kernel_route("fd10::/16", KernelVia::Prohibit, None, None),
                kernel_route("fd10:1::/64", KernelVia::Bridge, v6, None),
                kernel_route("fd10:2::/64", KernelVia::Tunnel, v6, Some(1_280)),
            ]
        );
    }

    #[test]
    fn own_blocks_go_to_the_bridge_and_pods_nobody_routes_are_refused_whatever_the_policy_says() {
        let expected = [
            ("10.244.0.0/16".to_owned(), KernelVia::Prohibit),
            ("10.244.1.0/24".to_owned(), KernelVia::Bridge),
            ("10.244.1.9/32".to_owned(), KernelVia::Prohibit),
            ("10.244.2.9/32".to_owned(), KernelVia::Prohibit),
            ("fd10::/16".to_owned(), KernelVia::Prohibit),
            ("fd10:1::/64".to_owned(), KernelVia::Bridge),
        ];
        let nothing = table(vec![], &all_alive(), &local());
        assert_eq!(vias(&nothing), expected);
        let hostile = vec![
            route("10.244.1.0/24", Via::Reject, None),
            route("10.244.1.0/25", Via::Underlay, None),
            route("fd10:1::/64", Via::Underlay, None),
        ];
        assert_eq!(vias(&table(hostile, &all_alive(), &local())), expected);
    }

    #[test]
    fn a_carve_out_without_a_route_does_not_follow_its_block_to_the_wrong_node() {
        let routes = vec![route("10.244.2.0/24", Via::Tunnel(1), None)];
        let table = table(routes, &all_alive(), &local());
        assert_eq!(table[&net("10.244.2.9/32")].via, KernelVia::Prohibit);
        assert_eq!(table[&net("10.244.2.0/24")].via, KernelVia::Tunnel);
    }

    #[test]
    fn pods_stranded_in_a_lost_block_stay_reachable_here() {
        let local = LocalRouting { stranded: [ip("10.244.2.7")].into(), ..local() };
        let table = table(vec![route("10.244.2.0/24", Via::Tunnel(1), None)], &all_alive(), &local);
        assert_eq!(
            table[&net("10.244.2.7/32")],
            kernel_route("10.244.2.7/32", KernelVia::Bridge, Some("10.244.1.1"), None)
        );
    }

    #[test]
    fn the_fallback_holds_exactly_while_only_it_is_alive() {
        let next_hop = Via::Direct(ip("192.168.1.2"));
        let route = route("10.244.2.0/24", next_hop, Some(Via::Tunnel(1)));
        let alive = |direct: bool, tunnel: bool| Liveness {
            direct: if direct { [ip("192.168.1.2")].into() } else { BTreeSet::new() },
            tunnel: if tunnel { ["b".to_owned()].into() } else { BTreeSet::new() },
        };
        let got = [(true, true), (true, false), (false, true), (false, false)]
            .map(|(direct, tunnel)| in_force(&route, &topology(), &alive(direct, tunnel)));
        assert_eq!(got, [next_hop, next_hop, Via::Tunnel(1), next_hop]);
    }

    #[test]
    fn ways_that_cannot_die_are_never_left() {
        for via in [Via::Local, Via::Underlay, Via::Reject] {
            let route = route("10.244.1.0/24", via, Some(Via::Tunnel(1)));
            assert_eq!(in_force(&route, &topology(), &Liveness::default()), via);
        }
    }

    #[test]
    fn new_routes_are_set_before_old_ones_go() {
        let keep = kernel_route("10.244.1.0/24", KernelVia::Bridge, None, None);
        let old = kernel_route("10.244.2.0/24", KernelVia::Tunnel, None, Some(1_280));
        let new = kernel_route("10.244.2.0/24", KernelVia::NextHop(ip("192.168.1.2")), None, None);
        let gone = kernel_route("10.244.0.0/24", KernelVia::Tunnel, None, None);
        let added = kernel_route("10.244.9.0/24", KernelVia::Tunnel, None, None);
        let desired: BTreeMap<IpNet, KernelRoute> =
            [keep, new, added].into_iter().map(|route| (route.to, route)).collect();
        assert_eq!(
            diff(&[gone, keep, old], &desired).steps,
            [
                Step::SetRoute { route: new, before: Some(old) },
                Step::SetRoute { route: added, before: None },
                Step::RemoveRoute { route: gone },
            ]
        );
        let current: Vec<KernelRoute> = desired.values().copied().collect();
        assert_eq!(diff(&current, &desired), Plan::default());
    }

    #[test]
    fn the_withdrawal_share_counts_what_no_longer_forwards() {
        let table = |vias: [KernelVia; 4]| -> BTreeMap<IpNet, KernelRoute> {
            vias.into_iter()
                .enumerate()
                .map(|(index, via)| {
                    let route = kernel_route(&format!("10.244.{index}.0/24"), via, None, None);
                    (route.to, route)
                })
                .collect()
        };
        let (tunnel, prohibit) = (KernelVia::Tunnel, KernelVia::Prohibit);
        let old = table([tunnel, tunnel, KernelVia::Throw, prohibit]);
        assert_eq!(withdrawal_share(&old, &old), 0);
        assert_eq!(withdrawal_share(&old, &table([tunnel, prohibit, prohibit, prohibit])), 66);
        assert_eq!(withdrawal_share(&old, &BTreeMap::new()), 100);
        assert_eq!(withdrawal_share(&BTreeMap::new(), &old), 0);
    }
}
