//! The ledger: every claim known, merged so that the order of arrival does not matter.
//!
//! A row has two parts that never mix. The keeper alone writes the *decided* part and numbers its
//! decisions, so the higher number wins. Every node alone writes its own *provisional* entry and
//! numbers that, so again the higher number wins. Who holds the block follows from both:
//!
//! ```text
//! decided for P            -> P, final
//! decided for nobody       -> the lowest PeerId with a standing provisional entry
//! ```

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    BlockRefusal, Claim, ClaimEvent, ClaimOutcome, ClaimRequest, ClaimView, MAX_BLOCKS_PER_PEER, MAX_LEDGER_BLOCKS,
    MAX_PROPOSALS, Pool, Space, Standing, admit_block,
};
use crate::address::{Family, overlap};
use crate::membership::PeerId;

/// A node's own entry in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisional {
    /// The node's name.
    pub holder: String,
    /// Grows with every change of this entry.
    pub sequence: u64,
    /// False once the node has withdrawn it.
    pub standing: bool,
}

/// The node a keeper decided for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Decided {
    /// The node's name.
    pub holder: String,
    /// Its identity.
    pub peer: PeerId,
}

/// Everything known of one block; what is stored and exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// The block.
    pub block: IpNet,
    /// Counts the keeper's decisions about this block; 0 before the first.
    pub decision: u64,
    /// Whom the keeper's last decision gave the block to; `None` when it was given back.
    pub decided: Option<Decided>,
    /// Provisional claims, each written by its own peer only.
    pub provisional: BTreeMap<PeerId, Provisional>,
}

impl LedgerRow {
    fn new(block: IpNet) -> Self {
        Self { block, decision: 0, decided: None, provisional: BTreeMap::new() }
    }

    /// Who holds the block.
    #[must_use]
    pub fn claim(&self) -> Option<Claim> {
        if let Some(decided) = &self.decided {
            let (holder, peer) = (decided.holder.clone(), decided.peer.clone());
            return Some(Claim { block: self.block, holder, peer, standing: Standing::Final });
        }
        let (peer, entry) = self.provisional.iter().find(|(_, entry)| entry.standing)?;
        let (holder, peer) = (entry.holder.clone(), peer.clone());
        Some(Claim { block: self.block, holder, peer, standing: Standing::Provisional })
    }

    fn merge_provisional(&mut self, peer: &PeerId, theirs: &Provisional) {
        let newer = self.provisional.get(peer).is_none_or(|ours| ours.sequence < theirs.sequence);
        if newer {
            self.provisional.insert(peer.clone(), theirs.clone());
        }
    }

    /// Takes the later decision of the keeper; the claim refused if one decision has two results.
    fn merge_decided(&mut self, theirs: &Self) -> Option<ClaimEvent> {
        if theirs.decision > self.decision {
            self.decision = theirs.decision;
            self.decided.clone_from(&theirs.decided);
            return None;
        }
        let same_decision = theirs.decision == self.decision && theirs.decided != self.decided;
        let (kept, refused) = (self.claim()?, theirs.claim()?);
        same_decision.then_some(ClaimEvent::Conflict { kept, refused })
    }
}

/// All claims of the cluster as one node knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pools: Vec<Pool>,
    service_prefixes: Vec<IpNet>,
    rows: BTreeMap<IpNet, LedgerRow>,
}

impl Ledger {
    /// An empty ledger over these pools.
    #[must_use]
    pub fn new(pools: Vec<Pool>, service_prefixes: Vec<IpNet>) -> Self {
        Self { pools, service_prefixes, rows: BTreeMap::new() }
    }

    /// The ledger as it was stored. Rows are taken as they are: a claim made under an earlier
    /// configuration stays its holder's.
    #[must_use]
    pub fn load(pools: Vec<Pool>, service_prefixes: Vec<IpNet>, rows: impl IntoIterator<Item = LedgerRow>) -> Self {
        Self { pools, service_prefixes, rows: rows.into_iter().map(|row| (row.block, row)).collect() }
    }

    /// All rows, sorted by block: what is stored and sent.
    pub fn rows(&self) -> impl Iterator<Item = &LedgerRow> {
        self.rows.values()
    }

    /// One block's row.
    #[must_use]
    pub fn row(&self, block: &IpNet) -> Option<&LedgerRow> {
        self.rows.get(block)
    }

    /// The pools.
    #[must_use]
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The Service ranges.
    #[must_use]
    pub fn service_prefixes(&self) -> &[IpNet] {
        &self.service_prefixes
    }

    /// Who holds exactly this block.
    #[must_use]
    pub fn claim(&self, block: &IpNet) -> Option<Claim> {
        self.rows.get(block).and_then(LedgerRow::claim)
    }

