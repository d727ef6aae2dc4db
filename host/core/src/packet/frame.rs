//! Frames: how packets follow one another on a stream.

use super::{MAX_PACKET_BYTES, VNET_HEADER_BYTES, VnetError, VnetHeader};

/// What a frame's length may say at most: the virtio header and the largest packet.
pub const MAX_FRAME_BYTES: usize = VNET_HEADER_BYTES + MAX_PACKET_BYTES;

/// The length field.
const LENGTH_BYTES: usize = 4;

/// What a decoder keeps: two frames of the largest size, so that one can be read while the next one
/// is arriving. When it is full the reader waits for [`FrameDecoder::next_frame`].
const DECODER_BYTES: usize = 2 * (LENGTH_BYTES + MAX_FRAME_BYTES);

/// Why a stream cannot be read on. There is no way to find the next frame after it: close the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is beyond any packet.
    #[error("a frame of {length} bytes is longer than the {MAX_FRAME_BYTES} allowed")]
    TooLong {
        /// **Units** bytes.
        length: usize,
    },
    /// The length leaves no room for a packet.
    #[error("a frame of {length} bytes holds no packet")]
    TooShort {
        /// **Units** bytes.
        length: usize,
    },
    /// The virtio header could not be read.
    #[error("a frame has no virtio header")]
    Header(#[from] VnetError),
}

/// One packet with its virtio header, still unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The virtio header.
    pub header: VnetHeader,
    /// The packet's bytes; not empty.
    pub packet: &'a [u8],
}

/// Appends a frame.
///
/// # Errors
/// [`FrameError::TooLong`] or [`FrameError::TooShort`]; nothing was appended then.
pub fn append_frame(buffer: &mut Vec<u8>, header: &VnetHeader, packet: &[u8]) -> Result<(), FrameError> {
    let length = admit_length(VNET_HEADER_BYTES.saturating_add(packet.len()))?;
    let field = u32::try_from(length).map_err(|_| FrameError::TooLong { length })?;
    buffer.reserve(LENGTH_BYTES + length);
    buffer.extend_from_slice(&field.to_le_bytes());
    buffer.extend_from_slice(&header.encode());
    buffer.extend_from_slice(packet);
    Ok(())
}

/// The first frame in `buffer` and how many bytes it takes; `None` while it is incomplete.
///
/// # Errors
/// [`FrameError`] as soon as the length field can be read, before the frame is complete.
pub fn next_frame(buffer: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some(field) = buffer.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*field)).unwrap_or(usize::MAX);
    let end = LENGTH_BYTES + admit_length(length)?;
    let Some(body) = buffer.get(LENGTH_BYTES..end) else {
        return Ok(None);
    };
    let header = VnetHeader::decode(body)?;
    Ok(Some((Frame { header, packet: &body[VNET_HEADER_BYTES..] }, end)))
}

fn admit_length(length: usize) -> Result<usize, FrameError> {
    match length {
        0..=VNET_HEADER_BYTES => Err(FrameError::TooShort { length }),
        _ if length > MAX_FRAME_BYTES => Err(FrameError::TooLong { length }),
        _ => Ok(length),
    }
}

