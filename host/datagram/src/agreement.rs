//! How two nodes agree on data keys: messages for the control stream, and a state machine without I/O.
//!
//! The control stream has proved both peer ids and a pre-shared key already; the agreement binds all three into the
//! keys again, so that keys of one stream are worth nothing on another. The node with the lower peer id begins.
//!
//! ```text
//! initiator                                                     responder
//!   idle ──offer──────────────────────────────────────────────>   opens by the new keys
//!   offered                                                       accepted
//!     opens and seals by the new keys  <──────────── accept, code ──┘
//!   idle ──confirm, code──────────────────────────────────────>   seals by the new keys
//!                                  (or: the first frame by them ──^)
//! ```
//! A node opens by new keys before the other can seal by them, so no frame is lost. It stops opening by old ones 60 s
//! after the first frame by newer ones, so nothing depends on a message that got lost. Secrets live in memory alone
//! and are new in each agreement: what a crash leaves behind opens nothing.
//!
//! **Source** `host/adr/0011-data-keys.md`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use culvert_core::membership::PeerId;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::frame::{Epoch, MAX_QUEUES, ReceiverIndex};
use crate::key::KeyLengthError;
use crate::key_set::{InboundKeys, OutboundKeys};

mod message;
mod schedule;

pub use message::{MessageError, SALT_NAME_BYTES};

use message::{Accept, CODE_BYTES, Confirm, Offer, Share};
use schedule::{Agreed, Role, Said, agree};

/// Keys are renewed after this. What a node can be made to reveal is at most that much of the past and 60 s.
pub const ROTATE_AFTER: Duration = Duration::from_secs(600);

/// Old keys open frames this long after the first frame by newer ones: longer than any path reorders.
pub const RETIRE_AFTER: Duration = Duration::from_secs(60);

/// An offer that failed is made again after this, then after twice as long each time, up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// A peer that never agrees, an older version for example, is asked that often.
const LONGEST_RETRY: Duration = Duration::from_secs(256);

/// An offer without any outcome is forgotten after this. The control stream answers or fails within 10 s.
const OFFER_LIMIT: Duration = Duration::from_secs(30);

/// An offer sooner after the last one is refused: each costs a curve multiplication and memory.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Sets of keys that open frames of one peer: two in use while they change, and two that came to nothing. One more
/// drops the oldest that no frame has used.
const MAX_ACCEPTED: usize = 4;

/// A secret that both nodes have, and a name by which the other finds it.
pub struct Salt {
    /// Not secret among nodes that know the key.
    pub name: [u8; SALT_NAME_BYTES],
    /// Derived from a pre-shared key for this purpose alone.
    pub secret: Zeroizing<[u8; 32]>,
}

/// What this node brings into every agreement.
pub struct Terms {
    /// Queues that it sends by. **Bounds** 1 to [`MAX_QUEUES`]; taken into them.
    pub queues: u8,
    /// Whether its CPU has AES instructions. See [`crate::key::has_aes_instructions`].
    pub has_aes: bool,
    /// The first is used to offer, all are accepted.
    pub salts: Vec<Salt>,
}

/// Why there is no agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgreementError {
    /// Bytes that are no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The other node offered by a pre-shared key that this one has not got.
    #[error("the offer uses a pre-shared key that this node has not got; give it to both nodes")]
    UnknownSalt,
    /// This node has no pre-shared key.
    #[error("this node has no pre-shared key to offer data keys by; configure one")]
    NoSalt,
    /// An ephemeral key that leads to a secret which everybody knows.
    #[error("the other node's ephemeral key is one that anybody can break")]
    WeakShare,
    /// The other node does not have the same keys.
    #[error("the other node shows that it computed other keys; it is faulty, or not the one it says")]
    Code,
    /// A message that does not belong here now.
    #[error("a message of the key agreement came when none was due")]
    OutOfTurn,
    /// Offers come too fast.
    #[error("an offer of data keys came within {} s of the last one", SHORTEST_PAUSE.as_secs())]
    TooSoon,
    /// The cipher library refused what it never refuses.
    #[error("the cipher library failed to derive keys; report this as a fault of the build")]
    Library,
}

