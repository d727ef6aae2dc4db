//! What this node answers when it is the keeper: it gives names and blocks, each once.

use culvert_core::claim::{ClaimOutcome, ClaimRequest, Standing};
use culvert_core::membership::{Endorsement, PeerId};
use culvert_mesh::{Answer, Ask, Audience, CountersignedRecord, SignedRecord};
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::ClusterOwner;
use crate::store::{Durability, Kind};

impl ClusterOwner {
    /// Answers a peer's question.
    pub(super) async fn on_asked(&mut self, from: &PeerId, ask: Ask, reply: oneshot::Sender<Answer>) {
        let answered = match ask {
            Ask::Register(record) => self.register(from, record).await.map(Answer::Registered),
            // A final claim is asked for in either case: what was provisional is to be settled.
            Ask::Claim { block, standing: Standing::Final | Standing::Provisional } => self.grant(from, block).await,
            Ask::Release { block } => self.take_back(from, block).await.map(|()| Answer::Released),
            Ask::Members => {
                let records: Vec<CountersignedRecord> = self.records.values().cloned().collect();
                let count = records.len() as u64;
                self.parts.mesh.tell(Audience::Peer(from.clone()), records).await;
                Ok(Answer::Telling { count })
            }
            Ask::Claims => Ok(Answer::Claims { claims: self.ledger.claims().collect() }),
        };
        let answer = answered.unwrap_or_else(|reason| {
            tracing::warn!(peer = %from, reason, "asked in vain");
            Answer::Refused { reason }
        });
        super::answer(reply, answer);
    }

    fn must_be_keeper(&self) -> Result<(), String> {
        if self.parts.config.is_keeper() {
            return Ok(());
        }
        let keeper = self.parts.config.keeper().map_or("another node", |keeper| keeper.node_name.as_str());
        Err(format!("node {} is not the keeper; ask {keeper}", self.parts.config.node.name))
    }

    async fn register(&mut self, from: &PeerId, signed: SignedRecord) -> Result<CountersignedRecord, String> {
        self.must_be_keeper()?;
        let record = signed.verify().map_err(|error| error.to_string())?;
        if record.peer != *from {
            return Err(format!("peer {from} asks to register a record of {}", record.peer));
        }
        let registered = self.directory.register(&record, &self.ledger);
        if let Err(refusal) = registered {
            self.parts.metrics.members.refused(refusal.label());
            return Err(refusal.to_string());
        }
        self.save_binding(&record.name);
        let endorsement = Endorsement::of(&record, &self.directory, &self.ledger);
        let countersigned = signed.countersign(&self.parts.key, &endorsement).map_err(|error| error.to_string())?;
        tracing::info!(node = record.name, peer = %from, sequence = record.sequence, "record countersigned");
        self.keep_record(&record.name, countersigned.clone());
        self.parts.mesh.tell(Audience::All, vec![countersigned.clone()]).await;
        self.publish_peers().await;
        self.plan_soon();
        Ok(countersigned)
    }

    async fn grant(&mut self, from: &PeerId, block: IpNet) -> Result<Answer, String> {
        self.must_be_keeper()?;
        let holder = self.directory.name_of(from).map(str::to_owned);
        let holder = holder.ok_or_else(|| format!("peer {from} has no name yet: it registers before it claims"))?;
        let request = ClaimRequest { block, holder, peer: from.clone(), standing: Standing::Final };
        match self.ledger.decide(&request) {
            ClaimOutcome::Granted => {
                self.save_row(&block);
                // A provisional claim of our own may have lost to this one.
                self.refresh_held().await;
                self.plan_soon();
                let claim = self.ledger.claim(&block).ok_or_else(|| format!("block {block} vanished"))?;
                Ok(Answer::Claimed(claim))
            }
            ClaimOutcome::HeldBy(claim) => Ok(Answer::Held(claim)),
            ClaimOutcome::Refused(refusal) => Err(refusal.to_string()),
        }
    }

    async fn take_back(&mut self, from: &PeerId, block: IpNet) -> Result<(), String> {
        self.must_be_keeper()?;
        if !self.ledger.release(&block, from) {
            return Err(format!("block {block} is not held by peer {from}"));
        }
        self.save_row(&block);
        self.plan_soon();
        Ok(())
    }

    /// Writes down who has a name.
    pub(super) fn save_binding(&self, name: &str) {
        let Some(binding) = self.directory.bindings().find(|binding| binding.name == name) else { return };
        if let Err(error) = self.parts.store.put(Kind::Name, name, binding, Durability::Power) {
            tracing::error!(name, %error, "a name could not be recorded");
        }
    }

    /// An operator releases a name.
    pub(super) fn release_name(&mut self, name: &str) -> Result<(), String> {
        self.must_be_keeper()?;
        let holder = self.directory.release(name).ok_or_else(|| format!("nobody has the name {name:?}"))?;
        let held: Vec<IpNet> = self.ledger.held_by(&holder).map(|claim| claim.block).collect();
        for block in held {
            self.ledger.release(&block, &holder);
            self.save_row(&block);
        }
        self.records.remove(name);
        self.save_binding(name);
        if let Err(error) = self.parts.store.remove(Kind::Member, name, Durability::Power) {
            tracing::error!(name, %error, "a record could not be removed");
        }
        tracing::warn!(name, peer = %holder, "name and blocks released by an operator");
        self.plan_soon();
        Ok(())
    }
}
