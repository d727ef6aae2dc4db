//! The virtio header in front of every packet of a TUN opened with `IFF_VNET_HDR`.
//!
//! **Source** Virtio 1.2 §5.1.6; `struct virtio_net_hdr` in `linux/virtio_net.h`, little endian as
//! set by `TUNSETVNETLE`.

use super::IpPacket;

/// The header without the merged-buffers field.
pub const VNET_HEADER_BYTES: usize = 10;

const FLAG_NEEDS_CSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// IPv6 extension headers that may stand before TCP or UDP: hop-by-hop, routing, authentication,
/// destination options. Fragments are missing on purpose: a fragment cannot be segmented.
const EXTENSION_HEADERS: [u8; 4] = [0, 43, 51, 60];

/// How a super-packet is cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// It is not: this is one packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP of either version, cut at datagram borders.
    UdpL4,
}

/// Why a header and its packet do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VnetError {
    /// Fewer bytes than the header.
    #[error("{have} bytes are too few for a virtio header of {VNET_HEADER_BYTES}")]
    Truncated {
        /// How many there are.
        have: usize,
    },
    /// A flag that a TUN never sets.
    #[error("virtio flags {flags:#04x} are unknown")]
    Flags {
        /// The field.
        flags: u8,
    },
    /// An offload that was never negotiated.
    #[error("virtio segmentation type {gso_type:#04x} was never negotiated")]
    GsoType {
        /// The field.
        gso_type: u8,
    },
    /// A segmentation type that contradicts the packet.
    #[error("segmentation {gso:?} does not fit an IPv{version} packet with protocol {protocol}")]
    GsoPacket {
        /// The segmentation type.
        gso: Gso,
        /// The packet's IP version.
        version: u8,
        /// The packet's protocol.
        protocol: u8,
    },
    /// A super-packet whose segments would be empty.
    #[error("a super-packet says segments of 0 bytes")]
    GsoSize,
    /// Headers longer than the packet.
    #[error("{header_length} bytes of headers are more than the packet's {packet}")]
    HeaderLength {
        /// **Units** bytes.
        header_length: u16,
        /// **Units** bytes.
        packet: usize,
    },
    /// A checksum outside of the packet's payload.
    #[error("a checksum from {start} at offset {offset} does not fit the {packet} bytes of the packet")]
    Checksum {
        /// **Units** bytes from the start of the packet.
        start: u16,
        /// **Units** bytes from `start`.
        offset: u16,
        /// **Units** bytes.
        packet: usize,
    },
}

