//! Hardware addresses that pods ask for.

use crate::attachment::{Attachment, AttachmentKey};

/// A hardware address that a pod cannot have. Two stations with one address on one bridge take turns in losing frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacRefusal {
    /// It is the bridge's.
    #[error("the requested hardware address {} is the bridge's own: ask for another one", words(.0))]
    Bridge([u8; 6]),
    /// Another pod of this node has it.
    #[error("the requested hardware address {} belongs to container {} on this node: ask for another one", words(.mac), .holder.container_id)]
    Taken {
        /// The address.
        mac: [u8; 6],
        /// Who has it.
        holder: AttachmentKey,
    },
}

fn words(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Whether a pod may have the address it asks for.
///
/// # Errors
/// [`MacRefusal`], when it is the bridge's or another attachment's.
pub fn admit_mac<'a>(
    mac: [u8; 6],
    bridge: [u8; 6],
    attachments: impl IntoIterator<Item = &'a Attachment>,
) -> Result<(), MacRefusal> {
    if mac == bridge {
        return Err(MacRefusal::Bridge(mac));
    }
    match attachments.into_iter().find(|attachment| attachment.mac == mac) {
        Some(attachment) => Err(MacRefusal::Taken { mac, holder: attachment.key.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridges_own_address_is_refused_by_name() {
        let bridge = [0x0a, 0x58, 10, 244, 7, 1];
        assert_eq!(
            admit_mac(bridge, bridge, []).unwrap_err().to_string(),
            "the requested hardware address 0a:58:0a:f4:07:01 is the bridge's own: ask for another one"
        );
        assert_eq!(admit_mac([0x0a, 0x58, 10, 244, 7, 2], bridge, []), Ok(()));
    }
}