impl From<KeyLengthError> for AgreementError {
    fn from(_: KeyLengthError) -> Self {
        Self::Library
    }
}

/// By what to seal from now on.
#[derive(Debug)]
pub enum Sealing {
    /// By what was used before.
    Unchanged,
    /// By these. Those before them are dropped.
    By(OutboundKeys),
    /// By nothing: the peer has lost its keys.
    Nothing,
}

/// What an event changed.
#[derive(Debug)]
pub struct KeysChanged {
    /// All keys that open the peer's frames now, the newest first.
    pub accepted: Vec<Arc<InboundKeys>>,
    /// By what to seal.
    pub sealing: Sealing,
}

enum Step {
    Idle,
    /// The initiator's: an offer is on its way.
    Offered {
        secret: StaticSecret,
        offer: Offer,
        at: Duration,
    },
    /// The responder's: the initiator has not confirmed. `outbound` goes when it has, or has used the keys.
    Accepted {
        inbound: Arc<InboundKeys>,
        outbound: Option<OutboundKeys>,
        expected_code: [u8; CODE_BYTES],
    },
}

/// The agreements of this node with one peer, one after the other. Time is counted from any fixed moment.
pub struct Agreement {
    ours: PeerId,
    theirs: PeerId,
    receiver: ReceiverIndex,
    terms: Arc<Terms>,
    step: Step,
    next_epoch: Epoch,
    /// The newest first.
    accepted: Vec<Arc<InboundKeys>>,
    /// The newest keys that the peer has used, and since when that is known.
    in_use: Option<(Epoch, Duration)>,
    /// When the keys that we seal by were agreed on, and what tells that they are worn.
    sealing: Option<(Duration, Vec<Arc<AtomicBool>>)>,
    retry_at: Duration,
    failures: u32,
    offered_at: Option<Duration>,
}

impl Agreement {
    /// Nothing is agreed on yet. `receiver` is this node's number for the peer and names no other one.
    #[must_use]
    pub fn new(ours: PeerId, theirs: PeerId, receiver: ReceiverIndex, terms: Arc<Terms>) -> Self {
        Self {
            ours,
            theirs,
            receiver,
            terms,
            step: Step::Idle,
            next_epoch: Epoch::default(),
            accepted: Vec::new(),
            in_use: None,
            sealing: None,
            retry_at: Duration::ZERO,
            failures: 0,
            offered_at: None,
        }
    }

    /// This node's number for the peer.
    #[must_use]
    pub fn receiver(&self) -> ReceiverIndex {
        self.receiver
    }

    /// When the keys in use were agreed on.
    #[must_use]
    pub fn agreed_at(&self) -> Option<Duration> {
        self.sealing.as_ref().map(|(at, _)| *at)
    }

    fn role(&self) -> Role {
        if self.ours < self.theirs { Role::Initiator } else { Role::Responder }
    }

    /// Whether this node should make an offer now.
    #[must_use]
    pub fn offer_due(&self, now: Duration) -> bool {
        let is_free = match &self.step {
            Step::Idle => true,
            Step::Offered { at, .. } => now.saturating_sub(*at) >= OFFER_LIMIT,
            Step::Accepted { .. } => false,
        };
        let is_old = self.sealing.as_ref().is_none_or(|(at, worn)| {
            let is_worn = worn.iter().any(|worn| worn.load(Ordering::Relaxed));
            now.saturating_sub(*at) >= ROTATE_AFTER || is_worn || self.accepted.iter().any(|keys| keys.is_worn())
        });
        self.role() == Role::Initiator && is_free && is_old && now >= self.retry_at
    }

