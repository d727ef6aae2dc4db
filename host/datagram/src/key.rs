//! Keys that seal and open frames, one for each direction, queue and epoch.
//!
//! A [`SealKey`] belongs to one thread and holds its counter as a plain number, so a nonce cannot come twice: there
//! is no second owner and no way to set the counter. An [`OpenKey`] remembers nothing and is shared by reference.
//!
//! ```text
//! nonce = iv of the key XOR counter (in the last 8 bytes)         as in RFC 8446 §5.3
//! aad   = the frame's header
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::frame::{
    Flags, Header, Kind, LaneAddress, MAX_FRAMES_PER_KEY, OVERHEAD_BYTES, SealedFrame, TAG_BYTES, WORN_FRAMES,
    encode_header, queue_fits,
};

/// The nonce of both suites. **Units** bytes.
const NONCE_BYTES: usize = 12;
/// The longest key of a suite, and an iv. **Units** bytes.
pub const KEY_MATERIAL_BYTES: usize = 32 + NONCE_BYTES;

/// A cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// For CPUs with AES instructions: four times as fast there as the other.
    Aes128Gcm,
    /// For all others: four times as fast there as the first, and free of timing leaks.
    ChaCha20Poly1305,
}

impl Suite {
    fn algorithm(self) -> &'static aws_lc_rs::aead::Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    /// The cipher of two nodes: AES when it is fast for both.
    #[must_use]
    pub fn choose(ours_has_aes: bool, theirs_has_aes: bool) -> Self {
        if ours_has_aes && theirs_has_aes { Self::Aes128Gcm } else { Self::ChaCha20Poly1305 }
    }
}

/// Whether this CPU computes AES-GCM by instructions of its own. The two ends of a path use AES when both do.
#[must_use]
pub fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// The secret bytes of one key: 32 for the longest key of a suite, then the iv. Wiped when dropped.
pub struct KeyMaterial(Zeroizing<[u8; KEY_MATERIAL_BYTES]>);