/// The fields as they are on the wire; nothing is checked until [`VnetHeader::admit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Bit 0: the checksum is partial. Bit 1: the checksum was verified.
    pub flags: u8,
    /// Segmentation type, with the ECN bit.
    pub gso_type: u8,
    /// **Units** bytes; the length of all headers, a hint.
    pub header_length: u16,
    /// **Units** bytes of payload a segment.
    pub gso_size: u16,
    /// **Units** bytes; where the checksum starts.
    pub checksum_start: u16,
    /// **Units** bytes from there; where the checksum is stored.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// [`VnetError::Truncated`].
    pub fn decode(bytes: &[u8]) -> Result<Self, VnetError> {
        let header: &[u8; VNET_HEADER_BYTES] = bytes.first_chunk().ok_or(VnetError::Truncated { have: bytes.len() })?;
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        Ok(Self {
            flags: header[0],
            gso_type: header[1],
            header_length: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        })
    }

    /// Writes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; VNET_HEADER_BYTES] {
        let [header_low, header_high] = self.header_length.to_le_bytes();
        let [size_low, size_high] = self.gso_size.to_le_bytes();
        let [start_low, start_high] = self.checksum_start.to_le_bytes();
        let [offset_low, offset_high] = self.checksum_offset.to_le_bytes();
        [
            self.flags,
            self.gso_type,
            header_low,
            header_high,
            size_low,
            size_high,
            start_low,
            start_high,
            offset_low,
            offset_high,
        ]
    }

    /// The header of a packet whose checksum is partial. **Units** bytes; `start` from the start of the packet,
    /// `offset` from there.
    #[must_use]
    pub fn with_partial_checksum(start: u16, offset: u16) -> Self {
        Self { flags: FLAG_NEEDS_CSUM, checksum_start: start, checksum_offset: offset, ..Self::default() }
    }

    /// The same header for a super-packet. **Units** bytes; all headers, and the payload of a segment.
    #[must_use]
    pub fn with_gso(self, gso: Gso, header_length: u16, gso_size: u16) -> Self {
        let gso_type = match gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCP4,
            Gso::Tcp6 => GSO_TCP6,
            Gso::UdpL4 => GSO_UDP_L4,
        };
        Self { gso_type, header_length, gso_size, ..self }
    }

    /// Whether the checksum is partial and must be completed before the packet leaves the machine.
    #[must_use]
    pub fn needs_checksum(&self) -> bool {
        self.flags & FLAG_NEEDS_CSUM != 0
    }

    /// The segmentation type.
    ///
    /// # Errors
    /// [`VnetError::GsoType`] for one that was never negotiated.
    pub fn gso(&self) -> Result<Gso, VnetError> {
        match self.gso_type & !GSO_ECN {
            GSO_NONE if self.gso_type == GSO_NONE => Ok(Gso::None),
            GSO_TCP4 => Ok(Gso::Tcp4),
            GSO_TCP6 => Ok(Gso::Tcp6),
            GSO_UDP_L4 if self.gso_type == GSO_UDP_L4 => Ok(Gso::UdpL4),
            _ => Err(VnetError::GsoType { gso_type: self.gso_type }),
        }
    }

    /// Checks every field against the packet it came with.
    ///
    /// # Errors
    /// The first field that would make the kernel, or a segmenter, read outside of the packet.
    pub fn admit(&self, packet: &IpPacket<'_>) -> Result<Gso, VnetError> {
        if self.flags & !(FLAG_NEEDS_CSUM | FLAG_DATA_VALID) != 0 {
            return Err(VnetError::Flags { flags: self.flags });
        }
        let length = packet.bytes().len();
        if usize::from(self.header_length) > length {
            return Err(VnetError::HeaderLength { header_length: self.header_length, packet: length });
        }
        let gso = self.gso()?;
        self.admit_gso(gso, packet)?;
        self.admit_checksum(packet)?;
        Ok(gso)
    }

    fn admit_gso(&self, gso: Gso, packet: &IpPacket<'_>) -> Result<(), VnetError> {
        let protocol = packet.protocol();
        let carries = |wanted: u8| protocol == wanted || (!packet.is_v4() && EXTENSION_HEADERS.contains(&protocol));
        let fits = match gso {
            Gso::None => return Ok(()),
            Gso::Tcp4 => packet.is_v4() && carries(PROTOCOL_TCP),
            Gso::Tcp6 => !packet.is_v4() && carries(PROTOCOL_TCP),
            Gso::UdpL4 => carries(PROTOCOL_UDP),
        };
        if !fits {
            let version = if packet.is_v4() { 4 } else { 6 };
            return Err(VnetError::GsoPacket { gso, version, protocol });
        }
        if self.gso_size == 0 {
            return Err(VnetError::GsoSize);
        }
        Ok(())
    }

    fn admit_checksum(&self, packet: &IpPacket<'_>) -> Result<(), VnetError> {
        let length = packet.bytes().len();
        let start = usize::from(self.checksum_start);
        let end = start + usize::from(self.checksum_offset) + 2;
        if self.needs_checksum() && (start < packet.header_bytes() || end > length) {
            return Err(VnetError::Checksum {
                start: self.checksum_start,
                offset: self.checksum_offset,
                packet: length,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A TCP packet of either version without payload.
    fn packet(version: u8, protocol: u8) -> Vec<u8> {
        let mut bytes = vec![0; 60];
        if version == 4 {
            bytes[0] = 0x45;
            bytes[3] = 60;
            bytes[9] = protocol;
        } else {
            bytes[0] = 0x60;
            bytes[5] = 20;
            bytes[6] = protocol;
        }
        bytes
    }

    fn admit(header: VnetHeader, version: u8, protocol: u8) -> Result<Gso, VnetError> {
        header.admit(&IpPacket::new_checked(&packet(version, protocol)).unwrap())
    }

    fn gso(gso_type: u8) -> VnetHeader {
        VnetHeader { gso_type, gso_size: 1_200, ..VnetHeader::default() }
    }

    #[test]
    fn a_segmentation_type_goes_with_its_packets_only() {
        let refused = |gso: Gso, version: u8, protocol: u8| Err(VnetError::GsoPacket { gso, version, protocol });
        assert_eq!(admit(gso(GSO_NONE), 4, 1), Ok(Gso::None));
        assert_eq!(admit(gso(GSO_TCP4), 4, 6), Ok(Gso::Tcp4));
        assert_eq!(admit(gso(GSO_TCP4 | GSO_ECN), 4, 6), Ok(Gso::Tcp4));
        assert_eq!(admit(gso(GSO_TCP6), 6, 6), Ok(Gso::Tcp6));
        assert_eq!(admit(gso(GSO_TCP6), 6, 60), Ok(Gso::Tcp6));
        assert_eq!(admit(gso(GSO_UDP_L4), 4, 17), Ok(Gso::UdpL4));
        assert_eq!(admit(gso(GSO_UDP_L4), 6, 17), Ok(Gso::UdpL4));
        assert_eq!(admit(gso(GSO_TCP4), 6, 6), refused(Gso::Tcp4, 6, 6));
        assert_eq!(admit(gso(GSO_TCP6), 4, 6), refused(Gso::Tcp6, 4, 6));
        assert_eq!(admit(gso(GSO_TCP4), 4, 17), refused(Gso::Tcp4, 4, 17));
        assert_eq!(admit(gso(GSO_UDP_L4), 6, 6), refused(Gso::UdpL4, 6, 6));
        assert_eq!(admit(gso(GSO_TCP6), 6, 44), refused(Gso::Tcp6, 6, 44));
    }

    #[test]
    fn segmentation_types_that_were_never_negotiated_are_refused() {
        for gso_type in [2, 3, 6, 0x20, 0x40, 0x80, 0x85, 0xff] {
            assert_eq!(admit(gso(gso_type), 4, 6), Err(VnetError::GsoType { gso_type }));
        }
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        let empty_segments = VnetHeader { gso_size: 0, ..gso(GSO_TCP4) };
        assert_eq!(admit(empty_segments, 4, 6), Err(VnetError::GsoSize));
        let long_headers = VnetHeader { header_length: 61, ..VnetHeader::default() };
        let refused = VnetError::HeaderLength { header_length: 61, packet: 60 };
        assert_eq!(admit(long_headers, 4, 6), Err(refused));
        let flags = VnetHeader { flags: 4, ..VnetHeader::default() };
        assert_eq!(admit(flags, 4, 6), Err(VnetError::Flags { flags: 4 }));
    }

    #[test]
    fn a_partial_checksum_lies_inside_the_payload() {
        let header = |checksum_start: u16, checksum_offset: u16| VnetHeader {
            flags: FLAG_NEEDS_CSUM,
            checksum_start,
            checksum_offset,
            ..VnetHeader::default()
        };
        assert_eq!(admit(header(20, 16), 4, 6), Ok(Gso::None));
        assert_eq!(admit(header(20, 38), 4, 6), Ok(Gso::None));
        for (start, offset) in [(20, 39), (19, 16), (60, 0), (u16::MAX, u16::MAX)] {
            let refused = VnetError::Checksum { start, offset, packet: 60 };
            assert_eq!(admit(header(start, offset), 4, 6), Err(refused));
        }
        let ignored = VnetHeader { flags: FLAG_DATA_VALID, checksum_start: 999, ..VnetHeader::default() };
        assert_eq!(admit(ignored, 4, 6), Ok(Gso::None));
    }

    #[test]
    fn headers_that_are_made_here_are_admitted() {
        let partial = VnetHeader::with_partial_checksum(20, 16);
        assert_eq!((admit(partial, 4, 6), partial.needs_checksum()), (Ok(Gso::None), true));
        assert_eq!(admit(partial.with_gso(Gso::Tcp4, 40, 10), 4, 6), Ok(Gso::Tcp4));
        let partial = VnetHeader::with_partial_checksum(40, 16);
        assert_eq!(admit(partial.with_gso(Gso::Tcp6, 60, 10), 6, 6), Ok(Gso::Tcp6));
        assert_eq!(admit(partial.with_gso(Gso::UdpL4, 48, 10), 6, 17), Ok(Gso::UdpL4));
        assert_eq!(partial.with_gso(Gso::None, 0, 0), partial);
    }

    #[test]
    fn fields_are_little_endian_in_the_kernels_order() {
        let bytes = [1, 4, 0x36, 0, 0xb0, 4, 0x28, 0, 0x10, 0];
        let header = VnetHeader {
            flags: 1,
            gso_type: 4,
            header_length: 54,
            gso_size: 1_200,
            checksum_start: 40,
            checksum_offset: 16,
        };
        assert_eq!(VnetHeader::decode(&bytes), Ok(header));
        assert_eq!(header.encode(), bytes);
        assert_eq!(VnetHeader::decode(&bytes[..9]), Err(VnetError::Truncated { have: 9 }));
    }

    proptest! {
        #[test]
        fn every_header_survives_the_wire(bytes in any::<[u8; VNET_HEADER_BYTES]>()) {
            prop_assert_eq!(VnetHeader::decode(&bytes).unwrap().encode(), bytes);
        }
    }
}
