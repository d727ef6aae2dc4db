//! Which addresses an attachment gets: the policy chooses among free ones, the host decides.

use culvert_core::address::{Family, is_assignable};
use culvert_core::allocation::{AddressWish, Choice, Place};
use culvert_core::attachment::AttachmentKey;
use culvert_core::claim::Pool;
use culvert_core::lease::{LeaseRow, LeaseState, MAX_OFFERED};
use culvert_core::policy::{PickRequest, PodView};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{AttachmentError, AttachmentsOwner, LOW_WATER, now_ms};
use crate::store::{Durability, Kind};

/// A pod that takes addresses.
pub(super) struct Taker<'a> {
    pub(super) key: &'a AttachmentKey,
    pub(super) pod: &'a PodView,
    pub(super) wish: &'a AddressWish,
    /// Whether its addresses stay its own when it ends.
    pub(super) sticky: bool,
}

impl Taker<'_> {
    /// The name a sticky pod's addresses are kept under.
    fn sticky_name(&self) -> Option<String> {
        self.sticky.then(|| pod_name(self.pod))
    }
}

/// No block is held that an address of this choice could come from.
fn missing(choice: &Choice) -> AttachmentError {
    AttachmentError::NoBlock { family: choice.family, reason: "the keeper has not granted one" }
}

/// Every place of this choice is full.
fn exhausted(wish: &AddressWish, choice: &Choice) -> AttachmentError {
    if wish.is_empty() {
        return AttachmentError::Exhausted { family: choice.family, blocks: choice.places.len() };
    }
    let ranges = choice.places.iter().map(|place| place.range.to_string()).collect::<Vec<_>>().join(", ");
    AttachmentError::RangesFull { ranges }
}

/// `namespace/name`.
pub(super) fn pod_name(pod: &PodView) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

impl AttachmentsOwner {
    /// The families that every pod gets an address of.
    fn families(&self) -> BTreeSet<Family> {
        self.pools.iter().map(|pool| Family::of_prefix(&pool.range)).collect()
    }

    fn blocks_of(&self, family: Family) -> Vec<IpNet> {
        let blocks = self.leases.blocks().copied();
        blocks.filter(|block| Family::of_prefix(block) == family).collect()
    }