    /// All claims, sorted by block.
    pub fn claims(&self) -> impl Iterator<Item = Claim> {
        self.rows.values().filter_map(LedgerRow::claim)
    }

    /// The claims an identity holds.
    pub fn held_by<'a>(&'a self, peer: &'a PeerId) -> impl Iterator<Item = Claim> + 'a {
        self.claims().filter(move |claim| claim.peer == *peer)
    }

    /// Decides a wish: as the keeper for [`Standing::Final`], as the node itself for
    /// [`Standing::Provisional`]. Asking again for what one has changes nothing.
    pub fn decide(&mut self, request: &ClaimRequest) -> ClaimOutcome {
        let own = match self.admit(request) {
            Ok(own) => own,
            Err(outcome) => return outcome,
        };
        if own.is_some_and(|standing| standing == Standing::Final || standing == request.standing) {
            return ClaimOutcome::Granted;
        }
        let row = self.rows.entry(request.block).or_insert_with(|| LedgerRow::new(request.block));
        match request.standing {
            Standing::Final => {
                row.decision += 1;
                row.decided = Some(Decided { holder: request.holder.clone(), peer: request.peer.clone() });
            }
            Standing::Provisional => {
                let sequence = row.provisional.get(&request.peer).map_or(1, |entry| entry.sequence + 1);
                let entry = Provisional { holder: request.holder.clone(), sequence, standing: true };
                row.provisional.insert(request.peer.clone(), entry);
            }
        }
        ClaimOutcome::Granted
    }

    /// The keeper records that `peer` gives its block back.
    ///
    /// Answers whether anything changed.
    pub fn release(&mut self, block: &IpNet, peer: &PeerId) -> bool {
        let Some(row) = self.rows.get_mut(block) else {
            return false;
        };
        if row.decided.as_ref().is_none_or(|decided| decided.peer != *peer) {
            return false;
        }
        row.decision += 1;
        row.decided = None;
        true
    }

    /// A node withdraws its own provisional claim: after losing the block, or when it has become final.
    ///
    /// Answers whether anything changed.
    pub fn withdraw(&mut self, block: &IpNet, peer: &PeerId) -> bool {
        let entry = self.rows.get_mut(block).and_then(|row| row.provisional.get_mut(peer));
        let Some(entry) = entry.filter(|entry| entry.standing) else {
            return false;
        };
        entry.sequence += 1;
        entry.standing = false;
        true
    }

    /// Takes over what a trusted ledger (the keeper's, or a mirror of it) knows.
    ///
    /// Merging is idempotent, and any order of merges gives the same holders.
    pub fn merge(&mut self, other: &Self) -> Vec<ClaimEvent> {
        other.rows.values().flat_map(|theirs| self.merge_row(theirs)).collect()
    }

    /// Takes over one row from the keeper or a mirror of it.
    pub fn merge_row(&mut self, theirs: &LedgerRow) -> Vec<ClaimEvent> {
        self.change_row(theirs, |row| {
            for (peer, entry) in &theirs.provisional {
                row.merge_provisional(peer, entry);
            }
            row.merge_decided(theirs)
        })
    }

    /// Takes over the keeper's answer that `claim` stands, before the number of that decision is known.
    ///
    /// The number assumed is the lowest one possible, so the keeper's own row is always taken over later. An
    /// answer that says what is known already is no new decision, and a provisional one is not the keeper's.
    pub fn learn(&mut self, claim: &Claim) -> Vec<ClaimEvent> {
        let row = self.row(&claim.block);
        let decided = Decided { holder: claim.holder.clone(), peer: claim.peer.clone() };
        if claim.standing != Standing::Final || row.is_some_and(|row| row.decided.as_ref() == Some(&decided)) {
            return Vec::new();
        }
        let decision = row.map_or(0, |row| row.decision) + 1;
        let (decided, provisional) = (Some(decided), BTreeMap::new());
        self.merge_row(&LedgerRow { block: claim.block, decision, decided, provisional })
    }

    /// Takes over what `member` says of itself: its own provisional entry and nothing else, because
    /// only the keeper's word gives a block for good.
    pub fn merge_row_from_member(&mut self, member: &PeerId, theirs: &LedgerRow) -> Vec<ClaimEvent> {
        let Some(entry) = theirs.provisional.get(member) else {
            return Vec::new();
        };
        self.change_row(theirs, |row| {
            row.merge_provisional(member, entry);
            None
        })
    }

