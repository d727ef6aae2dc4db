//! ADD and GC.

use culvert_cni::result::RouteConfig;
use culvert_core::attachment::{AddDecision, Attachment, AttachmentKey, AttachmentState, next_serial, on_add};
use culvert_core::attachment_plan::{PodNetwork, plan_add};
use culvert_core::hardware_address::admit_mac;
use culvert_core::host_port::{self, PortTable};
use culvert_core::plan::PodRoute;
use culvert_kernel::{ApplyError, PodNamespace};
use ipnet::IpNet;
use std::net::IpAddr;

use super::addresses::Taker;
use super::{AddRequest, AttachmentError, AttachmentsOwner, now_ms};
use crate::store::{Durability, Kind};

impl AttachmentsOwner {
    /// Attaches a pod: decide, take addresses, journal, change the kernel, record.
    pub(super) async fn add(&mut self, request: AddRequest) -> Result<Attachment, AttachmentError> {
        if let Some(chained) = &request.chained {
            return self.add_to(chained, &request).await;
        }
        self.replay_tombstones().await;
        match on_add(self.attachments.get(&request.key)) {
            AddDecision::Fresh => {}
            AddDecision::UndoAndRedo => self.take_down(&request.key).await?,
            AddDecision::Refuse => {
                let host_name = request.key.host_name();
                return Err(AttachmentError::Exists { key: request.key, host_name });
            }
        }
        let bridge = self.bridge.ok_or(AttachmentError::NoBridge)?;
        if let Some(mac) = request.mac {
            admit_mac(mac, bridge.mac, self.attachments.values())?;
        }
        self.ready(&request.wish)?;
        let taker = Taker { key: &request.key, pod: &request.pod, wish: &request.wish, sticky: request.sticky };
        let addresses = self.take_addresses(&taker).await?;
        let network = self.network_of(bridge.index, &addresses);
        let (attachment, namespace) = self.intend(request, addresses, &network);
        let made = self.make(attachment.clone(), &network, &namespace).await;
        if made.is_err() {
            self.forget(&attachment.key);
        }
        made
    }

    /// The record of a pod that is about to be attached.
    fn intend(
        &mut self,
        request: AddRequest,
        addresses: Vec<IpNet>,
        network: &PodNetwork,
    ) -> (Attachment, PodNamespace) {
        let shaping = self.shape_new(&request.pod, &request.requested);
        let gateways: Vec<IpAddr> = addresses.iter().filter_map(|address| network.gateway_of(address)).collect();
        let attachment = Attachment {
            netns: request.netns,
            host_name: request.key.host_name(),
            ifb_name: shaping.total.egress.map(|_| request.key.ifb_name()),
            host_index: self.parts.kernel.free_index(),
            pod_index: self.parts.kernel.free_index(),
            mac: request.mac.unwrap_or_else(|| request.key.mac()),
            mtu_bytes: request.mtu_bytes.unwrap_or(self.parts.config.network.mtu_bytes),
            hairpin: request.hairpin,
            promiscuous_bridge: request.promiscuous_bridge,
            addresses,
            pod: request.pod,
            pod_uid: request.pod_uid,
            serial: next_serial(self.attachments.values()),
            host_ports: request.host_ports,
            masquerade: request.masquerade,
            routes: request.routes.resolve(&gateways).iter().map(pod_route).collect(),
            foreign: false,
            sticky: request.sticky,
            requested: request.requested,
            shaping,
            state: AttachmentState::Intended,
            key: request.key,
        };
        (attachment, request.namespace)
    }

    /// Journals an attachment and makes it. On an error nothing of it is left in the kernel.
    async fn make(
        &mut self,
        mut attachment: Attachment,
        network: &PodNetwork,
        namespace: &PodNamespace,
    ) -> Result<Attachment, AttachmentError> {
        host_port::admit(&attachment.host_ports, &attachment.addresses)?;
        self.record(&attachment)?;
        let plan = plan_add(&attachment, network, &PortTable::of(self.attachments.values()));
        if let Err(error) = self.parts.kernel.apply(&plan, Some(namespace)).await {
            self.parts.metrics.kernel.planned("undone");
            return Err(refused(error, attachment.key));
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

    /// Detaches what is not in the list.
    pub(super) async fn collect(&mut self, network: &str, valid: &[AttachmentKey]) -> Result<(), AttachmentError> {
        let stale = self.attachments.keys().filter(|key| key.network == network && !valid.contains(key));
        let stale: Vec<AttachmentKey> = stale.cloned().collect();
        for key in &stale {
            tracing::info!(attachment = %key, "collected: the runtime does not know it");
        }
        self.take_down_all(stale).await
    }

    /// Releases the addresses of an attachment and drops its record.
    ///
    /// The release is written first: whoever dies in between must still let the addresses rest. A record that cannot be
    /// removed is kept, and its addresses with it: read again at the next start, it would claim an address that somebody
    /// else has by then. The next look tries again.
    pub(super) fn forget(&mut self, key: &AttachmentKey) {
        let now = now_ms();
        self.record_release(key, now);
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.state = AttachmentState::Deleting;
            if let Err(error) = self.parts.store.remove(Kind::Attachment, &key.to_string(), Durability::Process) {
                tracing::error!(attachment = %key, %error, "a record could not be removed; its addresses stay taken until it can");
                return;
            }
        }
        self.leases.release(key, now);
        self.attachments.remove(key);
    }

    /// Journals an attachment, then keeps it. A sticky lease must survive power loss; what else is in a record is of no
    /// use after it, because no interface of a pod survives that.
    pub(super) fn record(&mut self, attachment: &Attachment) -> Result<(), AttachmentError> {
        let key = attachment.key.to_string();
        let is_new_lease = attachment.sticky && attachment.state == AttachmentState::Intended;
        let durability = if is_new_lease { Durability::Power } else { Durability::Process };
        self.parts.store.put(Kind::Attachment, &key, attachment, durability)?;
        self.attachments.insert(attachment.key.clone(), attachment.clone());
        Ok(())
    }
}

/// Whether the pod itself was in the way: its interface is the first thing that is made.
fn refused(error: ApplyError, key: AttachmentKey) -> AttachmentError {
    let exists = rustix::io::Errno::EXIST.raw_os_error();
    let there = error.errno() == Some(exists) && matches!(&error, ApplyError::Refused { position: 0, .. });
    if there { AttachmentError::InterfaceThere { key } } else { error.into() }
}

/// A route of the configuration, as the pod gets it.
fn pod_route(route: &RouteConfig) -> PodRoute {
    let RouteConfig { dst, gw, attributes } = route;
    PodRoute {
        to: dst.trunc(),
        gateway: *gw,
        metric: attributes.priority,
        mtu_bytes: attributes.mtu,
        advertised_mss_bytes: attributes.advmss,
        table: attributes.table,
        scope: attributes.scope,
    }
}