/// Frames out of a stream that arrives in pieces.
///
/// Read into [`space`](Self::space), say how much with [`advance`](Self::advance), then take
/// frames until there is none.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// An empty decoder; it allocates once.
    #[must_use]
    pub fn new() -> Self {
        Self { buffer: vec![0; DECODER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where the next bytes go. Empty only while a complete frame waits to be taken.
    pub fn space(&mut self) -> &mut [u8] {
        // Moving the rest to the front is put off until the space left could not hold a frame.
        if self.buffer.len() - self.end < LENGTH_BYTES + MAX_FRAME_BYTES && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `count` bytes of [`space`](Self::space) were filled. **Bounds** at most its length.
    pub fn advance(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// The next complete frame.
    ///
    /// # Errors
    /// [`FrameError`]; every later call fails alike.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let Some((frame, taken)) = next_frame(&self.buffer[self.start..self.end])? else {
            return Ok(None);
        };
        self.start += taken;
        Ok(Some(frame))
    }

    /// **Units** bytes that arrived and are not part of a frame taken yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.end - self.start
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = VnetHeader> {
        any::<[u8; VNET_HEADER_BYTES]>().prop_map(|bytes| VnetHeader::decode(&bytes).unwrap())
    }

    fn drain(decoder: &mut FrameDecoder, taken: &mut Vec<(VnetHeader, Vec<u8>)>) {
        while let Some(frame) = decoder.next_frame().unwrap() {
            taken.push((frame.header, frame.packet.to_vec()));
        }
    }

    /// Feeds a stream in pieces, as a socket would.
    fn decode(stream: &[u8], piece: usize) -> (Vec<(VnetHeader, Vec<u8>)>, usize) {
        let mut decoder = FrameDecoder::new();
        let mut taken = Vec::new();
        let mut rest = stream;
        while !rest.is_empty() {
            let space = decoder.space();
            let count = piece.min(space.len()).min(rest.len());
            assert_ne!(count, 0, "a drained decoder has room");
            space[..count].copy_from_slice(&rest[..count]);
            decoder.advance(count);
            rest = &rest[count..];
            drain(&mut decoder, &mut taken);
        }
        (taken, decoder.pending())
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_the_frame_is_complete() {
        let refused = |length: u32| next_frame(&length.to_le_bytes()).unwrap_err();
        assert_eq!(refused(0), FrameError::TooShort { length: 0 });
        assert_eq!(refused(10), FrameError::TooShort { length: 10 });
        assert_eq!(refused(65_546), FrameError::TooLong { length: 65_546 });
        assert_eq!(refused(u32::MAX), FrameError::TooLong { length: 0xffff_ffff });
        assert_eq!(next_frame(&65_545_u32.to_le_bytes()), Ok(None));
        assert_eq!(next_frame(&[0, 0, 0]), Ok(None));
    }

    #[test]
    fn packets_that_fit_no_frame_are_not_appended() {
        let mut buffer = vec![7];
        let header = VnetHeader::default();
        let long = vec![0; MAX_PACKET_BYTES + 1];
        let too_long = FrameError::TooLong { length: MAX_FRAME_BYTES + 1 };
        assert_eq!(append_frame(&mut buffer, &header, &long), Err(too_long));
        let too_short = FrameError::TooShort { length: VNET_HEADER_BYTES };
        assert_eq!(append_frame(&mut buffer, &header, &[]), Err(too_short));
        assert_eq!(buffer, [7]);
    }

    #[test]
    fn the_largest_frames_pass_one_after_another() {
        let packet = vec![0xab; MAX_PACKET_BYTES];
        let mut stream = Vec::new();
        for _ in 0..5 {
            append_frame(&mut stream, &VnetHeader::default(), &packet).unwrap();
        }
        let (taken, pending) = decode(&stream, usize::MAX);
        assert_eq!(taken, vec![(VnetHeader::default(), packet); 5]);
        assert_eq!(pending, 0);
    }

    #[test]
    fn a_broken_stream_stays_broken() {
        let mut decoder = FrameDecoder::new();
        decoder.space()[..4].copy_from_slice(&[0xff; 4]);
        decoder.advance(4);
        let error = FrameError::TooLong { length: 0xffff_ffff };
        assert_eq!(decoder.next_frame(), Err(error));
        assert_eq!(decoder.next_frame(), Err(error));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn frames_survive_a_stream_cut_anywhere(
            frames in proptest::collection::vec(
                (header(), proptest::collection::vec(any::<u8>(), 1..200)), 0..20),
            piece in 1_usize..300,
            cut in 0_usize..200,
        ) {
            let mut stream = Vec::new();
            for (header, packet) in &frames {
                append_frame(&mut stream, header, packet).unwrap();
            }
            prop_assert_eq!(decode(&stream, piece), (frames.clone(), 0));
            // Cut off, every frame but the last ones is there, and nothing else.
            let kept = stream.len().saturating_sub(cut);
            let (taken, pending) = decode(&stream[..kept], piece);
            let taken_bytes: usize = taken.iter().map(|(_, packet)| packet.len() + 14).sum();
            prop_assert_eq!(&taken[..], &frames[..taken.len()]);
            prop_assert_eq!(taken_bytes + pending, kept);
        }

        #[test]
        fn arbitrary_streams_never_panic(stream in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut decoder = FrameDecoder::new();
            decoder.space()[..stream.len()].copy_from_slice(&stream);
            decoder.advance(stream.len());
            while let Ok(Some(_)) = decoder.next_frame() {}
            prop_assert!(decoder.pending() <= stream.len());
        }
    }
}