impl KeyMaterial {
    /// Takes bytes that nobody else knows, from a key derivation or a random source.
    #[must_use]
    pub fn new(bytes: [u8; KEY_MATERIAL_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The same for bytes that wipe themselves already, without a copy that stays behind.
    pub(crate) fn from_wiped(bytes: Zeroizing<[u8; KEY_MATERIAL_BYTES]>) -> Self {
        Self(bytes)
    }
}

/// A cipher with its key and iv.
struct Cipher {
    key: LessSafeKey,
    /// Not secret in a way that matters: without it nonces of different keys would coincide.
    iv: [u8; NONCE_BYTES],
}

impl Cipher {
    fn new(suite: Suite, material: &KeyMaterial) -> Result<Self, KeyLengthError> {
        let algorithm = suite.algorithm();
        let (key, iv) = material.0.split_last_chunk().ok_or(KeyLengthError)?;
        let key = key.get(..algorithm.key_len()).ok_or(KeyLengthError)?;
        let key = UnboundKey::new(algorithm, key).map_err(|_| KeyLengthError)?;
        Ok(Self { key: LessSafeKey::new(key), iv: *iv })
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, count) in nonce.iter_mut().rev().zip(counter.to_le_bytes()) {
            *byte ^= count;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The cipher library refused a key of the length it asks for. It never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cipher library refused a key of its own length; report this as a fault of the build")]
pub struct KeyLengthError;

/// Why a frame was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key has sealed as many frames as it may. New keys are due long before.
    #[error("the key has sealed all the {MAX_FRAMES_PER_KEY} frames it may; packets wait for new keys")]
    Exhausted,
    /// The buffer has no room for header and tag.
    #[error("a buffer of {have} bytes has no room for a frame of at least {OVERHEAD_BYTES}")]
    NoRoom {
        /// How many there are.
        have: usize,
    },
    /// Packets and probes have keys of their own.
    #[error("queue {queue} does not send frames of this kind")]
    Queue {
        /// The key's queue.
        queue: u8,
    },
    /// The cipher library refused, as it does for a payload that is too long for any datagram.
    #[error("the cipher library refused to seal {have} bytes")]
    Cipher {
        /// The whole frame.
        have: usize,
    },
}

/// Why a frame was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It was not sealed by the key's other end for this key, or was changed since.
    #[error("the frame does not open: it was changed, or somebody else made it")]
    Forged,
    /// No key is there for its epoch or queue.
    #[error("no key is there for the frame's epoch and queue")]
    NoKey,
    /// It was opened before, or is too old to tell.
    #[error(transparent)]
    Replay(#[from] crate::replay::ReplayError),
}

/// Seals the frames of one queue. Belongs to the thread that sends.
pub struct SealKey {
    cipher: Cipher,
    lane: LaneAddress,
    next: u64,
    worn: Arc<AtomicBool>,
}

impl SealKey {
    /// A key whose counter starts at 0. **Bounds** make one from a given `material` and `lane` once: a second one
    /// would use the same nonces.
    ///
    /// # Errors
    /// [`KeyLengthError`], which no build shows.
    pub fn new(suite: Suite, material: &KeyMaterial, lane: LaneAddress) -> Result<Self, KeyLengthError> {
        Ok(Self { cipher: Cipher::new(suite, material)?, lane, next: 0, worn: Arc::default() })
    }

    /// Seals in place. `frame` has 16 bytes of room for the header, the payload, and 16 bytes of room for the tag.
    ///
    /// # Errors
    /// [`SealError`]; a frame that was not sealed holds nothing that may be sent.
    pub fn seal(&mut self, kind: Kind, flags: Flags, frame: &mut [u8]) -> Result<(), SealError> {
        let (have, queue) = (frame.len(), self.lane.queue);
        if !queue_fits(kind, queue) {
            return Err(SealError::Queue { queue });
        }
        let counter = self.next;
        if counter >= MAX_FRAMES_PER_KEY {
            return Err(SealError::Exhausted);
        }
        let no_room = SealError::NoRoom { have };
        let (header, rest) = frame.split_first_chunk_mut().ok_or(no_room)?;
        let (payload, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(no_room)?;
        *header = encode_header(kind, flags, self.lane, counter);
        // Counted before the cipher runs: a nonce that met a failure is not used again.
        self.next += 1;
        if self.next == WORN_FRAMES {
            self.worn.store(true, Ordering::Relaxed);
        }
        let (nonce, aad) = (self.cipher.nonce(counter), Aad::from(&header[..]));
        let sealed = self.cipher.key.seal_in_place_separate_tag(nonce, aad, payload);
        let sealed = sealed.map_err(|_| SealError::Cipher { have })?;
        *tag = *sealed.as_ref().first_chunk().ok_or(SealError::Cipher { have })?;
        Ok(())
    }

    /// How many frames it has sealed.
    #[must_use]
    pub fn sealed(&self) -> u64 {
        self.next
    }

    /// Becomes true when the key has sealed [`WORN_FRAMES`]; stays with whoever asks for new keys.
    #[must_use]
    pub fn worn(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.worn)
    }

    /// What its frames have in common.
    #[must_use]
    pub fn lane(&self) -> LaneAddress {
        self.lane
    }
}

/// Opens the frames of one queue of the peer.
pub struct OpenKey {
    cipher: Cipher,
}

impl OpenKey {
    /// The other end of the [`SealKey`] of the same suite and material.
    ///
    /// # Errors
    /// [`KeyLengthError`], which no build shows.
    pub fn new(suite: Suite, material: &KeyMaterial) -> Result<Self, KeyLengthError> {
        Ok(Self { cipher: Cipher::new(suite, material)? })
    }

    /// Opens in place; the payload takes the place of the ciphertext. The same frame opens again and again: see
    /// [`crate::replay`].
    ///
    /// # Errors
    /// [`OpenError::Forged`]; the bytes mean nothing then.
    pub fn open<'a>(&self, frame: SealedFrame<'a>) -> Result<Opened<'a>, OpenError> {
        let header = *frame.header();
        let (aad, sealed) = frame.into_parts();
        let nonce = self.cipher.nonce(header.counter());
        let opened = self.cipher.key.open_in_place(nonce, Aad::from(&*aad), sealed);
        Ok(Opened { header, payload: opened.map_err(|_| OpenError::Forged)? })
    }
}

/// A frame that its sender made: header and payload are authentic.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// The header.
    pub header: Header,
    /// What was sealed.
    pub payload: &'a mut [u8],
}

