//! Hardware addresses on the bridge: its own, and those that pods ask for.

use std::net::IpAddr;

use ipnet::IpNet;

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

/// The bridge's address, the same whenever it is made again for the same blocks, so that the neighbour entries of
/// running pods stay true: 0a:58 and the last four bytes of the first gateway.
#[must_use]
pub fn bridge_mac(gateways: &[IpNet]) -> [u8; 6] {
    let tail = match gateways.first().map(IpNet::addr) {
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(v6)) => {
            // The gateway of every block ends in ::1; what tells blocks apart lies in the prefix.
            let folded = v6.segments().iter().fold(0u32, |sum, segment| sum.rotate_left(5) ^ u32::from(*segment));
            folded.to_be_bytes()
        }
        None => [0, 0, 0, 1],
    };
    let [a, b, c, d] = tail;
    [0x0a, 0x58, a, b, c, d]
}

/// Whether a pod may have the address it asks for.
///
/// # Errors
/// [`MacRefusal`], when it is the bridge's or another attachment's.
pub fn admit_mac<'a>(
    mac: [u8; 6],
    gateways: &[IpNet],
    attachments: impl IntoIterator<Item = &'a Attachment>,
) -> Result<(), MacRefusal> {
    if mac == bridge_mac(gateways) {
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

    fn gateways(text: &str) -> Vec<IpNet> {
        vec![text.parse().unwrap()]
    }

    #[test]
    fn the_bridge_address_follows_from_the_first_gateway() {
        assert_eq!(bridge_mac(&gateways("10.244.7.1/24")), [0x0a, 0x58, 10, 244, 7, 1]);
        assert_ne!(bridge_mac(&gateways("fd00:1::1/64")), bridge_mac(&gateways("fd00:2::1/64")));
        assert_eq!(bridge_mac(&[]), [0x0a, 0x58, 0, 0, 0, 1]);
    }

    #[test]
    fn the_bridges_own_address_is_refused_by_name() {
        let refusal = admit_mac([0x0a, 0x58, 10, 244, 7, 1], &gateways("10.244.7.1/24"), []).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the requested hardware address 0a:58:0a:f4:07:01 is the bridge's own: ask for another one"
        );
        assert_eq!(admit_mac([0x0a, 0x58, 10, 244, 7, 2], &gateways("10.244.7.1/24"), []), Ok(()));
    }
}
