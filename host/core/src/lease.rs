//! The lease table: which attachment has which address. The host's own, whatever a policy says.
//!
//! ```text
//! free ──take──> held ──release──> quarantined ──quarantine over──> free
//!                                       └──take by the pod it is reserved for──> held
//! ```
//! An address is in one of these states and in one block, so it cannot be given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address::{Family, is_assignable};
use crate::allocation::Place;
use crate::attachment::AttachmentKey;

/// How many free addresses a policy is shown. It chooses among so few because the list is made for
/// every pod start; the rest of the block is the host's to offer later.
pub const MAX_OFFERED: usize = 64;

/// How long an address rests after its release, unless the configuration says otherwise: longer than
/// a neighbour keeps a stale ARP entry without asking. **Units** milliseconds.
pub const DEFAULT_QUARANTINE_MS: u64 = 30_000;

/// How many released addresses are remembered, to give the longest unused one first. When it is full
/// the longest released one is forgotten, which makes it as good as never used.
pub const MAX_REMEMBERED: usize = 65_536;

/// One stored row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// The address.
    pub address: IpAddr,
    /// Held or released.
    pub state: LeaseState,
    /// The pod the address is kept for, `namespace/name`; `None` for ordinary pods.
    pub reserved_for: Option<String>,
}

/// Whether an address is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// An attachment has it.
    Held(AttachmentKey),
    /// It was given back. **Units** milliseconds since the epoch.
    Released(u64),
}

/// Why an address cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// Somebody has it.
    #[error("address {address} is held by attachment {holder}: choose another one")]
    Held {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: AttachmentKey,
    },
    /// It is kept for a pod.
    #[error("address {address} is kept for pod {pod:?}: choose another one, or release the reservation")]
    Reserved {
        /// The address.
        address: IpAddr,
        /// `namespace/name`.
        pod: String,
    },
    /// No block that this node may use has it.
    #[error("address {address} is in no block this node may give addresses from: claim its block first")]
    OutsideBlocks {
        /// The address.
        address: IpAddr,
    },
    /// It is its block's network, gateway or broadcast address, or was carved out for another node.
    #[error("address {address} of block {block} is never given to a pod: choose another one")]
    NotAssignable {
        /// The address.
        address: IpAddr,
        /// Its block.
        block: IpNet,
    },
}

/// Two stored rows contradict each other: the store is torn, and is rebuilt from the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address} is stored as held by {first} and by {second}: rebuild the leases from the attachments")]
pub struct DuplicateLease {
    /// The address.
    pub address: IpAddr,
    /// One holder.
    pub first: Box<AttachmentKey>,
    /// The other.
    pub second: Box<AttachmentKey>,
}

/// What a policy's `pick` did wrong. The host chose by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickViolation {
    /// A position beyond the list.
    #[error("the policy picked position {picked} of {offered} addresses: answer a position in request.free, or none")]
    OutOfRange {
        /// The answer.
        picked: u32,
        /// How many were offered.
        offered: usize,
    },
}

/// The outcome of a pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The address to take; `None` when the block is exhausted.
    pub address: Option<IpAddr>,
    /// What the policy did wrong, if it did.
    pub violation: Option<PickViolation>,
}

/// The leases of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTable {
    quarantine_ms: u64,
    blocks: BTreeSet<IpNet>,
    carved_out: BTreeSet<IpAddr>,
    held: BTreeMap<IpAddr, AttachmentKey>,
    by_key: BTreeMap<AttachmentKey, BTreeSet<IpAddr>>,
    released: BTreeMap<IpAddr, u64>,
    reserved: BTreeMap<IpAddr, String>,
}

impl LeaseTable {
    /// An empty table; give it blocks with [`set_blocks`](Self::set_blocks).
    #[must_use]
    pub fn new(quarantine_ms: u64) -> Self {
        Self { quarantine_ms, ..Self::default() }
    }

    /// The table as it was stored.
    ///
    /// # Errors
    /// [`DuplicateLease`] when two attachments hold one address.
    pub fn load(quarantine_ms: u64, rows: impl IntoIterator<Item = LeaseRow>) -> Result<Self, DuplicateLease> {
        let mut table = Self::new(quarantine_ms);
        for row in rows {
            if let Some(pod) = row.reserved_for {
                table.reserved.insert(row.address, pod);
            }
            match row.state {
                LeaseState::Held(key) => {
                    if let Some(first) = table.held.get(&row.address).filter(|first| **first != key) {
                        let (address, first) = (row.address, Box::new(first.clone()));
                        return Err(DuplicateLease { address, first, second: Box::new(key) });
                    }
                    table.hold(row.address, key);
                }
                LeaseState::Released(at) if !table.held.contains_key(&row.address) => {
                    table.released.insert(row.address, at);
                }
                LeaseState::Released(_) => {}
            }
        }
        Ok(table)
    }

