//! ADD, DEL, CHECK and GC.

use culvert_core::address::gateway;
use culvert_core::attachment::{
    AddDecision, Attachment, AttachmentKey, AttachmentState, DelDecision, next_serial, on_add, on_del,
};
use culvert_core::attachment_plan::{PodNetwork, plan_add, plan_del};
use culvert_core::host_port::PortTable;
use culvert_core::route_plan::BridgeGateways;

use super::{AddRequest, AttachmentError, AttachmentsOwner, CheckRequest};
use crate::store::{Durability, Kind};

impl AttachmentsOwner {
    /// Attaches a pod: decide, take addresses, journal, change the kernel, record.
    pub(super) async fn add(&mut self, request: AddRequest) -> Result<Attachment, AttachmentError> {
        match on_add(self.attachments.get(&request.key)) {
            AddDecision::Fresh => {}
            AddDecision::UndoAndRedo => self.take_down(&request.key).await?,
            AddDecision::Refuse => {
                let host_name = request.key.host_name();
                return Err(AttachmentError::Exists { key: request.key, host_name });
            }
        }
        self.ready()?;
        let bridge_index = self.bridge.ok_or(AttachmentError::NoBridge)?;
        let addresses = self.take_addresses(&request.key, &request.pod).await?;
        let shaping = self.shape_new(&request.pod, &request.requested);
        let AddRequest { key, netns, namespace, pod, pod_uid, requested, mtu_bytes } = request;
        let mut attachment = Attachment {
            netns,
            host_name: key.host_name(),
            ifb_name: shaping.total.egress.map(|_| key.ifb_name()),
            host_index: self.parts.kernel.free_index(),
            pod_index: self.parts.kernel.free_index(),
            mac: key.mac(),
            mtu_bytes: mtu_bytes.unwrap_or(self.parts.config.network.mtu_bytes),
            hairpin: true,
            addresses,
            pod,
            pod_uid,
            requested,
            shaping,
            state: AttachmentState::Intended,
            serial: next_serial(self.attachments.values()),
            host_ports: Vec::new(),
            masquerade: true,
            key,
        };
        if let Err(error) = self.record(&attachment) {
            self.release_addresses(&attachment.key);
            return Err(error);
        }
        let gateways =
            BridgeGateways::of_blocks(&attachment.addresses.iter().map(ipnet::IpNet::trunc).collect::<Vec<_>>());
        let network = PodNetwork { bridge_index, gateways, extra_routes: Vec::new() };
        let plan = plan_add(&attachment, &network, &PortTable::of(self.attachments.values()));
        if let Err(error) = self.parts.kernel.apply(&plan, Some(&namespace)).await {
            self.parts.metrics.kernel.planned("undone");
            self.forget(&attachment.key);
            return Err(error.into());
        }
        self.parts.metrics.kernel.planned("applied");
        attachment.state = AttachmentState::Applied;
        if let Err(error) = self.record(&attachment) {
            self.take_down(&attachment.key).await?;
            return Err(error);
        }
        self.count_addresses();
        Ok(attachment)
    }

    /// The runtime has the answer: from now on a second ADD is refused.
    pub(super) fn acknowledge(&mut self, key: &AttachmentKey) {
        let Some(attachment) = self.attachments.get(key) else { return };
        if attachment.state != AttachmentState::Applied {
            return;
        }
        let acknowledged = Attachment { state: AttachmentState::Acknowledged, ..attachment.clone() };
        if let Err(error) = self.record(&acknowledged) {
            tracing::error!(attachment = %key, %error, "an acknowledgement could not be recorded; a retried ADD redoes it");
        }
    }

    /// Detaches a pod from own records alone.
    pub(super) async fn delete(&mut self, key: &AttachmentKey) -> Result<(), AttachmentError> {
        match on_del(self.attachments.get(key)) {
            DelDecision::Nothing => Ok(()),
            DelDecision::TakeDown => self.take_down(key).await,
        }
    }

