//! What one datagram looks like from outside: the header in front of the ciphertext, checked once.
//!
//! ```text
//! frame    = kind u8 | flags u8 | epoch u8 | queue u8 | receiver u32 | counter u64 | ciphertext | tag 16 bytes
//!            └──────────────── header, 16 bytes, authenticated ──────────────────┘
//! relayed  = relay index u32 | relay tag u32 | frame            not authenticated; the relay reads it and nothing else
//! ```
//! Numbers are big endian. The first byte tells the two apart: a relay index has its highest bit set, a kind never.

/// The header. **Units** bytes.
pub const HEADER_BYTES: usize = 16;
/// The authentication tag of both suites. **Units** bytes.
pub const TAG_BYTES: usize = 16;
/// What a frame adds to a packet. **Units** bytes.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// What stands before a frame on its way through a relay. **Units** bytes.
pub const RELAY_PREFIX_BYTES: usize = 8;
/// The largest payload of UDP over IPv4. **Units** bytes.
pub const MAX_DATAGRAM_BYTES: usize = 65_507;

/// Frames that one key may seal. AES-GCM's margin is far above it; it keeps counters small and makes a
/// forgotten rotation show.
///
/// **Source** DATAPLANE facts; RFC 9147 §4.5.3 allows 2^24.5 full-size TLS records, which are 12 times as large.
pub const MAX_FRAMES_PER_KEY: u64 = 1 << 32;

/// After that many frames new keys are due, so that none reaches [`MAX_FRAMES_PER_KEY`].
pub const WORN_FRAMES: u64 = MAX_FRAMES_PER_KEY / 2;

/// Queues of packets that one node may send by. More threads would not make a TUN faster, and a peer that asks for
/// all of them costs its receiver 50 KiB an epoch.
pub const MAX_QUEUES: u8 = 16;
/// The queue number of probes and their answers, which have a key and a counter of their own, so that whoever
/// sends them shares no counter with a packet thread.
pub const PROBE_QUEUE: u8 = 255;

/// The bit that tells a relay index from a kind.
const RELAYED: u8 = 0x80;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole IP packet.
    Packet,
    /// A question about the path. See [`crate::probe`].
    Probe,
    /// The answer to it.
    Answer,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Packet => 1,
            Self::Probe => 2,
            Self::Answer => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Packet, Self::Probe, Self::Answer].into_iter().find(|kind| kind.code() == code)
    }
}

/// What else is to be known of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The TCP or UDP checksum holds the sum of the pseudo header only; the receiver's kernel completes it.
    pub partial_checksum: bool,
}

impl Flags {
    const PARTIAL_CHECKSUM: u8 = 1;

    fn code(self) -> u8 {
        if self.partial_checksum { Self::PARTIAL_CHECKSUM } else { 0 }
    }

    fn from_code(code: u8) -> Option<Self> {
        (code & !Self::PARTIAL_CHECKSUM == 0).then_some(Self { partial_checksum: code != 0 })
    }
}

/// A set of keys. Whoever receives numbers what it receives, so that a number is not used twice while an older
/// set of the same number is still accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch(pub u8);

impl Epoch {
    /// The one after.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// Which peer a frame is from, in the receiver's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReceiverIndex(pub u32);

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header and a tag.
    #[error("{have} bytes are too few for a frame of at least {OVERHEAD_BYTES}")]
    Truncated {
        /// How many there are.
        have: usize,
    },
    /// More bytes than a datagram has.
    #[error("{have} bytes are more than a datagram of {MAX_DATAGRAM_BYTES}")]
    Oversize {
        /// How many there are.
        have: usize,
    },
    /// A kind that this version does not know.
    #[error("frames of kind {code} are unknown")]
    Kind {
        /// The field.
        code: u8,
    },
    /// A flag that this version does not know, or that does not go with the kind.
    #[error("frame flags {code:#04x} are unknown for this kind")]
    Flags {
        /// The field.
        code: u8,
    },
    /// A queue that no node has, or that does not go with the kind.
    #[error("queue {queue} does not exist for this kind")]
    Queue {
        /// The field.
        queue: u8,
    },
    /// A counter that no key reaches.
    #[error("counter {counter} is beyond what a key may seal")]
    Counter {
        /// The field.
        counter: u64,
    },
}