    /// Everything worth storing, sorted by address within each state.
    pub fn rows(&self) -> impl Iterator<Item = LeaseRow> {
        let held = self.held.iter().map(|(address, key)| (address, LeaseState::Held(key.clone())));
        let released = self.released.iter().map(|(address, at)| (address, LeaseState::Released(*at)));
        held.chain(released).map(|(address, state)| LeaseRow {
            address: *address,
            state,
            reserved_for: self.reserved.get(address).cloned(),
        })
    }

    /// One address's row; `None` for an address that was never used, or was forgotten.
    #[must_use]
    pub fn row(&self, address: IpAddr) -> Option<LeaseRow> {
        let held = self.held.get(&address).map(|key| LeaseState::Held(key.clone()));
        let state = held.or_else(|| self.released.get(&address).map(|at| LeaseState::Released(*at)))?;
        Some(LeaseRow { address, state, reserved_for: self.reserved.get(&address).cloned() })
    }

    /// The blocks that new addresses may come from. Leases in other blocks stay what they are.
    pub fn set_blocks(&mut self, blocks: impl IntoIterator<Item = IpNet>) {
        self.blocks = blocks.into_iter().map(|block| block.trunc()).collect();
    }

    /// Addresses of our blocks that were carved out for other nodes: never given here.
    pub fn set_carved_out(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.carved_out = addresses.into_iter().collect();
    }

