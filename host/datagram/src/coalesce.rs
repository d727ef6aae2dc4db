//! Joins received packets of a flow into super-packets for the TUN: the reverse of `segment`.
//!
//! Nothing is copied. A super-packet is a list of places in the buffer that the datagrams were received into; its
//! first piece has the headers, which are corrected in place. What has been joined is what `segment` would cut into
//! the same packets again, so a packet that differs in any other field begins a super-packet of its own.
//!
//! ```text
//! buffer     [IP TCP 1][IP TCP 2]  [ICMP]  [IP TCP 3]
//! to write   virtio + [IP TCP 1] + [2]     virtio + [ICMP]     virtio + [IP TCP 3]
//! ```
//! Order: a packet joins only the newest super-packet of its flow. One whose flow cannot be told (a fragment, say) is
//! passed by nothing that comes after it.

use std::ops::Range;

use culvert_core::packet::{Gso, IpPacket, MAX_PACKET_BYTES, VNET_HEADER_BYTES, VnetHeader};

use crate::segment::Checksum;
use crate::transport::{Protocol, Transport, read_u16, read_u32, tcp_flags};

/// Super-packets under way at a time. When there are as many they must be written; a batch has few flows as a rule.
pub const MAX_PACKETS: usize = 64;

/// Pieces of one super-packet: a whole one in segments of 576 bytes.
pub const MAX_PIECES: usize = 120;

/// Datagrams of one UDP super-packet: the most that every Linux with USO takes (`UDP_MAX_SEGMENTS`).
const MAX_DATAGRAMS: usize = 64;

/// "Don't fragment", in the byte of IPv4's flags.
const DONT_FRAGMENT: u8 = 0x40;

const IDENTIFICATION: Range<usize> = 4..6;

/// A packet whose checksum is partial, but that has no TCP or UDP header to find it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet with a partial checksum has no TCP or UDP header behind its IP header")]
pub struct NoTransport;

/// A packet to write to the TUN, joined from one or more.
#[derive(Debug, Default)]
pub struct SuperPacket {
    header: [u8; VNET_HEADER_BYTES],
    pieces: Vec<Range<usize>>,
    /// **Units** bytes of all pieces.
    total: usize,
    checksum: Option<Transport>,
    flow: Option<Flow>,
}

impl SuperPacket {
    /// The virtio header.
    #[must_use]
    pub fn header(&self) -> &[u8; VNET_HEADER_BYTES] {
        &self.header
    }

    /// Where its pieces lie in the buffer, in order. **Bounds** 1 to [`MAX_PIECES`].
    #[must_use]
    pub fn pieces(&self) -> &[Range<usize>] {
        &self.pieces
    }

    /// **Units** bytes of all pieces.
    #[must_use]
    pub fn length(&self) -> usize {
        self.total
    }
}

/// What further packets are compared with.
#[derive(Clone, Copy, Debug)]
struct Flow {
    transport: Transport,
    ports: u32,
    /// **Units** bytes of payload in each piece but the last.
    size: usize,
    next_sequence: u32,
    /// The control bits that all pieces share, and those of the last.
    flags: u8,
    last_flags: u8,
    open: bool,
}

/// The super-packets of one batch.
#[derive(Debug)]
pub struct Coalescer {
    /// Those in use first; the others keep their memory.
    packets: Vec<SuperPacket>,
    used: usize,
    joins_udp: bool,
}

impl Coalescer {
    /// An empty one. `joins_udp` says that the TUN takes UDP super-packets.
    #[must_use]
    pub fn new(joins_udp: bool) -> Self {
        Self { packets: Vec::with_capacity(MAX_PACKETS), used: 0, joins_udp }
    }

