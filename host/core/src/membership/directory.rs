//! The directory: which identity has which name, the newest record of each, and the topology that
//! follows from both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{NodeRecord, PeerId};
use crate::claim::{Ledger, Pool, Standing};
use crate::reach::PeerReach;
use crate::topology::{Node, Reach, Topology};

/// The most nodes a directory keeps: the largest cluster Kubernetes is tested with, and room for
/// nodes that come and go. A further node is refused.
pub const MAX_NODES: usize = 8_192;

/// The most addresses a record may name; a node with more has a misconfigured agent.
const MAX_ADDRESSES: usize = 64;
/// The most labels a record may carry.
const MAX_LABELS: usize = 256;
/// A Kubernetes object name has at most 253 characters.
const MAX_NAME_BYTES: usize = 253;
/// The most bytes of one label key or value, and of the zone.
const MAX_LABEL_BYTES: usize = 512;

/// A name and the identity that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The node's name.
    pub name: String,
    /// Who has it; `None` after an operator released it.
    pub peer: Option<PeerId>,
    /// Counts the keeper's decisions about this name; the higher one wins.
    pub decision: u64,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The node was not known.
    New,
    /// The record is newer than the one that was there.
    Updated,
    /// The record is the one that is there, or older: a replay.
    Ignored,
}

/// Why a record was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipRefusal {
    /// The name is another identity's.
    #[error(
        "name {name:?} belongs to peer {holder}, but peer {peer} asked for it: give the node another name, or, when {holder} is gone for good, an operator releases the name with `culvertctl release-name {name}`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: PeerId,
        /// Who asked.
        peer: PeerId,
    },
    /// The identity has another name.
    #[error(
        "peer {peer} is node {name:?} already and asked for {asked:?}: keep the name, or an operator releases it with `culvertctl release-name {name}`"
    )]
    OtherName {
        /// The identity.
        peer: PeerId,
        /// The name it has.
        name: String,
        /// The name it asked for.
        asked: String,
    },
    /// The record names a block that is not the peer's by a final claim.
    #[error("node {name:?} lists block {block}, which {} holds by a final claim: it claims the block first", held_by.as_ref().map_or_else(|| "nobody".to_owned(), |holder| format!("node {holder:?}")))]
    BlockNotHeld {
        /// The node's name.
        name: String,
        /// The block.
        block: IpNet,
        /// The node that holds it.
        held_by: Option<String>,
    },
    /// A field that no honest agent sends.
    #[error("the record of peer {peer} is malformed: {fault}")]
    Malformed {
        /// The identity.
        peer: PeerId,
        /// What is wrong.
        fault: String,
    },
    /// The directory is full.
    #[error(
        "node {name:?} is one more than the {limit} nodes a cluster may have: an operator releases names of nodes that are gone"
    )]
    Full {
        /// The name.
        name: String,
        /// [`MAX_NODES`].
        limit: usize,
    },
}

impl MembershipRefusal {
    /// A stable word for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NameTaken { .. } => "name-taken",
            Self::OtherName { .. } => "other-name",
            Self::BlockNotHeld { .. } => "block-not-held",
            Self::Malformed { .. } => "malformed",
            Self::Full { .. } => "full",
        }
    }
}

/// Everything a topology is made from, besides the directory.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The local node's name.
    pub local: &'a str,
    /// The names of nodes that answer. The local node always counts as ready.
    pub ready: &'a BTreeSet<String>,
    /// How each node is reached, by name.
    pub reach: &'a BTreeMap<String, PeerReach>,
    /// Who holds which block; it knows the pools and the Service ranges.
    pub ledger: &'a Ledger,
    /// The number of this topology.
    pub generation: u64,
}

/// Names, identities and records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    bindings: BTreeMap<String, Binding>,
    names: BTreeMap<PeerId, String>,
    records: BTreeMap<String, NodeRecord>,
}

impl Directory {
    /// The directory as it was stored. A record whose name is not bound to its peer is dropped.
    #[must_use]
    pub fn load(bindings: impl IntoIterator<Item = Binding>, records: impl IntoIterator<Item = NodeRecord>) -> Self {
        let mut directory = Self::default();
        for binding in bindings {
            directory.merge_binding(&binding);
        }
        for record in records {
            if directory.peer_of(&record.name) == Some(&record.peer) {
                directory.records.insert(record.name.clone(), record);
            }
        }
        directory
    }

