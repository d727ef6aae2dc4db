//! A test guest: right until its moment, then it panics, which ends the instance with a trap.

use culvert_guest_parts::{Trigger, tunnel_all};
use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::route::{Route, RoutePolicy};
use culvert_policy_sdk::topology::Topology;

/// The policy, configured; see [`Trigger`] for the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTrapLater(Trigger);

impl RoutePolicy for RouteTrapLater {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        let policy = Self(Trigger::read(settings)?);
        Ok((policy, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn plan(&self, topology: &Topology) -> Result<Vec<Route>, PolicyError> {
        assert!(!self.0.is_due(topology), "the moment to trap has come at generation {}", topology.generation);
        Ok(tunnel_all(topology))
    }
}

culvert_policy_sdk::export_route!(RouteTrapLater);

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(settings: &str) -> Result<Vec<Route>, PolicyError> {
        RoutePolicy::plan(&RouteTrapLater::configure(settings)?.0, &Topology { generation: 1, ..Topology::default() })
    }

    #[test]
    fn it_behaves_until_its_moment() {
        assert_eq!(plan(r#"{"afterGeneration": 1}"#), Ok(Vec::new()));
    }

    #[test]
    #[should_panic(expected = "the moment to trap has come at generation 1")]
    fn it_panics_from_its_moment_on() {
        drop(plan(r#"{"afterGeneration": 0}"#));
    }
}
