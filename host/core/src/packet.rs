//! Checked views over bytes that others wrote: IP packets, the virtio header that travels with a
//! packet through the TUN, and the frames that carry both over a stream.
//!
//! ```text
//! frame = length u32 LE | virtio_net_hdr 10 bytes | IP packet       length counts what follows it
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

mod frame;
mod vnet;

pub use frame::{Frame, FrameDecoder, FrameError, MAX_FRAME_BYTES, append_frame, next_frame};
pub use vnet::{Gso, VNET_HEADER_BYTES, VnetError, VnetHeader};

/// The largest IP packet: the total length of IPv4 has 16 bits, and nothing here takes a jumbogram.
pub const MAX_PACKET_BYTES: usize = 65_535;

/// The IPv4 header without options.
const IPV4_HEADER_BYTES: usize = 20;
/// The fixed IPv6 header.
const IPV6_HEADER_BYTES: usize = 40;

/// Why bytes are no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Fewer bytes than the header needs.
    #[error("{have} bytes are too few for an IP header of {need}")]
    Truncated {
        /// How many there are.
        have: usize,
        /// How many the header needs.
        need: usize,
    },
    /// Neither version 4 nor 6.
    #[error("IP version {version} is neither 4 nor 6")]
    Version {
        /// The version field.
        version: u8,
    },
    /// The IPv4 header length is below 20 bytes or beyond the packet.
    #[error("IPv4 header length {header} does not fit a packet of {total} bytes")]
    HeaderLength {
        /// **Units** bytes.
        header: usize,
        /// **Units** bytes.
        total: usize,
    },
    /// The length in the header is not the length of the buffer.
    #[error("the header says {claimed} bytes, but {have} arrived")]
    TotalLength {
        /// What the header says.
        claimed: usize,
        /// How many there are.
        have: usize,
    },
}

/// An IP packet whose header was checked against the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket<'a> {
    bytes: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    header_bytes: usize,
}

impl<'a> IpPacket<'a> {
    /// Checks version, header length and total length; the buffer holds exactly one packet.
    ///
    /// # Errors
    /// The first field that does not fit the buffer.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let truncated = |need| PacketError::Truncated { have: bytes.len(), need };
        let version = bytes.first().ok_or(truncated(IPV4_HEADER_BYTES))? >> 4;
        match version {
            4 => Self::new_v4(bytes, bytes.first_chunk().ok_or(truncated(IPV4_HEADER_BYTES))?),
            6 => Self::new_v6(bytes, bytes.first_chunk().ok_or(truncated(IPV6_HEADER_BYTES))?),
            version => Err(PacketError::Version { version }),
        }
    }

    /// The whole packet.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// The destination address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// IPv4's protocol or IPv6's first next header, which may be an extension header.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// **Units** bytes; IPv4's header with options, IPv6's without extension headers.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// Whether this is an IPv4 packet.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// **Source** RFC 791 §3.1.
    fn new_v4(bytes: &'a [u8], header: &[u8; IPV4_HEADER_BYTES]) -> Result<Self, PacketError> {
        let header_bytes = usize::from(header[0] & 0x0f) * 4;
        let claimed = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if claimed != bytes.len() {
            return Err(PacketError::TotalLength { claimed, have: bytes.len() });
        }
        if header_bytes < IPV4_HEADER_BYTES || header_bytes > claimed {
            return Err(PacketError::HeaderLength { header: header_bytes, total: claimed });
        }
        let address = |at: usize| Ipv4Addr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Ok(Self {
            bytes,
            source: IpAddr::V4(address(12)),
            destination: IpAddr::V4(address(16)),
            protocol: header[9],
            header_bytes,
        })
    }

    /// **Source** RFC 8200 §3. A jumbogram, whose payload length is 0, is refused.
    fn new_v6(bytes: &'a [u8], header: &[u8; IPV6_HEADER_BYTES]) -> Result<Self, PacketError> {
        let claimed = IPV6_HEADER_BYTES + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if claimed != bytes.len() {
            return Err(PacketError::TotalLength { claimed, have: bytes.len() });
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Ok(Self {
            bytes,
            source: address(8),
            destination: address(24),
            protocol: header[6],
            header_bytes: IPV6_HEADER_BYTES,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(total: u16, header_words: u8, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0; bytes];
        packet[0] = 0x40 | header_words;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[9] = 6;
        packet[12..16].copy_from_slice(&[10, 244, 1, 2]);
        packet[16..20].copy_from_slice(&[10, 244, 2, 3]);
        packet
    }

    fn v6(payload: u16, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0; bytes];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet[6] = 17;
        packet[8] = 0xfd;
        packet[23] = 1;
        packet[24] = 0xfd;
        packet[39] = 2;
        packet
    }

    #[test]
    fn fields_of_an_ipv4_packet_are_read() {
        let bytes = v4(28, 6, 28);
        let packet = IpPacket::new_checked(&bytes).unwrap();
        assert_eq!(packet.source(), "10.244.1.2".parse::<IpAddr>().unwrap());
        assert_eq!(packet.destination(), "10.244.2.3".parse::<IpAddr>().unwrap());
        assert_eq!((packet.protocol(), packet.header_bytes(), packet.is_v4()), (6, 24, true));
        assert_eq!(packet.bytes(), bytes);
    }

    #[test]
    fn fields_of_an_ipv6_packet_are_read() {
        let bytes = v6(8, 48);
        let packet = IpPacket::new_checked(&bytes).unwrap();
        assert_eq!(packet.source(), "fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!(packet.destination(), "fd00::2".parse::<IpAddr>().unwrap());
        assert_eq!((packet.protocol(), packet.header_bytes(), packet.is_v4()), (17, 40, false));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let refused = |bytes: &[u8]| IpPacket::new_checked(bytes).unwrap_err();
        assert_eq!(refused(&[]), PacketError::Truncated { have: 0, need: 20 });
        assert_eq!(refused(&v4(20, 5, 20)[..19]), PacketError::Truncated { have: 19, need: 20 });
        assert_eq!(refused(&v6(0, 40)[..39]), PacketError::Truncated { have: 39, need: 40 });
        assert_eq!(refused(&v4(21, 5, 20)), PacketError::TotalLength { claimed: 21, have: 20 });
        assert_eq!(refused(&v4(20, 5, 21)), PacketError::TotalLength { claimed: 20, have: 21 });
        assert_eq!(refused(&v4(20, 4, 20)), PacketError::HeaderLength { header: 16, total: 20 });
        assert_eq!(refused(&v4(20, 6, 20)), PacketError::HeaderLength { header: 24, total: 20 });
        assert_eq!(refused(&v6(1, 40)), PacketError::TotalLength { claimed: 41, have: 40 });
        assert_eq!(refused(&[0x50; 40]), PacketError::Version { version: 5 });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(packet) = IpPacket::new_checked(&bytes) {
                prop_assert!(packet.header_bytes() <= bytes.len());
                let _ = VnetHeader::decode(&bytes).map(|header| header.admit(&packet));
            }
        }

        #[test]
        fn every_truncation_of_a_packet_is_refused(payload in 0_u16..64, cut in 1_usize..64) {
            let length = 20 + payload;
            let packet = v4(length, 5, usize::from(length));
            prop_assert!(IpPacket::new_checked(&packet).is_ok());
            let kept = packet.len().saturating_sub(cut);
            prop_assert!(IpPacket::new_checked(&packet[..kept]).is_err());
            let packet = v6(payload, 40 + usize::from(payload));
            let kept = packet.len().saturating_sub(cut);
            prop_assert!(IpPacket::new_checked(&packet[..kept]).is_err());
        }
    }
}
