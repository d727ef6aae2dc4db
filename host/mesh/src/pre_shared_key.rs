//! The keys that let a node in. Several are valid at once, so that a cluster can change them:
//! add the new one at the end everywhere, move it to the front everywhere, remove the old one.

use std::fmt;

use culvert_datagram::agreement::{SALT_NAME_BYTES, Salt};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// A shorter text could be guessed by whoever talked to a node once. **Units** bytes.
const SHORTEST_KEY: usize = 16;

/// A text longer than this is a wrong file, not a key. **Units** bytes.
const LONGEST_KEY: usize = 1024;

/// Two are enough to change keys; eight leave room. Each stranger costs at most this many proofs.
const MOST_KEYS: usize = 8;

/// The cluster's pre-shared keys. The first is used to prove, all are accepted.
#[derive(Clone)]
pub struct PreSharedKeys(Vec<[u8; 32]>);

/// Why a list of pre-shared keys is refused. Positions count from 0; no message shows a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PreSharedKeyError {
    /// The list is empty.
    #[error("no pre-shared key is given; give at least one of {SHORTEST_KEY} bytes or more")]
    None,
    /// The list is too long.
    #[error("{count} pre-shared keys are given; keep at most {MOST_KEYS}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A key is too short.
    #[error(
        "pre-shared key {index} has {length} bytes; use at least {SHORTEST_KEY}, for example from `openssl rand -hex 32`"
    )]
    TooShort {
        /// Its position.
        index: usize,
        /// **Units** bytes.
        length: usize,
    },
    /// A key is too long.
    #[error("pre-shared key {index} has {length} bytes; use at most {LONGEST_KEY}")]
    TooLong {
        /// Its position.
        index: usize,
        /// **Units** bytes.
        length: usize,
    },
    /// A key is there twice.
    #[error("pre-shared key {index} repeats key {first}; remove one of them")]
    Repeated {
        /// Its position.
        index: usize,
        /// The position of the same key before.
        first: usize,
    },
}

impl PreSharedKeys {
    /// Keys from their texts. White space around a text is not part of it.
    ///
    /// **Bounds** 1 to 8 keys of 16 to 1,024 bytes, none twice.
    ///
    /// # Errors
    /// [`PreSharedKeyError`], naming the position of the key at fault.
    pub fn from_texts<T: AsRef<str>>(texts: &[T]) -> Result<Self, PreSharedKeyError> {
        if texts.is_empty() {
            return Err(PreSharedKeyError::None);
        }
        if texts.len() > MOST_KEYS {
            return Err(PreSharedKeyError::TooMany { count: texts.len() });
        }
        let mut keys: Vec<[u8; 32]> = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let text = text.as_ref().trim();
            let length = text.len();
            if length < SHORTEST_KEY {
                return Err(PreSharedKeyError::TooShort { index, length });
            }
            if length > LONGEST_KEY {
                return Err(PreSharedKeyError::TooLong { index, length });
            }
            let key = authenticate(b"culvert pre-shared key 1", &[text.as_bytes()]);
            if let Some(first) = keys.iter().position(|other| *other == key) {
                return Err(PreSharedKeyError::Repeated { index, first });
            }
            keys.push(key);
        }
        Ok(Self(keys))
    }

    /// Proves that the first key is known, by a code over `transcript`.
    pub(crate) fn prove(&self, transcript: &[&[u8]]) -> [u8; 32] {
        self.0.first().map_or([0; 32], |key| authenticate(key, transcript))
    }

    /// What each key brings into data keys, in the keys' order.
    pub(crate) fn salts(&self) -> Vec<Salt> {
        let salt = |key: &[u8; 32]| {
            let mut name = [0; SALT_NAME_BYTES];
            let digest = authenticate(key, &[b"culvert name of a data salt 1"]);
            name.iter_mut().zip(digest).for_each(|(place, byte)| *place = byte);
            Salt { name, secret: Zeroizing::new(authenticate(key, &[b"culvert data salt 1"])) }
        };
        self.0.iter().map(salt).collect()
    }

    /// The key by which `proof` was made over `transcript`, if it is one of ours.
    pub(crate) fn find(&self, transcript: &[&[u8]], proof: &[u8; 32]) -> Option<ProvedKey> {
        self.0.iter().find(|key| matches(*key, transcript, proof)).copied().map(ProvedKey)
    }
}

/// A key that the other side has shown to know.
#[derive(Clone, Copy)]
pub(crate) struct ProvedKey([u8; 32]);

impl ProvedKey {
    /// Answers by the same key, so that a node that has not got our first one yet still believes us.
    pub(crate) fn prove(&self, transcript: &[&[u8]]) -> [u8; 32] {
        authenticate(&self.0, transcript)
    }
}

impl fmt::Debug for PreSharedKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PreSharedKeys({} not shown)", self.0.len())
    }
}

fn code(key: &[u8], parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
    let mut code = Hmac::<Sha256>::new_from_slice(key).ok()?;
    parts.iter().for_each(|part| code.update(part));
    Some(code)
}

/// HMAC-SHA256 of the parts, one after the other. It takes keys of any length, so there is no failure.
fn authenticate(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    code(key, parts).map_or([0; 32], |code| code.finalize().into_bytes().into())
}

/// Compares in constant time.
fn matches(key: &[u8], parts: &[&[u8]], proof: &[u8; 32]) -> bool {
    code(key, parts).is_some_and(|code| code.verify_slice(proof).is_ok())
}

#[cfg(test)]
mod tests {
    use super::{PreSharedKeyError, PreSharedKeys};

    const ONE: &str = "0123456789abcdef";
    const TWO: &str = "another key that is long enough";

    #[test]
    fn a_list_is_refused_with_the_position_at_fault() {
        let refusal = |texts: &[&str]| PreSharedKeys::from_texts(texts).unwrap_err();
        assert_eq!(refusal(&[]), PreSharedKeyError::None);
        assert_eq!(refusal(&[ONE, "short"]), PreSharedKeyError::TooShort { index: 1, length: 5 });
        assert_eq!(refusal(&[&"x".repeat(1025)]), PreSharedKeyError::TooLong { index: 0, length: 1025 });
        assert_eq!(refusal(&[ONE, TWO, "  0123456789abcdef\n"]), PreSharedKeyError::Repeated { index: 2, first: 0 });
        assert_eq!(refusal(&[ONE; 9]), PreSharedKeyError::TooMany { count: 9 });
    }

    #[test]
    fn any_key_of_the_list_is_accepted_and_the_first_is_used_to_prove() {
        let old_first = PreSharedKeys::from_texts(&[ONE, TWO]).unwrap();
        let new_first = PreSharedKeys::from_texts(&[TWO, ONE]).unwrap();
        let only_old = PreSharedKeys::from_texts(&[ONE]).unwrap();
        let proof = new_first.prove(&[b"a", b"b"]);
        assert!(old_first.find(&[b"a", b"b"], &proof).is_some());
        assert!(only_old.find(&[b"a", b"b"], &proof).is_none());
        assert!(old_first.find(&[b"a", b"c"], &proof).is_none());
        let answer = old_first.find(&[b"a", b"b"], &proof).unwrap().prove(&[b"c"]);
        assert!(new_first.find(&[b"c"], &answer).is_some());
    }

    #[test]
    fn printing_keys_shows_none_of_them() {
        let keys = PreSharedKeys::from_texts(&[ONE, TWO]).unwrap();
        assert_eq!(format!("{keys:?}"), "PreSharedKeys(2 not shown)");
    }
}
