//! All keys that two nodes agreed on at once: one for each queue of the sender, and one for probes.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::frame::{Epoch, MAX_QUEUES, PROBE_QUEUE, ReceiverIndex, SealedFrame, WORN_FRAMES};
use crate::key::{OpenError, OpenKey, Opened, SealKey};
use crate::replay::ReplayWindow;

/// What opens the frames of one queue of a peer, each once.
#[derive(Debug)]
struct Lane {
    key: OpenKey,
    window: ReplayWindow,
}

impl Lane {
    fn new(key: OpenKey) -> Self {
        Self { key, window: ReplayWindow::default() }
    }
}

/// What opens a peer's frames of one epoch. Shared by all threads that receive.
#[derive(Debug)]
pub struct InboundKeys {
    receiver: ReceiverIndex,
    epoch: Epoch,
    packets: Box<[Lane]>,
    probes: Lane,
    used: AtomicBool,
    worn: AtomicBool,
}

impl InboundKeys {
    /// The keys of a peer's queues in order, and that of its probes.
    ///
    /// **Bounds** the first [`MAX_QUEUES`] count.
    #[must_use]
    pub fn new(receiver: ReceiverIndex, epoch: Epoch, packets: Vec<OpenKey>, probes: OpenKey) -> Self {
        let packets = packets.into_iter().take(usize::from(MAX_QUEUES)).map(Lane::new).collect();
        let (used, worn) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { receiver, epoch, packets, probes: Lane::new(probes), used, worn }
    }

    /// Our number for the peer.
    #[must_use]
    pub fn receiver(&self) -> ReceiverIndex {
        self.receiver
    }

    /// Our number for these keys.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Opens a frame in place, once.
    ///
    /// # Errors
    /// [`OpenError`]; the bytes mean nothing then.
    pub fn open<'a>(&self, frame: SealedFrame<'a>) -> Result<Opened<'a>, OpenError> {
        let header = frame.header();
        if (header.receiver(), header.epoch()) != (self.receiver, self.epoch) {
            return Err(OpenError::NoKey);
        }
        let lane = match header.queue() {
            PROBE_QUEUE => &self.probes,
            queue => self.packets.get(usize::from(queue)).ok_or(OpenError::NoKey)?,
        };
        let opened = lane.key.open(frame)?;
        let counter = opened.header.counter();
        lane.window.accept(counter)?;
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        if counter >= WORN_FRAMES {
            self.worn.store(true, Ordering::Relaxed);
        }
        Ok(opened)
    }

    /// Whether a frame was opened: the peer seals with these keys.
    #[must_use]
    pub fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the peer has sealed [`WORN_FRAMES`] by one of them.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.worn.load(Ordering::Relaxed)
    }
}

/// What seals frames for a peer. Each key goes to the one thread that uses it.
#[derive(Debug)]
pub struct OutboundKeys {
    /// The keys of this node's queues, in order.
    pub packets: Vec<SealKey>,
    /// The key of probes and answers.
    pub probes: SealKey,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Flags, Kind, LaneAddress, OVERHEAD_BYTES};
    use crate::key::{KeyMaterial, Suite};
    use crate::replay::ReplayError;

    const RECEIVER: ReceiverIndex = ReceiverIndex(5);
    const EPOCH: Epoch = Epoch(2);

    fn material(queue: u8) -> KeyMaterial {
        KeyMaterial::new([queue; 44])
    }

    fn inbound(queues: u8) -> InboundKeys {
        let open = |queue| OpenKey::new(Suite::Aes128Gcm, &material(queue)).unwrap();
        InboundKeys::new(RECEIVER, EPOCH, (0..queues).map(open).collect(), open(PROBE_QUEUE))
    }

    fn seal(lane: LaneAddress, kind: Kind) -> Vec<u8> {
        let mut bytes = vec![0; OVERHEAD_BYTES + 4];
        let mut key = SealKey::new(Suite::Aes128Gcm, &material(lane.queue), lane).unwrap();
        key.seal(kind, Flags::default(), &mut bytes).unwrap();
        bytes
    }

    fn open(keys: &InboundKeys, bytes: &[u8]) -> Result<u8, OpenError> {
        let mut bytes = bytes.to_vec();
        keys.open(SealedFrame::new_checked(&mut bytes).unwrap()).map(|opened| opened.header.queue())
    }

    #[test]
    fn each_queue_and_the_probes_have_keys_and_windows_of_their_own() {
        let keys = inbound(2);
        let lane = |queue| LaneAddress { receiver: RECEIVER, epoch: EPOCH, queue };
        for (queue, kind) in [(0, Kind::Packet), (1, Kind::Packet), (PROBE_QUEUE, Kind::Probe)] {
            let frame = seal(lane(queue), kind);
            assert_eq!(open(&keys, &frame), Ok(queue));
            assert_eq!(open(&keys, &frame), Err(OpenError::Replay(ReplayError::Seen)));
        }
        assert_eq!(open(&keys, &seal(lane(2), Kind::Packet)), Err(OpenError::NoKey));
    }

    #[test]
    fn frames_for_another_index_or_epoch_find_no_key() {
        let keys = inbound(1);
        for (receiver, epoch) in [(ReceiverIndex(6), EPOCH), (RECEIVER, Epoch(1))] {
            let frame = seal(LaneAddress { receiver, epoch, queue: 0 }, Kind::Packet);
            assert_eq!(open(&keys, &frame), Err(OpenError::NoKey));
        }
        assert!(!keys.was_used());
    }

    #[test]
    fn keys_count_as_used_with_the_first_authentic_frame_only() {
        let keys = inbound(1);
        let lane = LaneAddress { receiver: RECEIVER, epoch: EPOCH, queue: 0 };
        let mut forged = seal(lane, Kind::Packet);
        forged[20] ^= 1;
        assert_eq!(open(&keys, &forged), Err(OpenError::Forged));
        assert!(!keys.was_used());
        assert_eq!(open(&keys, &seal(lane, Kind::Packet)), Ok(0));
        assert!(keys.was_used() && !keys.is_worn());
    }
}
