//! Packets for the tests of this crate, as a kernel would hand them over.

use culvert_core::packet::{Gso, IpPacket, VnetHeader};
use proptest::prelude::*;

use crate::checksum::Sum;
use crate::transport::Protocol;

/// A super-packet to be.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) v6: bool,
    pub(crate) protocol: Protocol,
    /// IPv6 destination options before the transport header.
    pub(crate) extension: bool,
    /// Bytes of IPv4 or TCP options, a multiple of 4.
    pub(crate) ip_options: usize,
    pub(crate) tcp_options: usize,
    pub(crate) tcp_flags: u8,
    pub(crate) sequence: u32,
    pub(crate) identification: u16,
    pub(crate) ports: [u16; 2],
    pub(crate) payload: Vec<u8>,
    pub(crate) gso_size: u16,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            v6: false,
            protocol: Protocol::Tcp,
            extension: false,
            ip_options: 0,
            tcp_options: 12,
            tcp_flags: 0x10,
            sequence: 1_000,
            identification: 7,
            ports: [40_000, 80],
            payload: vec![0xab; 3_000],
            gso_size: 1_000,
        }
    }
}

impl Sample {
    pub(crate) fn transport_start(&self) -> usize {
        if self.v6 { 40 + 8 * usize::from(self.extension) } else { 20 + self.ip_options }
    }

    pub(crate) fn headers(&self) -> usize {
        let transport = match self.protocol {
            Protocol::Tcp => 20 + self.tcp_options,
            Protocol::Udp => 8,
        };
        self.transport_start() + transport
    }

    /// The packet with a partial checksum.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.ip_header();
        let length = self.headers() - self.transport_start() + self.payload.len();
        let start = bytes.len();
        bytes.extend(self.ports.map(u16::to_be_bytes).concat());
        match self.protocol {
            Protocol::Udp => bytes.extend([u16::try_from(length).unwrap().to_be_bytes(), [0, 0]].concat()),
            Protocol::Tcp => {
                bytes.extend(self.sequence.to_be_bytes());
                bytes.extend([0, 0, 0, 9]);
                let words = u8::try_from((20 + self.tcp_options) / 4).unwrap();
                bytes.extend([words << 4, self.tcp_flags, 1, 0, 0, 0, 0, 0]);
                bytes.extend(vec![1; self.tcp_options]);
            }
        }
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let sum = Sum::pseudo_header(&bytes[addresses], self.protocol.number(), length);
        let at = start + self.protocol.checksum_offset();
        bytes[at..at + 2].copy_from_slice(&sum.partial());
        bytes.extend(&self.payload);
        bytes
    }

    fn ip_header(&self) -> Vec<u8> {
        let total = u16::try_from(self.headers() + self.payload.len()).unwrap();
        if self.v6 {
            let mut bytes = vec![0x60, 0x0a, 0xbc, 0xde];
            bytes.extend((total - 40).to_be_bytes());
            bytes.extend([if self.extension { 60 } else { self.protocol.number() }, 61]);
            bytes.extend([0xfd; 16]);
            bytes.extend([0xfe; 16]);
            if self.extension {
                bytes.extend([self.protocol.number(), 0, 1, 4, 0, 0, 0, 0]);
            }
            return bytes;
        }
        let words = u8::try_from((20 + self.ip_options) / 4).unwrap();
        let mut bytes = vec![0x40 | words, 0x02];
        bytes.extend(total.to_be_bytes());
        bytes.extend(self.identification.to_be_bytes());
        bytes.extend([0, 0, 61, self.protocol.number(), 0, 0, 10, 244, 1, 2, 10, 244, 2, 3]);
        bytes.extend(vec![1; self.ip_options]);
        let checksum = Sum::default().add(&bytes).complete();
        bytes[10..12].copy_from_slice(&checksum);
        bytes
    }

    /// The virtio header of a super-packet.
    pub(crate) fn header(&self) -> VnetHeader {
        let gso = match self.protocol {
            Protocol::Udp => Gso::UdpL4,
            Protocol::Tcp if self.v6 => Gso::Tcp6,
            Protocol::Tcp => Gso::Tcp4,
        };
        self.plain_header().with_gso(gso, u16::try_from(self.headers()).unwrap(), self.gso_size)
    }

    /// The virtio header of one packet.
    pub(crate) fn plain_header(&self) -> VnetHeader {
        let start = u16::try_from(self.transport_start()).unwrap();
        VnetHeader::with_partial_checksum(start, u16::try_from(self.protocol.checksum_offset()).unwrap())
    }
}

/// Super-packets of all shapes and lengths.
pub(crate) fn samples() -> impl Strategy<Value = Sample> {
    let kind = (any::<[bool; 3]>(), 0_usize..3, 0_usize..6);
    let fields = (any::<u32>(), any::<u16>(), any::<[u16; 2]>(), prop_oneof![Just(0x10_u8), any::<u8>()]);
    let lengths = (prop_oneof![1_usize..200, 1_usize..65_000], any::<u8>(), prop_oneof![64_u16..200, 500_u16..2_000]);
    (kind, fields, lengths).prop_map(|(kind, fields, lengths)| {
        let ([v6, tcp, extension], ip_options, tcp_options) = kind;
        let (sequence, identification, ports, tcp_flags) = fields;
        let (length, first, gso_size) = lengths;
        let mut sample = Sample {
            v6,
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            extension: v6 && extension,
            ip_options: 4 * ip_options,
            tcp_options: 4 * tcp_options,
            tcp_flags,
            sequence,
            identification,
            ports,
            payload: Vec::new(),
            gso_size,
        };
        let room = 65_535 - sample.headers();
        // No two neighbouring bytes alike, so that a shift by one is seen.
        sample.payload = (0..length.min(room)).map(|at| first.wrapping_add(at.to_le_bytes()[0])).collect();
        sample
    })
}

/// Whether the IPv4 header's checksum is right; always for IPv6, which has none.
pub(crate) fn ip_checksum_holds(bytes: &[u8]) -> bool {
    bytes[0] >> 4 == 6 || Sum::default().add(&bytes[..usize::from(bytes[0] & 15) * 4]).complete() == [0, 0]
}

/// Whether the transport checksum is right.
pub(crate) fn transport_checksum_holds(bytes: &[u8], sample: &Sample) -> bool {
    let start = sample.transport_start();
    let addresses = if sample.v6 { 8..40 } else { 12..20 };
    let sum = Sum::pseudo_header(&bytes[addresses], sample.protocol.number(), bytes.len() - start);
    sum.add(&bytes[start..]).complete() == [0, 0]
}

pub(crate) fn parse(bytes: &[u8]) -> IpPacket<'_> {
    IpPacket::new_checked(bytes).unwrap()
}