impl fmt::Debug for SealKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SealKey({:?}, {} sealed)", self.lane, self.next)
    }
}

impl fmt::Debug for OpenKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OpenKey(not shown)")
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeyMaterial(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Epoch, HEADER_BYTES, PROBE_QUEUE, ReceiverIndex, TAG_BYTES};

    const SUITES: [Suite; 2] = [Suite::Aes128Gcm, Suite::ChaCha20Poly1305];
    const LANE: LaneAddress = LaneAddress { receiver: ReceiverIndex(9), epoch: Epoch(1), queue: 0 };

    fn material(seed: u8) -> KeyMaterial {
        KeyMaterial::new(std::array::from_fn(|index| u8::try_from(index).unwrap() ^ seed))
    }

    fn pair(suite: Suite) -> (SealKey, OpenKey) {
        (SealKey::new(suite, &material(1), LANE).unwrap(), OpenKey::new(suite, &material(1)).unwrap())
    }

    fn framed(payload: &[u8]) -> Vec<u8> {
        [&[0; HEADER_BYTES], payload, &[0; TAG_BYTES]].concat()
    }

    fn open<'a>(key: &OpenKey, bytes: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        key.open(SealedFrame::new_checked(bytes).unwrap())
    }

    #[test]
    fn what_is_sealed_opens_to_what_it_was_and_looks_different_each_time() {
        for suite in SUITES {
            let (mut seal, opener) = pair(suite);
            let mut seen = Vec::new();
            for counter in 0..3 {
                let mut bytes = framed(b"packet");
                seal.seal(Kind::Packet, Flags { partial_checksum: true }, &mut bytes).unwrap();
                seen.push(bytes[HEADER_BYTES..].to_vec());
                let opened = open(&opener, &mut bytes).unwrap();
                assert_eq!(opened.payload, b"packet");
                assert_eq!((opened.header.counter(), opened.header.flags().partial_checksum), (counter, true));
            }
            assert_eq!(seal.sealed(), 3);
            assert!(seen[0] != seen[1] && seen[1] != seen[2]);
        }
    }

    #[test]
    fn every_changed_bit_makes_a_frame_forged() {
        for suite in SUITES {
            let (mut seal, opener) = pair(suite);
            let mut bytes = framed(b"packet");
            seal.seal(Kind::Packet, Flags::default(), &mut bytes).unwrap();
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                // A header that no frame has is refused before the key is asked.
                if let Ok(frame) = SealedFrame::new_checked(&mut changed) {
                    assert_eq!(opener.open(frame), Err(OpenError::Forged), "{suite:?} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_key_of_other_material_or_another_suite_opens_nothing() {
        let mut sealed = framed(b"packet");
        let (mut seal, opener) = pair(Suite::Aes128Gcm);
        seal.seal(Kind::Packet, Flags::default(), &mut sealed).unwrap();
        let others = [(Suite::Aes128Gcm, 2), (Suite::ChaCha20Poly1305, 1)];
        for (suite, seed) in others {
            let other = OpenKey::new(suite, &material(seed)).unwrap();
            assert_eq!(open(&other, &mut sealed.clone()), Err(OpenError::Forged));
        }
        assert_eq!(open(&opener, &mut sealed).unwrap().payload, b"packet");
    }

    #[test]
    fn a_key_ends_with_its_last_counter() {
        let (mut seal, opener) = pair(Suite::Aes128Gcm);
        seal.next = MAX_FRAMES_PER_KEY - 1;
        let mut last = framed(b"last");
        seal.seal(Kind::Packet, Flags::default(), &mut last).unwrap();
        assert_eq!(open(&opener, &mut last).unwrap().payload, b"last");
        let mut beyond = framed(b"one more");
        assert_eq!(seal.seal(Kind::Packet, Flags::default(), &mut beyond), Err(SealError::Exhausted));
        assert_eq!(beyond, framed(b"one more"));
    }

    #[test]
    fn aes_is_used_when_both_ends_have_it() {
        let chosen = [(true, true), (true, false), (false, true), (false, false)].map(|(a, b)| Suite::choose(a, b));
        let chacha = Suite::ChaCha20Poly1305;
        assert_eq!(chosen, [Suite::Aes128Gcm, chacha, chacha, chacha]);
    }

    #[test]
    fn a_key_says_that_it_is_worn_half_way_to_its_end() {
        let (mut seal, _) = pair(Suite::Aes128Gcm);
        let worn = seal.worn();
        seal.next = WORN_FRAMES - 2;
        let said = [(); 3].map(|()| {
            seal.seal(Kind::Packet, Flags::default(), &mut framed(b"packet")).unwrap();
            worn.load(Ordering::Relaxed)
        });
        assert_eq!(said, [false, true, true]);
    }

    #[test]
    fn a_key_seals_the_frames_of_its_own_queue_only() {
        let (mut seal, _) = pair(Suite::Aes128Gcm);
        let refused = seal.seal(Kind::Probe, Flags::default(), &mut framed(b"probe"));
        assert_eq!(refused, Err(SealError::Queue { queue: 0 }));
        let lane = LaneAddress { queue: PROBE_QUEUE, ..LANE };
        let mut probing = SealKey::new(Suite::Aes128Gcm, &material(1), lane).unwrap();
        assert_eq!(probing.seal(Kind::Probe, Flags::default(), &mut framed(b"probe")), Ok(()));
        let refused = probing.seal(Kind::Packet, Flags::default(), &mut framed(b"packet"));
        assert_eq!(refused, Err(SealError::Queue { queue: PROBE_QUEUE }));
    }

    #[test]
    fn a_buffer_without_room_uses_no_counter() {
        let (mut seal, _) = pair(Suite::Aes128Gcm);
        for have in 0..OVERHEAD_BYTES {
            let refused = seal.seal(Kind::Packet, Flags::default(), &mut vec![0; have]);
            assert_eq!(refused, Err(SealError::NoRoom { have }));
        }
        assert_eq!(seal.sealed(), 0);
    }

    #[test]
    fn the_nonce_is_the_iv_and_the_counter() {
        let (seal, _) = pair(Suite::Aes128Gcm);
        let mut expected = seal.cipher.iv;
        assert_eq!(seal.cipher.nonce(0).as_ref(), &expected);
        expected[11] ^= 0x02;
        expected[10] ^= 0x01;
        assert_eq!(seal.cipher.nonce(0x0102).as_ref(), &expected);
    }

    #[test]
    fn printing_a_key_shows_no_secret() {
        let (seal, opener) = pair(Suite::Aes128Gcm);
        let shown = format!("{seal:?} {opener:?} {:?}", material(0xab));
        assert_eq!(
            shown,
            "SealKey(LaneAddress { receiver: ReceiverIndex(9), epoch: Epoch(1), queue: 0 }, 0 sealed) OpenKey(not shown) KeyMaterial(not shown)"
        );
    }

    proptest! {
        #[test]
        fn any_payload_travels(payload in prop::collection::vec(any::<u8>(), 0..3000), suite in prop::sample::select(&SUITES[..])) {
            let (mut seal, opener) = pair(suite);
            let mut bytes = framed(&payload);
            seal.seal(Kind::Packet, Flags::default(), &mut bytes).unwrap();
            prop_assert_eq!(&*open(&opener, &mut bytes).unwrap().payload, &payload[..]);
        }

        #[test]
        fn no_bytes_of_a_stranger_open(mut bytes in prop::collection::vec(any::<u8>(), 32..200)) {
            // A header that is in order, so that the key is asked.
            bytes[..HEADER_BYTES].copy_from_slice(&encode_header(Kind::Packet, Flags::default(), LANE, 5));
            let (_, opener) = pair(Suite::Aes128Gcm);
            prop_assert_eq!(open(&opener, &mut bytes), Err(OpenError::Forged));
        }
    }
}