    /// Whether the packets must be written before another one is added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used >= MAX_PACKETS
    }

    /// Adds a packet that lies at `start` in `buffer`. Its bytes must stay until [`clear`](Self::clear).
    ///
    /// # Errors
    /// [`NoTransport`]; the packet was not added.
    pub fn push(
        &mut self,
        buffer: &[u8],
        start: usize,
        packet: &IpPacket<'_>,
        checksum: Checksum,
    ) -> Result<(), NoTransport> {
        let transport = Transport::find(packet);
        let place = start..start + packet.bytes().len();
        let Some(transport) = transport else {
            if checksum == Checksum::Partial {
                return Err(NoTransport);
            }
            self.close_all();
            self.begin(place, None, None);
            return Ok(());
        };
        let Some(flow) = Flow::new(packet, transport, self.joins_udp && checksum == Checksum::Partial) else {
            return Err(NoTransport);
        };
        let partial = (checksum == Checksum::Partial).then_some(transport);
        let newest = self.packets.iter_mut().take(self.used).rev().find(|known| known.is_of(buffer, packet, &flow));
        match newest {
            Some(known) if partial.is_some() && known.accepts(buffer, packet, &flow) => {
                known.join(start + transport.payload..place.end, &flow);
            }
            Some(_) | None => {
                let open = flow.open && partial.is_some();
                self.begin(place, partial, Some(Flow { open, ..flow }));
            }
        }
        Ok(())
    }

    /// Corrects the headers in `buffer` and returns what to write, in order.
    pub fn finish(&mut self, buffer: &mut [u8]) -> &[SuperPacket] {
        let used = self.packets.get_mut(..self.used).unwrap_or_default();
        for packet in &mut *used {
            // A header that lies about itself was refused by `Transport::find`, so this succeeds; if it did not,
            // the kernel would refuse the packet, since its lengths would contradict one another.
            packet.header = packet.correct(buffer).unwrap_or_default().encode();
        }
        used
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    fn close_all(&mut self) {
        let flows = self.packets.iter_mut().take(self.used).filter_map(|packet| packet.flow.as_mut());
        flows.for_each(|flow| flow.open = false);
    }

    fn begin(&mut self, place: Range<usize>, checksum: Option<Transport>, flow: Option<Flow>) {
        if self.used == self.packets.len() {
            self.packets.push(SuperPacket::default());
        }
        let Some(packet) = self.packets.get_mut(self.used) else { return };
        self.used += 1;
        packet.pieces.clear();
        packet.total = place.len();
        packet.pieces.push(place);
        (packet.checksum, packet.flow) = (checksum, flow);
    }
}

impl Flow {
    fn new(packet: &IpPacket<'_>, transport: Transport, joins_udp: bool) -> Option<Self> {
        let bytes = packet.bytes();
        let size = bytes.len() - transport.payload;
        let ports = read_u32(bytes, transport.start)?;
        let (next_sequence, flags, joins) = match transport.protocol {
            Protocol::Udp => (0, 0, joins_udp),
            Protocol::Tcp => {
                let sequence = read_u32(bytes, transport.start + 4)?;
                let flags = *bytes.get(transport.start + 13)?;
                let plain = flags & !tcp_flags::ECE == tcp_flags::ACK;
                (sequence.wrapping_add(u32::try_from(size).ok()?), flags, plain)
            }
        };
        Some(Self { transport, ports, size, next_sequence, flags, last_flags: flags, open: joins && size > 0 })
    }
}