    /// What an IPAM policy is shown. `in_use` counts addresses by block, as far as they are known.
    #[must_use]
    pub fn space_view(&self, in_use: &BTreeMap<IpNet, u32>) -> Space {
        let view = |claim: Claim| ClaimView {
            in_use: in_use.get(&claim.block).copied().unwrap_or(0),
            block: claim.block,
            holder: claim.holder,
        };
        Space { pools: self.pools.clone(), claims: self.claims().map(view).collect() }
    }

    /// The proposals of an IPAM policy that are worth asking the keeper for, in the policy's order,
    /// and why others are not. Blocks that somebody else holds are left out without a word: a
    /// policy may well propose them.
    #[must_use]
    pub fn admit_proposals(
        &self,
        family: Family,
        peer: &PeerId,
        proposals: &[IpNet],
    ) -> (Vec<IpNet>, Vec<BlockRefusal>) {
        let mut admitted = Vec::new();
        let mut refused = Vec::new();
        for block in proposals.iter().take(MAX_PROPOSALS) {
            match admit_block(&self.pools, &self.service_prefixes, block) {
                Err(refusal) => refused.push(refusal),
                Ok(()) if Family::of_prefix(block) != family || admitted.contains(block) => {}
                Ok(()) => match self.overlapping(block) {
                    Some(claim) if claim.peer != *peer || claim.block != *block => {}
                    Some(_) | None => admitted.push(*block),
                },
            }
        }
        (admitted, refused)
    }

    /// The standing the requester has at this block already, or why it cannot have it.
    fn admit(&self, request: &ClaimRequest) -> Result<Option<Standing>, ClaimOutcome> {
        match self.overlapping(&request.block) {
            Some(claim) if claim.block == request.block && claim.peer == request.peer => {
                return Ok(Some(claim.standing));
            }
            Some(claim) if claim.block == request.block => return Err(ClaimOutcome::HeldBy(claim)),
            Some(claim) => {
                let (block, other, holder) = (request.block, claim.block, claim.holder);
                return Err(ClaimOutcome::Refused(BlockRefusal::Overlap { block, other, holder }));
            }
            None => {}
        }
        admit_block(&self.pools, &self.service_prefixes, &request.block).map_err(ClaimOutcome::Refused)?;
        if self.held_by(&request.peer).count() >= MAX_BLOCKS_PER_PEER {
            let holder = request.holder.clone();
            return Err(ClaimOutcome::Refused(BlockRefusal::TooMany { holder, limit: MAX_BLOCKS_PER_PEER }));
        }
        if self.is_full_for(&request.block) {
            return Err(ClaimOutcome::Refused(BlockRefusal::LedgerFull { limit: MAX_LEDGER_BLOCKS }));
        }
        Ok(None)
    }

    /// A claim that shares addresses with `block`; the block's own comes first.
    fn overlapping(&self, block: &IpNet) -> Option<Claim> {
        self.claim(block).or_else(|| {
            let others = self.rows.values().filter(|row| overlap(&row.block, block));
            others.filter_map(LedgerRow::claim).next()
        })
    }

    fn is_full_for(&self, block: &IpNet) -> bool {
        self.rows.len() >= MAX_LEDGER_BLOCKS && !self.rows.contains_key(block)
    }

    /// Changes one row and tells what became of its holder.
    fn change_row(
        &mut self,
        theirs: &LedgerRow,
        change: impl FnOnce(&mut LedgerRow) -> Option<ClaimEvent>,
    ) -> Vec<ClaimEvent> {
        let known = self.rows.contains_key(&theirs.block);
        if !known && let Err(refusal) = admit_block(&self.pools, &self.service_prefixes, &theirs.block) {
            return vec![ClaimEvent::Refused(refusal)];
        }
        if self.is_full_for(&theirs.block) {
            return vec![ClaimEvent::Refused(BlockRefusal::LedgerFull { limit: MAX_LEDGER_BLOCKS })];
        }
        let row = self.rows.entry(theirs.block).or_insert_with(|| LedgerRow::new(theirs.block));
        let before = row.claim();
        let conflict = change(row);
        conflict.into_iter().chain(transition(before, row.claim())).collect()
    }
}

fn transition(before: Option<Claim>, after: Option<Claim>) -> Option<ClaimEvent> {
    match (before, after) {
        (None, None) => None,
        (None, Some(claim)) => Some(ClaimEvent::Gained(claim)),
        (Some(claim), None) => Some(ClaimEvent::Freed(claim)),
        (Some(loser), Some(winner)) if loser.peer != winner.peer => {
            Some(ClaimEvent::Lost { block: winner.block, loser, winner })
        }
        (Some(before), Some(after)) => (before.standing != after.standing).then_some(ClaimEvent::Settled(after)),
    }
}
