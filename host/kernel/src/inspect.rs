//! What the kernel shows of one attachment, to be compared with its record. Nothing is changed.
//!
//! ```text
//! node: links by name, addresses, queueing disciplines, filters ─┐
//! pod:  links, addresses, routes, on the socket the shim opened ─┴─> AttachmentLinks ─> core::attachment_check
//! ```

mod pod;
mod traffic;

use culvert_core::attachment::Attachment;
use culvert_core::attachment_check::{AttachmentLinks, HostEnd, Ifb, PodEnd};
use ipnet::IpNet;

use crate::error::KernelError;
use crate::observe::{address_of, facts};
use crate::{Kernel, PodNamespace};

/// See [`Kernel::inspect`].
pub(crate) async fn inspect(
    kernel: &mut Kernel,
    attachment: &Attachment,
    pod: Option<&PodNamespace>,
) -> Result<AttachmentLinks, KernelError> {
    let pod = match pod.filter(|_| !attachment.foreign) {
        Some(pod) => pod::look_into(pod, &attachment.key.ifname).await?,
        None => PodEnd::NotSeen,
    };
    let ifb_name = attachment.ifb_name.clone().unwrap_or_else(|| attachment.key.ifb_name());
    let host = kernel.rtnl.link(&attachment.host_name).await?;
    let ifb = kernel.rtnl.link(&ifb_name).await?;
    let disciplines = kernel.rtnl.disciplines().await?;
    let redirect = match &host {
        Some(host) => traffic::redirect(&kernel.rtnl.ingress_filters(host.header.index).await?),
        None => None,
    };
    let host = host.map(|message| {
        let facts = facts(&message);
        HostEnd {
            up: facts.up,
            bridge_index: facts.master,
            mtu_bytes: facts.mtu_bytes,
            rate: traffic::rate(&disciplines, message.header.index),
            redirect,
        }
    });
    let ifb = ifb.map(|message| {
        let index = message.header.index;
        Ifb { index, up: facts(&message).up, rate: traffic::rate(&disciplines, index) }
    });
    Ok(AttachmentLinks { host, ifb, bridge_addresses: bridge_addresses(kernel).await?, pod })
}

/// The bridge's addresses; none when it is gone.
async fn bridge_addresses(kernel: &mut Kernel) -> Result<Vec<IpNet>, KernelError> {
    let name = kernel.names.bridge.clone();
    let Some(bridge) = kernel.rtnl.link(&name).await? else {
        return Ok(Vec::new());
    };
    let all = kernel.rtnl.addresses().await?;
    let own = all.iter().filter(|message| message.header.index == bridge.header.index);
    Ok(own.filter_map(|message| IpNet::new(address_of(message)?, message.header.prefix_len).ok()).collect())
}
