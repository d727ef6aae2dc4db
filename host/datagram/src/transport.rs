//! Where TCP or UDP lies in a packet, and the few header fields that change when packets are cut or joined.

use culvert_core::packet::IpPacket;

use crate::checksum::Sum;

const TCP_HEADER_BYTES: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const IPV4_HEADER_BYTES: usize = 20;

/// The fragment offset and the "more fragments" bit of IPv4.
const FRAGMENT_BITS: u16 = 0x3fff;

/// The control bits of TCP. **Source** RFC 9293 §3.1, RFC 3168 §6.1.
pub(crate) mod tcp_flags {
    /// No more data follows.
    pub(crate) const FIN: u8 = 0x01;
    /// Hand the data to the application.
    pub(crate) const PSH: u8 = 0x08;
    /// The acknowledgement field counts.
    pub(crate) const ACK: u8 = 0x10;
    /// The sender noticed congestion.
    pub(crate) const ECE: u8 = 0x40;
    /// The congestion window was reduced.
    pub(crate) const CWR: u8 = 0x80;
}

/// A transport protocol that can be cut and joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where its header has the checksum.
    pub(crate) fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// A transport header inside a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport {
    pub(crate) protocol: Protocol,
    /// **Units** bytes from the start of the packet.
    pub(crate) start: usize,
    /// **Units** bytes from the start of the packet; where the payload begins.
    pub(crate) payload: usize,
}

impl Transport {
    /// The transport header that directly follows the IP header, unless the packet is a fragment or its lengths
    /// contradict one another.
    pub(crate) fn find(packet: &IpPacket<'_>) -> Option<Self> {
        let protocol = match packet.protocol() {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => return None,
        };
        Self::at(packet, protocol, packet.header_bytes())
    }

    /// The transport header that begins at `start`; under the same conditions.
    pub(crate) fn at(packet: &IpPacket<'_>, protocol: Protocol, start: usize) -> Option<Self> {
        let bytes = packet.bytes();
        if packet.is_v4() && read_u16(bytes, 6)? & FRAGMENT_BITS != 0 {
            return None;
        }
        let header = match protocol {
            Protocol::Tcp => usize::from(bytes.get(start + 12)? >> 4) * 4,
            Protocol::Udp => UDP_HEADER_BYTES,
        };
        let least = match protocol {
            Protocol::Tcp => TCP_HEADER_BYTES,
            Protocol::Udp => UDP_HEADER_BYTES,
        };
        let payload = start + header;
        if header < least || payload > bytes.len() {
            return None;
        }
        let whole = bytes.len() - start;
        let length_fits = match protocol {
            Protocol::Tcp => true,
            Protocol::Udp => usize::from(read_u16(bytes, start + 4)?) == whole,
        };
        length_fits.then_some(Self { protocol, start, payload })
    }

    /// **Units** bytes from the start of the packet.
    pub(crate) fn checksum_at(&self) -> usize {
        self.start + self.protocol.checksum_offset()
    }

    /// Writes the sum of the pseudo header where the checksum goes: the kernel completes it from there. `headers`
    /// holds all headers at least, and the transport header directly follows the IP header.
    pub(crate) fn write_partial_checksum(&self, headers: &mut [u8], total: usize) -> Option<()> {
        let is_v4 = headers.first()? >> 4 == 4;
        let addresses = headers.get(if is_v4 { 12..20 } else { 8..40 })?;
        let sum = Sum::pseudo_header(addresses, self.protocol.number(), total.checked_sub(self.start)?);
        write(headers, self.checksum_at(), sum.partial())
    }

    /// Writes the packet's length into the IP and UDP headers, and advances the identification of IPv4.
    pub(crate) fn write_lengths(&self, headers: &mut [u8], total: usize, advance: u16) -> Option<()> {
        let length = |bytes: usize| u16::try_from(bytes).ok().map(u16::to_be_bytes);
        if headers.first()? >> 4 == 4 {
            write(headers, 2, length(total)?)?;
            let identification = read_u16(headers, 4)?.wrapping_add(advance);
            write(headers, 4, identification.to_be_bytes())?;
            write_ipv4_checksum(headers)?;
        } else {
            write(headers, 4, length(total.checked_sub(IPV6_HEADER_BYTES)?)?)?;
        }
        match self.protocol {
            Protocol::Tcp => Some(()),
            Protocol::Udp => write(headers, self.start + 4, length(total.checked_sub(self.start)?)?),
        }
    }
}

const IPV6_HEADER_BYTES: usize = 40;

fn write_ipv4_checksum(headers: &mut [u8]) -> Option<()> {
    write(headers, 10, [0, 0])?;
    let length = usize::from(headers.first()? & 0x0f) * 4;
    let header = headers.get(..length.max(IPV4_HEADER_BYTES))?;
    let checksum = Sum::default().add(header).complete();
    write(headers, 10, checksum)
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_be_bytes)
}

/// Writes bytes, or nothing when there is no room for all of them.
pub(crate) fn write<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value;
    Some(())
}
