//! The start: what the records say against what the kernel shows.

use std::collections::{BTreeMap, BTreeSet};

use culvert_core::attachment::{Attachment, AttachmentKey, RepairAction, recover};
use culvert_core::lease::{LeaseRow, LeaseTable};
use culvert_core::nat::NatElements;
use culvert_core::plan::{Plan, Step};
use culvert_kernel::KernelError;

use super::{AttachmentsOwner, Parts};
use crate::store::{Kind, StoreError};

/// Why the owner could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AttachmentsOwner {
    /// The owner as the state left it. Leases follow from the attachments, so the two cannot disagree.
    pub(super) fn load(parts: Parts) -> Result<Self, StartError> {
        let (rows, _damaged) = parts.store.all::<Attachment>(Kind::Attachment)?;
        let (released, _damaged) = parts.store.all::<LeaseRow>(Kind::Released)?;
        let quarantine_ms = parts.config.ipam.quarantine_seconds.saturating_mul(1000);
        let attachments: BTreeMap<AttachmentKey, Attachment> =
            rows.into_iter().map(|(_, attachment)| (attachment.key.clone(), attachment)).collect();
        let leases = load_leases(&attachments, released.into_iter().map(|(_, row)| row), quarantine_ms);
        Ok(Self {
            parts,
            attachments,
            leases,
            blocks: Vec::new(),
            pools: Vec::new(),
            bridge: None,
            repaired: false,
            waiting: Vec::new(),
        })
    }

    /// The bridge is there: repair once, then serve.
    pub(super) async fn set_bridge(&mut self, index: u32) {
        self.bridge = Some(index);
        if !std::mem::replace(&mut self.repaired, true) {
            self.repair().await;
        }
        self.serve_waiting().await;
    }

    async fn repair(&mut self) {
        let (links, elements) = match self.present().await {
            Ok(present) => present,
            Err(error) => {
                tracing::error!(%error, "cannot compare records with the kernel; nothing is repaired");
                self.repaired = false;
                return;
            }
        };
        for action in recover(self.attachments.values(), &links, &elements) {
            self.carry_out(action).await;
        }
        self.count_addresses();
    }

    /// The names of the links and the elements of the NAT table that are there.
    async fn present(&mut self) -> Result<(BTreeSet<String>, NatElements), KernelError> {
        let observed = self.parts.kernel.observe().await?;
        let links = observed.links.into_iter().map(|link| link.name).collect();
        Ok((links, self.parts.kernel.nat_elements().await?))
    }

    async fn carry_out(&mut self, action: RepairAction) {
        tracing::warn!(?action, "repaired at start");
        match action {
            RepairAction::TakeDown(key) | RepairAction::Forget(key) => {
                self.parts.metrics.kernel.repaired("attachment");
                if let Err(error) = self.take_down(&key).await {
                    tracing::error!(attachment = %key, %error, "an attachment could not be taken down");
                }
            }
            RepairAction::Reshape(key) => {
                self.parts.metrics.kernel.repaired("rates");
                self.set_rates_again(&key).await;
            }
            RepairAction::DeleteLink(name) => {
                self.parts.metrics.kernel.repaired("link");
                let plan = Plan { steps: vec![Step::DeleteLink { name: name.clone() }] };
                if let Err(error) = self.parts.kernel.apply(&plan, None).await {
                    tracing::error!(link = name, %error, "a stray link could not be deleted");
                }
            }
            RepairAction::SetElements(plan) => {
                self.parts.metrics.kernel.repaired("nat");
                if let Err(error) = self.parts.kernel.apply(&plan, None).await {
                    tracing::error!(%error, "host ports and exemptions could not be set right");
                }
            }
        }
    }
}

/// The leases that follow from the attachments. Of two attachments with one address the record that is
/// damaged cannot be told; neither may be given out again, and the log names both.
fn load_leases(
    attachments: &BTreeMap<AttachmentKey, Attachment>,
    released: impl Iterator<Item = LeaseRow>,
    quarantine_ms: u64,
) -> LeaseTable {
    let held = attachments.values().flat_map(|attachment| {
        let state = culvert_core::lease::LeaseState::Held(attachment.key.clone());
        let addresses = attachment.addresses.iter().map(ipnet::IpNet::addr);
        addresses.map(move |address| LeaseRow { address, state: state.clone(), reserved_for: None })
    });
    let mut rows: BTreeMap<std::net::IpAddr, LeaseRow> = released.map(|row| (row.address, row)).collect();
    for row in held {
        let before = rows.insert(row.address, row);
        if let Some(LeaseRow { address, state: culvert_core::lease::LeaseState::Held(first), .. }) = before {
            tracing::error!(%address, %first, "two records hold one address; it is not given out again");
        }
    }
    // Each address is there once, so no two rows contradict each other.
    LeaseTable::load(quarantine_ms, rows.into_values()).unwrap_or_else(|_| LeaseTable::new(quarantine_ms))
}
