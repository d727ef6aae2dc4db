//! What a route policy decides, and the door its answer passes.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address::{Family, overlap};
use crate::topology::{Holders, Reach, Topology};

/// How packets for a prefix leave this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// Onto this node's own bridge.
    Local,
    /// Plain IP forwarding to this next hop, which must be on-link.
    Direct(IpAddr),
    /// Left to the routes that are there.
    Underlay,
    /// Through the tunnel to the node at this position of `topology.nodes`.
    Tunnel(usize),
    /// Refused, with ICMP "administratively prohibited".
    Reject,
}

/// One route of a policy's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination prefix.
    pub to: IpNet,
    /// How packets leave.
    pub via: Via,
    /// What the host does by itself while `via` is dead.
    pub otherwise: Option<Via>,
}

/// A policy's answer that passed [`admit`]. There is no other way to make one, so whoever takes it
/// by type cannot be handed an unchecked answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmittedRoutes {
    generation: u64,
    routes: Vec<Route>,
}

impl AdmittedRoutes {
    /// The generation of the topology the answer was given to.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The routes, sorted by destination, no destination twice.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

/// Why an answer was refused as a whole. The routes in force stay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteRefusal {
    /// The topology moved on while the policy was thinking.
    #[error("the answer is for generation {asked}, but generation {live} is in force: the policy is asked again")]
    Superseded {
        /// The generation the policy was asked about.
        asked: u64,
        /// The generation in force.
        live: u64,
    },
    /// More routes than [`route_limit`] allows.
    #[error("{count} routes are more than the {limit} allowed for {nodes} nodes: answer fewer, wider routes")]
    TooMany {
        /// How many were answered.
        count: usize,
        /// How many are allowed.
        limit: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A destination with host bits set.
    #[error("route {to} has host bits set: answer {network} instead")]
    HostBits {
        /// The destination.
        to: IpNet,
        /// The prefix that was probably meant.
        network: IpNet,
    },
    /// A destination in a Service range.
    #[error("route {to} reaches into the service prefix {service}, which is never routed: leave it out")]
    Service {
        /// The destination.
        to: IpNet,
        /// The Service range.
        service: IpNet,
    },
    /// A destination that is not inside any cluster prefix.
    #[error("route {to} leaves the cluster prefixes {}: route pod blocks only", list(cluster))]
    OutsideCluster {
        /// The destination.
        to: IpNet,
        /// The cluster prefixes.
        cluster: Vec<IpNet>,
    },
    /// A destination named twice.
    #[error("two routes name {to}: answer one")]
    Repeated {
        /// The destination.
        to: IpNet,
    },
    /// A node index beyond the topology.
    #[error("route {to} names node {index}, but there are only {nodes} nodes: use a position in topology.nodes")]
    UnknownNode {
        /// The destination.
        to: IpNet,
        /// The index.
        index: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A tunnel to the node that asks.
    #[error("route {to} tunnels to this node {node:?} itself: use local for its own blocks")]
    TunnelToSelf {
        /// The destination.
        to: IpNet,
        /// This node's name.
        node: String,
    },
    /// A tunnel to a node that does not hold the destination.
    #[error("route {to} tunnels to node {node:?}, but {} holds it: nodes do not forward for others", holder(held_by))]
    NotHolder {
        /// The destination.
        to: IpNet,
        /// The node named by the route.
        node: String,
        /// The node that holds the destination.
        held_by: Option<String>,
    },
    /// `local` for a block this node does not hold.
    #[error("route {to} is local, but {} holds it, not this node {node:?}: use direct or tunnel", holder(held_by))]
    LocalNotHeld {
        /// The destination.
        to: IpNet,
        /// This node's name.
        node: String,
        /// The node that holds the destination.
        held_by: Option<String>,
    },
    /// A next hop of the other IP version.
    #[error("route {to} goes by next hop {next_hop} of the other IP version: use an address of the same version")]
    NextHopFamily {
        /// The destination.
        to: IpNet,
        /// The next hop.
        next_hop: IpAddr,
    },
    /// A next hop that is not a verified on-link address of the destination's holder.
    #[error(
        "route {to} goes by next hop {next_hop}, which is no verified on-link address of its holder ({}): use direct only for a node with reach same-link, by one of its addresses",
        holder(held_by)
    )]
    NextHopNotOnLink {
        /// The destination.
        to: IpNet,
        /// The next hop.
        next_hop: IpAddr,
        /// The node that holds the destination.
        held_by: Option<String>,
    },
}

/// The most routes a policy may answer.
///
/// One route a block, a few blocks a node, both families, and room for prefixes that belong to
/// nobody; beyond that the kernel's table, not the policy, would be what limits a node.
#[must_use]
pub fn route_limit(nodes: usize) -> usize {
    nodes.saturating_mul(4).saturating_add(64)
}