    /// Takes a record in. A free name is bound to the record's peer; that decision is the keeper's,
    /// so every other node first takes the keeper's bindings with
    /// [`merge_binding`](Self::merge_binding).
    ///
    /// # Errors
    /// [`MembershipRefusal`]; a refused record changes nothing.
    pub fn register(&mut self, record: &NodeRecord, ledger: &Ledger) -> Result<Registered, MembershipRefusal> {
        admit_form(record)?;
        self.admit_name(record)?;
        let known = self.records.get(&record.name).filter(|known| known.peer == record.peer);
        if known.is_some_and(|known| known.sequence >= record.sequence) {
            return Ok(Registered::Ignored);
        }
        admit_blocks(record, ledger)?;
        let outcome = if known.is_some() { Registered::Updated } else { Registered::New };
        if self.peer_of(&record.name).is_none() {
            let decision = self.bindings.get(&record.name).map_or(0, |binding| binding.decision) + 1;
            let (name, peer) = (record.name.clone(), Some(record.peer.clone()));
            self.merge_binding(&Binding { name, peer, decision });
        }
        self.records.insert(record.name.clone(), record.clone());
        Ok(outcome)
    }

    /// Takes over a decision of the keeper about a name; answers whether it was new.
    pub fn merge_binding(&mut self, theirs: &Binding) -> bool {
        let ours = self.bindings.get(&theirs.name);
        if ours.is_some_and(|ours| ours.decision >= theirs.decision) {
            return false;
        }
        if ours.is_none() && self.bindings.len() >= MAX_NODES {
            return false;
        }
        if let Some(before) = ours.and_then(|ours| ours.peer.clone()) {
            self.names.remove(&before);
        }
        if self.records.get(&theirs.name).is_some_and(|record| Some(&record.peer) != theirs.peer.as_ref()) {
            self.records.remove(&theirs.name);
        }
        if let Some(peer) = &theirs.peer {
            self.names.insert(peer.clone(), theirs.name.clone());
        }
        self.bindings.insert(theirs.name.clone(), theirs.clone());
        true
    }

    /// An operator releases a name: the next identity that asks gets it. Answers who had it.
    pub fn release(&mut self, name: &str) -> Option<PeerId> {
        let binding = self.bindings.get(name)?.clone();
        let holder = binding.peer?;
        self.merge_binding(&Binding { name: binding.name, peer: None, decision: binding.decision + 1 });
        Some(holder)
    }

