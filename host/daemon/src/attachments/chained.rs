//! A later place in a chain of plugins: the interface is there, host ports and rates are added to it.

use culvert_core::attachment::{AddDecision, Attachment, AttachmentKey, AttachmentState, next_serial, on_add};
use culvert_core::attachment_plan::{PodNetwork, plan_add, plan_reshape};
use culvert_core::host_port::{self, PortTable};
use culvert_core::plan::Plan;

use super::{AddRequest, AttachmentError, AttachmentsOwner, Chained};

impl AttachmentsOwner {
    /// Adds host ports and rates to what the plugins before made: an attachment of ours, or another plugin's.
    pub(super) async fn add_to(
        &mut self,
        chained: &Chained,
        request: &AddRequest,
    ) -> Result<Attachment, AttachmentError> {
        let ours = self.attachments.get(&request.key).filter(|attachment| !attachment.foreign).cloned();
        match ours {
            Some(attachment) if chained.host_links.contains(&attachment.host_name) => {
                self.extend(attachment, request).await
            }
            Some(_) => Err(exists(request)),
            None => self.adopt(chained, request).await,
        }
    }

    /// An earlier entry of the same list was ours too: its record gets what this one asks for besides.
    async fn extend(&mut self, before: Attachment, request: &AddRequest) -> Result<Attachment, AttachmentError> {
        let mut after = before.clone();
        after.host_ports.extend(request.host_ports.iter().filter(|port| !before.host_ports.contains(port)));
        host_port::admit(&after.host_ports, &after.addresses)?;
        if request.requested != culvert_core::bandwidth::Limits::default() {
            after.requested = request.requested;
            after.shaping = self.shape_new(&after.pod, &after.requested);
            after.ifb_name = after.shaping.total.egress.map(|_| after.key.ifb_name());
        }
        self.record(&after)?;
        let mut plan = plan_reshape(&after, &before.shaping, &after.shaping);
        plan.steps.extend(PortTable::of(self.attachments.values()).claim(&after));
        if let Err(error) = self.parts.kernel.apply(&plan, None).await {
            self.record(&before)?;
            return Err(error.into());
        }
        Ok(after)
    }

    /// Another plugin made the interface: a record of what is added to it, so that DEL finds it.
    async fn adopt(&mut self, chained: &Chained, request: &AddRequest) -> Result<Attachment, AttachmentError> {
        match on_add(self.attachments.get(&request.key)) {
            AddDecision::Fresh => {}
            AddDecision::UndoAndRedo => self.take_down(&request.key).await?,
            AddDecision::Refuse => return Err(exists(request)),
        }
        let missing = |what| AttachmentError::NothingToChain { key: request.key.clone(), what };
        if chained.addresses.is_empty() {
            return Err(missing("address"));
        }
        host_port::admit(&request.host_ports, &chained.addresses)?;
        let shaping = self.shape_new(&request.pod, &request.requested);
        let limited = shaping.total != culvert_core::bandwidth::Limits::default();
        let host_name = self.host_end(chained).await?;
        if limited && host_name.is_none() {
            return Err(missing("host interface whose rate could be limited"));
        }
        let attachment = Attachment {
            netns: request.netns.clone(),
            host_name: host_name.unwrap_or_default(),
            ifb_name: shaping.total.egress.map(|_| request.key.ifb_name()),
            host_index: 0,
            pod_index: 0,
            mac: [0; 6],
            mtu_bytes: request.mtu_bytes.unwrap_or(self.parts.config.network.mtu_bytes),
            hairpin: false,
            promiscuous_bridge: false,
            addresses: chained.addresses.clone(),
            pod: request.pod.clone(),
            pod_uid: request.pod_uid.clone(),
            serial: next_serial(self.attachments.values()),
            host_ports: request.host_ports.clone(),
            masquerade: true,
            routes: Vec::new(),
            foreign: true,
            sticky: false,
            requested: request.requested,
            shaping,
            state: AttachmentState::Intended,
            key: request.key.clone(),
        };
        self.record(&attachment)?;
        let plan = plan_add(&attachment, &PodNetwork::default(), &PortTable::of(self.attachments.values()));
        self.add_foreign(attachment, &plan).await
    }

    async fn add_foreign(&mut self, attachment: Attachment, plan: &Plan) -> Result<Attachment, AttachmentError> {
        let key: AttachmentKey = attachment.key.clone();
        if let Err(error) = self.parts.kernel.apply(plan, None).await {
            self.forget(&key);
            return Err(error.into());
        }
        let applied = Attachment { state: AttachmentState::Applied, ..attachment };
        self.record(&applied)?;
        Ok(applied)
    }

    /// The host end among the links that a chain names: the one that is no bridge, that is, has no ports.
    async fn host_end(&mut self, chained: &Chained) -> Result<Option<String>, AttachmentError> {
        let observed = self.parts.kernel.observe().await?;
        let has_ports = |index: u32| observed.links.iter().any(|link| link.master == Some(index));
        let named = observed.links.iter().filter(|link| chained.host_links.contains(&link.name));
        Ok(named.filter(|link| !has_ports(link.index)).map(|link| link.name.clone()).next_back())
    }
}

/// The runtime has it already.
fn exists(request: &AddRequest) -> AttachmentError {
    AttachmentError::Exists { key: request.key.clone(), host_name: request.key.host_name() }
}
