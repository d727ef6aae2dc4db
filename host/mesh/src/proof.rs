//! The admission handshake as pure messages and codes: what two nodes say to each other before
//! either believes that the other belongs to the cluster.
//!
//! ```text
//! dialer                                          acceptor
//!   hello  {purpose, nonce}          ──────────>
//!                                    <──────────  challenge {nonce}
//!   proof  HMAC(key, dialer  ‖ all)  ──────────>            any of the acceptor's keys may fit
//!                                    <──────────  proof HMAC(that key, acceptor ‖ all)
//! ```
//! "all" is the purpose, both peer ids and both nonces. The peer ids were proved by the encrypted
//! channel underneath, so a proof carried over to another channel or turned around does not fit.
//! A stranger learns a random nonce and nothing else.

use crate::pre_shared_key::{PreSharedKeys, ProvedKey};

/// The first bytes of the first message each way. A later handshake gets others.
pub(crate) const MAGIC: [u8; 4] = *b"CVJ1";

/// **Units** bytes.
pub(crate) const HELLO_LENGTH: usize = 37;

/// **Units** bytes.
pub(crate) const CHALLENGE_LENGTH: usize = 36;

/// **Units** bytes.
pub(crate) const PROOF_LENGTH: usize = 32;

/// What a connection is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To stay.
    Ordinary,
    /// To see whether that very peer answers at an address; closed at once.
    Probe,
}

/// The dialer's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) purpose: Purpose,
    pub(crate) nonce: [u8; 32],
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_LENGTH] {
        let mut bytes = [0; HELLO_LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = code_of(self.purpose);
        bytes[5..].copy_from_slice(&self.nonce);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HELLO_LENGTH]) -> Option<Self> {
        let purpose = match bytes[4] {
            0 => Purpose::Ordinary,
            1 => Purpose::Probe,
            _ => return None,
        };
        let nonce = bytes[5..].try_into().ok()?;
        (bytes[..4] == MAGIC).then_some(Self { purpose, nonce })
    }
}

/// The acceptor's first message.
pub(crate) fn encode_challenge(nonce: &[u8; 32]) -> [u8; CHALLENGE_LENGTH] {
    let mut bytes = [0; CHALLENGE_LENGTH];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..].copy_from_slice(nonce);
    bytes
}

/// The nonce of the acceptor's first message.
pub(crate) fn decode_challenge(bytes: &[u8; CHALLENGE_LENGTH]) -> Option<[u8; 32]> {
    let nonce = bytes[4..].try_into().ok()?;
    (bytes[..4] == MAGIC).then_some(nonce)
}

/// Everything both sides have said, ready to be proved over.
#[derive(Clone, Debug)]
pub(crate) struct Transcript {
    bytes: Vec<u8>,
}

impl Transcript {
    /// `dialer` and `acceptor` are the peer ids' bytes; each is written with its length before it.
    pub(crate) fn new(hello: &Hello, acceptor_nonce: &[u8; 32], dialer: &[u8], acceptor: &[u8]) -> Self {
        let mut bytes = vec![code_of(hello.purpose)];
        for part in [dialer, acceptor, &hello.nonce, acceptor_nonce] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        Self { bytes }
    }

    /// The dialer's proof.
    pub(crate) fn dialer_proof(&self, keys: &PreSharedKeys) -> [u8; PROOF_LENGTH] {
        keys.prove(&self.dialer_parts())
    }

    /// The key by which the dialer made `proof`.
    pub(crate) fn check_dialer(&self, keys: &PreSharedKeys, proof: &[u8; PROOF_LENGTH]) -> Option<ProvedKey> {
        keys.find(&self.dialer_parts(), proof)
    }

    /// The acceptor's proof, by the key that the dialer knows.
    pub(crate) fn acceptor_proof(&self, key: &ProvedKey) -> [u8; PROOF_LENGTH] {
        key.prove(&self.acceptor_parts())
    }

    /// Whether the acceptor knows one of our keys.
    pub(crate) fn check_acceptor(&self, keys: &PreSharedKeys, proof: &[u8; PROOF_LENGTH]) -> bool {
        keys.find(&self.acceptor_parts(), proof).is_some()
    }

    fn dialer_parts(&self) -> [&[u8]; 2] {
        [b"culvert admission 1 dialer  ", &self.bytes]
    }

    fn acceptor_parts(&self) -> [&[u8]; 2] {
        [b"culvert admission 1 acceptor", &self.bytes]
    }
}

fn code_of(purpose: Purpose) -> u8 {
    match purpose {
        Purpose::Ordinary => 0,
        Purpose::Probe => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(text: &str) -> PreSharedKeys {
        PreSharedKeys::from_texts(&[text]).unwrap()
    }

    fn purposes() -> impl Strategy<Value = Purpose> {
        prop_oneof![Just(Purpose::Ordinary), Just(Purpose::Probe)]
    }

    proptest! {
        #[test]
        fn messages_decode_to_what_was_encoded(purpose in purposes(), nonce: [u8; 32]) {
            let hello = Hello { purpose, nonce };
            prop_assert_eq!(Hello::decode(&hello.encode()), Some(hello));
            prop_assert_eq!(decode_challenge(&encode_challenge(&nonce)), Some(nonce));
        }

        #[test]
        fn foreign_bytes_are_refused_or_encode_back(bytes in proptest::array::uniform32(any::<u8>())) {
            let mut message = [0; HELLO_LENGTH];
            message[..32].copy_from_slice(&bytes);
            if let Some(hello) = Hello::decode(&message) {
                prop_assert_eq!(hello.encode(), message);
            }
        }

        #[test]
        fn a_proof_fits_its_own_transcript_only(
            purpose in purposes(), ours: [u8; 32], theirs: [u8; 32],
            dialer in proptest::collection::vec(any::<u8>(), 1..40),
            acceptor in proptest::collection::vec(any::<u8>(), 1..40),
        ) {
            let (known, other) = (keys("a key of sixteen bytes"), keys("another key of sixteen"));
            let hello = Hello { purpose, nonce: ours };
            let transcript = Transcript::new(&hello, &theirs, &dialer, &acceptor);
            let proof = transcript.dialer_proof(&known);
            let key = transcript.check_dialer(&known, &proof);
            prop_assert!(key.is_some());
            prop_assert!(transcript.check_dialer(&other, &proof).is_none());
            // A proof sent back to its maker does not pass for the other side's.
            prop_assert!(!transcript.check_acceptor(&known, &proof));
            let answer = transcript.acceptor_proof(&key.unwrap());
            prop_assert!(transcript.check_acceptor(&known, &answer));
            prop_assert!(!transcript.check_acceptor(&other, &answer));
            // Nor does it fit other nonces, another peer, or another purpose.
            let mut flipped = theirs;
            flipped[0] ^= 1;
            prop_assert!(Transcript::new(&hello, &flipped, &dialer, &acceptor).check_dialer(&known, &proof).is_none());
            let mut longer = dialer.clone();
            longer.push(0);
            prop_assert!(Transcript::new(&hello, &theirs, &longer, &acceptor).check_dialer(&known, &proof).is_none());
            let turned = if purpose == Purpose::Probe { Purpose::Ordinary } else { Purpose::Probe };
            let other_purpose = Hello { purpose: turned, nonce: ours };
            prop_assert!(Transcript::new(&other_purpose, &theirs, &dialer, &acceptor).check_dialer(&known, &proof).is_none());
        }
    }
}