    /// All decisions about names, sorted by name: what is stored and sent.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values()
    }

    /// All records, sorted by name.
    pub fn records(&self) -> impl Iterator<Item = &NodeRecord> {
        self.records.values()
    }

    /// A node's record.
    #[must_use]
    pub fn record(&self, name: &str) -> Option<&NodeRecord> {
        self.records.get(name)
    }

    /// The identity that has a name.
    #[must_use]
    pub fn peer_of(&self, name: &str) -> Option<&PeerId> {
        self.bindings.get(name).and_then(|binding| binding.peer.as_ref())
    }

    /// The name an identity has.
    #[must_use]
    pub fn name_of(&self, peer: &PeerId) -> Option<&str> {
        self.names.get(peer).map(String::as_str)
    }

    /// The cluster as the local node sees it; `None` while the local node has no record itself.
    ///
    /// Blocks come from the ledger: a provisional one counts until somebody else wins it.
    #[must_use]
    pub fn topology(&self, view: &View<'_>) -> Option<Topology> {
        let local = self.records.keys().position(|name| name == view.local)?;
        let mut blocks: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
        let claims: Vec<_> = view.ledger.claims().collect();
        for claim in &claims {
            if let Some(name) = self.name_of(&claim.peer) {
                blocks.entry(name).or_default().push(claim.block);
            }
        }
        let nodes = self.records.values().map(|record| {
            let blocks = blocks.remove(record.name.as_str()).unwrap_or_default();
            self.node(record, blocks, view)
        });
        Some(Topology {
            generation: view.generation,
            local,
            nodes: nodes.collect(),
            cluster_prefixes: cluster_prefixes(view.ledger.pools()),
            service_prefixes: view.ledger.service_prefixes().to_vec(),
        })
    }

    fn node(&self, record: &NodeRecord, blocks: Vec<IpNet>, view: &View<'_>) -> Node {
        let is_local = record.name == view.local;
        let measured = view.reach.get(&record.name).filter(|_| !is_local);
        let reach = measured.map_or(Reach::Unknown, |measured| measured.reach());
        let addresses = match (reach, measured) {
            (Reach::SameLink, Some(measured)) => measured.verified().collect(),
            (Reach::SameLink | Reach::Routed | Reach::TunnelOnly | Reach::Unknown, _) => record.addresses.clone(),
        };
        Node {
            name: record.name.clone(),
            site_kind: record.site_kind,
            zone: record.zone.clone(),
            ready: is_local || view.ready.contains(&record.name),
            reach,
            addresses,
            blocks,
            labels: record.labels.clone(),
        }
    }

    fn admit_name(&self, record: &NodeRecord) -> Result<(), MembershipRefusal> {
        let (name, peer) = (record.name.clone(), record.peer.clone());
        match self.peer_of(&record.name) {
            Some(holder) if *holder != record.peer => {
                return Err(MembershipRefusal::NameTaken { name, holder: holder.clone(), peer });
            }
            Some(_) | None => {}
        }
        match self.name_of(&record.peer) {
            Some(other) if other != record.name => {
                return Err(MembershipRefusal::OtherName { peer, name: other.to_owned(), asked: name });
            }
            Some(_) | None => {}
        }
        if self.bindings.len() >= MAX_NODES && !self.bindings.contains_key(&record.name) {
            return Err(MembershipRefusal::Full { name, limit: MAX_NODES });
        }
        Ok(())
    }
}

/// The pools' ranges, each once.
fn cluster_prefixes(pools: &[Pool]) -> Vec<IpNet> {
    let ranges: BTreeSet<IpNet> = pools.iter().map(|pool| pool.range.trunc()).collect();
    ranges.into_iter().collect()
}

fn admit_blocks(record: &NodeRecord, ledger: &Ledger) -> Result<(), MembershipRefusal> {
    for block in &record.blocks {
        let claim = ledger.claim(block).filter(|claim| claim.standing == Standing::Final);
        if claim.as_ref().is_none_or(|claim| claim.peer != record.peer) {
            let (name, held_by) = (record.name.clone(), claim.map(|claim| claim.holder));
            return Err(MembershipRefusal::BlockNotHeld { name, block: *block, held_by });
        }
    }
    Ok(())
}

fn admit_form(record: &NodeRecord) -> Result<(), MembershipRefusal> {
    let fault = form_fault(record).map(|fault| MembershipRefusal::Malformed { peer: record.peer.clone(), fault });
    fault.map_or(Ok(()), Err)
}

fn form_fault(record: &NodeRecord) -> Option<String> {
    if !is_node_name(&record.name) {
        return Some(format!("name {:?} is no node name of lower case letters, digits, '-' and '.'", record.name));
    }
    if record.port == 0 {
        return Some("port 0 cannot be dialled".to_owned());
    }
    if record.addresses.len() > MAX_ADDRESSES {
        return Some(format!("{} addresses are more than {MAX_ADDRESSES}", record.addresses.len()));
    }
    if let Some(address) = record.addresses.iter().find(|address| !is_dialable(**address)) {
        return Some(format!("{address} is no address of a node"));
    }
    if record.labels.len() > MAX_LABELS {
        return Some(format!("{} labels are more than {MAX_LABELS}", record.labels.len()));
    }
    let texts = record.labels.iter().flat_map(|(key, value)| [key, value]).chain([&record.zone]);
    let odd = texts.into_iter().find(|text| text.len() > MAX_LABEL_BYTES || text.chars().any(char::is_control));
    odd.map(|text| format!("label or zone {:?} is too long or has control characters", shorten(text)))
}

/// Whether a text can name a node.
///
/// **Source** Kubernetes object names: RFC 1123 subdomains.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
            && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
    };
    name.len() <= MAX_NAME_BYTES && name.split('.').all(part)
}

/// Whether others can send to it: a record must not make them dial themselves or a group.
fn is_dialable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.to_ipv4_mapped().is_some())
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
