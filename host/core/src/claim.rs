//! Who holds which block: pools, claims and the ledger that merges them (DESIGN §4).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address::overlap;
use crate::membership::PeerId;
use crate::tunnel_table::is_unicast_range;

/// A range that may be handed out, in blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The whole range.
    pub range: IpNet,
    /// The prefix length of a block.
    pub block_length: u8,
}

/// Whether a claim can still be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Decided by the keeper.
    Final,
    /// Made while the keeper could not be reached.
    Provisional,
}

/// The record of a block taken by a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The block.
    pub block: IpNet,
    /// The holder's node name.
    pub holder: String,
    /// The holder's identity.
    pub peer: PeerId,
    /// Final or provisional.
    pub standing: Standing,
}

/// What an IPAM policy is shown of the address space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// All pools.
    pub pools: Vec<Pool>,
    /// All claims known, sorted by block.
    pub claims: Vec<ClaimView>,
}

/// A claim with its use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimView {
    /// The block.
    pub block: IpNet,
    /// The holder's node name.
    pub holder: String,
    /// Addresses in use inside the block, as last reported.
    pub in_use: u32,
}

mod held;
mod ledger;

pub use held::{HeldBlock, HeldBlocks, HeldEvent};
pub use ledger::{Decided, Ledger, LedgerRow, Provisional};

/// The most blocks one identity may hold by claims: a faulty or hostile node must not empty a pool.
/// 64 blocks of /24 are more pods than a node can run. A further claim is refused.
pub const MAX_BLOCKS_PER_PEER: usize = 64;

/// The most blocks a ledger keeps, given back ones included: four for each of 5,000 nodes, three
/// times over. A claim beyond it is refused, and the message says so.
pub const MAX_LEDGER_BLOCKS: usize = 65_536;

/// The most proposals of an IPAM policy that are read; the rest is ignored.
pub const MAX_PROPOSALS: usize = 64;

/// A wish for a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// The block.
    pub block: IpNet,
    /// The node's name.
    pub holder: String,
    /// Its identity.
    pub peer: PeerId,
    /// Final when the keeper is asked; provisional when the node asks itself.
    pub standing: Standing,
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimOutcome {
    /// The block is the requester's, now or already before.
    Granted,
    /// Somebody else has it: try the next one.
    HeldBy(Claim),
    /// Nobody may have it.
    Refused(BlockRefusal),
}

/// Why a block may not be claimed by anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockRefusal {
    /// Host bits are set.
    #[error("block {block} has host bits set: claim {network} instead")]
    HostBits {
        /// The block.
        block: IpNet,
        /// The prefix that was probably meant.
        network: IpNet,
    },
    /// No pool contains it.
    #[error("block {block} lies outside every pool: add a pool that contains it, or claim inside one")]
    OutsidePools {
        /// The block.
        block: IpNet,
    },
    /// It is not of the pool's block length.
    #[error("block {block} is not a /{expected}, the block length of pool {pool}: claim whole blocks")]
    WrongLength {
        /// The block.
        block: IpNet,
        /// The pool that contains it.
        pool: IpNet,
        /// The pool's block length.
        expected: u8,
    },
    /// It shares addresses with a Service range.
    #[error("block {block} overlaps the service prefix {service}: claim another one")]
    Service {
        /// The block.
        block: IpNet,
        /// The Service range.
        service: IpNet,
    },
    /// It holds addresses that no pod can have.
    #[error("block {block} holds loopback, link-local, multicast or reserved addresses: move the pool")]
    NotUnicast {
        /// The block.
        block: IpNet,
    },
    /// It overlaps a block of another length.
    #[error("block {block} overlaps {other}, held by node {holder:?}: claim another one")]
    Overlap {
        /// The block.
        block: IpNet,
        /// The block that is there.
        other: IpNet,
        /// Its holder's node name.
        holder: String,
    },
    /// The requester has enough.
    #[error("node {holder:?} holds {limit} blocks, as many as one node may: it gives some back first")]
    TooMany {
        /// The requester's node name.
        holder: String,
        /// [`MAX_BLOCKS_PER_PEER`].
        limit: usize,
    },
    /// The ledger is full.
    #[error("the ledger is full with {limit} blocks: use larger blocks")]
    LedgerFull {
        /// [`MAX_LEDGER_BLOCKS`].
        limit: usize,
    },
}

/// Something a merge changed or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimEvent {
    /// A block has a new holder where it had none.
    Gained(Claim),
    /// The same holder's claim went from provisional to final.
    Settled(Claim),
    /// A block went from one holder to another: the loser gives no new address from it.
    Lost {
        /// The block.
        block: IpNet,
        /// Who had it.
        loser: Claim,
        /// Who has it.
        winner: Claim,
    },
    /// A block was given back.
    Freed(Claim),
    /// Another final claim for the same decision of the keeper: the first one stays.
    Conflict {
        /// The claim that stays.
        kept: Claim,
        /// The claim that was refused.
        refused: Claim,
    },
    /// A row that no ledger may hold.
    Refused(BlockRefusal),
}

/// Whether a block may be claimed at all, whoever asks.
///
/// # Errors
/// What is wrong with it.
pub fn admit_block(pools: &[Pool], service_prefixes: &[IpNet], block: &IpNet) -> Result<(), BlockRefusal> {
    let block = *block;
    if block != block.trunc() {
        return Err(BlockRefusal::HostBits { block, network: block.trunc() });
    }
    let pool = pools.iter().find(|pool| pool.range.contains(&block)).ok_or(BlockRefusal::OutsidePools { block })?;
    if pool.block_length != block.prefix_len() {
        return Err(BlockRefusal::WrongLength { block, pool: pool.range, expected: pool.block_length });
    }
    if let Some(service) = service_prefixes.iter().find(|service| overlap(service, &block)) {
        return Err(BlockRefusal::Service { block, service: *service });
    }
    if !is_unicast_range(&block) {
        return Err(BlockRefusal::NotUnicast { block });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
