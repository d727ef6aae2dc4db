//! Records: this node's own, those of the others, and the start from what was stored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_core::claim::{Ledger, LedgerRow};
use culvert_core::membership::{Binding, Directory, Endorsement, MembershipRefusal, NodeRecord, PeerId, Registered};
use culvert_core::reach::PeerReach;
use culvert_core::topology::Node;
use culvert_mesh::{Answer, Ask, Audience, CountersignedRecord, MeshEvent, PeerEndpoint, PeerPath, SignedRecord};
use tokio::sync::mpsc;

use super::{ClusterOwner, Done, Parts, Sources, Work};
use crate::config::RelayNode;
use crate::store::{Durability, Kind, Store, StoreError};

/// Why the owner could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel cannot be asked.
    #[error("cannot look at the kernel's state: {0}")]
    Kernel(#[from] culvert_kernel::KernelError),
}

impl ClusterOwner {
    /// The owner as the state left it.
    pub(super) async fn load(
        mut parts: Parts,
        sources: &Sources,
        jobs: mpsc::Sender<Done>,
    ) -> Result<Self, StartError> {
        let facts = sources.facts.borrow().clone();
        let own = parts.key.peer_id();
        let store = parts.store.clone();
        let (bindings, _) = store.all::<Binding>(Kind::Name)?;
        let (stored, _) = store.all::<CountersignedRecord>(Kind::Member)?;
        let (rows, _) = store.all::<LedgerRow>(Kind::Claim)?;
        let (reach, _) = store.all::<PeerReach>(Kind::Reach)?;
        let held = store.get(Kind::Single, "held-blocks")?.unwrap_or_default();
        let keeper = load_keeper(&parts, &own)?;
        parts.keeper.send_replace(keeper.clone());
        let ledger =
            Ledger::load(facts.pools.clone(), facts.service_prefixes.clone(), rows.into_iter().map(|(_, row)| row));
        let directory = Directory::load(bindings.into_iter().map(|(_, binding)| binding), []);
        let on_link = parts.kernel.observe().await?.on_link;
        let mut owner = Self {
            own,
            facts,
            keeper,
            directory,
            records: BTreeMap::new(),
            ledger,
            held,
            reach: reach.into_iter().collect(),
            paths: BTreeMap::new(),
            on_link,
            failed_next_hops: BTreeSet::new(),
            in_use: BTreeSet::new(),
            stranded: BTreeSet::new(),
            topology: None,
            admitted: culvert_core::decision::AdmittedRoutes::default(),
            decided_by: String::new(),
            refusal: None,
            generation: 0,
            work: Work::default(),
            covers: super::cover::Covers::default(),
            jobs,
            parts,
        };
        for (_, record) in stored {
            owner.accept(&record);
        }
        Ok(owner)
    }

    /// The first steps: what needs no other node.
    pub(super) async fn begin(&mut self) {
        self.register_locally();
        let _events = self.held.refresh(&self.ledger, &self.own);
        self.publish_blocks().await;
        self.publish_peers().await;
        self.look_after_claims();
        self.look_after_registration();
        self.plan_soon();
    }

    /// This node as the policies see it before it has a record.
    pub(super) fn own_node(&self) -> Node {
        let node = &self.parts.config.node;
        Node {
            name: node.name.clone(),
            site_kind: node.site_kind,
            zone: node.zone.clone(),
            ready: true,
            addresses: self.own_addresses(),
            blocks: self.ledger.held_by(&self.own).map(|claim| claim.block).collect(),
            labels: node.labels.clone(),
            ..Node::default()
        }
    }

