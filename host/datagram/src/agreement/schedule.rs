//! From two ephemeral keys and a pre-shared key to all keys of both directions.
//!
//! ```text
//! secret     = X25519(own ephemeral, other ephemeral)                     refused when it is all zero
//! root       = HKDF-Extract(salt: pre-shared secret, secret)              RFC 5869, SHA-256
//! transcript = SHA-256(label, both peer ids, offer, accept without code)  each with its length before it
//! key        = HKDF-Expand(root, label | direction | queue | transcript)  44 bytes: key and iv
//! code       = HKDF-Expand(root, label | who speaks      | transcript)    32 bytes: "I have the same keys"
//! ```

use aws_lc_rs::digest::{Context, Digest, SHA256};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt as Extractor};
use culvert_core::membership::PeerId;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::AgreementError;
use super::message::{Accept, CODE_BYTES, Offer, Share};
use crate::frame::{Epoch, LaneAddress, PROBE_QUEUE, ReceiverIndex};
use crate::key::{KeyMaterial, OpenKey, SealKey, Suite};
use crate::key_set::{InboundKeys, OutboundKeys};

const TRANSCRIPT_LABEL: &[u8] = b"culvert data keys 1";
const KEY_LABEL: &[u8] = b"culvert data key 1";
const CODE_LABEL: &[u8] = b"culvert data code 1";

/// Which end of an agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    Responder,
}

impl Role {
    fn code(self) -> u8 {
        match self {
            Self::Initiator => 1,
            Self::Responder => 2,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }
}

/// What both ends have said. The code of the accept comes after it.
pub(super) struct Said<'a> {
    pub(super) initiator: &'a PeerId,
    pub(super) responder: &'a PeerId,
    pub(super) offer: &'a Offer,
    pub(super) accepted: &'a Share,
}

impl Said<'_> {
    fn transcript(&self) -> Digest {
        let (offer, accept) = (self.offer.encode(), Accept::encode_uncoded(self.accepted));
        let mut context = Context::new(&SHA256);
        for part in [TRANSCRIPT_LABEL, self.initiator.0.as_bytes(), self.responder.0.as_bytes(), &offer, &accept] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.finish()
    }

    fn share(&self, role: Role) -> &Share {
        match role {
            Role::Initiator => &self.offer.share,
            Role::Responder => self.accepted,
        }
    }
}

/// All that follows from an agreement, for one of its ends.
pub(super) struct Agreed {
    pub(super) inbound: InboundKeys,
    pub(super) outbound: OutboundKeys,
    /// What this end shows to prove that it has the same keys.
    pub(super) own_code: [u8; CODE_BYTES],
    /// What the other end must show.
    pub(super) expected_code: [u8; CODE_BYTES],
}

/// Computes everything for the end `role`, whose ephemeral secret is `own`.
pub(super) fn agree(role: Role, own: &StaticSecret, salt: &[u8], said: &Said<'_>) -> Result<Agreed, AgreementError> {
    let (ours, theirs) = (said.share(role), said.share(role.other()));
    let secret = own.diffie_hellman(&PublicKey::from(theirs.ephemeral));
    if !secret.was_contributory() {
        return Err(AgreementError::WeakShare);
    }
    let root = Extractor::new(HKDF_SHA256, salt).extract(secret.as_bytes());
    let expander = Expander { root, transcript: said.transcript() };
    let suite = Suite::choose(ours.has_aes, theirs.has_aes);
    Ok(Agreed {
        inbound: inbound(&expander, suite, role.other(), ours, theirs.queues)?,
        outbound: outbound(&expander, suite, role, theirs, ours.queues)?,
        own_code: *expander.expand(CODE_LABEL, [role.code(), 0])?,
        expected_code: *expander.expand(CODE_LABEL, [role.other().code(), 0])?,
    })
}

/// Keys for what `sender` sends by its `queues`, under the numbers that the receiver chose.
fn inbound(
    expander: &Expander,
    suite: Suite,
    sender: Role,
    receiver: &Share,
    queues: u8,
) -> Result<InboundKeys, AgreementError> {
    let open = |queue| Ok::<_, AgreementError>(OpenKey::new(suite, &expander.key(sender, queue)?)?);
    let packets = (0..queues).map(open).collect::<Result<_, _>>()?;
    Ok(InboundKeys::new(receiver.receiver, receiver.epoch, packets, open(PROBE_QUEUE)?))
}

fn outbound(
    expander: &Expander,
    suite: Suite,
    sender: Role,
    receiver: &Share,
    queues: u8,
) -> Result<OutboundKeys, AgreementError> {
    let (index, epoch): (ReceiverIndex, Epoch) = (receiver.receiver, receiver.epoch);
    let seal = |queue| {
        let lane = LaneAddress { receiver: index, epoch, queue };
        Ok::<_, AgreementError>(SealKey::new(suite, &expander.key(sender, queue)?, lane)?)
    };
    Ok(OutboundKeys { packets: (0..queues).map(seal).collect::<Result<_, _>>()?, probes: seal(PROBE_QUEUE)? })
}

struct Expander {
    root: Prk,
    transcript: Digest,
}

/// The length that an expansion is asked for.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Expander {
    fn key(&self, sender: Role, queue: u8) -> Result<KeyMaterial, AgreementError> {
        Ok(KeyMaterial::from_wiped(self.expand(KEY_LABEL, [sender.code(), queue])?))
    }

    fn expand<const N: usize>(&self, label: &[u8], purpose: [u8; 2]) -> Result<Zeroizing<[u8; N]>, AgreementError> {
        let mut bytes = Zeroizing::new([0; N]);
        let info = [label, &purpose, self.transcript.as_ref()];
        let expanded = self.root.expand(&info, Length(N)).and_then(|expanded| expanded.fill(&mut bytes[..]));
        expanded.map_err(|_| AgreementError::Library)?;
        Ok(bytes)
    }
}
