//! What the kernel's NAT table must hold for the attachments, and the steps from what it holds to that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::attachment::{Attachment, AttachmentState};
use crate::host_port::{PortKey, PortTable, PortTarget};
use crate::plan::{Plan, Step};

/// The elements of the NAT table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatElements {
    /// Host ports and where each leads.
    pub ports: BTreeMap<PortKey, PortTarget>,
    /// Pod addresses that keep their own address when they leave the cluster.
    pub unmasqueraded: BTreeSet<IpAddr>,
}

impl NatElements {
    /// What follows from these records. One that is being taken down needs nothing any more.
    #[must_use]
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Attachment> + Clone) -> Self {
        let stays = |record: &&Attachment| record.state != AttachmentState::Deleting;
        let unmasqueraded = records.clone().into_iter().filter(stays).flat_map(unmasqueraded).collect();
        Self { ports: PortTable::of(records).elements(), unmasqueraded }
    }

    /// The steps from what is there to what is wanted: missing and different elements are set, strays removed.
    /// Equal elements give an empty plan.
    #[must_use]
    pub fn diff(present: &Self, wanted: &Self) -> Plan {
        let set = wanted.ports.iter().filter_map(|(key, target)| {
            let before = present.ports.get(key).copied();
            (before != Some(*target)).then_some(Step::SetPort { key: *key, target: *target, before })
        });
        let strays = present.ports.iter().filter(|(key, _)| !wanted.ports.contains_key(key));
        let remove = strays.map(|(key, target)| Step::RemovePort { key: *key, target: *target });
        let exempt = wanted.unmasqueraded.difference(&present.unmasqueraded);
        let unexempt = present.unmasqueraded.difference(&wanted.unmasqueraded);
        let exempt = exempt.map(|address| Step::Exempt { address: *address });
        let unexempt = unexempt.map(|address| Step::Unexempt { address: *address });
        Plan { steps: set.chain(remove).chain(exempt).chain(unexempt).collect() }
    }
}

/// The addresses of an attachment that must not be masqueraded.
pub(crate) fn unmasqueraded(attachment: &Attachment) -> impl Iterator<Item = IpAddr> {
    attachment.addresses.iter().map(IpNet::addr).filter(|_| !attachment.masquerade)
}