/// A header whose fields go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: Kind,
    flags: Flags,
    epoch: Epoch,
    queue: u8,
    receiver: ReceiverIndex,
    counter: u64,
}

impl Header {
    /// What the frame carries.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What else is to be known of it.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// The receiver's number for the keys.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The sender's queue. **Bounds** below [`MAX_QUEUES`], or [`PROBE_QUEUE`].
    #[must_use]
    pub fn queue(&self) -> u8 {
        self.queue
    }

    /// The receiver's number for the sender.
    #[must_use]
    pub fn receiver(&self) -> ReceiverIndex {
        self.receiver
    }

    /// Counts the frames of one key. **Bounds** below [`MAX_FRAMES_PER_KEY`].
    #[must_use]
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Reads a header.
    ///
    /// # Errors
    /// The field that no frame has.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [kind, flags, epoch, queue, r0, r1, r2, r3, counter @ ..] = *bytes;
        let code = kind;
        let kind = Kind::from_code(code).ok_or(FrameError::Kind { code })?;
        let is_packet = kind == Kind::Packet;
        let code = flags;
        let flags = Flags::from_code(code).filter(|_| is_packet || code == 0).ok_or(FrameError::Flags { code })?;
        if !queue_fits(kind, queue) {
            return Err(FrameError::Queue { queue });
        }
        let counter = u64::from_be_bytes(counter);
        if counter >= MAX_FRAMES_PER_KEY {
            return Err(FrameError::Counter { counter });
        }
        let receiver = ReceiverIndex(u32::from_be_bytes([r0, r1, r2, r3]));
        Ok(Self { kind, flags, epoch: Epoch(epoch), queue, receiver, counter })
    }
}

/// Whether frames of that kind travel by that queue.
pub(crate) fn queue_fits(kind: Kind, queue: u8) -> bool {
    match kind {
        Kind::Packet => queue < MAX_QUEUES,
        Kind::Probe | Kind::Answer => queue == PROBE_QUEUE,
    }
}

/// The header's bytes. The caller has chosen fields that go together.
pub(crate) fn encode_header(kind: Kind, flags: Flags, lane: LaneAddress, counter: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let [k, f, e, q, rest @ ..] = &mut bytes;
    (*k, *f, *e, *q) = (kind.code(), flags.code(), lane.epoch.0, lane.queue);
    let (receiver, count) = rest.split_at_mut(4);
    receiver.copy_from_slice(&lane.receiver.0.to_be_bytes());
    count.copy_from_slice(&counter.to_be_bytes());
    bytes
}

/// What all frames of one key have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneAddress {
    /// The receiver's number for the sender.
    pub receiver: ReceiverIndex,
    /// The receiver's number for the keys.
    pub epoch: Epoch,
    /// The sender's queue.
    pub queue: u8,
}

/// A frame that was checked from outside and not opened yet.
#[derive(Debug, PartialEq, Eq)]
pub struct SealedFrame<'a> {
    header: Header,
    /// The whole frame, at least [`OVERHEAD_BYTES`].
    bytes: &'a mut [u8],
}

impl<'a> SealedFrame<'a> {
    /// Checks everything that can be checked without a key.
    ///
    /// # Errors
    /// Why the bytes are no frame.
    pub fn new_checked(bytes: &'a mut [u8]) -> Result<Self, FrameError> {
        let have = bytes.len();
        if have > MAX_DATAGRAM_BYTES {
            return Err(FrameError::Oversize { have });
        }
        let header = bytes.first_chunk().filter(|_| have >= OVERHEAD_BYTES).ok_or(FrameError::Truncated { have })?;
        Ok(Self { header: Header::parse(header)?, bytes })
    }

    /// The header. Anybody may have written it: it is authentic once the frame is opened.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The bytes of the header, and those of ciphertext and tag.
    pub(crate) fn into_parts(self) -> (&'a mut [u8], &'a mut [u8]) {
        self.bytes.split_at_mut(HEADER_BYTES)
    }
}

