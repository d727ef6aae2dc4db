//! A test guest: right until its moment, then it claims the blocks of its peers as its own and routes a prefix outside
//! the cluster.

use std::net::Ipv4Addr;

use culvert_guest_parts::{Trigger, tunnel_all};
use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::ipnet::{IpNet, Ipv4Net};
use culvert_policy_sdk::route::{Route, RoutePolicy, Via};
use culvert_policy_sdk::topology::Topology;

/// The policy, configured; see [`Trigger`] for the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteForeignPrefix(Trigger);

impl RoutePolicy for RouteForeignPrefix {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        let policy = Self(Trigger::read(settings)?);
        Ok((policy, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn plan(&self, topology: &Topology) -> Result<Vec<Route>, PolicyError> {
        let mut routes = tunnel_all(topology);
        if self.0.is_due(topology) {
            routes.iter_mut().for_each(|route| route.via = Via::Local);
            routes.push(Route::new(outside(), Via::Local));
        }
        Ok(routes)
    }
}

/// A prefix for documentation, which no cluster has.
///
/// **Source** RFC 5737.
fn outside() -> IpNet {
    IpNet::from(Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24))
}

culvert_policy_sdk::export_route!(RouteForeignPrefix);

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(settings: &str) -> Result<Vec<Route>, PolicyError> {
        RoutePolicy::plan(
            &RouteForeignPrefix::configure(settings)?.0,
            &Topology { generation: 1, ..Topology::default() },
        )
    }

    #[test]
    fn it_behaves_until_its_moment() {
        assert_eq!(plan(r#"{"afterGeneration": 1}"#), Ok(Vec::new()));
    }

    #[test]
    fn it_routes_what_is_not_its_own_from_its_moment_on() {
        assert_eq!(
            plan(r#"{"afterGeneration": 0}"#),
            Ok(vec![Route::new("192.0.2.0/24".parse().unwrap(), Via::Local)])
        );
    }
}
