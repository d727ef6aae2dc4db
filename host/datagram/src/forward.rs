//! What a relay knows: pairs of ends, and what each end puts before its frames. It forwards between the two ends of
//! a pair and nowhere else, and has no key that would open a frame.
//!
//! ```text
//! one end ── prefix of the one | frame ──> relay ── prefix of the other | frame ──> other end
//! ```
//! Where an end is, its last datagram with the right tag says: an end that moves is followed. Both numbers of a
//! prefix were given out on a control stream, so a stranger would have to guess 47 random bits.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::frame::{Datagram, RELAY_PREFIX_BYTES, RelayIndex, RelayPrefix};
use crate::rate::RateLimit;

/// The low bits of an index: a position in the table. Above them 15 random ones; the highest bit marks a relay index.
const POSITION_BITS: u32 = 16;

/// Why datagrams are not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The index is not one of ours: an endpoint's own datagram, or a reservation that ended.
    #[error("no reservation has that index")]
    Unknown,
    /// The tag is not that of the index, or what follows is no frame.
    #[error("the tag is wrong, or no frame follows")]
    Refused,
    /// Nothing has come from the other end.
    #[error("nobody knows where the other end is")]
    Waiting,
    /// The end has used its share.
    #[error("the end is over its quota")]
    OverQuota,
}

/// One end of a reservation.
#[derive(Debug)]
struct End {
    prefix: RelayPrefix,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    at: Option<SocketAddr>,
    limit: RateLimit,
}

impl End {
    fn new(prefix: RelayPrefix, limit: RateLimit) -> Self {
        Self { prefix, seen: Mutex::new(Seen { at: None, limit }) }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An end and the one opposite.
type Slot = (Arc<End>, Arc<End>);

/// All reservations of a relay. A snapshot: what ends have shown of themselves is shared with the next one.
#[derive(Clone, Debug, Default)]
pub struct Forwards {
    slots: Vec<Option<Slot>>,
}

impl Forwards {
    /// Reserves a way for two ends, each with a limit of its own, and returns what each puts before its frames.
    /// `None` when all 65,536 positions are taken.
    ///
    /// **Bounds** a limit's burst is at least 64 KiB: what arrives joined passes as one or not at all. `random` is an index and a tag for each end.
    pub fn reserve(&mut self, limit: RateLimit, random: [[u32; 2]; 2]) -> Option<[RelayPrefix; 2]> {
        let mut free = (0..1 << POSITION_BITS).filter(|position| self.is_free(*position));
        let positions = [free.next()?, free.next()?];
        let ends: Vec<Arc<End>> = positions
            .iter()
            .zip(random)
            .map(|(position, [number, tag])| {
                let index = RelayIndex::new(number << POSITION_BITS | position);
                Arc::new(End::new(RelayPrefix { index, tag }, limit))
            })
            .collect();
        let [one, other] = ends.as_slice() else { return None };
        self.put(positions[0], (Arc::clone(one), Arc::clone(other)));
        self.put(positions[1], (Arc::clone(other), Arc::clone(one)));
        Some([one.prefix, other.prefix])
    }

    /// Ends the reservation that an end belongs to, for both.
    pub fn release(&mut self, prefix: RelayPrefix) {
        let Some((own, other)) = self.find(prefix.index).cloned() else { return };
        for end in [own, other] {
            if let Some(slot) = position(end.prefix.index).and_then(|position| self.slots.get_mut(position)) {
                *slot = None;
            }
        }
    }

    /// Prepares datagrams of `stride` bytes each (the last may be shorter) that came from one address: they carry
    /// the other end's prefix afterwards, and are to be sent to the address returned.
    ///
    /// # Errors
    /// [`ForwardError`]; with [`ForwardError::Unknown`] the bytes are as they were, otherwise they must be dropped.
    pub fn prepare(
        &self,
        datagrams: &mut [u8],
        stride: usize,
        from: SocketAddr,
        now: Duration,
    ) -> Result<SocketAddr, ForwardError> {
        let first = RelayPrefix::first_of(datagrams).ok_or(ForwardError::Unknown)?;
        let (own, other) = self.find(first.index).ok_or(ForwardError::Unknown)?;
        if first != own.prefix {
            return Err(ForwardError::Refused);
        }
        let (before, after) = (own.prefix.encode(), other.prefix.encode());
        for datagram in datagrams.chunks_mut(stride.max(1)) {
            let is_ours = datagram.get(..RELAY_PREFIX_BYTES) == Some(before.as_slice());
            if !is_ours || Datagram::new_checked(datagram).is_err() {
                return Err(ForwardError::Refused);
            }
            if let Some(prefix) = datagram.first_chunk_mut() {
                *prefix = after;
            }
        }
        let mut seen = own.seen();
        seen.at = Some(from);
        if !seen.limit.allows(datagrams.len(), now) {
            return Err(ForwardError::OverQuota);
        }
        // One lock at a time: the ends may send to each other at once.
        drop(seen);
        other.seen().at.ok_or(ForwardError::Waiting)
    }

    fn find(&self, index: RelayIndex) -> Option<&Slot> {
        let slot = self.slots.get(position(index)?)?.as_ref()?;
        (slot.0.prefix.index == index).then_some(slot)
    }

    fn is_free(&self, position: u32) -> bool {
        usize::try_from(position).is_ok_and(|position| self.slots.get(position).is_none_or(Option::is_none))
    }

    fn put(&mut self, position: u32, slot: Slot) {
        let Ok(position) = usize::try_from(position) else { return };
        if position >= self.slots.len() {
            self.slots.resize(position + 1, None);
        }
        if let Some(place) = self.slots.get_mut(position) {
            *place = Some(slot);
        }
    }
}

fn position(index: RelayIndex) -> Option<usize> {
    usize::try_from(index.number() & ((1 << POSITION_BITS) - 1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Epoch, Flags, HEADER_BYTES, Kind, LaneAddress, ReceiverIndex, TAG_BYTES};
    use crate::key::{KEY_MATERIAL_BYTES, KeyMaterial, SealKey, Suite};

    const START: Duration = Duration::from_secs(9);

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 20_007))
    }

