//! What the packet threads know of the peers: whom a frame is from, and how datagrams reach whom.
//!
//! The mesh's task writes, the threads read: nobody waits for anybody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::{ArcSwap, ArcSwapOption};
use culvert_core::membership;
use culvert_datagram::frame::{ReceiverIndex, RelayPrefix};

use crate::counters::Count;
use crate::datagram::keys::{ReceiveKeys, SendKeys};

/// How datagrams reach a peer now.
#[derive(Debug)]
pub(crate) struct Outbound {
    /// Where they are sent: the peer, or a relay.
    pub(crate) remote: SocketAddr,
    /// What the relay knows them by.
    pub(crate) relay: Option<RelayPrefix>,
    /// **Units** bytes of the largest packet inside.
    pub(crate) mtu_bytes: usize,
    /// What seals them.
    pub(crate) keys: Arc<SendKeys>,
}

/// A peer, as long as the mesh knows it.
#[derive(Debug)]
pub(crate) struct DatagramPeer {
    pub(crate) name: membership::PeerId,
    /// `None` while the stream carries its packets.
    pub(crate) outbound: ArcSwapOption<Outbound>,
    pub(crate) inbound: ArcSwap<ReceiveKeys>,
    /// Set by the threads that send to it, cleared by the mesh's task: whether the path carries packets.
    pub(crate) is_busy: AtomicBool,
    /// Packets from it that failed the source or destination check.
    pub(crate) refused: Arc<Count>,
}

impl DatagramPeer {
    /// A peer without keys.
    pub(crate) fn new(name: membership::PeerId, refused: Arc<Count>) -> Arc<Self> {
        Arc::new(Self {
            name,
            outbound: ArcSwapOption::empty(),
            inbound: ArcSwap::default(),
            is_busy: AtomicBool::new(false),
            refused,
        })
    }
}

/// The low bits of a receiver index: a position in the table, which bounds the peers. The others are random, so
/// that a frame for a peer that is gone seldom meets the one that took its place.
const POSITION_BITS: u32 = 16;

/// Whom a frame is from, by the number that we gave out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Receivers {
    slots: Vec<Option<(ReceiverIndex, Arc<DatagramPeer>)>>,
}

impl Receivers {
    /// The peer with that number, and its position.
    pub(crate) fn find(&self, index: ReceiverIndex) -> Option<(usize, &Arc<DatagramPeer>)> {
        let position = usize::try_from(index.0 & ((1 << POSITION_BITS) - 1)).ok()?;
        let (known, peer) = self.slots.get(position)?.as_ref()?;
        (*known == index).then_some((position, peer))
    }

    /// How many positions there are.
    pub(crate) fn positions(&self) -> usize {
        self.slots.len()
    }

    /// Adds a peer and returns its number; `None` when all 65,536 are taken.
    pub(crate) fn insert(&mut self, peer: Arc<DatagramPeer>, random: u32) -> Option<ReceiverIndex> {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        let position = u32::try_from(free).ok().filter(|position| position >> POSITION_BITS == 0)?;
        let index = ReceiverIndex(random << POSITION_BITS | position);
        if free == self.slots.len() {
            self.slots.push(None);
        }
        *self.slots.get_mut(free)? = Some((index, peer));
        Some(index)
    }

    /// Takes a number back.
    pub(crate) fn remove(&mut self, index: ReceiverIndex) {
        let ours = |slot: &&mut Option<(ReceiverIndex, _)>| slot.as_ref().is_some_and(|(known, _)| *known == index);
        if let Some(slot) = self.slots.iter_mut().find(ours) {
            *slot = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Arc<DatagramPeer> {
        DatagramPeer::new(membership::PeerId(name.into()), Arc::default())
    }

    fn name(receivers: &Receivers, index: ReceiverIndex) -> Option<&str> {
        receivers.find(index).map(|(_, peer)| peer.name.0.as_str())
    }

    #[test]
    fn a_number_finds_its_peer_and_none_after_it_is_gone() {
        let mut receivers = Receivers::default();
        let one = receivers.insert(peer("one"), 7).unwrap();
        let two = receivers.insert(peer("two"), 7).unwrap();
        assert_eq!((one, two), (ReceiverIndex(0x7_0000), ReceiverIndex(0x7_0001)));
        assert_eq!((name(&receivers, one), name(&receivers, two)), (Some("one"), Some("two")));
        receivers.remove(one);
        assert_eq!(name(&receivers, one), None);
        let three = receivers.insert(peer("three"), 8).unwrap();
        assert_eq!((name(&receivers, one), name(&receivers, three)), (None, Some("three")));
        assert_eq!((three, receivers.positions()), (ReceiverIndex(0x8_0000), 2));
    }

    #[test]
    fn numbers_that_were_never_given_out_find_nobody() {
        let mut receivers = Receivers::default();
        let index = receivers.insert(peer("one"), 7).unwrap();
        for number in [0, 1, index.0 + 1, index.0 ^ 0x8000_0000, u32::MAX] {
            assert_eq!(name(&receivers, ReceiverIndex(number)), None);
        }
    }

    #[test]
    fn numbers_run_out_at_the_bound() {
        let mut receivers = Receivers::default();
        let peer = peer("one");
        receivers.slots = vec![Some((ReceiverIndex(0), Arc::clone(&peer))); 1 << POSITION_BITS];
        assert_eq!(receivers.insert(peer, 1), None);
    }
}
