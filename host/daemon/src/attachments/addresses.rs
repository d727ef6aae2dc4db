//! Which addresses an attachment gets: the policy chooses among free ones, the host decides.

use culvert_core::address::{Family, is_assignable};
use culvert_core::attachment::AttachmentKey;
use culvert_core::claim::Pool;
use culvert_core::lease::{LeaseRow, LeaseState, MAX_OFFERED};
use culvert_core::policy::{PickRequest, PodView};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{AttachmentError, AttachmentsOwner, LOW_WATER, now_ms};
use crate::store::{Durability, Kind};

impl AttachmentsOwner {
    /// The families that every pod gets an address of.
    fn families(&self) -> BTreeSet<Family> {
        self.pools.iter().map(|pool| Family::of_prefix(&pool.range)).collect()
    }

    fn blocks_of(&self, family: Family) -> Vec<IpNet> {
        let blocks = self.leases.blocks().copied();
        blocks.filter(|block| Family::of_prefix(block) == family).collect()
    }

    /// Whether an ADD would be served now.
    pub(super) fn ready(&self) -> Result<(), AttachmentError> {
        if self.bridge.is_none() {
            return Err(AttachmentError::NoBridge);
        }
        for family in self.families() {
            let blocks = self.blocks_of(family);
            if blocks.is_empty() {
                return Err(AttachmentError::NoBlock { family, reason: "the keeper has not granted one" });
            }
            let now = now_ms();
            if blocks.iter().all(|block| self.leases.longest_unused(block, now, None).is_none()) {
                return Err(AttachmentError::Exhausted { family, blocks: blocks.len() });
            }
        }
        Ok(())
    }

    /// Whether waiting a moment may help: blocks are missing, not full.
    pub(super) fn may_become_ready(&self) -> bool {
        self.bridge.is_none() || self.families().into_iter().any(|family| self.blocks_of(family).is_empty())
    }

    /// One address of each family, taken.
    pub(super) async fn take_addresses(
        &mut self,
        key: &AttachmentKey,
        pod: &PodView,
    ) -> Result<Vec<IpNet>, AttachmentError> {
        let mut taken = Vec::new();
        for family in self.families() {
            match self.take_address(key, pod, family) {
                Some(address) => taken.push(address),
                None => {
                    self.leases.release(key, now_ms());
                    self.ask_for_block(family).await;
                    return Err(AttachmentError::Exhausted { family, blocks: self.blocks_of(family).len() });
                }
            }
            self.look_at_level(family).await;
        }
        Ok(taken)
    }

    fn take_address(&mut self, key: &AttachmentKey, pod: &PodView, family: Family) -> Option<IpNet> {
        let now = now_ms();
        for block in self.blocks_of(family) {
            let free = self.leases.free(&block, MAX_OFFERED, now, None);
            if free.is_empty() {
                continue;
            }
            let request = PickRequest { pod: pod.clone(), free: free.clone(), wanted: None };
            let picked = tokio::task::block_in_place(|| self.parts.policies.pick(&request));
            let answer = picked.unwrap_or_else(|error| {
                tracing::warn!(%error, attachment = %key, "the IPAM policy does not choose; the host does");
                None
            });
            let pick = self.leases.admit_pick(&block, &free, answer, now);
            if let Some(violation) = pick.violation {
                tracing::warn!(%violation, attachment = %key, "the IPAM policy's choice is refused");
            }
            let Some(address) = pick.address else { continue };
            match self.leases.take(address, key, None) {
                Ok(()) => return IpNet::new(address, block.prefix_len()).ok(),
                Err(refusal) => tracing::error!(%refusal, attachment = %key, "a free address could not be taken"),
            }
        }
        None
    }

    /// Asks for one more block before the last addresses are gone.
    async fn look_at_level(&self, family: Family) {
        let free: u64 = self.blocks_of(family).iter().map(|block| self.free_count(block)).sum();
        if free < u64::from(LOW_WATER) {
            self.ask_for_block(family).await;
        }
    }

    /// Never more than a claim can be about: counting a /64 is pointless.
    pub(super) fn free_count(&self, block: &IpNet) -> u64 {
        let host_bits = u32::from(block.max_prefix_len() - block.prefix_len()).min(32);
        // Network, gateway and, in IPv4, broadcast.
        let unusable = if block.addr().is_ipv4() { 3 } else { 2 };
        (1_u64 << host_bits).saturating_sub(unusable).saturating_sub(u64::from(self.leases.in_use(block)))
    }

    async fn ask_for_block(&self, family: Family) {
        // A full queue means that it was asked for already.
        let _asked_already = self.parts.low.try_send(family);
    }

    /// Releases every address of an attachment and lets them rest.
    pub(super) fn release_addresses(&mut self, key: &AttachmentKey) {
        let now = now_ms();
        for address in self.leases.release(key, now) {
            let row = LeaseRow { address, state: LeaseState::Released(now), reserved_for: None };
            if let Err(error) = self.parts.store.put(Kind::Released, &address.to_string(), &row, Durability::Process) {
                tracing::warn!(%address, %error, "a release could not be recorded; the address may be reused sooner");
            }
        }
    }

    /// The blocks changed.
    pub(super) async fn set_blocks(&mut self, usable: Vec<IpNet>, all: Vec<IpNet>, pools: Vec<Pool>) {
        self.leases.set_blocks(usable);
        self.blocks = all;
        self.pools = pools;
        self.count_addresses();
        self.serve_waiting().await;
    }

    /// Tells what is in use, to counters and to whoever keeps lost blocks reachable.
    pub(super) fn count_addresses(&self) {
        let in_use: BTreeSet<IpAddr> = self.leases.held().map(|(address, _)| address).collect();
        self.parts.in_use.send_if_modified(|known| {
            let changed = *known != in_use;
            *known = in_use;
            changed
        });
        for (family, word) in [(Family::V4, "v4"), (Family::V6, "v6")] {
            let blocks = self.blocks_of(family);
            let in_use: u64 = blocks.iter().map(|block| u64::from(self.leases.in_use(block))).sum();
            let free: u64 = blocks.iter().map(|block| self.free_count(block)).sum();
            self.parts.metrics.addresses.set_addresses(word, in_use, free);
        }
        let count = i64::try_from(self.attachments.len()).unwrap_or(i64::MAX);
        self.parts.metrics.addresses.attachments.set(count);
    }

    /// Addresses in use by block.
    pub(super) fn usage(&self) -> BTreeMap<String, u64> {
        self.blocks.iter().map(|block| (block.to_string(), u64::from(self.leases.in_use(block)))).collect()
    }

    /// Disagreements between leases and blocks.
    pub(super) fn lease_findings(&self) -> Vec<String> {
        let misplaced = |address: IpAddr| !self.blocks.iter().any(|block| is_assignable(block, address));
        let held = self.leases.held().filter(|(address, _)| misplaced(*address));
        held.map(|(address, key)| format!("{address} of {key} lies in no block of this node")).collect()
    }
}