    fn frame(length: usize) -> Vec<u8> {
        let lane = LaneAddress { receiver: ReceiverIndex(1), epoch: Epoch(1), queue: 0 };
        let mut key = SealKey::new(Suite::Aes128Gcm, &KeyMaterial::new([7; KEY_MATERIAL_BYTES]), lane).unwrap();
        let mut frame = vec![9; HEADER_BYTES + length + TAG_BYTES];
        key.seal(Kind::Packet, Flags::default(), &mut frame).unwrap();
        frame
    }

    fn relayed(prefix: RelayPrefix, length: usize) -> Vec<u8> {
        [prefix.encode().to_vec(), frame(length)].concat()
    }

    fn table() -> (Forwards, [RelayPrefix; 2]) {
        let mut forwards = Forwards::default();
        let ends = forwards.reserve(RateLimit::new(1_000_000, 100_000), [[1, 0xaaaa], [2, 0xbbbb]]).unwrap();
        (forwards, ends)
    }

    #[test]
    fn each_end_gets_what_the_other_sends_under_its_own_prefix() {
        let (forwards, [one, other]) = table();
        let mut datagram = relayed(one, 100);
        let stride = datagram.len();
        assert_eq!(forwards.prepare(&mut datagram, stride, address(1), START), Err(ForwardError::Waiting));
        let mut batch = [relayed(other, 100), relayed(other, 100), relayed(other, 40)].concat();
        assert_eq!(forwards.prepare(&mut batch, stride, address(2), START), Ok(address(1)));
        assert_eq!(batch, [relayed(one, 100), relayed(one, 100), relayed(one, 40)].concat());
        assert_eq!(forwards.prepare(&mut relayed(one, 9), stride, address(1), START), Ok(address(2)));
    }

    #[test]
    fn an_end_that_moves_is_followed() {
        let (forwards, [one, other]) = table();
        for (from, expected) in [(1, Err(ForwardError::Waiting)), (3, Err(ForwardError::Waiting))] {
            assert_eq!(forwards.prepare(&mut relayed(one, 9), 99, address(from), START), expected);
        }
        assert_eq!(forwards.prepare(&mut relayed(other, 9), 99, address(2), START), Ok(address(3)));
    }

    #[test]
    fn nobody_sends_into_a_reservation_that_is_not_his() {
        let (mut forwards, [one, _]) = table();
        let [stranger, _] = forwards.reserve(RateLimit::new(1, 1), [[3, 0xcccc], [4, 0xdddd]]).unwrap();
        let refuse = |prefix: RelayPrefix| forwards.prepare(&mut relayed(prefix, 9), 99, address(5), START);
        assert_eq!(refuse(RelayPrefix { tag: stranger.tag, ..one }), Err(ForwardError::Refused));
        assert_eq!(
            refuse(RelayPrefix { index: RelayIndex::new(one.index.number() ^ 1 << 20), ..one }),
            Err(ForwardError::Unknown)
        );
        // A batch that begins well and goes on in another's name.
        let mut mixed = [relayed(one, 9), relayed(stranger, 9)].concat();
        let stride = mixed.len() / 2;
        assert_eq!(forwards.prepare(&mut mixed, stride, address(5), START), Err(ForwardError::Refused));
        let mut no_frame = one.encode().to_vec();
        no_frame.extend([1; 40]);
        assert_eq!(forwards.prepare(&mut no_frame, 99, address(5), START), Err(ForwardError::Refused));
        assert_eq!(forwards.prepare(&mut frame(9), 99, address(5), START), Err(ForwardError::Unknown));
    }

    #[test]
    fn an_end_over_its_quota_waits_and_the_others_do_not() {
        let mut forwards = Forwards::default();
        let limit = RateLimit::new(1_000, 200);
        let [one, other] = forwards.reserve(limit, [[1, 1], [2, 2]]).unwrap();
        let send = |prefix, from, now| forwards.prepare(&mut relayed(prefix, 60), 999, address(from), now);
        assert_eq!(send(one, 1, START), Err(ForwardError::Waiting));
        assert_eq!(send(one, 1, START), Err(ForwardError::Waiting));
        assert_eq!(send(one, 1, START), Err(ForwardError::OverQuota));
        assert_eq!(send(other, 2, START), Ok(address(1)));
        assert_eq!(send(one, 1, START + Duration::from_millis(100)), Ok(address(2)));
    }

    #[test]
    fn a_released_reservation_forwards_nothing_and_its_place_is_used_again() {
        let (mut forwards, [one, other]) = table();
        forwards.release(other);
        for prefix in [one, other] {
            let outcome = forwards.prepare(&mut relayed(prefix, 9), 99, address(1), START);
            assert_eq!(outcome, Err(ForwardError::Unknown));
        }
        let [again, _] = forwards.reserve(RateLimit::new(1, 1), [[5, 5], [6, 6]]).unwrap();
        assert_eq!((position(again.index), position(one.index)), (Some(0), Some(0)));
        assert_eq!(forwards.slots.len(), 2);
    }
}
