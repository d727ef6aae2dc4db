//! The shipped route policy: the nearest way to each pod block.
//!
//! For every block of the cluster, the first that applies:
//!
//! | the block's node | way | while that is dead |
//! |---|---|---|
//! | is this node | the bridge | |
//! | is on the same link and has an on-link address of the block's family | direct, to the first such address | tunnel |
//! | shares a prefix of `cloudCIDR` or `edgeCIDR` with a block of this node | the underlay's routes | |
//! | is any other | tunnel | |
//!
//! A node that is not ready keeps its routes: a silent agent says nothing about the pods beside it, and the host moves
//! to the tunnel by itself where a next hop is dead.
//!
//! # Settings
//! ```json
//! { "cloudCIDR": ["10.244.0.0/18"], "edgeCIDR": ["10.244.64.0/24", "10.244.65.0/24"] }
//! ```
//! Both are lists of prefixes, empty when absent, with EdgeMesh's names and meaning: two pods whose addresses lie in the same prefix
//! already reach each other plainly, so the tunnel stays out of their way.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::ipnet::IpNet;
use culvert_policy_sdk::prefix::covers;
use culvert_policy_sdk::route::{Route, RoutePolicy, Via};
use culvert_policy_sdk::settings::Settings;
use culvert_policy_sdk::topology::{Family, Node, Reach, Topology};

/// The policy, configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteSites {
    /// Prefixes inside which pods reach each other plainly.
    plain: Vec<IpNet>,
}

impl RoutePolicy for RouteSites {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        let mut settings = Settings::parse(settings)?;
        let mut plain = settings.prefixes("cloudCIDR")?;
        plain.extend(settings.prefixes("edgeCIDR")?);
        settings.finish()?;
        Ok((Self { plain }, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn plan(&self, topology: &Topology) -> Result<Vec<Route>, PolicyError> {
        let Some(local) = topology.local_node() else {
            return Err(PolicyError::internal("the topology lacks the node that asks"));
        };
        let plain = self.plain_around(local);
        let mut routes: Vec<Route> = local.blocks.iter().map(|block| Route::new(*block, Via::Local)).collect();
        for (index, peer) in topology.peers() {
            routes.extend(peer.blocks.iter().map(|block| route_to(index, peer, *block, &plain)));
        }
        routes.retain(|route| topology.holds(&route.to));
        Ok(first_of_each_prefix(&routes))
    }
}

impl RouteSites {
    /// The prefixes inside which pods of this node are.
    fn plain_around(&self, local: &Node) -> Vec<IpNet> {
        let around = |prefix: &&IpNet| local.blocks.iter().any(|block| covers(prefix, block));
        self.plain.iter().filter(around).copied().collect()
    }
}

fn route_to(index: usize, peer: &Node, block: IpNet, plain: &[IpNet]) -> Route {
    if let Some(next_hop) = on_link_address(peer, Family::of(&block)) {
        return Route::new(block, Via::Direct(next_hop)).or(Via::Tunnel(index));
    }
    if plain.iter().any(|prefix| covers(prefix, &block)) {
        return Route::new(block, Via::Underlay);
    }
    Route::new(block, Via::Tunnel(index))
}

fn on_link_address(peer: &Node, family: Family) -> Option<IpAddr> {
    match peer.reach {
        Reach::SameLink => peer.addresses.iter().copied().find(|address| Family::of_address(address) == family),
        Reach::Routed | Reach::TunnelOnly | Reach::Unknown => None,
    }
}

/// A prefix that two nodes hold for a moment would make the host refuse the whole table, for all nodes. The first
/// keeps it: this node before its peers, peers by name. The heap is a tenth of the code of a sort.
fn first_of_each_prefix(routes: &[Route]) -> Vec<Route> {
    let mut by_prefix: BinaryHeap<Reverse<(IpNet, usize)>> =
        routes.iter().enumerate().map(|(position, route)| Reverse((route.to, position))).collect();
    let mut first = Vec::with_capacity(routes.len());
    let mut before = None;
    while let Some(Reverse((prefix, position))) = by_prefix.pop() {
        if before != Some(prefix) {
            first.extend(routes.get(position));
        }
        before = Some(prefix);
    }
    first
}

culvert_policy_sdk::export_route!(RouteSites);

#[cfg(test)]
mod tests;
