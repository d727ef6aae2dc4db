//! The data keys of a peer, as the packet threads use them: those that seal belong to one thread each, those that
//! open are shared.

use std::sync::{Arc, Mutex, PoisonError};

use culvert_datagram::frame::{Epoch, SealedFrame};
use culvert_datagram::key::{OpenError, OpenKey, Opened, SealKey};
use culvert_datagram::replay::ReplayWindow;

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

/// The keys of one epoch that open, one a queue of the peer, each with what it has seen.
#[derive(Debug)]
pub(crate) struct OpenKeys {
    epoch: Epoch,
    lanes: Vec<(u8, OpenKey, ReplayWindow)>,
}

impl OpenKeys {
    /// Keys with the number of the peer's queue that each belongs to.
    pub(crate) fn new(epoch: Epoch, keys: impl IntoIterator<Item = (u8, OpenKey)>) -> Arc<Self> {
        let lanes = keys.into_iter().map(|(queue, key)| (queue, key, ReplayWindow::default())).collect();
        Arc::new(Self { epoch, lanes })
    }
}

/// What is accepted from a peer now: the newest epoch, and older ones for a while.
#[derive(Debug, Default)]
pub(crate) struct ReceiveKeys {
    epochs: Vec<Arc<OpenKeys>>,
}

impl ReceiveKeys {
    /// Keys of those epochs, the newest first.
    pub(crate) fn new(epochs: Vec<Arc<OpenKeys>>) -> Self {
        Self { epochs }
    }

    /// Opens a frame in place, each one once.
    ///
    /// **Errors** why it must be dropped.
    pub(crate) fn open<'a>(&self, frame: SealedFrame<'a>) -> Result<Opened<'a>, OpenError> {
        let (epoch, queue) = (frame.header().epoch(), frame.header().queue());
        let keys = self.epochs.iter().find(|keys| keys.epoch == epoch).ok_or(OpenError::NoKey)?;
        let (_, key, window) = keys.lanes.iter().find(|(of, ..)| *of == queue).ok_or(OpenError::NoKey)?;
        let opened = key.open(frame)?;
        window.accept(opened.header.counter())?;
        Ok(opened)
    }
}