/// Which reservation of a relay a datagram uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayIndex(u32);

impl RelayIndex {
    /// The index with that number. **Bounds** the highest bit is always set, so 2^31 are told apart.
    #[must_use]
    pub fn new(number: u32) -> Self {
        Self(number | u32::from_be_bytes([RELAYED, 0, 0, 0]))
    }

    /// Its number, as it travels.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// What stands before a frame on its way through a relay. The relay gave both numbers out with the reservation;
/// the tag is random, so that a stranger cannot use up somebody's quota by counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayPrefix {
    /// Which reservation.
    pub index: RelayIndex,
    /// The reservation's random number.
    pub tag: u32,
}

impl RelayPrefix {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RELAY_PREFIX_BYTES] {
        let [a, b, c, d] = self.index.0.to_be_bytes();
        let [e, f, g, h] = self.tag.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// The prefix that bytes begin with; `None` when they begin with none.
    #[must_use]
    pub fn first_of(bytes: &[u8]) -> Option<Self> {
        let prefix = bytes.first_chunk().filter(|prefix| prefix.first().is_some_and(|first| first & RELAYED != 0));
        prefix.map(Self::parse)
    }

    fn parse(bytes: &[u8; RELAY_PREFIX_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h] = *bytes;
        Self { index: RelayIndex(u32::from_be_bytes([a, b, c, d])), tag: u32::from_be_bytes([e, f, g, h]) }
    }
}

/// What arrived in one datagram.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// There when a relay is, or was, on the way.
    pub relay: Option<RelayPrefix>,
    /// The frame.
    pub frame: SealedFrame<'a>,
}

