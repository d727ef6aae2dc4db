//! A test guest: right until its moment, then it asks for 4 GiB of memory, 1 MiB at a time.

use culvert_guest_parts::{Trigger, tunnel_all};
use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::route::{Route, RoutePolicy};
use culvert_policy_sdk::topology::Topology;

/// The policy, configured; see [`Trigger`] for the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteHoard(Trigger);

impl RoutePolicy for RouteHoard {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        let policy = Self(Trigger::read(settings)?);
        Ok((policy, Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn plan(&self, topology: &Topology) -> Result<Vec<Route>, PolicyError> {
        if self.0.is_due(topology) {
            hoard(WANTED_MIB);
        }
        Ok(tunnel_all(topology))
    }
}

/// **Units** MiB. All that a 32-bit memory can have.
const WANTED_MIB: usize = 4_096;

/// Fills so much memory, and tells how many bytes it holds in the end.
fn hoard(mebibytes: usize) -> usize {
    let held: Vec<Vec<u8>> = (0..mebibytes).map(|_| std::hint::black_box(vec![0xff; 1 << 20])).collect();
    held.iter().map(Vec::len).sum()
}

culvert_policy_sdk::export_route!(RouteHoard);

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(settings: &str) -> Result<Vec<Route>, PolicyError> {
        RoutePolicy::plan(&RouteHoard::configure(settings)?.0, &Topology { generation: 1, ..Topology::default() })
    }

    #[test]
    fn it_behaves_until_its_moment() {
        assert_eq!(plan(r#"{"afterGeneration": 1}"#), Ok(Vec::new()));
    }

    #[test]
    fn it_fills_all_memory_it_is_given() {
        assert_eq!(hoard(2), 2 << 20);
    }
}
