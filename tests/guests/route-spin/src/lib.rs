//! A test guest: right until its moment, then it never answers.

use culvert_guest_parts::{Trigger, tunnel_all};
use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::route::{Route, RoutePolicy};
use culvert_policy_sdk::topology::Topology;

/// The policy, configured; see [`Trigger`] for the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpin(Trigger);

impl RoutePolicy for RouteSpin {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        let policy = Self(Trigger::read(settings)?);
        Ok((policy, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn plan(&self, topology: &Topology) -> Result<Vec<Route>, PolicyError> {
        while self.0.is_due(std::hint::black_box(topology)) {}
        Ok(tunnel_all(topology))
    }
}

culvert_policy_sdk::export_route!(RouteSpin);

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(settings: &str) -> Result<Vec<Route>, PolicyError> {
        RoutePolicy::plan(&RouteSpin::configure(settings)?.0, &Topology { generation: 1, ..Topology::default() })
    }

    #[test]
    fn it_behaves_until_its_moment() {
        assert_eq!(plan(r#"{"afterGeneration": 1}"#), Ok(Vec::new()));
    }
}