impl<'a> Datagram<'a> {
    /// Checks everything that can be checked without a key. A relay asks the same of what it forwards.
    ///
    /// # Errors
    /// Why the bytes are neither a frame nor a relayed one.
    pub fn new_checked(bytes: &'a mut [u8]) -> Result<Self, FrameError> {
        if bytes.first().is_none_or(|first| first & RELAYED == 0) {
            return Ok(Self { relay: None, frame: SealedFrame::new_checked(bytes)? });
        }
        let have = bytes.len();
        if have > MAX_DATAGRAM_BYTES {
            return Err(FrameError::Oversize { have });
        }
        let (prefix, frame) = bytes.split_first_chunk_mut().ok_or(FrameError::Truncated { have })?;
        Ok(Self { relay: Some(RelayPrefix::parse(prefix)), frame: SealedFrame::new_checked(frame)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LANE: LaneAddress = LaneAddress { receiver: ReceiverIndex(0x0102_0304), epoch: Epoch(7), queue: 3 };

    fn frame(kind: Kind, flags: Flags, lane: LaneAddress, counter: u64) -> Vec<u8> {
        let mut bytes = encode_header(kind, flags, lane, counter).to_vec();
        bytes.extend_from_slice(&[0xaa; 20]);
        bytes
    }

    #[test]
    fn the_wire_form_is_fixed() {
        let flags = Flags { partial_checksum: true };
        let bytes = encode_header(Kind::Packet, flags, LANE, 0x0506_0708);
        assert_eq!(bytes, [1, 1, 7, 3, 1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 8]);
        let prefix = RelayPrefix { index: RelayIndex::new(0x0102_0304), tag: 0x0506_0708 };
        assert_eq!(prefix.encode(), [0x81, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_field_that_no_frame_has_is_refused_by_name() {
        let good = encode_header(Kind::Packet, Flags::default(), LANE, 1);
        let with = |position: usize, value: u8| {
            let mut bytes = good;
            bytes[position] = value;
            Header::parse(&bytes)
        };
        for code in [0, 4, 127] {
            assert_eq!(with(0, code), Err(FrameError::Kind { code }));
        }
        for code in [2, 3, 0x80] {
            assert_eq!(with(1, code), Err(FrameError::Flags { code }));
        }
        for queue in [MAX_QUEUES, 254, PROBE_QUEUE] {
            assert_eq!(with(3, queue), Err(FrameError::Queue { queue }));
        }
        assert_eq!(with(11, 1), Err(FrameError::Counter { counter: MAX_FRAMES_PER_KEY + 1 }));
        let probe = encode_header(Kind::Probe, Flags::default(), LANE, 1);
        assert_eq!(Header::parse(&probe), Err(FrameError::Queue { queue: 3 }));
        let lane = LaneAddress { queue: PROBE_QUEUE, ..LANE };
        let flagged = encode_header(Kind::Answer, Flags { partial_checksum: true }, lane, 1);
        assert_eq!(Header::parse(&flagged), Err(FrameError::Flags { code: 1 }));
    }

    #[test]
    fn every_length_below_a_frame_is_refused() {
        let whole = frame(Kind::Packet, Flags::default(), LANE, 0);
        for have in 0..OVERHEAD_BYTES {
            let mut cut = whole[..have].to_vec();
            assert_eq!(Datagram::new_checked(&mut cut), Err(FrameError::Truncated { have }));
        }
        let mut least = whole[..OVERHEAD_BYTES].to_vec();
        assert!(Datagram::new_checked(&mut least).is_ok());
    }

    #[test]
    fn a_datagram_that_udp_cannot_carry_is_refused() {
        let mut large = frame(Kind::Packet, Flags::default(), LANE, 0);
        large.resize(MAX_DATAGRAM_BYTES + 1, 0);
        let have = MAX_DATAGRAM_BYTES + 1;
        assert_eq!(Datagram::new_checked(&mut large), Err(FrameError::Oversize { have }));
        large[0] = RELAYED;
        assert_eq!(Datagram::new_checked(&mut large), Err(FrameError::Oversize { have }));
    }

    #[test]
    fn a_relay_prefix_before_a_relay_prefix_is_no_frame() {
        let prefix = RelayPrefix { index: RelayIndex::new(1), tag: 2 };
        let mut twice = [prefix.encode(), prefix.encode()].concat();
        twice.extend_from_slice(&frame(Kind::Packet, Flags::default(), LANE, 0));
        assert_eq!(Datagram::new_checked(&mut twice), Err(FrameError::Kind { code: 0x80 }));
    }

    fn kinds() -> impl Strategy<Value = (Kind, Flags, u8)> {
        prop_oneof![
            (any::<bool>(), 0..MAX_QUEUES).prop_map(|(partial_checksum, queue)| (
                Kind::Packet,
                Flags { partial_checksum },
                queue
            )),
            Just((Kind::Probe, Flags::default(), PROBE_QUEUE)),
            Just((Kind::Answer, Flags::default(), PROBE_QUEUE)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(
            (kind, flags, queue) in kinds(),
            (receiver, epoch, counter) in (any::<u32>(), any::<u8>(), 0..MAX_FRAMES_PER_KEY),
            relay in prop::option::of((any::<u32>(), any::<u32>())),
        ) {
            let lane = LaneAddress { receiver: ReceiverIndex(receiver), epoch: Epoch(epoch), queue };
            let relay = relay.map(|(number, tag)| RelayPrefix { index: RelayIndex::new(number), tag });
            let mut bytes = relay.map(|prefix| prefix.encode().to_vec()).unwrap_or_default();
            bytes.extend(frame(kind, flags, lane, counter));
            let datagram = Datagram::new_checked(&mut bytes).unwrap();
            let header = Header { kind, flags, epoch: Epoch(epoch), queue, receiver: lane.receiver, counter };
            prop_assert_eq!((datagram.relay, *datagram.frame.header()), (relay, header));
        }

        #[test]
        fn what_is_read_from_any_bytes_is_what_they_say(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let before = bytes.clone();
            if let Ok(datagram) = Datagram::new_checked(&mut bytes) {
                let header = *datagram.frame.header();
                let lane = LaneAddress { receiver: header.receiver, epoch: header.epoch, queue: header.queue };
                let mut again = datagram.relay.map(|prefix| prefix.encode().to_vec()).unwrap_or_default();
                again.extend(encode_header(header.kind, header.flags, lane, header.counter));
                prop_assert_eq!(&before[..again.len()], &again[..]);
            }
        }
    }
}