/// Admits a policy's answer to `topology`, or refuses all of it.
///
/// `live_generation` is the generation in force now; an answer to an older one is dropped.
///
/// # Errors
/// The first violation found, naming the route at fault and who holds its destination.
pub fn admit(
    topology: &Topology,
    mut routes: Vec<Route>,
    live_generation: u64,
) -> Result<AdmittedRoutes, RouteRefusal> {
    if topology.generation != live_generation {
        return Err(RouteRefusal::Superseded { asked: topology.generation, live: live_generation });
    }
    let limit = route_limit(topology.nodes.len());
    if routes.len() > limit {
        return Err(RouteRefusal::TooMany { count: routes.len(), limit, nodes: topology.nodes.len() });
    }
    let door = Door { topology, holders: Holders::new(topology) };
    for route in &routes {
        door.admit_destination(route.to)?;
        door.admit_via(route.to, route.via)?;
        if let Some(otherwise) = route.otherwise {
            door.admit_via(route.to, otherwise)?;
        }
    }
    routes.sort_by_key(|route| route.to);
    if let Some(pair) = routes.windows(2).find(|pair| pair[0].to == pair[1].to) {
        return Err(RouteRefusal::Repeated { to: pair[0].to });
    }
    Ok(AdmittedRoutes { generation: topology.generation, routes })
}

/// What every route is checked against.
struct Door<'a> {
    topology: &'a Topology,
    holders: Holders,
}

impl Door<'_> {
    fn admit_destination(&self, to: IpNet) -> Result<(), RouteRefusal> {
        if to != to.trunc() {
            return Err(RouteRefusal::HostBits { to, network: to.trunc() });
        }
        if let Some(service) = self.topology.service_prefixes.iter().find(|service| overlap(service, &to)) {
            return Err(RouteRefusal::Service { to, service: *service });
        }
        if !self.topology.cluster_prefixes.iter().any(|cluster| cluster.contains(&to)) {
            return Err(RouteRefusal::OutsideCluster { to, cluster: self.topology.cluster_prefixes.clone() });
        }
        Ok(())
    }

    fn admit_via(&self, to: IpNet, via: Via) -> Result<(), RouteRefusal> {
        match via {
            Via::Local => self.admit_local(to),
            Via::Direct(next_hop) => self.admit_direct(to, next_hop),
            Via::Tunnel(index) => self.admit_tunnel(to, index),
            Via::Underlay | Via::Reject => Ok(()),
        }
    }

    fn admit_local(&self, to: IpNet) -> Result<(), RouteRefusal> {
        if self.holders.holder_of(&to) == Some(self.topology.local) {
            return Ok(());
        }
        Err(RouteRefusal::LocalNotHeld { to, node: self.name(self.topology.local), held_by: self.holder_name(to) })
    }

    fn admit_direct(&self, to: IpNet, next_hop: IpAddr) -> Result<(), RouteRefusal> {
        if Family::of(next_hop) != Family::of_prefix(&to) {
            return Err(RouteRefusal::NextHopFamily { to, next_hop });
        }
        let holder = self.holders.holder_of(&to).filter(|holder| *holder != self.topology.local);
        let verified = holder
            .and_then(|holder| self.topology.nodes.get(holder))
            .is_some_and(|node| node.reach == Reach::SameLink && node.addresses.contains(&next_hop));
        if verified {
            return Ok(());
        }
        Err(RouteRefusal::NextHopNotOnLink { to, next_hop, held_by: self.holder_name(to) })
    }

    fn admit_tunnel(&self, to: IpNet, index: usize) -> Result<(), RouteRefusal> {
        let nodes = self.topology.nodes.len();
        if index >= nodes {
            return Err(RouteRefusal::UnknownNode { to, index, nodes });
        }
        if index == self.topology.local {
            return Err(RouteRefusal::TunnelToSelf { to, node: self.name(index) });
        }
        if self.holders.holder_of(&to) != Some(index) {
            return Err(RouteRefusal::NotHolder { to, node: self.name(index), held_by: self.holder_name(to) });
        }
        Ok(())
    }

    fn name(&self, index: usize) -> String {
        self.topology.nodes.get(index).map(|node| node.name.clone()).unwrap_or_default()
    }

    fn holder_name(&self, to: IpNet) -> Option<String> {
        self.holders.holder_of(&to).map(|holder| self.name(holder))
    }
}

fn holder(held_by: &Option<String>) -> String {
    held_by.as_ref().map_or_else(|| "no node".to_owned(), |name| format!("node {name:?}"))
}