    /// Whether an ADD with this wish would be served now.
    pub(super) fn ready(&self, wish: &AddressWish) -> Result<(), AttachmentError> {
        if self.bridge.is_none() {
            return Err(AttachmentError::NoBridge);
        }
        let now = now_ms();
        for choice in self.choices(wish) {
            match choice.places.first() {
                None => return Err(missing(&choice)),
                // What one pod wants may be free again by the time it comes.
                Some(_) if choice.wanted.is_some() => {}
                Some(_) if choice.places.iter().all(|place| self.leases.longest_unused(place, now, None).is_none()) => {
                    return Err(exhausted(wish, &choice));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Whether waiting a moment may help: blocks are missing, not full.
    pub(super) fn may_become_ready(&self) -> bool {
        self.bridge.is_none() || self.families().into_iter().any(|family| self.blocks_of(family).is_empty())
    }

    /// Where each address of a pod may come from.
    fn choices(&self, wish: &AddressWish) -> Vec<Choice> {
        let blocks: Vec<IpNet> = self.leases.blocks().copied().collect();
        wish.choices(&blocks, &self.families())
    }

    /// The addresses of a pod, taken: all or none.
    pub(super) async fn take_addresses(&mut self, taker: &Taker<'_>) -> Result<Vec<IpNet>, AttachmentError> {
        let mut taken = Vec::new();
        for choice in self.choices(taker.wish) {
            match self.take_address(taker, &choice) {
                Ok(address) => taken.push(address),
                Err(error) => {
                    self.leases.release(taker.key, now_ms());
                    if taker.wish.is_empty() {
                        self.ask_for_block(choice.family).await;
                    }
                    return Err(error);
                }
            }
            self.look_at_level(choice.family).await;
        }
        Ok(taken)
    }

    fn take_address(&mut self, taker: &Taker<'_>, choice: &Choice) -> Result<IpNet, AttachmentError> {
        if choice.places.is_empty() {
            return Err(missing(choice));
        }
        let sticky = taker.sticky_name();
        for place in &choice.places {
            let address = match choice.wanted.or_else(|| self.kept_for(sticky.as_deref(), place)) {
                Some(address) => Some(address),
                None => self.pick(taker, place, sticky.as_deref()),
            };
            let Some(address) = address else { continue };
            match self.leases.take(address, taker.key, sticky.as_deref()) {
                Ok(()) => {
                    return IpNet::new(address, place.block.prefix_len()).map_err(|_| exhausted(taker.wish, choice));
                }
                Err(refusal) if choice.wanted.is_some() => return Err(refusal.into()),
                Err(refusal) => tracing::error!(%refusal, attachment = %taker.key, "a free address could not be taken"),
            }
        }
        Err(exhausted(taker.wish, choice))
    }

    /// The address kept for a sticky pod, when it lies in this place and is free.
    fn kept_for(&self, pod: Option<&str>, place: &Place) -> Option<IpAddr> {
        let kept = self.leases.wanted(pod?, place.range.family())?;
        let free = self.leases.holder(kept).is_none();
        (free && place.range.contains(kept)).then_some(kept)
    }

    /// What the policy chooses among the free addresses of a place, or the host in its stead.
    fn pick(&self, taker: &Taker<'_>, place: &Place, sticky: Option<&str>) -> Option<IpAddr> {
        let now = now_ms();
        let free = self.leases.free(place, MAX_OFFERED, now, sticky);
        if free.is_empty() {
            return None;
        }
        let request = PickRequest { pod: taker.pod.clone(), free: free.clone(), wanted: None };
        let picked = self.parts.policies.pick(&request);
        let answer = picked.unwrap_or_else(|error| {
            tracing::warn!(%error, attachment = %taker.key, "the IPAM policy does not choose; the host does");
            None
        });
        let pick = self.leases.admit_pick(place, &free, answer, now);
        if let Some(violation) = pick.violation {
            tracing::warn!(%violation, attachment = %taker.key, "the IPAM policy's choice is refused");
        }
        pick.address
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

    /// Records that every address of an attachment is given back, and rests from now on.
    pub(super) fn record_release(&self, key: &AttachmentKey, now_ms: u64) {
        for address in self.leases.addresses_of(key) {
            let reserved_for = self.leases.row(address).and_then(|row| row.reserved_for);
            // For whom an address is kept must survive power loss; when it was released need not.
            let durability = if reserved_for.is_some() { Durability::Power } else { Durability::Process };
            let row = LeaseRow { address, state: LeaseState::Released(now_ms), reserved_for };
            if let Err(error) = self.parts.store.put(Kind::Released, &address.to_string(), &row, durability) {
                tracing::warn!(%address, %error, "a release could not be recorded; the address may be reused sooner");
            }
        }
    }

    /// Gives up addresses of sticky pods that did not come back in time.
    pub(super) fn forget_sticky_addresses(&mut self) {
        let limit_ms = self.parts.config.ipam.sticky_seconds.saturating_mul(1000);
        for (pod, addresses) in self.leases.forget_reservations_before(now_ms().saturating_sub(limit_ms)) {
            tracing::info!(pod, ?addresses, "the pod did not come back: its addresses are free for others");
            for address in addresses {
                let row = self.leases.row(address);
                let recorded = row.map_or(Ok(()), |row| {
                    self.parts.store.put(Kind::Released, &address.to_string(), &row, Durability::Process)
                });
                if let Err(error) = recorded {
                    tracing::warn!(%address, %error, "an address could not be recorded as free; the next start does it");
                }
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