    /// The blocks that new addresses may come from, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = &IpNet> {
        self.blocks.iter()
    }

    /// Free addresses of a place, ascending, at most `limit` and at most [`MAX_OFFERED`].
    ///
    /// `pod` may be offered what is kept for it; nobody is offered what rests in quarantine.
    /// Large blocks are never walked: the walk ends with the list.
    #[must_use]
    pub fn free(&self, place: &Place, limit: usize, now_ms: u64, pod: Option<&str>) -> Vec<IpAddr> {
        if !self.blocks.contains(&place.block) {
            return Vec::new();
        }
        let limit = limit.min(MAX_OFFERED);
        let kept = pod.and_then(|pod| self.wanted(pod, place.range.family()));
        let kept = kept.filter(|kept| self.is_offerable(place, *kept, now_ms, pod));
        let others = place.range.addresses().filter(|address| Some(*address) != kept);
        let others = others.filter(|address| self.is_offerable(place, *address, now_ms, pod));
        let mut free: Vec<IpAddr> = kept.into_iter().chain(others).take(limit).collect();
        free.sort_unstable();
        free
    }

    /// The host's own choice: what is kept for the pod, else the lowest address never used, else the
    /// one unused for longest.
    #[must_use]
    pub fn longest_unused(&self, place: &Place, now_ms: u64, pod: Option<&str>) -> Option<IpAddr> {
        if !self.blocks.contains(&place.block) {
            return None;
        }
        let offerable = |address: &IpAddr| self.is_offerable(place, *address, now_ms, pod);
        let kept = pod.and_then(|pod| self.wanted(pod, place.range.family())).filter(offerable);
        let unused = |address: &IpAddr| offerable(address) && !self.released.contains_key(address);
        let never_used = || place.range.addresses().find(unused);
        let oldest = || {
            let released = self.released.iter().filter(|(address, _)| offerable(address));
            released.min_by_key(|(address, at)| (**at, **address)).map(|(address, _)| *address)
        };
        kept.or_else(never_used).or_else(oldest)
    }

    /// Admits a policy's answer to the addresses it was offered. No answer, or one that points
    /// nowhere, leaves the choice to the host.
    #[must_use]
    pub fn admit_pick(&self, place: &Place, free: &[IpAddr], answer: Option<u32>, now_ms: u64) -> Pick {
        let Some(picked) = answer else {
            return Pick { address: self.own_choice(place, free, now_ms), violation: None };
        };
        let chosen = usize::try_from(picked).ok().and_then(|position| free.get(position)).copied();
        match chosen {
            Some(address) => Pick { address: Some(address), violation: None },
            None => Pick {
                address: self.own_choice(place, free, now_ms),
                violation: Some(PickViolation::OutOfRange { picked, offered: free.len() }),
            },
        }
    }

    /// Gives an address to an attachment; giving it again to the same one changes nothing.
    ///
    /// With `pod`, the address stays kept for that pod after its release.
    ///
    /// # Errors
    /// [`LeaseRefusal`]; nothing was changed.
    pub fn take(&mut self, address: IpAddr, key: &AttachmentKey, pod: Option<&str>) -> Result<(), LeaseRefusal> {
        match self.held.get(&address) {
            Some(holder) if holder == key => return Ok(()),
            Some(holder) => {
                return Err(LeaseRefusal::Held { address, holder: holder.clone() });
            }
            None => {}
        }
        if let Some(reserved) = self.reserved.get(&address).filter(|reserved| Some(reserved.as_str()) != pod) {
            return Err(LeaseRefusal::Reserved { address, pod: reserved.clone() });
        }
        let block = self.block_of(address).ok_or(LeaseRefusal::OutsideBlocks { address })?;
        if !is_assignable(&block, address) || self.carved_out.contains(&address) {
            return Err(LeaseRefusal::NotAssignable { address, block });
        }
        self.released.remove(&address);
        self.hold(address, key.clone());
        if let Some(pod) = pod {
            self.reserved.insert(address, pod.to_owned());
        }
        Ok(())
    }

    /// Takes every address of an attachment back; answers which. None is no error.
    pub fn release(&mut self, key: &AttachmentKey, now_ms: u64) -> Vec<IpAddr> {
        let addresses = self.by_key.remove(key).unwrap_or_default();
        for address in &addresses {
            self.held.remove(address);
            self.remember(*address, now_ms);
        }
        addresses.into_iter().collect()
    }

    /// Gives up what is kept for a pod that will not come back; answers which addresses.
    pub fn forget_reservation(&mut self, pod: &str) -> Vec<IpAddr> {
        let kept: Vec<IpAddr> =
            self.reserved.iter().filter(|(_, reserved)| *reserved == pod).map(|(address, _)| *address).collect();
        for address in &kept {
            self.reserved.remove(address);
        }
        kept
    }

    /// Gives up what is kept for pods whose last address was released before `moment_ms`; answers for whom, and
    /// which addresses.
    pub fn forget_reservations_before(&mut self, moment_ms: u64) -> Vec<(String, Vec<IpAddr>)> {
        let gone = |address: &IpAddr| self.released.get(address).is_some_and(|at| *at < moment_ms);
        let names: BTreeSet<&String> = self.reserved.values().collect();
        let absent = names.into_iter().filter(|pod| {
            self.reserved.iter().filter(|(_, reserved)| reserved == pod).all(|(address, _)| gone(address))
        });
        let absent: Vec<String> = absent.cloned().collect();
        absent.into_iter().map(|pod| (pod.clone(), self.forget_reservation(&pod))).collect()
    }

    /// The address kept for a pod.
    #[must_use]
    pub fn wanted(&self, pod: &str, family: Family) -> Option<IpAddr> {
        let kept = self.reserved.iter().find(|(address, reserved)| Family::of(**address) == family && *reserved == pod);
        kept.map(|(address, _)| *address)
    }

    /// Who has an address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&AttachmentKey> {
        self.held.get(&address)
    }

    /// The addresses of an attachment.
    pub fn addresses_of(&self, key: &AttachmentKey) -> impl Iterator<Item = IpAddr> {
        self.by_key.get(key).into_iter().flatten().copied()
    }

    /// All addresses in use and who has them, ascending.
    pub fn held(&self) -> impl Iterator<Item = (IpAddr, &AttachmentKey)> {
        self.held.iter().map(|(address, key)| (*address, key))
    }

    /// How many addresses of a block are in use.
    #[must_use]
    pub fn in_use(&self, block: &IpNet) -> u32 {
        let inside = self.held.range(block.network()..=block.broadcast()).count();
        u32::try_from(inside).unwrap_or(u32::MAX)
    }

    fn own_choice(&self, place: &Place, free: &[IpAddr], now_ms: u64) -> Option<IpAddr> {
        // What is kept for the asking pod is in `free` only, so it is found through it.
        let kept = free.iter().copied().find(|address| self.reserved.contains_key(address));
        kept.or_else(|| self.longest_unused(place, now_ms, None))
    }

    /// The longest block that contains the address.
    fn block_of(&self, address: IpAddr) -> Option<IpNet> {
        let around = self.blocks.iter().filter(|block| block.contains(&address));
        around.max_by_key(|block| block.prefix_len()).copied()
    }

    fn is_offerable(&self, place: &Place, address: IpAddr, now_ms: u64, pod: Option<&str>) -> bool {
        let reserved = self.reserved.get(&address).map(String::as_str);
        place.range.contains(address)
            && is_assignable(&place.block, address)
            && !self.held.contains_key(&address)
            && !self.carved_out.contains(&address)
            && (reserved.is_none() || reserved == pod)
            && (reserved.is_some() || !self.is_quarantined(address, now_ms))
    }

    /// A clock that jumped back must not lock addresses up: a release that lies further in the
    /// future than one quarantine is taken as long past.
    fn is_quarantined(&self, address: IpAddr, now_ms: u64) -> bool {
        self.released.get(&address).is_some_and(|at| at.abs_diff(now_ms) < self.quarantine_ms)
    }

    fn hold(&mut self, address: IpAddr, key: AttachmentKey) {
        self.released.remove(&address);
        self.by_key.entry(key.clone()).or_default().insert(address);
        self.held.insert(address, key);
    }

    fn remember(&mut self, address: IpAddr, now_ms: u64) {
        if self.released.len() >= MAX_REMEMBERED {
            let oldest = self.released.iter().min_by_key(|(address, at)| (**at, **address));
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.released.remove(&oldest);
            }
        }
        self.released.insert(address, now_ms);
    }
}

#[cfg(test)]
mod tests;