    /// Where this node can be dialled: what its configuration advertises, then its interfaces.
    fn own_addresses(&self) -> Vec<IpAddr> {
        let config = &self.parts.config;
        let relays = config.mesh.relay_nodes.iter().filter(|relay| relay.node_name == config.node.name);
        let advertised = relays.flat_map(|relay| relay.advertise_address.iter()).filter_map(|text| text.parse().ok());
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in advertised.chain(self.on_link.iter().map(|on_link| on_link.address)) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// The own record as it should be now; its sequence grows when anything else changed.
    fn own_record(&self) -> NodeRecord {
        let config = &self.parts.config;
        let node = self.own_node();
        let known = self.directory.record(&config.node.name).filter(|known| known.peer == self.own);
        let own = self.ledger.held_by(&self.own);
        let r#final = own.filter(|claim| claim.standing == culvert_core::claim::Standing::Final);
        let mut record = NodeRecord {
            name: node.name,
            peer: self.own.clone(),
            sequence: known.map_or(1, |known| known.sequence),
            addresses: node.addresses,
            port: config.mesh.port,
            blocks: r#final.map(|claim| claim.block).collect(),
            site_kind: node.site_kind,
            zone: node.zone,
            labels: node.labels,
        };
        if known.is_some_and(|known| *known != record) {
            record.sequence += 1;
        }
        record
    }

    /// Takes the own record in without asking anybody, so that pods of this node are served while the
    /// keeper is away. Elsewhere it counts only once the keeper countersigned it.
    pub(super) fn register_locally(&mut self) {
        let record = self.own_record();
        if let Err(refusal) = self.directory.register(&record, &self.ledger) {
            self.note_refused_name(&refusal);
        }
    }

    fn note_refused_name(&mut self, refusal: &MembershipRefusal) {
        self.parts.metrics.members.refused(refusal.label());
        tracing::error!(%refusal, "this node's own record is refused");
    }

    /// The own record changed: take it in, then have it countersigned.
    pub(super) fn publish_record(&mut self) {
        self.register_locally();
        self.look_after_registration();
    }

    /// Has the newest own record countersigned, by this node when it is the keeper.
    pub(super) fn look_after_registration(&mut self) {
        let Some(record) = self.directory.record(&self.parts.config.node.name) else { return };
        if record.peer != self.own || self.work.registering || self.work.registered_sequence >= record.sequence {
            return;
        }
        let signed = match SignedRecord::sign(&self.parts.key, record) {
            Ok(signed) => signed,
            Err(error) => {
                tracing::error!(%error, "the own record cannot be signed");
                return;
            }
        };
        if self.parts.config.is_keeper() {
            self.countersign_own(signed);
            return;
        }
        let Some(keeper) = self.keeper.clone().filter(|keeper| self.paths.contains_key(keeper)) else { return };
        self.work.registering = true;
        let mesh = self.parts.mesh.clone();
        self.spawn_job(async move {
            Done::Registered(match mesh.ask(&keeper, Ask::Register(signed)).await {
                Ok(Answer::Registered(record)) => Ok(record),
                Ok(Answer::Refused { reason }) => Err(reason),
                Ok(other) => Err(format!("the keeper answered something else: {other:?}")),
                Err(error) => Err(error.to_string()),
            })
        });
    }

    fn countersign_own(&mut self, signed: SignedRecord) {
        let Some(record) = self.directory.record(&self.parts.config.node.name).cloned() else { return };
        let endorsement = Endorsement::of(&record, &self.directory, &self.ledger);
        match signed.countersign(&self.parts.key, &endorsement) {
            Ok(countersigned) => {
                self.work.registered_sequence = record.sequence;
                self.save_binding(&record.name);
                self.keep_record(&record.name, countersigned.clone());
                let mesh = self.parts.mesh.clone();
                tokio::spawn(async move { mesh.tell(Audience::All, vec![countersigned]).await });
            }
            Err(error) => tracing::error!(%error, "the own record cannot be countersigned"),
        }
    }

    /// The keeper's answer to our registration.
    pub(super) async fn on_registered(&mut self, registered: Result<CountersignedRecord, String>) {
        self.work.registering = false;
        match registered {
            Ok(record) => {
                self.accept(&record);
                self.refusal_of_name(None);
                self.refresh_held().await;
                self.look_after_claims();
            }
            Err(reason) => self.refusal_of_name(Some(reason)),
        }
    }

    fn refusal_of_name(&mut self, reason: Option<String>) {
        if let Some(reason) = &reason {
            tracing::error!(reason, "the keeper does not countersign this node's record");
        }
        self.work.registration_refusal = reason;
    }

    /// Records that a relay or the keeper handed out.
    pub(super) async fn on_told(&mut self, from: &PeerId, records: Vec<CountersignedRecord>) {
        let mut news = Vec::new();
        for carried in records {
            let Some(record) = self.accept(&carried) else { continue };
            if record.peer != self.own && !self.parts.config.is_keeper() {
                for block in Endorsement::free_unnamed(&record, &mut self.ledger) {
                    self.save_row(&block);
                }
            }
            news.push(carried);
        }
        if news.is_empty() {
            return;
        }
        tracing::info!(peer = %from, records = news.len(), "members learnt");
        if self.parts.config.is_relay() {
            self.parts.mesh.tell(Audience::All, news).await;
        }
        self.refresh_held().await;
        self.publish_peers().await;
        self.plan_soon();
    }

    /// Takes a countersigned record in; the record, when it was news.
    fn accept(&mut self, carried: &CountersignedRecord) -> Option<NodeRecord> {
        let keepers: Vec<PeerId> = self.keeper.iter().cloned().collect();
        let (record, endorsement) = match carried.verify_countersigned(&keepers) {
            Ok(verified) => verified,
            Err(error) => {
                self.parts.metrics.members.refused("signature");
                tracing::warn!(%error, "a record does not count");
                return None;
            }
        };
        if record.peer == self.own {
            // It may come back as news from a relay before the keeper's answer.
            self.work.registered_sequence = self.work.registered_sequence.max(record.sequence);
        }
        match endorsement.accept(&record, &mut self.directory, &mut self.ledger) {
            Ok(Registered::New | Registered::Updated) => {}
            // Our own record comes back countersigned with the sequence that we already know.
            Ok(Registered::Ignored) if record.peer == self.own && !self.is_kept(carried) => {}
            Ok(Registered::Ignored) => return None,
            Err(refusal) => {
                self.parts.metrics.members.refused(refusal.label());
                tracing::warn!(%refusal, "a record contradicts a later decision of the keeper");
                return None;
            }
        }
        for endorsed in &endorsement.blocks {
            self.save_row(&endorsed.block);
        }
        self.save_binding(&record.name);
        self.keep_record(&record.name, carried.clone());
        Some(record)
    }

    fn is_kept(&self, carried: &CountersignedRecord) -> bool {
        self.records.values().any(|kept| kept == carried)
    }

    /// Remembers a record as it is carried, over restarts too.
    pub(super) fn keep_record(&mut self, name: &str, record: CountersignedRecord) {
        if let Err(error) = self.parts.store.put(Kind::Member, name, &record, Durability::Process) {
            tracing::error!(name, %error, "a record could not be stored");
        }
        self.records.insert(name.to_owned(), record);
    }

    /// Tells the mesh whom to keep a connection to.
    pub(super) async fn publish_peers(&mut self) {
        let others = self.directory.records().filter(|record| record.peer != self.own);
        let peers: Vec<PeerEndpoint> = others
            .map(|record| {
                let addresses = record.addresses.iter().map(|address| (*address, record.port).into()).collect();
                PeerEndpoint { peer: record.peer.clone(), addresses }
            })
            .collect();
        self.parts.metrics.members.members.set(i64::try_from(peers.len() + 1).unwrap_or(i64::MAX));
        self.parts.mesh.set_peers(peers).await;
        self.look_after_probes();
    }

    /// A relay showed its identity: the first one is kept, another one is refused until an operator says so.
    pub(super) fn on_relay_identified(&mut self, node_name: &str, peer: PeerId) {
        if let Err(error) = self.parts.store.put(Kind::Relay, node_name, &peer, Durability::Power) {
            tracing::error!(relay = node_name, %error, "a relay's identity could not be recorded");
        }
        let is_keeper = self.parts.config.keeper().is_some_and(|keeper| keeper.node_name == node_name);
        if is_keeper && self.keeper.is_none() {
            tracing::info!(relay = node_name, peer = %peer, "keeper identified");
            self.keeper = Some(peer);
            self.parts.keeper.send_replace(self.keeper.clone());
            self.look_after_registration();
            self.look_after_claims();
        }
    }

    /// A peer is connected now, or its path changed.
    pub(super) async fn on_connected(&mut self, peer: PeerId, path: PeerPath) {
        tracing::info!(peer = %peer, node = self.directory.name_of(&peer), ?path, "peer connected");
        self.note_path(&peer, Some(path));
        let is_keeper = self.keeper.as_ref() == Some(&peer);
        let hands_out = self.parts.config.is_relay() || self.parts.config.is_keeper();
        if hands_out {
            let records = self.records.values().cloned().collect();
            self.parts.mesh.tell(Audience::Peer(peer), records).await;
        }
        if is_keeper {
            // The keeper may have lost its state meanwhile: say everything again.
            self.work.registered_sequence = 0;
            self.look_after_registration();
            self.look_after_claims();
        }
    }

    /// A peer is gone.
    pub(super) fn on_disconnected(&mut self, peer: &PeerId) {
        tracing::info!(peer = %peer, node = self.directory.name_of(peer), "peer disconnected");
        self.note_path(peer, None);
    }

    /// Events that only operators care about.
    pub(super) fn log_mesh_event(&self, event: &MeshEvent) {
        match event {
            MeshEvent::RoundTrip { .. } => tracing::trace!(?event, "mesh"),
            MeshEvent::StrangerRefused { address, reason } => tracing::warn!(address, reason, "stranger refused"),
            MeshEvent::RelayRefused { node_name, expected, found } => {
                tracing::error!(relay = node_name, %expected, %found, "another identity answers for a relay; nothing is sent there");
            }
            MeshEvent::RelayUnreachable { node_name, reason } => {
                tracing::warn!(relay = node_name, reason, "relay unreachable; tried again");
            }
            MeshEvent::ListenFailed { address, reason } => tracing::warn!(address, reason, "cannot listen there"),
            MeshEvent::RelayReady { node_name, .. } => tracing::info!(relay = node_name, "reachable through a relay"),
            MeshEvent::RelayIsSelf { node_name } => tracing::info!(relay = node_name, "this node is that relay"),
            MeshEvent::Connected { .. }
            | MeshEvent::PathChanged { .. }
            | MeshEvent::Disconnected { .. }
            | MeshEvent::Told { .. }
            | MeshEvent::Asked { .. }
            | MeshEvent::RelayIdentified { .. } => tracing::debug!(?event, "mesh"),
        }
    }
}

/// The keeper's identity: this node, the one the operator pinned, or the one seen first.
fn load_keeper(parts: &Parts, own: &PeerId) -> Result<Option<PeerId>, StoreError> {
    if parts.config.is_keeper() {
        return Ok(Some(own.clone()));
    }
    let Some(keeper) = parts.config.keeper() else { return Ok(None) };
    known_relay(&parts.store, keeper)
}

/// The identity a relay must show: the one the operator pinned, or the one seen first; `None` before that.
///
/// # Errors
/// When the state cannot be read.
pub fn known_relay(store: &Store, relay: &RelayNode) -> Result<Option<PeerId>, StoreError> {
    match &relay.peer_id {
        Some(pinned) => Ok(Some(PeerId(pinned.clone()))),
        None => store.get(Kind::Relay, &relay.node_name),
    }
}
