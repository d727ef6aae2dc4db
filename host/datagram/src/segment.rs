//! Cuts a packet from the TUN into segments that fit a path: what TSO and USO hardware would do, except that
//! checksums stay partial and no payload byte is summed.
//!
//! ```text
//! virtio header | IP | TCP | payload 64 KiB   ->   IP | TCP | payload ≤ mtu   (count times)
//! ```
//! TCP is cut wherever the path asks for it, so a path that became narrower carries old super-packets at once. The
//! borders of UDP datagrams are kept.

use culvert_core::packet::{Gso, IpPacket, VnetError, VnetHeader};

use crate::checksum::Sum;
use crate::transport::{Protocol, Transport, read_u32, tcp_flags, write};

/// Segments of one super-packet: 65,535 bytes in segments of 32. Linux sends no less than 48 bytes of TCP in one
/// unless told to; a packet that would make more is dropped, since a pod could keep the thread busy with such.
pub const MAX_SEGMENTS: usize = 2_048;

/// The TCP header's byte of control bits.
const TCP_FLAGS_OFFSET: usize = 13;
const TCP_SEQUENCE_OFFSET: usize = 4;

/// Who completes the transport checksum of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The receiver's kernel: its field holds nothing of use. Only for TCP and UDP that directly follow the IP header.
    Partial,
    /// Nobody: it is complete, or there is none.
    Complete,
}

/// Why a packet cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The virtio header does not fit the packet.
    #[error(transparent)]
    Offload(#[from] VnetError),
    /// A super-packet without a transport header where the virtio header says.
    #[error("a super-packet has no transport header with a partial checksum at byte {start}")]
    NoTransport {
        /// **Units** bytes from the start of the packet.
        start: usize,
    },
    /// Too many segments.
    #[error("a super-packet in segments of {size} bytes makes more than {MAX_SEGMENTS}")]
    TooMany {
        /// **Units** bytes of payload.
        size: usize,
    },
    /// The packet is larger than the path takes, and must not be cut. Its sender should hear of `mtu`.
    #[error("a packet of {length} bytes does not fit a path of {mtu}")]
    TooBig {
        /// **Units** bytes.
        length: usize,
        /// **Units** bytes.
        mtu: usize,
    },
}

/// How one packet is cut for one path.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    bytes: &'a [u8],
    header: VnetHeader,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// One packet. `completes` says from where to where a checksum must be completed.
    Whole { checksum: Checksum, completes: Option<(usize, usize)> },
    /// Several, of `size` bytes of payload but the last.
    Cut { transport: Transport, size: usize, count: usize, checksum: Checksum },
}

impl<'a> Segments<'a> {
    /// Decides how `packet` is cut for a path of `mtu_bytes`.
    ///
    /// # Errors
    /// [`SegmentError`]; the packet must be dropped.
    pub fn plan(header: &VnetHeader, packet: &IpPacket<'a>, mtu_bytes: usize) -> Result<Self, SegmentError> {
        let gso = header.admit(packet)?;
        let shape = match gso {
            Gso::None if packet.bytes().len() <= mtu_bytes => whole(header, packet),
            Gso::None => cut_oversize(header, packet, mtu_bytes)?,
            Gso::Tcp4 | Gso::Tcp6 => cut(header, packet, Protocol::Tcp, mtu_bytes)?,
            Gso::UdpL4 => cut(header, packet, Protocol::Udp, mtu_bytes)?,
        };
        Ok(Self { bytes: packet.bytes(), header: *header, shape })
    }

    /// How many segments there are; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        match self.shape {
            Shape::Whole { .. } => 1,
            Shape::Cut { count, .. } => count,
        }
    }

    /// **Units** bytes of the segment at that index; 0 past the last one.
    #[must_use]
    pub fn length(&self, index: usize) -> usize {
        match self.shape {
            Shape::Whole { .. } if index == 0 => self.bytes.len(),
            Shape::Cut { transport, size, count, .. } if index < count => {
                let left = self.bytes.len() - transport.payload - index * size;
                transport.payload + left.min(size)
            }
            Shape::Whole { .. } | Shape::Cut { .. } => 0,
        }
    }

    /// Who completes the checksums of all segments.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        match self.shape {
            Shape::Whole { checksum, .. } | Shape::Cut { checksum, .. } => checksum,
        }
    }

    /// Like [`write`](Self::write), for a receiver that is told of a partial checksum by the virtio header returned.
    pub fn write_single(&self, index: usize, into: &mut [u8]) -> Option<VnetHeader> {
        self.write(index, into)?;
        match self.shape {
            Shape::Cut { transport, checksum: Checksum::Partial, .. } => {
                let total = into.len();
                transport.write_partial_checksum(into, total)?;
                let word = |number: usize| u16::try_from(number).ok();
                let offset = word(transport.protocol.checksum_offset())?;
                Some(VnetHeader::with_partial_checksum(word(transport.start)?, offset))
            }
            Shape::Whole { checksum: Checksum::Partial, .. } => Some(self.header),
            Shape::Cut { .. } | Shape::Whole { .. } => Some(VnetHeader::default()),
        }
    }

    /// Writes the segment at that index into `into`, which has its length exactly; `None` when it has not.
    pub fn write(&self, index: usize, into: &mut [u8]) -> Option<()> {
        if into.is_empty() || into.len() != self.length(index) {
            return None;
        }
        match self.shape {
            Shape::Whole { completes, .. } => {
                into.copy_from_slice(self.bytes);
                completes.map_or(Some(()), |(start, at)| complete(into, start, at))
            }
            Shape::Cut { transport, size, count, checksum } => {
                let (headers, payload) = into.split_at_mut_checked(transport.payload)?;
                headers.copy_from_slice(self.bytes.get(..transport.payload)?);
                let offset = index * size;
                let from = transport.payload + offset;
                payload.copy_from_slice(self.bytes.get(from..from + payload.len())?);
                let total = headers.len() + payload.len();
                transport.write_lengths(headers, total, u16::try_from(index).ok()?)?;
                if transport.protocol == Protocol::Tcp {
                    rewrite_tcp(headers, transport.start, offset, (index == 0, index + 1 == count))?;
                }
                match checksum {
                    Checksum::Partial => Some(()),
                    Checksum::Complete => {
                        shrink_partial(into, &transport, self.bytes.len(), total)?;
                        complete(into, transport.start, transport.checksum_at())
                    }
                }
            }
        }
    }
}

