//! This node's own blocks: proposing, claiming, settling, losing.
//!
//! For each family of the pools the node wants at least one block that new addresses may come from.
//! A claim job asks the IPAM policy for proposals and the keeper for each in turn; when the keeper
//! is away and the configuration allows it, the first proposal is taken provisionally.

use culvert_cluster::Cluster;
use culvert_core::address::Family;
use culvert_core::claim::{Claim, ClaimOutcome, ClaimRequest, HeldBlock, HeldEvent, Ledger, Standing};
use culvert_core::membership::PeerId;
use culvert_core::plan::{KernelRoute, KernelVia, Plan, Step};
use culvert_core::route_plan::BridgeGateways;
use culvert_core::topology::Node;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{ClusterOwner, Done};
use crate::policies::Policies;
use crate::store::{Durability, Kind};

/// How often the policy is asked again with the claims as they then are, when all of its proposals
/// were taken meanwhile.
const ROUNDS: usize = 3;

/// What a claim job found out.
pub(crate) struct Claimed {
    family: Family,
    /// Blocks that turned out to be somebody else's.
    foreign: Vec<Claim>,
    result: ClaimResult,
}

enum ClaimResult {
    /// The keeper gave this block, for good.
    Granted(IpNet),
    /// The keeper cannot be asked; the policy would have liked this block.
    Unreachable { reason: String, wish: Option<IpNet> },
    /// Nothing the policy proposes is free.
    Nothing { reason: String },
}

/// Everything a claim job works with: copies, so that the owner goes on meanwhile.
struct ClaimJob {
    family: Family,
    own: PeerId,
    node: Node,
    ledger: Ledger,
    cluster: Arc<dyn Cluster>,
    policies: Arc<Policies>,
}

impl ClusterOwner {
    /// Starts claim jobs where blocks are missing or still provisional.
    pub(super) fn look_after_claims(&mut self) {
        let keeper_answers = self.keeper.as_ref().is_some_and(|keeper| self.paths.contains_key(keeper));
        if keeper_answers && self.work.registered_sequence == 0 {
            // The keeper gives blocks to names; ours is on its way.
            return;
        }
        let families: BTreeSet<Family> = self.facts.pools.iter().map(|pool| Family::of_prefix(&pool.range)).collect();
        for family in families {
            let provisional = self.provisional_block(family);
            let wanted = self.held.usable(family).next().is_none() || self.work.wanted.contains(&family);
            if (wanted || provisional.is_some()) && self.work.claiming.insert(family) {
                self.spawn_claim(family, provisional);
            }
        }
    }

    fn provisional_block(&self, family: Family) -> Option<IpNet> {
        let mut provisional = self.held.iter().filter(|(block, held)| {
            **held == HeldBlock::Held(Standing::Provisional) && Family::of_prefix(block) == family
        });
        provisional.next().map(|(block, _)| *block)
    }

    fn spawn_claim(&self, family: Family, provisional: Option<IpNet>) {
        let job = ClaimJob {
            family,
            own: self.own.clone(),
            node: self.own_node(),
            ledger: self.ledger.clone(),
            cluster: Arc::clone(&self.parts.cluster),
            policies: Arc::clone(&self.parts.policies),
        };
        self.spawn_job(async move {
            Done::Claimed(match provisional {
                Some(block) => job.settle(block).await,
                None => job.claim().await,
            })
        });
    }

    /// Takes the result of a claim job in.
    pub(super) async fn on_claimed(&mut self, claimed: Claimed) {
        self.work.claiming.remove(&claimed.family);
        for claim in &claimed.foreign {
            self.note_foreign(claim);
        }
        match claimed.result {
            ClaimResult::Granted(block) => {
                self.work.wanted.remove(&claimed.family);
                self.decide_own(block, Standing::Final);
            }
            ClaimResult::Unreachable { reason, wish } => self.claim_without_keeper(claimed.family, &reason, wish),
            ClaimResult::Nothing { reason } => {
                self.parts.metrics.addresses.claimed("nothing-free");
                tracing::error!(family = ?claimed.family, reason, "no block can be claimed; new pods of this node wait");
            }
        }
        self.refresh_held().await;
    }

