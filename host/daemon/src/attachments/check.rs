//! CHECK: an attachment as it was recorded against what is there. Changes nothing.

use culvert_core::address::Family;
use culvert_core::attachment::Attachment;
use culvert_core::attachment_check::{AttachmentFacts, Expected, findings};
use culvert_core::attachment_plan::PodNetwork;
use culvert_core::host_port::PortTable;
use culvert_core::route_plan::BridgeGateways;
use ipnet::IpNet;

use super::{AttachmentError, AttachmentsOwner, CheckRequest};
use crate::node_spec::node_spec;

impl AttachmentsOwner {
    /// Compares; the answer names everything that is not as it was made.
    pub(super) async fn check(&mut self, request: &CheckRequest) -> Result<(), AttachmentError> {
        let key = &request.key;
        let attachment = self.attachments.get(key).ok_or_else(|| AttachmentError::Unknown { key: key.clone() })?;
        let attachment = attachment.clone();
        let facts = self.facts(&attachment, request).await?;
        let network = self.network_of(self.bridge.map_or(0, |bridge| bridge.index), &attachment.addresses);
        let ports = PortTable::of(self.attachments.values());
        let expected = Expected { network: &network, ports: &ports, previous: Some(&request.previous) };
        let found: Vec<String> = findings(&attachment, &facts, &expected).iter().map(ToString::to_string).collect();
        if found.is_empty() {
            return Ok(());
        }
        Err(AttachmentError::Differs { key: key.clone(), found: found.join("; ") })
    }

    async fn facts(
        &mut self,
        attachment: &Attachment,
        request: &CheckRequest,
    ) -> Result<AttachmentFacts, AttachmentError> {
        let prefixes: Vec<IpNet> = self.pools.iter().map(|pool| pool.range).collect();
        let spec = node_spec(&self.parts.config, self.blocks.iter().copied(), &prefixes);
        let kernel = &mut self.parts.kernel;
        Ok(AttachmentFacts {
            links: kernel.inspect(attachment, request.namespace.as_ref()).await?,
            nat: kernel.nat_elements().await?,
            rules_stand: kernel.firewall_stands(&spec).await?,
        })
    }

    /// What an attachment with these addresses hangs on.
    pub(super) fn network_of(&self, bridge_index: u32, addresses: &[IpNet]) -> PodNetwork {
        let with_block = addresses.iter().filter(|address| address.prefix_len() < address.max_prefix_len());
        let gateways = BridgeGateways::of_blocks(&with_block.map(IpNet::trunc).collect::<Vec<_>>());
        // An address without a block of its own goes by the node's.
        let own = BridgeGateways::of_blocks(&self.blocks);
        let of = |family| gateways.of(family).or(own.of(family));
        PodNetwork { bridge_index, gateways: BridgeGateways { v4: of(Family::V4), v6: of(Family::V6) } }
    }
}
