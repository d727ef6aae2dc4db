//! The three messages of an agreement as bytes.
//!
//! ```text
//! share    = ephemeral key 32 | receiver u32 | epoch u8 | queues u8 | has AES u8        what both ends say of themselves
//! offer    = version u8 = 1 | share | name of the salt 16
//! accept   = version u8 = 1 | share | code 32
//! confirm  = version u8 = 1 | code 32
//! ```
//! Numbers are big endian. Lengths are exact; a later version has another first byte.

use crate::frame::{Epoch, MAX_QUEUES, ReceiverIndex};

/// The first byte of every message.
const VERSION: u8 = 1;
const SHARE_BYTES: usize = 39;
/// **Units** bytes.
pub(super) const CODE_BYTES: usize = 32;
/// **Units** bytes.
pub const SALT_NAME_BYTES: usize = 16;

/// Why bytes are no message of an agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The first byte is another.
    #[error("version {version} of the key agreement is unknown; upgrade the older of the two nodes")]
    Version {
        /// The byte.
        version: u8,
    },
    /// Not the length of that message.
    #[error("a message of the key agreement has {have} bytes instead of {need}")]
    Length {
        /// How many there are.
        have: usize,
        /// How many the message has.
        need: usize,
    },
    /// A node without queues, or with too many.
    #[error("{queues} queues are not between 1 and {MAX_QUEUES}")]
    Queues {
        /// The field.
        queues: u8,
    },
    /// Neither yes nor no.
    #[error("{value} says neither that a CPU has AES instructions nor that it has none")]
    Aes {
        /// The field.
        value: u8,
    },
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) ephemeral: [u8; 32],
    pub(super) receiver: ReceiverIndex,
    pub(super) epoch: Epoch,
    /// Between 1 and [`MAX_QUEUES`].
    pub(super) queues: u8,
    pub(super) has_aes: bool,
}

impl Share {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.ephemeral);
        bytes.extend_from_slice(&self.receiver.0.to_be_bytes());
        bytes.extend_from_slice(&[self.epoch.0, self.queues, u8::from(self.has_aes)]);
    }

    fn decode(bytes: &[u8; SHARE_BYTES]) -> Result<Self, MessageError> {
        let [rest @ .., r0, r1, r2, r3, epoch, queues, aes] = bytes;
        let has_aes = match aes {
            0 => false,
            1 => true,
            value => return Err(MessageError::Aes { value: *value }),
        };
        if *queues == 0 || *queues > MAX_QUEUES {
            return Err(MessageError::Queues { queues: *queues });
        }
        let receiver = ReceiverIndex(u32::from_be_bytes([*r0, *r1, *r2, *r3]));
        Ok(Self { ephemeral: *rest, receiver, epoch: Epoch(*epoch), queues: *queues, has_aes })
    }
}

/// The first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) share: Share,
    pub(super) salt: [u8; SALT_NAME_BYTES],
}

/// The second message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accept {
    pub(super) share: Share,
    pub(super) code: [u8; CODE_BYTES],
}

/// The third message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Confirm {
    pub(super) code: [u8; CODE_BYTES],
}

impl Offer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        self.share.encode(&mut bytes);
        bytes.extend_from_slice(&self.salt);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (share, salt) = share_and(body(bytes)?)?;
        Ok(Self { share, salt })
    }
}

impl Accept {
    /// What the code is made over.
    pub(super) fn encode_uncoded(share: &Share) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        share.encode(&mut bytes);
        bytes
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Self::encode_uncoded(&self.share);
        bytes.extend_from_slice(&self.code);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (share, code) = share_and(body(bytes)?)?;
        Ok(Self { share, code })
    }
}

impl Confirm {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.code);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let body = body(bytes)?;
        let code = body.try_into().map_err(|_| MessageError::Length { have: bytes.len(), need: 1 + CODE_BYTES })?;
        Ok(Self { code })
    }
}

/// What follows the version.
fn body(bytes: &[u8]) -> Result<&[u8], MessageError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(body),
        Some((version, _)) => Err(MessageError::Version { version: *version }),
        None => Err(MessageError::Length { have: 0, need: 1 }),
    }
}