fn list(prefixes: &[IpNet]) -> String {
    let names: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Node;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(name: &str, reach: Reach, addresses: &[&str], blocks: &[&str]) -> Node {
        Node {
            name: name.to_owned(),
            reach,
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            blocks: blocks.iter().map(|block| net(block)).collect(),
            ..Node::default()
        }
    }

    /// This node is `a`; `b` is its neighbour, `c` is far away and has one address of `b`'s block.
    fn topology() -> Topology {
        Topology {
            generation: 7,
            local: 0,
            nodes: vec![
                node("a", Reach::Unknown, &["192.168.1.1"], &["10.244.1.0/24", "fd10:1::/64"]),
                node("b", Reach::SameLink, &["192.168.1.2", "fd00::2"], &["10.244.2.0/24", "fd10:2::/64"]),
                node("c", Reach::TunnelOnly, &["192.168.1.3"], &["10.244.3.0/24", "10.244.2.9/32"]),
            ],
            cluster_prefixes: vec![net("10.244.0.0/16"), net("fd10::/16")],
            service_prefixes: vec![net("10.96.0.0/12"), net("10.244.255.0/24")],
        }
    }

    fn route(to: &str, via: Via) -> Route {
        Route { to: net(to), via, otherwise: None }
    }

    fn refusal(route: Route) -> RouteRefusal {
        admit(&topology(), vec![route], 7).unwrap_err()
    }

    #[test]
    fn a_good_answer_is_admitted_sorted_by_destination() {
        let local = route("10.244.1.0/24", Via::Local);
        let direct =
            Route { to: net("10.244.2.0/24"), via: Via::Direct(ip("192.168.1.2")), otherwise: Some(Via::Tunnel(1)) };
        let carve_out = route("10.244.2.9/32", Via::Tunnel(2));
        let half = route("10.244.3.128/25", Via::Tunnel(2));
        let v6 = route("fd10:2::/64", Via::Direct(ip("fd00::2")));
        let rest = route("10.244.0.0/17", Via::Reject);
        let admitted = admit(&topology(), vec![v6, half, carve_out, direct, local, rest], 7).unwrap();
        assert_eq!(admitted.routes(), [rest, local, direct, carve_out, half, v6]);
        assert_eq!(admitted.generation(), 7);
    }

    #[test]
    fn an_answer_for_a_superseded_generation_is_dropped() {
        assert_eq!(admit(&topology(), vec![], 8), Err(RouteRefusal::Superseded { asked: 7, live: 8 }));
    }

    #[test]
    fn one_route_more_than_the_limit_refuses_the_answer() {
        let many =
            |count: u8| (0..count).map(|host| route(&format!("10.244.9.{host}/32"), Via::Reject)).collect::<Vec<_>>();
        assert_eq!(admit(&topology(), many(76), 7).unwrap().routes().len(), 76);
        assert_eq!(admit(&topology(), many(77), 7), Err(RouteRefusal::TooMany { count: 77, limit: 76, nodes: 3 }));
    }

    #[test]
    fn host_bits_are_refused_with_the_prefix_that_was_meant() {
        assert_eq!(
            refusal(route("10.244.2.1/24", Via::Tunnel(1))),
            RouteRefusal::HostBits { to: net("10.244.2.1/24"), network: net("10.244.2.0/24") }
        );
    }

    #[test]
    fn destinations_outside_the_cluster_prefixes_are_refused() {
        let cluster = vec![net("10.244.0.0/16"), net("fd10::/16")];
        for to in ["10.245.0.0/24", "0.0.0.0/0", "10.244.0.0/15", "::/0", "192.168.1.0/24"] {
            let expected = if to == "0.0.0.0/0" {
                RouteRefusal::Service { to: net(to), service: net("10.96.0.0/12") }
            } else {
                let cluster = cluster.clone();
                match to {
                    "10.244.0.0/15" => RouteRefusal::Service { to: net(to), service: net("10.244.255.0/24") },
                    _ => RouteRefusal::OutsideCluster { to: net(to), cluster },
                }
            };
            assert_eq!(refusal(route(to, Via::Reject)), expected);
        }
    }

    #[test]
    fn service_prefixes_are_never_routed() {
        let (to, service) = (net("10.244.255.16/28"), net("10.244.255.0/24"));
        assert_eq!(refusal(route("10.244.255.16/28", Via::Underlay)), RouteRefusal::Service { to, service });
    }

    #[test]
    fn naming_a_destination_twice_is_refused() {
        let twice = vec![route("10.244.2.0/24", Via::Tunnel(1)), route("10.244.2.0/24", Via::Reject)];
        assert_eq!(admit(&topology(), twice, 7), Err(RouteRefusal::Repeated { to: net("10.244.2.0/24") }));
    }

    #[test]
    fn a_tunnel_leads_to_the_node_that_holds_the_prefix_and_to_no_other() {
        let to = net("10.244.2.0/24");
        assert_eq!(
            refusal(route("10.244.2.0/24", Via::Tunnel(9))),
            RouteRefusal::UnknownNode { to, index: 9, nodes: 3 }
        );
        assert_eq!(
            refusal(route("10.244.2.0/24", Via::Tunnel(0))),
            RouteRefusal::TunnelToSelf { to, node: "a".to_owned() }
        );
        let not_holder = |to: &str, node: &str, held_by: Option<&str>| RouteRefusal::NotHolder {
            to: net(to),
            node: node.to_owned(),
            held_by: held_by.map(str::to_owned),
        };
        assert_eq!(refusal(route("10.244.2.0/24", Via::Tunnel(2))), not_holder("10.244.2.0/24", "c", Some("b")));
        assert_eq!(refusal(route("10.244.2.9/32", Via::Tunnel(1))), not_holder("10.244.2.9/32", "b", Some("c")));
        assert_eq!(refusal(route("10.244.9.0/24", Via::Tunnel(1))), not_holder("10.244.9.0/24", "b", None));
        assert_eq!(
            refusal(route("10.244.0.0/16", Via::Tunnel(1))),
            RouteRefusal::Service { to: net("10.244.0.0/16"), service: net("10.244.255.0/24") }
        );
    }

    #[test]
    fn local_is_for_blocks_of_this_node_only() {
        let refused = |to: &str, held_by: Option<&str>| RouteRefusal::LocalNotHeld {
            to: net(to),
            node: "a".to_owned(),
            held_by: held_by.map(str::to_owned),
        };
        assert_eq!(refusal(route("10.244.2.0/24", Via::Local)), refused("10.244.2.0/24", Some("b")));
        assert_eq!(refusal(route("10.244.9.0/24", Via::Local)), refused("10.244.9.0/24", None));
    }

    #[test]
    fn a_next_hop_is_a_verified_on_link_address_of_the_holder() {
        let refused = |to: &str, next_hop: &str, held_by: Option<&str>| RouteRefusal::NextHopNotOnLink {
            to: net(to),
            next_hop: ip(next_hop),
            held_by: held_by.map(str::to_owned),
        };
        for (to, next_hop, held_by) in [
            // Not an address of the holder.
            ("10.244.2.0/24", "192.168.1.9", Some("b")),
            // The holder's address, but it was not verified on the link.
            ("10.244.3.0/24", "192.168.1.3", Some("c")),
            // A neighbour, but not the holder.
            ("10.244.3.0/24", "192.168.1.2", Some("c")),
            ("10.244.2.9/32", "192.168.1.2", Some("c")),
            // This node itself.
            ("10.244.1.0/24", "192.168.1.1", Some("a")),
            ("10.244.9.0/24", "192.168.1.2", None),
        ] {
            assert_eq!(refusal(route(to, Via::Direct(ip(next_hop)))), refused(to, next_hop, held_by));
        }
        assert_eq!(
            refusal(route("10.244.2.0/24", Via::Direct(ip("fd00::2")))),
            RouteRefusal::NextHopFamily { to: net("10.244.2.0/24"), next_hop: ip("fd00::2") }
        );
    }

    #[test]
    fn the_fallback_passes_the_same_door() {
        let route =
            Route { to: net("10.244.2.0/24"), via: Via::Direct(ip("192.168.1.2")), otherwise: Some(Via::Tunnel(2)) };
        assert_eq!(
            refusal(route),
            RouteRefusal::NotHolder { to: net("10.244.2.0/24"), node: "c".to_owned(), held_by: Some("b".to_owned()) }
        );
    }

    #[test]
    fn a_refusal_names_the_route_the_holder_and_the_remedy() {
        assert_eq!(
            refusal(route("10.244.2.0/24", Via::Tunnel(2))).to_string(),
            "route 10.244.2.0/24 tunnels to node \"c\", but node \"b\" holds it: nodes do not forward for others"
        );
        assert_eq!(
            refusal(route("10.9.0.0/16", Via::Reject)).to_string(),
            "route 10.9.0.0/16 leaves the cluster prefixes 10.244.0.0/16, fd10::/16: route pod blocks only"
        );
    }

    #[test]
    fn the_index_of_holders_agrees_with_the_walk_over_nodes() {
        let topology = topology();
        let holders = Holders::new(&topology);
        for to in ["10.244.2.0/24", "10.244.2.9/32", "10.244.2.8/31", "10.244.0.0/16", "fd10:2::1/128", "10.9.0.0/24"] {
            assert_eq!(holders.holder_of(&net(to)), topology.holder_of(&net(to)), "{to}");
        }
    }
}