    /// Makes an offer. `ephemeral` are 32 random bytes that were never used before. The answer comes to
    /// [`handle_accept`](Self::handle_accept), its absence to [`handle_failure`](Self::handle_failure).
    ///
    /// # Errors
    /// [`AgreementError::OutOfTurn`] on the node that does not begin, [`AgreementError::NoSalt`].
    pub fn offer(&mut self, now: Duration, ephemeral: Zeroizing<[u8; 32]>) -> Result<Vec<u8>, AgreementError> {
        if self.role() != Role::Initiator {
            return Err(AgreementError::OutOfTurn);
        }
        let salt = self.terms.salts.first().ok_or(AgreementError::NoSalt)?.name;
        let secret = StaticSecret::from(*ephemeral);
        let offer = Offer { share: self.share(&secret), salt };
        self.step = Step::Offered { secret, offer, at: now };
        Ok(offer.encode())
    }

    /// The responder's side of an offer: the accept to send back.
    ///
    /// # Errors
    /// [`AgreementError`]; nothing has changed then.
    pub fn handle_offer(
        &mut self,
        now: Duration,
        bytes: &[u8],
        ephemeral: Zeroizing<[u8; 32]>,
    ) -> Result<(Vec<u8>, KeysChanged), AgreementError> {
        if self.role() != Role::Responder {
            return Err(AgreementError::OutOfTurn);
        }
        if self.offered_at.is_some_and(|at| now.saturating_sub(at) < SHORTEST_PAUSE) {
            return Err(AgreementError::TooSoon);
        }
        self.offered_at = Some(now);
        let offer = Offer::decode(bytes)?;
        let secret = StaticSecret::from(*ephemeral);
        let share = self.share(&secret);
        let Agreed { inbound, outbound, own_code, expected_code } =
            self.agree(Role::Responder, &secret, &offer, &share)?;
        let inbound = self.accept(inbound);
        self.step = Step::Accepted { inbound, outbound: Some(outbound), expected_code };
        Ok((Accept { share, code: own_code }.encode(), self.changed(Sealing::Unchanged)))
    }

    /// The initiator's side of an accept: the confirmation to send.
    ///
    /// # Errors
    /// [`AgreementError`]; the offer has failed then, and the keys in use stay.
    pub fn handle_accept(&mut self, now: Duration, bytes: &[u8]) -> Result<(Vec<u8>, KeysChanged), AgreementError> {
        let Step::Offered { secret, offer, .. } = std::mem::replace(&mut self.step, Step::Idle) else {
            return Err(AgreementError::OutOfTurn);
        };
        let agreed = self.check_accept(bytes, &secret, &offer).inspect_err(|_| self.pause(now))?;
        self.accept(agreed.inbound);
        self.failures = 0;
        let sealing = self.seal_by(agreed.outbound, now);
        Ok((Confirm { code: agreed.own_code }.encode(), self.changed(sealing)))
    }

    /// The responder's side of a confirmation.
    ///
    /// # Errors
    /// [`AgreementError`]; the keys in use stay.
    pub fn handle_confirm(&mut self, now: Duration, bytes: &[u8]) -> Result<KeysChanged, AgreementError> {
        let confirm = Confirm::decode(bytes)?;
        let Step::Accepted { outbound, expected_code, .. } = &mut self.step else {
            return Err(AgreementError::OutOfTurn);
        };
        check_code(expected_code, &confirm.code)?;
        let outbound = outbound.take();
        self.step = Step::Idle;
        let sealing = outbound.map_or(Sealing::Unchanged, |outbound| self.seal_by(outbound, now));
        Ok(self.changed(sealing))
    }

    /// The offer was not answered, or refused.
    pub fn handle_failure(&mut self, now: Duration) {
        if matches!(self.step, Step::Offered { .. }) {
            self.step = Step::Idle;
            self.pause(now);
        }
    }

    /// The peer's process is another one and has lost all keys.
    pub fn handle_restart(&mut self, now: Duration) -> KeysChanged {
        self.step = Step::Idle;
        self.accepted.clear();
        (self.in_use, self.sealing) = (None, None);
        (self.retry_at, self.failures) = (now, 0);
        self.changed(Sealing::Nothing)
    }

