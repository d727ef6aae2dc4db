//! The blocks of the local node, and what it may still do with each.
//!
//! ```text
//! held ──(ledger names another)──> lost ──(last pod ended)──> forgotten
//!   ^──────(ledger names us again)──┘
//! ```

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Claim, Ledger, Standing};
use crate::address::Family;
use crate::membership::PeerId;

/// One block this node has, or had and still has pods in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldBlock {
    /// It is ours.
    Held(Standing),
    /// It is not ours any more: no new address comes from it.
    Lost {
        /// The node that has it now; `None` when it was taken back and nobody has it.
        winner: Option<String>,
    },
}

/// A change that operators should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldEvent {
    /// A block is ours.
    Gained {
        /// The block.
        block: IpNet,
        /// Final or provisional.
        standing: Standing,
    },
    /// A provisional block is ours for good.
    Settled {
        /// The block.
        block: IpNet,
    },
    /// A block is lost.
    Lost {
        /// The block.
        block: IpNet,
        /// The node that has it now.
        winner: Option<String>,
    },
}

/// The local node's blocks. Persisted, so that a lost block stays lost over a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBlocks {
    blocks: BTreeMap<IpNet, HeldBlock>,
}

impl HeldBlocks {
    /// Follows the ledger.
    pub fn refresh(&mut self, ledger: &Ledger, local: &PeerId) -> Vec<HeldEvent> {
        let mut now: BTreeMap<IpNet, HeldBlock> =
            ledger.held_by(local).map(|claim| (claim.block, HeldBlock::Held(claim.standing))).collect();
        for block in self.blocks.keys() {
            let winner = || ledger.claim(block).map(|claim: Claim| claim.holder);
            now.entry(*block).or_insert_with(|| HeldBlock::Lost { winner: winner() });
        }
        let before = std::mem::replace(&mut self.blocks, now);
        self.blocks.iter().filter_map(|(block, state)| event(*block, before.get(block), state)).collect()
    }

    /// Whether a new address may come from this block.
    #[must_use]
    pub fn usable_for_new(&self, block: &IpNet) -> bool {
        matches!(self.blocks.get(block), Some(HeldBlock::Held(_)))
    }

    /// The blocks of a family that new addresses may come from, ascending.
    pub fn usable(&self, family: Family) -> impl Iterator<Item = IpNet> + '_ {
        let usable = self.blocks.iter().filter(|(_, state)| matches!(state, HeldBlock::Held(_)));
        usable.map(|(block, _)| *block).filter(move |block| Family::of_prefix(block) == family)
    }

    /// The lost blocks and who has them now.
    pub fn lost(&self) -> impl Iterator<Item = (IpNet, Option<&str>)> {
        self.blocks.iter().filter_map(|(block, state)| match state {
            HeldBlock::Held(_) => None,
            HeldBlock::Lost { winner } => Some((*block, winner.as_deref())),
        })
    }

    /// All blocks with their state, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, &HeldBlock)> {
        self.blocks.iter()
    }

    /// Forgets a lost block once its last pod has ended. A block that is held stays.
    pub fn forget_lost(&mut self, block: &IpNet) -> bool {
        let lost = matches!(self.blocks.get(block), Some(HeldBlock::Lost { .. }));
        lost && self.blocks.remove(block).is_some()
    }
}

fn event(block: IpNet, before: Option<&HeldBlock>, after: &HeldBlock) -> Option<HeldEvent> {
    match (before, after) {
        (Some(HeldBlock::Held(Standing::Provisional)), HeldBlock::Held(Standing::Final)) => {
            Some(HeldEvent::Settled { block })
        }
        (Some(HeldBlock::Held(_)), HeldBlock::Held(_)) => None,
        (Some(HeldBlock::Lost { .. }) | None, HeldBlock::Held(standing)) => {
            Some(HeldEvent::Gained { block, standing: *standing })
        }
        (Some(HeldBlock::Lost { winner: before }), HeldBlock::Lost { winner }) if before == winner => None,
        (Some(_) | None, HeldBlock::Lost { winner }) => Some(HeldEvent::Lost { block, winner: winner.clone() }),
    }
}