/// A packet that goes as it is. Its checksum stays partial when the receiver can find it.
fn whole(header: &VnetHeader, packet: &IpPacket<'_>) -> Shape {
    if !header.needs_checksum() {
        return Shape::Whole { checksum: Checksum::Complete, completes: None };
    }
    let (start, offset) = (usize::from(header.checksum_start), usize::from(header.checksum_offset));
    match Transport::find(packet) {
        Some(found) if (start, start + offset) == (found.start, found.checksum_at()) => {
            Shape::Whole { checksum: Checksum::Partial, completes: None }
        }
        Some(_) | None => Shape::Whole { checksum: Checksum::Complete, completes: Some((start, start + offset)) },
    }
}

/// A packet that is no super-packet and does not fit: TCP from this machine is cut, all else is too big.
fn cut_oversize(header: &VnetHeader, packet: &IpPacket<'_>, mtu: usize) -> Result<Shape, SegmentError> {
    let is_tcp = Transport::find(packet).is_some_and(|found| found.protocol == Protocol::Tcp);
    if header.needs_checksum() && is_tcp {
        let whole_payload = VnetHeader { gso_size: u16::MAX, ..*header };
        return cut(&whole_payload, packet, Protocol::Tcp, mtu);
    }
    Err(SegmentError::TooBig { length: packet.bytes().len(), mtu })
}

fn cut(header: &VnetHeader, packet: &IpPacket<'_>, protocol: Protocol, mtu: usize) -> Result<Shape, SegmentError> {
    let start = usize::from(header.checksum_start);
    let length = packet.bytes().len();
    let told = header.needs_checksum()
        && usize::from(header.checksum_offset) == protocol.checksum_offset()
        && (start == packet.header_bytes() || !packet.is_v4());
    let found = told.then(|| Transport::at(packet, protocol, start)).flatten();
    let transport = found.ok_or(SegmentError::NoTransport { start })?;
    let wanted = usize::from(header.gso_size);
    let room = mtu.saturating_sub(transport.payload);
    let payload = length - transport.payload;
    let size = match protocol {
        Protocol::Tcp => wanted.min(room),
        Protocol::Udp => wanted,
    };
    if size == 0 || size.min(payload) > room {
        return Err(SegmentError::TooBig { length: transport.payload + wanted.min(payload), mtu });
    }
    let count = payload.div_ceil(size).max(1);
    if count > MAX_SEGMENTS {
        return Err(SegmentError::TooMany { size });
    }
    // Behind extension headers the receiver would have to search for it.
    let direct = start == packet.header_bytes() && packet.protocol() == protocol.number();
    let checksum = if direct { Checksum::Partial } else { Checksum::Complete };
    Ok(Shape::Cut { transport, size, count, checksum })
}

/// Sequence number and control bits of a segment: the window was reduced before the first, the end and the push
/// belong to the last.
fn rewrite_tcp(headers: &mut [u8], start: usize, offset: usize, (first, last): (bool, bool)) -> Option<()> {
    let at = start + TCP_SEQUENCE_OFFSET;
    let sequence = read_u32(headers, at)?.wrapping_add(u32::try_from(offset).ok()?);
    write(headers, at, sequence.to_be_bytes())?;
    let flags = headers.get_mut(start + TCP_FLAGS_OFFSET)?;
    if !first {
        *flags &= !tcp_flags::CWR;
    }
    if !last {
        *flags &= !(tcp_flags::FIN | tcp_flags::PSH);
    }
    Some(())
}

/// Takes the difference in length out of the partial checksum, which counts the length of the super-packet.
fn shrink_partial(segment: &mut [u8], transport: &Transport, before: usize, now: usize) -> Option<()> {
    let at = transport.checksum_at();
    let field: [u8; 2] = *segment.get(at..)?.first_chunk()?;
    let length = |total: usize| u16::try_from(total - transport.start).ok().map(u16::to_be_bytes);
    let [high, low] = length(before)?;
    // Adding the complement of a number takes it away.
    let sum = Sum::default().add(&field).add(&[!high, !low]).add(&length(now)?);
    write(segment, at, sum.partial())
}

/// Completes the checksum stored at `at`, over all bytes from `start` on.
fn complete(segment: &mut [u8], start: usize, at: usize) -> Option<()> {
    let checksum = Sum::default().add(segment.get(start..)?).complete_transport();
    write(segment, at, checksum)
}

#[cfg(test)]
mod tests;