    /// Detaches what is not in the list; goes on after a failure and answers the first.
    pub(super) async fn collect(&mut self, network: &str, valid: &[AttachmentKey]) -> Result<(), AttachmentError> {
        let stale = self.attachments.keys().filter(|key| key.network == network && !valid.contains(key));
        let mut first = Ok(());
        for key in stale.cloned().collect::<Vec<_>>() {
            tracing::info!(attachment = %key, "collected: the runtime does not know it");
            let taken = self.take_down(&key).await;
            first = first.and(taken);
        }
        first
    }

    /// Takes an attachment down, whatever is left of it, and forgets it.
    pub(super) async fn take_down(&mut self, key: &AttachmentKey) -> Result<(), AttachmentError> {
        let Some(attachment) = self.attachments.get(key) else { return Ok(()) };
        let plan = plan_del(attachment, &PortTable::of(self.attachments.values()));
        let deleting = Attachment { state: AttachmentState::Deleting, ..attachment.clone() };
        // A full disk must not keep a pod's interface alive: the links go in any case.
        if let Err(error) = self.record(&deleting) {
            tracing::warn!(attachment = %key, %error, "the deletion could not be journalled; going on");
        }
        self.parts.kernel.apply(&plan, None).await?;
        self.forget(key);
        self.count_addresses();
        Ok(())
    }

    /// Releases the addresses of an attachment and drops its record.
    pub(super) fn forget(&mut self, key: &AttachmentKey) {
        self.release_addresses(key);
        self.attachments.remove(key);
        if let Err(error) = self.parts.store.remove(Kind::Attachment, &key.to_string(), Durability::Process) {
            tracing::error!(attachment = %key, %error, "a record could not be removed; the next start removes it");
        }
    }

    /// Journals an attachment, then keeps it.
    pub(super) fn record(&mut self, attachment: &Attachment) -> Result<(), AttachmentError> {
        let key = attachment.key.to_string();
        self.parts.store.put(Kind::Attachment, &key, attachment, Durability::Process)?;
        self.attachments.insert(attachment.key.clone(), attachment.clone());
        Ok(())
    }

    /// Compares an attachment with what the kernel holds; changes nothing.
    pub(super) async fn check(&mut self, request: &CheckRequest) -> Result<(), AttachmentError> {
        let key = &request.key;
        let attachment =
            self.attachments.get(key).ok_or_else(|| AttachmentError::Unknown { key: key.clone() })?.clone();
        let differs = |what, found: String| Err(AttachmentError::Differs { key: key.clone(), what, found });
        if let Some(address) = request.addresses.iter().find(|address| !attachment.addresses.contains(address)) {
            return differs("an address", format!("{address} is not among {:?}", attachment.addresses));
        }
        let observed = self.parts.kernel.observe().await?;
        let link = |name: &str| observed.links.iter().find(|link| link.name == name);
        let Some(host_end) = link(&attachment.host_name) else {
            return differs("the host end", format!("{} is gone", attachment.host_name));
        };
        if !host_end.up {
            return differs("the host end", format!("{} is down", attachment.host_name));
        }
        if host_end.master != self.bridge {
            return differs("the host end", format!("{} is not on the bridge", attachment.host_name));
        }
        if let Some(ifb) = attachment.ifb_name.as_deref().filter(|ifb| link(ifb).is_none()) {
            return differs("the egress limit", format!("{ifb} is gone"));
        }
        for address in &attachment.addresses {
            let gateway = gateway(&address.trunc());
            let bridge = observed.links.iter().find(|link| Some(link.index) == self.bridge);
            if bridge.is_none_or(|bridge| !bridge.addresses.iter().any(|held| held.addr() == gateway)) {
                return differs("the gateway", format!("{gateway} is not on the bridge"));
            }
        }
        Ok(())
    }
}