    /// Looks at what time and received frames have changed. Once a second is often enough.
    pub fn handle_tick(&mut self, now: Duration) -> Option<KeysChanged> {
        let before = self.accepted.len();
        let mut sealing = Sealing::Unchanged;
        if let Step::Accepted { inbound, outbound, .. } = &mut self.step
            && inbound.was_used()
            && let Some(outbound) = outbound.take()
        {
            sealing = self.seal_by(outbound, now);
        }
        self.retire(now);
        let changed = before != self.accepted.len() || matches!(sealing, Sealing::By(_));
        changed.then(|| self.changed(sealing))
    }

    fn share(&mut self, secret: &StaticSecret) -> Share {
        let epoch = self.next_epoch;
        self.next_epoch = epoch.next();
        let queues = self.terms.queues.clamp(1, MAX_QUEUES);
        let ephemeral = PublicKey::from(secret).to_bytes();
        Share { ephemeral, receiver: self.receiver, epoch, queues, has_aes: self.terms.has_aes }
    }

    fn agree(
        &self,
        role: Role,
        secret: &StaticSecret,
        offer: &Offer,
        accepted: &Share,
    ) -> Result<Agreed, AgreementError> {
        let salt = self.terms.salts.iter().find(|salt| salt.name == offer.salt).ok_or(AgreementError::UnknownSalt)?;
        let (initiator, responder) = match role {
            Role::Initiator => (&self.ours, &self.theirs),
            Role::Responder => (&self.theirs, &self.ours),
        };
        agree(role, secret, &salt.secret[..], &Said { initiator, responder, offer, accepted })
    }

    fn check_accept(&self, bytes: &[u8], secret: &StaticSecret, offer: &Offer) -> Result<Agreed, AgreementError> {
        let accept = Accept::decode(bytes)?;
        let agreed = self.agree(Role::Initiator, secret, offer, &accept.share)?;
        check_code(&agreed.expected_code, &accept.code)?;
        Ok(agreed)
    }

    /// Opens frames by these keys too.
    fn accept(&mut self, keys: InboundKeys) -> Arc<InboundKeys> {
        let keys = Arc::new(keys);
        self.accepted.insert(0, Arc::clone(&keys));
        if self.accepted.len() > MAX_ACCEPTED {
            let newest_used = self.accepted.iter().position(|keys| keys.was_used());
            let oldest = (1..self.accepted.len()).rev().find(|position| Some(*position) != newest_used);
            self.accepted.remove(oldest.unwrap_or(MAX_ACCEPTED));
        }
        keys
    }

    fn seal_by(&mut self, outbound: OutboundKeys, now: Duration) -> Sealing {
        let keys = outbound.packets.iter().chain([&outbound.probes]);
        self.sealing = Some((now, keys.map(|key| key.worn()).collect()));
        Sealing::By(outbound)
    }

    /// Drops what is older than keys that have been in use long enough.
    fn retire(&mut self, now: Duration) {
        let Some(position) = self.accepted.iter().position(|keys| keys.was_used()) else { return };
        let Some(epoch) = self.accepted.get(position).map(|keys| keys.epoch()) else { return };
        match self.in_use {
            Some((known, since)) if known == epoch => {
                if now.saturating_sub(since) >= RETIRE_AFTER {
                    self.accepted.truncate(position + 1);
                }
            }
            Some(_) | None => self.in_use = Some((epoch, now)),
        }
    }

    fn pause(&mut self, now: Duration) {
        let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(8)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + pause;
    }

    fn changed(&self, sealing: Sealing) -> KeysChanged {
        KeysChanged { accepted: self.accepted.clone(), sealing }
    }
}

fn check_code(expected: &[u8], shown: &[u8]) -> Result<(), AgreementError> {
    verify_slices_are_equal(expected, shown).map_err(|_| AgreementError::Code)
}

#[cfg(test)]
mod tests;