/// A share and the `N` bytes that end the message.
fn share_and<const N: usize>(body: &[u8]) -> Result<(Share, [u8; N]), MessageError> {
    let wrong = MessageError::Length { have: 1 + body.len(), need: 1 + SHARE_BYTES + N };
    let (share, rest) = body.split_first_chunk().ok_or(wrong)?;
    let rest = rest.try_into().map_err(|_| wrong)?;
    Ok((Share::decode(share)?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares() -> impl Strategy<Value = Share> {
        (any::<[u8; 32]>(), any::<u32>(), any::<u8>(), 1..=MAX_QUEUES, any::<bool>()).prop_map(
            |(ephemeral, receiver, epoch, queues, has_aes)| {
                let (receiver, epoch) = (ReceiverIndex(receiver), Epoch(epoch));
                Share { ephemeral, receiver, epoch, queues, has_aes }
            },
        )
    }

    fn share() -> Share {
        Share { ephemeral: [9; 32], receiver: ReceiverIndex(0x0102_0304), epoch: Epoch(5), queues: 6, has_aes: true }
    }

    #[test]
    fn the_wire_form_is_fixed() {
        let offer = Offer { share: share(), salt: [7; SALT_NAME_BYTES] };
        let expected = [&[1][..], &[9; 32], &[1, 2, 3, 4, 5, 6, 1], &[7; 16]].concat();
        assert_eq!(offer.encode(), expected);
        let accept = Accept { share: share(), code: [8; CODE_BYTES] };
        assert_eq!(accept.encode(), [&expected[..40], &[8; 32][..]].concat());
        assert_eq!(Confirm { code: [8; CODE_BYTES] }.encode(), [&[1][..], &[8; 32]].concat());
    }

    #[test]
    fn every_other_length_is_refused() {
        let offer = Offer { share: share(), salt: [7; SALT_NAME_BYTES] }.encode();
        let accept = Accept { share: share(), code: [8; CODE_BYTES] }.encode();
        for length in 0..100 {
            let with = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes.resize(length, 0);
                bytes
            };
            assert_eq!(Offer::decode(&with(&offer)).is_ok(), length == offer.len());
            assert_eq!(Accept::decode(&with(&accept)).is_ok(), length == accept.len());
            assert_eq!(Confirm::decode(&with(&offer)).is_ok(), length == 33);
        }
    }

    #[test]
    fn a_field_that_no_node_says_is_refused_by_name() {
        let good = Offer { share: share(), salt: [7; SALT_NAME_BYTES] }.encode();
        let with = |position: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[position] = value;
            Offer::decode(&bytes)
        };
        assert_eq!(with(0, 2), Err(MessageError::Version { version: 2 }));
        assert_eq!(with(38, 0), Err(MessageError::Queues { queues: 0 }));
        assert_eq!(with(38, MAX_QUEUES + 1), Err(MessageError::Queues { queues: MAX_QUEUES + 1 }));
        assert_eq!(with(39, 2), Err(MessageError::Aes { value: 2 }));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(share in shares(), salt in any::<[u8; 16]>(), code in any::<[u8; 32]>()) {
            let (offer, accept, confirm) = (Offer { share, salt }, Accept { share, code }, Confirm { code });
            prop_assert_eq!(Offer::decode(&offer.encode()), Ok(offer));
            prop_assert_eq!(Accept::decode(&accept.encode()), Ok(accept));
            prop_assert_eq!(Confirm::decode(&confirm.encode()), Ok(confirm));
        }

        #[test]
        fn any_bytes_are_refused_or_read_as_what_they_say(mut bytes in prop::collection::vec(any::<u8>(), 30..75)) {
            bytes[0] = VERSION;
            if let Ok(offer) = Offer::decode(&bytes) {
                prop_assert_eq!(offer.encode(), bytes.clone());
            }
            if let Ok(accept) = Accept::decode(&bytes) {
                prop_assert_eq!(accept.encode(), bytes.clone());
            }
            if let Ok(confirm) = Confirm::decode(&bytes) {
                prop_assert_eq!(confirm.encode(), bytes);
            }
        }
    }
}