impl SuperPacket {
    /// The headers of the first piece.
    fn headers<'a>(&self, buffer: &'a [u8], flow: &Flow) -> Option<&'a [u8]> {
        let start = self.pieces.first()?.start;
        buffer.get(start..start + flow.transport.payload)
    }

    /// Whether this is of the flow that `packet` belongs to.
    fn is_of(&self, buffer: &[u8], packet: &IpPacket<'_>, other: &Flow) -> bool {
        let Some(flow) = &self.flow else { return false };
        flow.ports == other.ports
            && flow.transport.protocol == other.transport.protocol
            && self.headers(buffer, flow).is_some_and(|headers| {
                headers.first().map(|byte| byte >> 4) == packet.bytes().first().map(|byte| byte >> 4)
                    && addresses(headers) == addresses(packet.bytes())
            })
    }

    /// Whether `packet`, which is of this flow, is what would follow if this were cut.
    fn accepts(&self, buffer: &[u8], packet: &IpPacket<'_>, other: &Flow) -> bool {
        let Some(flow) = self.flow.filter(|flow| flow.open && flow.transport == other.transport) else { return false };
        let Some(headers) = self.headers(buffer, &flow) else { return false };
        let bytes = packet.bytes();
        let limit = match flow.transport.protocol {
            Protocol::Tcp => MAX_PIECES,
            Protocol::Udp => MAX_DATAGRAMS,
        };
        (1..=flow.size).contains(&other.size)
            && self.total + other.size <= MAX_PACKET_BYTES
            && self.pieces.len() < limit
            && same_ip_header(headers, bytes, self.pieces.len())
            && match flow.transport.protocol {
                Protocol::Udp => true,
                Protocol::Tcp => follows(headers, bytes, &flow, other),
            }
    }

    fn join(&mut self, payload: Range<usize>, other: &Flow) {
        self.total += payload.len();
        self.pieces.push(payload);
        let Some(flow) = &mut self.flow else { return };
        flow.next_sequence = other.next_sequence;
        flow.last_flags = other.flags;
        // Only the last segment may be shorter, push, or end the flow.
        flow.open = other.size == flow.size && other.flags == flow.flags;
    }

    /// Corrects the headers of the first piece, and returns the virtio header for the whole.
    fn correct(&self, buffer: &mut [u8]) -> Option<VnetHeader> {
        let Some(transport) = &self.checksum else { return Some(VnetHeader::default()) };
        let start = self.pieces.first()?.start;
        let headers = buffer.get_mut(start..start + transport.payload)?;
        transport.write_partial_checksum(headers, self.total)?;
        let word = |number: usize| u16::try_from(number).ok();
        let offset = word(transport.protocol.checksum_offset())?;
        let header = VnetHeader::with_partial_checksum(word(transport.start)?, offset);
        let Some(flow) = self.flow.filter(|_| self.pieces.len() > 1) else { return Some(header) };
        transport.write_lengths(headers, self.total, 0)?;
        let gso = match transport.protocol {
            Protocol::Udp => Gso::UdpL4,
            Protocol::Tcp => {
                *headers.get_mut(transport.start + 13)? = flow.last_flags;
                if headers.first()? >> 4 == 4 { Gso::Tcp4 } else { Gso::Tcp6 }
            }
        };
        Some(header.with_gso(gso, word(transport.payload)?, word(flow.size)?))
    }
}

/// Source and destination, as they are in the header.
fn addresses(packet: &[u8]) -> Option<&[u8]> {
    let is_v4 = packet.first()? >> 4 == 4;
    packet.get(if is_v4 { 12..20 } else { 8..40 })
}

/// Whether two IP headers differ in nothing but lengths and what counts up. `index` is that of the second one among
/// the segments.
fn same_ip_header(first: &[u8], other: &[u8], index: usize) -> bool {
    let same = |range: Range<usize>| first.get(range.clone()) == other.get(range);
    if first.first().is_none_or(|byte| byte >> 4 != 4) {
        return same(0..4) && same(6..40);
    }
    // Who does not want a packet fragmented need not number it.
    let counts = first.get(6).is_none_or(|flags| flags & DONT_FRAGMENT == 0);
    let numbered = |bytes: &[u8]| read_u16(bytes, IDENTIFICATION.start);
    let options = 20..first.first().map_or(0, |byte| usize::from(byte & 0x0f) * 4);
    same(0..2)
        && same(6..10)
        && same(options)
        && (!counts
            || numbered(first).zip(u16::try_from(index).ok()).map(|(id, by)| id.wrapping_add(by)) == numbered(other))
}

/// Whether a TCP segment carries on where the first `headers` and what joined them ended.
fn follows(headers: &[u8], bytes: &[u8], flow: &Flow, other: &Flow) -> bool {
    let start = flow.transport.start;
    let same = |range: Range<usize>| headers.get(range.clone()) == bytes.get(range);
    let sequence = read_u32(bytes, start + 4);
    let only_ends = other.flags & !(tcp_flags::PSH | tcp_flags::FIN) == flow.flags;
    // Acknowledgement, header length, window; then the urgent pointer and the options.
    sequence == Some(flow.next_sequence)
        && only_ends
        && same(start + 8..start + 13)
        && same(start + 14..start + 16)
        && same(start + 18..flow.transport.payload)
}

#[cfg(test)]
mod tests;