    fn claim_without_keeper(&mut self, family: Family, reason: &str, wish: Option<IpNet>) {
        self.parts.metrics.addresses.claimed("unreachable");
        let holds_one = self.held.usable(family).next().is_some();
        match wish {
            Some(block) if !holds_one && self.parts.config.ipam.provisional_claims => {
                tracing::warn!(%block, reason, "the keeper is away: block taken provisionally");
                self.decide_own(block, Standing::Provisional);
            }
            Some(_) | None if holds_one => tracing::debug!(reason, "the keeper is away; held blocks serve"),
            Some(_) | None => tracing::warn!(?family, reason, "no block yet: the keeper cannot be asked"),
        }
    }

    pub(super) fn decide_own(&mut self, block: IpNet, standing: Standing) {
        let request =
            ClaimRequest { block, holder: self.parts.config.node.name.clone(), peer: self.own.clone(), standing };
        match self.ledger.decide(&request) {
            ClaimOutcome::Granted => self.parts.metrics.addresses.claimed("granted"),
            // The ledger learnt of another holder while the job ran; the next tick tries again.
            ClaimOutcome::HeldBy(claim) => tracing::info!(%block, holder = claim.holder, "block was taken meanwhile"),
            ClaimOutcome::Refused(refusal) => tracing::error!(%block, %refusal, "own claim refused"),
        }
        self.save_row(&block);
    }

    /// The keeper said that somebody else holds a block; its own statement brings the exact number later.
    pub(super) fn note_foreign(&mut self, claim: &Claim) {
        for event in self.ledger.learn(claim) {
            tracing::info!(?event, "claim learnt from the keeper");
        }
        self.save_row(&claim.block);
    }

    /// Writes a row of the ledger; it must survive a power cut, because pods get addresses by it.
    pub(super) fn save_row(&self, block: &IpNet) {
        let Some(row) = self.ledger.row(block) else { return };
        if let Err(error) = self.parts.store.put(Kind::Claim, &block.to_string(), row, Durability::Power) {
            tracing::error!(%block, %error, "a claim could not be recorded");
        }
    }

    /// Follows the ledger: what this node may use, the bridge's addresses, the published record.
    pub(super) async fn refresh_held(&mut self) {
        let events = self.held.refresh(&self.ledger, &self.own);
        if events.is_empty() {
            return;
        }
        for event in &events {
            match event {
                HeldEvent::Gained { block, standing } => tracing::info!(%block, ?standing, "block claimed"),
                HeldEvent::Settled { block } => tracing::info!(%block, "provisional block is final now"),
                HeldEvent::Lost { block, winner } => {
                    self.parts.metrics.addresses.claimed("lost");
                    tracing::error!(%block, winner, "block lost to another node: no new address comes from it");
                }
            }
        }
        self.look_after_lost_blocks();
        self.save_held();
        self.publish_blocks().await;
        self.publish_record();
        self.plan_soon();
    }

    /// The addresses in use changed.
    pub(super) async fn on_addresses(&mut self, in_use: BTreeSet<IpAddr>) {
        self.in_use = in_use;
        if self.look_after_lost_blocks() {
            self.save_held();
            self.publish_blocks().await;
        }
    }

    /// Addresses in lost blocks stay reachable from this node until they end, and a lost block is forgotten with
    /// its last one. Answers whether one was forgotten.
    fn look_after_lost_blocks(&mut self) -> bool {
        let lost: Vec<IpNet> = self.held.lost().map(|(block, _)| block).collect();
        let stranded: BTreeSet<IpAddr> =
            self.in_use.iter().filter(|address| lost.iter().any(|block| block.contains(*address))).copied().collect();
        let ended = lost.iter().filter(|block| !stranded.iter().any(|address| block.contains(address)));
        let mut forgotten = false;
        for block in ended {
            tracing::info!(%block, "no pod is left in a lost block");
            forgotten |= self.held.forget_lost(block);
        }
        if stranded != self.stranded {
            self.stranded = stranded;
            self.plan_soon();
        }
        forgotten
    }

    fn save_held(&self) {
        if let Err(error) = self.parts.store.put(Kind::Single, "held-blocks", &self.held, Durability::Power) {
            tracing::error!(%error, "the held blocks could not be recorded");
        }
    }

    /// Gives the bridge its gateways, then the other owner its blocks: an address is only given out once
    /// its gateway stands.
    pub(super) async fn publish_blocks(&mut self) {
        self.ensure_node().await;
        let usable: Vec<IpNet> =
            [Family::V4, Family::V6].into_iter().flat_map(|family| self.held.usable(family)).collect();
        let all: Vec<IpNet> = self.held.iter().map(|(block, _)| *block).collect();
        self.route_own_blocks(&usable, &all).await;
        for (family, word) in [(Family::V4, "v4"), (Family::V6, "v6")] {
            self.parts.metrics.addresses.set_blocks(word, self.held.usable(family).count() as u64);
        }
        self.parts.attachments.set_blocks(usable, all, self.facts.pools.clone()).await;
    }

