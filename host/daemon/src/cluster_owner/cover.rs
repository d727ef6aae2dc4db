//! Blocks that a configuration asks for by range or address: claimed whole, all or none, before the ADD that
//! needs them goes on (DESIGN §4).

use std::collections::VecDeque;
use std::sync::Arc;

use culvert_cluster::{ClaimError, Cluster};
use culvert_core::allocation::{AddressWish, WishError};
use culvert_core::claim::{BlockRefusal, Claim, ClaimOutcome, ClaimRequest, Standing, admit_block};
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::{ClusterOwner, Done};

/// Why the blocks of a wish are not this node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoverError {
    /// It can never be served.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// Another node has one of the blocks.
    #[error("block {block} is held by node {holder:?}: choose a range in a block that is free, or one of this node")]
    Held {
        /// The block.
        block: IpNet,
        /// Its holder.
        holder: String,
    },
    /// One of the blocks may not be claimed by anybody.
    #[error(transparent)]
    Refused(#[from] BlockRefusal),
    /// Nobody can decide now.
    #[error("block {block} cannot be claimed yet: {reason}")]
    Later {
        /// The block.
        block: IpNet,
        /// What it waits for.
        reason: String,
    },
}

type Reply = oneshot::Sender<Result<(), CoverError>>;

/// Covers in turn: two at a time could give back what the other has just been granted.
#[derive(Default)]
pub(super) struct Covers {
    running: bool,
    waiting: VecDeque<(AddressWish, Reply)>,
}

/// What a claim job for several blocks brought back.
pub(crate) struct Covered {
    granted: Vec<IpNet>,
    foreign: Option<Claim>,
    result: Result<(), CoverError>,
    reply: Reply,
}

impl ClusterOwner {
    /// Makes the blocks of a wish this node's, and answers when they can be used.
    pub(super) fn on_cover(&mut self, wish: AddressWish, reply: Reply) {
        if self.covers.running {
            self.covers.waiting.push_back((wish, reply));
            return;
        }
        match self.missing(&wish) {
            Ok(missing) if missing.is_empty() => super::answer(reply, Ok(())),
            Ok(missing) => {
                self.covers.running = true;
                let (cluster, own) = (Arc::clone(&self.parts.cluster), self.own.clone());
                let holder = self.parts.config.node.name.clone();
                let request = move |block| ClaimRequest {
                    block,
                    holder: holder.clone(),
                    peer: own.clone(),
                    standing: Standing::Final,
                };
                self.spawn_job(async move { Done::Covered(claim_all(&*cluster, missing, request, reply).await) });
            }
            Err(error) => super::answer(reply, Err(error)),
        }
    }

    /// The blocks of a wish that are not this node's yet, when it can have them all as far as it knows.
    fn missing(&self, wish: &AddressWish) -> Result<Vec<IpNet>, CoverError> {
        let mut missing = wish.cover(&self.facts.pools)?;
        missing.retain(|block| !self.held.usable_for_new(block));
        for block in &missing {
            admit_block(&self.facts.pools, &self.facts.service_prefixes, block)?;
            if let Some(claim) = self.ledger.claim(block).filter(|claim| claim.peer != self.own) {
                return Err(CoverError::Held { block: *block, holder: claim.holder });
            }
        }
        Ok(missing)
    }

    /// Takes the result of a claim job in, and begins the next.
    pub(super) async fn on_covered(&mut self, covered: Covered) {
        let Covered { granted, foreign, mut result, reply } = covered;
        if let Some(claim) = &foreign {
            self.note_foreign(claim);
        }
        if result.is_ok() {
            for block in &granted {
                self.decide_own(*block, Standing::Final);
            }
            self.refresh_held().await;
            // The own ledger decides when this node is the keeper.
            if let Some(block) = granted.iter().find(|block| !self.held.usable_for_new(block)) {
                let holder = self.ledger.claim(block).map(|claim| claim.holder).unwrap_or_default();
                result = Err(CoverError::Held { block: *block, holder });
            }
        }
        if result.is_err() {
            self.give_back(granted);
        }
        super::answer(reply, result);
        self.covers.running = false;
        while !self.covers.running
            && let Some((wish, reply)) = self.covers.waiting.pop_front()
        {
            self.on_cover(wish, reply);
        }
    }

    /// All or none: what was granted before another block turned out to be taken goes back.
    fn give_back(&mut self, blocks: Vec<IpNet>) {
        let unused = blocks.into_iter().filter(|block| !self.held.usable_for_new(block));
        for block in unused.collect::<Vec<_>>() {
            let cluster = Arc::clone(&self.parts.cluster);
            tokio::spawn(async move {
                if let Err(error) = cluster.release(block).await {
                    tracing::warn!(%block, %error, "a block that is not needed could not be given back; it stays claimed");
                }
            });
        }
    }
}

/// Claims one block after the other until one is refused.
async fn claim_all(
    cluster: &dyn Cluster,
    blocks: Vec<IpNet>,
    request: impl Fn(IpNet) -> ClaimRequest,
    reply: Reply,
) -> Covered {
    let mut granted = Vec::new();
    for block in blocks {
        let (foreign, error) = match cluster.claim(request(block)).await {
            Ok(ClaimOutcome::Granted) => {
                granted.push(block);
                continue;
            }
            Ok(ClaimOutcome::HeldBy(claim)) => {
                let holder = claim.holder.clone();
                (Some(claim), CoverError::Held { block, holder })
            }
            Ok(ClaimOutcome::Refused(refusal)) => (None, CoverError::Refused(refusal)),
            Err(ClaimError::Unreachable { block, reason }) => (None, CoverError::Later { block, reason }),
        };
        return Covered { granted, foreign, result: Err(error), reply };
    }
    Covered { granted, foreign: None, result: Ok(()), reply }
}
