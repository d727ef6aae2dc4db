//! The data keys of a peer, as the packet threads use them: those that seal belong to one thread each, those that
//! open are shared.

use std::sync::{Arc, Mutex, PoisonError};

use culvert_datagram::frame::SealedFrame;
use culvert_datagram::key::{OpenError, Opened, SealKey};
use culvert_datagram::key_set::InboundKeys;

/// The keys of one epoch that seal, one a queue. A thread takes its own and gives it back when it has newer ones.
#[derive(Debug)]
pub(crate) struct SendKeys {
    lanes: Vec<Mutex<Option<SealKey>>>,
}

impl SendKeys {
    /// Keys by queue.
    pub(crate) fn new(keys: Vec<SealKey>) -> Arc<Self> {
        Arc::new(Self { lanes: keys.into_iter().map(|key| Mutex::new(Some(key))).collect() })
    }

    fn lane(&self, queue: u8) -> Option<std::sync::MutexGuard<'_, Option<SealKey>>> {
        let lane = self.lanes.get(usize::from(queue))?;
        Some(lane.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The key of one queue while its thread has it. With it goes the counter, so nobody else can use a nonce again.
#[derive(Debug)]
pub(crate) struct HeldKey {
    keys: Arc<SendKeys>,
    queue: u8,
    key: Option<SealKey>,
}

impl HeldKey {
    /// Takes the key of a queue; `None` when there is none, or somebody has it.
    pub(crate) fn take(keys: &Arc<SendKeys>, queue: u8) -> Option<Self> {
        let key = keys.lane(queue)?.take()?;
        Some(Self { keys: Arc::clone(keys), queue, key: Some(key) })
    }

    /// The key.
    pub(crate) fn key(&mut self) -> Option<&mut SealKey> {
        self.key.as_mut()
    }

    /// Whether it is one of those keys.
    pub(crate) fn is_of(&self, keys: &Arc<SendKeys>) -> bool {
        Arc::ptr_eq(&self.keys, keys)
    }
}

impl Drop for HeldKey {
    fn drop(&mut self) {
        if let Some(mut lane) = self.keys.lane(self.queue) {
            *lane = self.key.take();
        }
    }
}

/// What is accepted from a peer now: the newest epoch, and older ones for a while.
#[derive(Debug, Default)]
pub(crate) struct ReceiveKeys {
    epochs: Vec<Arc<InboundKeys>>,
}

impl ReceiveKeys {
    /// Keys of those epochs, the newest first.
    pub(crate) fn new(epochs: Vec<Arc<InboundKeys>>) -> Self {
        Self { epochs }
    }

    /// Opens a frame in place, each one once.
    ///
    /// **Errors** why it must be dropped.
    pub(crate) fn open<'a>(&self, frame: SealedFrame<'a>) -> Result<Opened<'a>, OpenError> {
        let epoch = frame.header().epoch();
        self.epochs.iter().find(|keys| keys.epoch() == epoch).ok_or(OpenError::NoKey)?.open(frame)
    }
}
