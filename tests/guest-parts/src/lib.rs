//! What the faulty test guests share: a table that is right, and the moment from which they misbehave.

use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::route::{Route, Via};
use culvert_policy_sdk::settings::Settings;
use culvert_policy_sdk::topology::Topology;

/// When a guest begins to misbehave, so that it can pass the gate first.
///
/// # Settings
/// `afterGeneration` and `aboveNodes`, whole numbers; the first one exceeded counts. Without either the guest behaves
/// for ever; `{"afterGeneration": 0}` makes it misbehave at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    after_generation: Option<u64>,
    above_nodes: Option<u64>,
}

impl Trigger {
    /// Reads the whole settings.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] when there is anything else in them.
    pub fn read(settings: &str) -> Result<Self, PolicyError> {
        let mut settings = Settings::parse(settings)?;
        let trigger = Self {
            after_generation: settings.whole_number("afterGeneration")?,
            above_nodes: settings.whole_number("aboveNodes")?,
        };
        settings.finish()?;
        Ok(trigger)
    }

    /// Whether the moment has come.
    #[must_use]
    pub fn is_due(&self, topology: &Topology) -> bool {
        let nodes = topology.nodes.len() as u64;
        self.after_generation.is_some_and(|last| topology.generation > last)
            || self.above_nodes.is_some_and(|most| nodes > most)
    }
}

/// Own blocks to the bridge, everything else through the tunnel.
#[must_use]
pub fn tunnel_all(topology: &Topology) -> Vec<Route> {
    let own = topology.local_node().into_iter().flat_map(|local| &local.blocks);
    let peers = topology.peers().flat_map(|(index, peer)| peer.blocks.iter().map(move |block| (index, block)));
    let own = own.map(|block| Route::new(*block, Via::Local));
    own.chain(peers.map(|(index, block)| Route::new(*block, Via::Tunnel(index)))).collect()
}

#[cfg(test)]
mod tests {
    use culvert_policy_sdk::topology::Node;

    use super::*;

    fn topology(generation: u64, blocks: &[&str]) -> Topology {
        let node = |block: &&str| Node { blocks: vec![block.parse().unwrap()], ..Node::default() };
        Topology { generation, local: 0, nodes: blocks.iter().map(node).collect(), ..Topology::default() }
    }

    #[test]
    fn the_moment_comes_with_the_first_number_exceeded() {
        let settings = r#"{"afterGeneration": 5, "aboveNodes": 1}"#;
        let trigger = Trigger::read(settings).unwrap();
        assert!(!trigger.is_due(&topology(5, &["10.244.1.0/24"])));
        assert!(trigger.is_due(&topology(6, &["10.244.1.0/24"])));
        assert!(trigger.is_due(&topology(5, &["10.244.1.0/24", "10.244.2.0/24"])));
    }

    #[test]
    fn without_settings_it_never_comes() {
        assert!(!Trigger::read("{}").unwrap().is_due(&topology(u64::MAX, &["10.244.1.0/24"])));
    }

    #[test]
    fn other_settings_are_refused() {
        assert_eq!(
            Trigger::read(r#"{"after": 1}"#),
            Err(PolicyError::invalid_settings("unknown key `after`; known keys: afterGeneration, aboveNodes"))
        );
    }

    #[test]
    fn own_blocks_are_local_and_the_rest_goes_through_the_tunnel() {
        assert_eq!(
            tunnel_all(&topology(1, &["10.244.1.0/24", "10.244.2.0/24"])),
            [
                Route::new("10.244.1.0/24".parse().unwrap(), Via::Local),
                Route::new("10.244.2.0/24".parse().unwrap(), Via::Tunnel(1)),
            ]
        );
    }
}