    /// Routes own blocks to the bridge before a pod can have an address in them. The next plan, which comes a
    /// moment later, holds the same routes; until then the cluster's own prefix would refuse the pods.
    async fn route_own_blocks(&mut self, usable: &[IpNet], all: &[IpNet]) {
        let gateways = BridgeGateways::of_blocks(all);
        let route = |block: &IpNet| KernelRoute {
            to: *block,
            via: KernelVia::Bridge,
            source: gateways.of(Family::of_prefix(block)),
            mtu_bytes: None,
        };
        let steps = usable.iter().map(|block| Step::SetRoute { route: route(block), before: None }).collect();
        if let Err(error) = self.parts.kernel.apply(&Plan { steps }, None).await {
            tracing::error!(%error, "own blocks could not be routed yet; the next plan does it");
        }
    }
}

impl ClaimJob {
    fn request(&self, block: IpNet) -> ClaimRequest {
        ClaimRequest { block, holder: self.node.name.clone(), peer: self.own.clone(), standing: Standing::Final }
    }

    /// Asks for a block that is ours provisionally.
    async fn settle(self, block: IpNet) -> Claimed {
        let family = self.family;
        let (foreign, result) = match self.cluster.claim(self.request(block)).await {
            Ok(ClaimOutcome::Granted) => (Vec::new(), ClaimResult::Granted(block)),
            Ok(ClaimOutcome::HeldBy(claim)) => {
                let reason = format!("{block} is held by node {}", claim.holder);
                (vec![claim], ClaimResult::Nothing { reason })
            }
            Ok(ClaimOutcome::Refused(refusal)) => (Vec::new(), ClaimResult::Nothing { reason: refusal.to_string() }),
            Err(error) => (Vec::new(), ClaimResult::Unreachable { reason: error.to_string(), wish: None }),
        };
        Claimed { family, foreign, result }
    }

    /// Proposes and asks until one is granted.
    async fn claim(mut self) -> Claimed {
        let family = self.family;
        let mut foreign = Vec::new();
        let mut reason = String::new();
        for _round in 0..ROUNDS {
            let proposals = match self.proposals().await {
                Ok(proposals) => proposals,
                Err(fault) => return Claimed { family, foreign, result: ClaimResult::Nothing { reason: fault } },
            };
            if proposals.is_empty() {
                reason = format!("the IPAM policy proposes no free block of {family:?}");
                break;
            }
            match self.ask_for(&proposals, &mut foreign).await {
                Some(result) => return Claimed { family, foreign, result },
                None => reason = "every proposed block was taken meanwhile".to_owned(),
            }
        }
        Claimed { family, foreign, result: ClaimResult::Nothing { reason } }
    }

    async fn proposals(&self) -> Result<Vec<IpNet>, String> {
        let space = self.ledger.space_view(&BTreeMap::new());
        let (policies, node, family) = (Arc::clone(&self.policies), self.node.clone(), self.family);
        let proposed = tokio::task::spawn_blocking(move || policies.propose(&node, family, &space)).await;
        let proposed = proposed.map_err(|error| error.to_string())?.map_err(|fault| fault.to_string())?;
        let (admitted, refused) = self.ledger.admit_proposals(self.family, &self.own, &proposed);
        for refusal in refused {
            tracing::warn!(%refusal, "a proposal of the IPAM policy is refused");
        }
        Ok(admitted)
    }

    /// The end of the job, or `None` when all proposals are somebody else's.
    async fn ask_for(&mut self, proposals: &[IpNet], foreign: &mut Vec<Claim>) -> Option<ClaimResult> {
        for block in proposals {
            match self.cluster.claim(self.request(*block)).await {
                Ok(ClaimOutcome::Granted) => return Some(ClaimResult::Granted(*block)),
                Ok(ClaimOutcome::HeldBy(claim)) => {
                    let _events = self.ledger.learn(&claim);
                    foreign.push(claim);
                }
                Ok(ClaimOutcome::Refused(refusal)) => tracing::warn!(%block, %refusal, "the keeper refuses a claim"),
                Err(error) => {
                    return Some(ClaimResult::Unreachable { reason: error.to_string(), wish: Some(*block) });
                }
            }
        }
        None
    }
}
