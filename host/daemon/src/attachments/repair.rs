//! The start: what the records say against what the kernel shows.

use std::collections::BTreeMap;

use culvert_core::attachment::{Attachment, AttachmentKey};
use culvert_core::lease::{LeaseRow, LeaseTable};
use culvert_core::nat::NatElements;
use culvert_core::plan::{Plan, Step};
use culvert_core::repair::{Evidence, Occasion, RepairAction, recover, suspects};
use culvert_kernel::kill_point;

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
            departures: super::departure::Departures::default(),
            suspects: std::collections::BTreeSet::new(),
        })
    }

    /// The bridge is there: repair once, then serve.
    pub(super) async fn set_bridge(&mut self, bridge: super::Bridge) {
        self.bridge = Some(bridge);
        if !std::mem::replace(&mut self.repaired, true) {
            self.repair().await;
        }
        self.serve_waiting().await;
    }

    async fn repair(&mut self) {
        self.replay_tombstones().await;
        let Some(evidence) = self.evidence().await else {
            self.repaired = false;
            return;
        };
        for action in recover(self.attachments.values(), &evidence, Occasion::Start) {
            kill_point(|| "repair".to_owned());
            self.carry_out(action).await;
        }
        self.suspects = suspects(self.attachments.values(), &evidence);
        self.count_addresses();
    }

    /// Looks again while the daemon runs: what nobody deleted goes, what was damaged is repaired.
    pub(super) async fn look_after(&mut self) {
        if !self.repaired {
            return;
        }
        self.replay_tombstones().await;
        self.forget_sticky_addresses();
        let Some(evidence) = self.evidence().await else { return };
        let suspects_before = std::mem::take(&mut self.suspects);
        for action in recover(self.attachments.values(), &evidence, Occasion::Look(&suspects_before)) {
            self.carry_out(action).await;
        }
        self.suspects = suspects(self.attachments.values(), &evidence);
        self.count_addresses();
    }

    /// Sets the elements of the NAT table that follow from the records, whoever changed them.
    pub(super) async fn set_elements(&mut self) {
        if !self.repaired {
            return;
        }
        match self.parts.kernel.nat_elements().await {
            Ok(found) => {
                let plan = NatElements::diff(&found, &NatElements::of(self.attachments.values()));
                if !plan.is_empty() {
                    self.carry_out(RepairAction::SetElements(plan)).await;
                }
            }
            Err(error) => tracing::error!(%error, "host ports and masquerade exemptions cannot be compared"),
        }
    }

    /// What is there now; `None` when it cannot be seen, and then nothing is repaired.
    async fn evidence(&mut self) -> Option<Evidence> {
        let seen = match self.parts.kernel.observe().await {
            Ok(observed) => self.parts.kernel.nat_elements().await.map(|elements| (observed, elements)),
            Err(error) => Err(error),
        };
        let (observed, elements) = match seen {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!(%error, "cannot compare records with the kernel; nothing is repaired");
                return None;
            }
        };
        let links = observed.links.into_iter().map(|link| link.name).collect();
        let results = &self.parts.config.runtime_results;
        if !results.is_dir() {
            return Some(Evidence { links, elements, ..Evidence::default() });
        }
        let records = || self.attachments.values();
        let remembered = records().filter(|record| results.join(result_file(&record.key)).exists());
        let nameless = records().filter(|record| !std::path::Path::new(&record.netns).exists());
        let keys = |record: &Attachment| record.key.clone();
        Some(Evidence {
            links,
            elements,
            remembered: remembered.map(keys).collect(),
            nameless: nameless.map(keys).collect(),
        })
    }

    async fn carry_out(&mut self, action: RepairAction) {
        tracing::warn!(?action, "repaired");
        match action {
            RepairAction::TakeDown(key) | RepairAction::Forget(key) => {
                self.parts.metrics.kernel.repaired("attachment");
                if let Err(error) = self.take_down(&key).await {
                    tracing::error!(attachment = %key, %error, "an attachment could not be taken down");
                }
            }
            RepairAction::Acknowledge(key) => self.acknowledge(&key),
            RepairAction::SetElements(plan) => {
                self.parts.metrics.kernel.repaired("nat");
                if let Err(error) = self.parts.kernel.apply(&plan, None).await {
                    tracing::error!(%error, "host ports and masquerade exemptions could not be set again; tried again");
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
        }
    }
}

/// The file in which the runtime's library keeps the result of an attachment. **Source** libcni, `cacheResult`.
fn result_file(key: &AttachmentKey) -> String {
    format!("{}-{}-{}", key.network, key.container_id, key.ifname)
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
        let reserved_for = attachment.sticky.then(|| super::addresses::pod_name(&attachment.pod));
        addresses.map(move |address| LeaseRow { address, state: state.clone(), reserved_for: reserved_for.clone() })
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
