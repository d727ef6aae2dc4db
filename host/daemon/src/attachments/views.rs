//! What operators see of the attachments.

use std::net::IpAddr;

use culvert_core::attachment::{Attachment, AttachmentState, is_attachment_link};

use super::AttachmentsOwner;
use crate::view;

impl AttachmentsOwner {
    /// All leases, and what does not agree.
    pub(super) async fn view_leases(&mut self) -> (Vec<view::Lease>, Vec<String>) {
        let mut leases: Vec<(IpAddr, view::Lease)> = self.attachments.values().flat_map(leases_of).collect();
        leases.sort_by_key(|(address, _)| *address);
        let mut findings = self.lease_findings();
        match self.parts.kernel.observe().await {
            Ok(observed) => {
                let there = |name: &str| observed.links.iter().any(|link| link.name == name);
                let known = |name: &str| {
                    let own = |attachment: &Attachment| {
                        attachment.host_name == name || attachment.ifb_name.as_deref() == Some(name)
                    };
                    self.attachments.values().any(own)
                };
                let lost = self.attachments.values().filter(|attachment| !there(&attachment.host_name));
                findings.extend(lost.map(|attachment| format!("{} has lost {}", attachment.key, attachment.host_name)));
                let strays = observed.links.iter().filter(|link| is_attachment_link(&link.name) && !known(&link.name));
                findings.extend(strays.map(|link| format!("link {} belongs to no attachment", link.name)));
            }
            Err(error) => findings.push(format!("the kernel cannot be asked: {error}")),
        }
        (leases.into_iter().map(|(_, lease)| lease).collect(), findings)
    }

    /// The addresses of a pod given by address, `namespace/name` or container id.
    pub(super) fn find(&self, pod: &str) -> Vec<IpAddr> {
        let named = |attachment: &&Attachment| {
            attachment.key.container_id == pod
                || pod_name(attachment) == pod
                || (!attachment.pod.name.is_empty() && attachment.pod.name == pod)
        };
        let found = self.attachments.values().filter(named);
        found.flat_map(|attachment| attachment.addresses.iter().map(ipnet::IpNet::addr)).collect()
    }
}

fn leases_of(attachment: &Attachment) -> Vec<(IpAddr, view::Lease)> {
    let lease = |address: &ipnet::IpNet| view::Lease {
        address: address.addr().to_string(),
        container_id: attachment.key.container_id.clone(),
        ifname: attachment.key.ifname.clone(),
        pod: pod_name(attachment),
        state: state_word(attachment.state).to_owned(),
    };
    attachment.addresses.iter().map(|address| (address.addr(), lease(address))).collect()
}

fn pod_name(attachment: &Attachment) -> String {
    let pod = &attachment.pod;
    if pod.name.is_empty() { String::new() } else { format!("{}/{}", pod.namespace, pod.name) }
}

fn state_word(state: AttachmentState) -> &'static str {
    match state {
        AttachmentState::Intended => "intended",
        AttachmentState::Applied => "applied",
        AttachmentState::Acknowledged => "acknowledged",
        AttachmentState::Deleting => "deleting",
    }
}
