//! A test guest: own blocks to the bridge, everything else through the tunnel, the same link too. No settings.

use culvert_guest_parts::tunnel_all;
use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::route::{Route, RoutePolicy};
use culvert_policy_sdk::settings;
use culvert_policy_sdk::topology::Topology;

/// The policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTunnelAll;

impl RoutePolicy for RouteTunnelAll {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        settings::none(settings)?;
        Ok((Self, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn plan(&self, topology: &Topology) -> Result<Vec<Route>, PolicyError> {
        Ok(tunnel_all(topology))
    }
}

culvert_policy_sdk::export_route!(RouteTunnelAll);

#[cfg(test)]
mod tests {
    use culvert_policy_sdk::route::Via;
    use culvert_policy_sdk::topology::{Node, Reach};

    use super::*;

    #[test]
    fn a_peer_on_the_same_link_is_reached_through_the_tunnel() {
        let peer = Node {
            reach: Reach::SameLink,
            addresses: vec!["192.0.2.2".parse().unwrap()],
            blocks: vec!["10.244.2.0/24".parse().unwrap()],
            ..Node::default()
        };
        let topology = Topology { nodes: vec![Node::default(), peer], ..Topology::default() };
        assert_eq!(
            RouteTunnelAll.plan(&topology),
            Ok(vec![Route::new("10.244.2.0/24".parse().unwrap(), Via::Tunnel(1))])
        );
    }

    #[test]
    fn there_are_no_settings() {
        assert_eq!(
            RouteTunnelAll::configure("{}"),
            Ok((RouteTunnelAll, Description::new("route-tunnel-all", "0.1.0")))
        );
        assert_eq!(
            RouteTunnelAll::configure("[]"),
            Err(PolicyError::invalid_settings("this policy has no settings: leave them out, or write {}"))
        );
    }
}
