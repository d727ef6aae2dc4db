//! Where the facts about the cluster come from, and where a claim to a block is decided.
//!
//! One trait, one backend a kind of cluster. The [static backend](static_file) reads a section of the
//! node's configuration file; its claims are decided by the *keeper*, another node, which the daemon
//! reaches through the mesh and hands in as a [`Keeper`].

pub mod static_file;

use async_trait::async_trait;
use culvert_core::claim::{ClaimOutcome, ClaimRequest, Pool};
use ipnet::IpNet;
use tokio::sync::watch;

/// What the cluster says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFacts {
    /// The ranges that blocks are taken from, without overlap.
    pub pools: Vec<Pool>,
    /// The Service ranges; they never overlap a pool.
    pub service_prefixes: Vec<IpNet>,
}

impl ClusterFacts {
    /// Everything a pod address can be.
    #[must_use]
    pub fn cluster_prefixes(&self) -> Vec<IpNet> {
        self.pools.iter().map(|pool| pool.range).collect()
    }
}

/// Why a claim could not be decided. The claim is not made; ask again later.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Whoever decides claims cannot be reached.
    #[error("claim of {block} cannot be decided: {reason}; it is tried again when the keeper answers")]
    Unreachable {
        /// The block asked for.
        block: IpNet,
        /// What was tried and how it failed.
        reason: String,
    },
}

/// A cluster's facts and its decisions about claims.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// The facts now and each later version of them.
    fn facts(&self) -> watch::Receiver<ClusterFacts>;

    /// Asks for a block by compare-and-swap: of all nodes that ask, one gets it.
    ///
    /// **Errors** when nobody can decide now. **Cancel safety**: a cancelled claim may have been
    /// granted; asking again for the same holder is granted again.
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, ClaimError>;

    /// Gives a block back.
    ///
    /// **Errors** when nobody can record it now.
    async fn release(&self, block: IpNet) -> Result<(), ClaimError>;
}

/// The node that decides claims in a cluster without an API server.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// Decides or forwards a claim. **Errors** as [`Cluster::claim`].
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, ClaimError>;

    /// Records that a block is free again. **Errors** as [`Cluster::release`].
    async fn release(&self, block: IpNet) -> Result<(), ClaimError>;
}
