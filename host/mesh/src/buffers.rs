//! Large buffers that go round between the packet threads and the tasks instead of being allocated.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Two frames of the largest size: a batch is handed over once a further largest frame might not fit,
/// and a chunk always has room for the frame that is arriving. **Units** bytes.
pub(crate) const BUFFER_BYTES: usize = 160 * 1024;

/// Buffers kept when nobody uses them; more are given back to the system. 24 × 160 KiB = 3.75 MiB.
const MAX_IDLE: usize = 24;

/// Bytes with the packets found in them.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// As long as it was filled on the way out, always [`BUFFER_BYTES`] on the way in.
    pub(crate) bytes: Vec<u8>,
    /// Where virtio headers with their packets lie.
    pub(crate) packets: Vec<Range<usize>>,
}

/// The idle buffers. Taken and given back once a batch, never once a packet.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    idle: Mutex<Vec<Chunk>>,
}

impl BufferPool {
    /// An empty chunk with [`BUFFER_BYTES`] reserved.
    pub(crate) fn take_empty(&self) -> Chunk {
        let mut chunk = self.take();
        chunk.bytes.clear();
        chunk
    }

    /// A chunk of [`BUFFER_BYTES`] bytes to read into.
    pub(crate) fn take_full(&self) -> Chunk {
        let mut chunk = self.take();
        chunk.bytes.resize(BUFFER_BYTES, 0);
        chunk
    }

    /// Gives a chunk back.
    pub(crate) fn put(&self, mut chunk: Chunk) {
        chunk.packets.clear();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(chunk);
        }
    }

    fn take(&self) -> Chunk {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| Chunk { bytes: Vec::with_capacity(BUFFER_BYTES), packets: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::{BUFFER_BYTES, BufferPool, MAX_IDLE};

    #[test]
    fn buffers_go_round_and_come_back_clean() {
        let pool = BufferPool::default();
        let mut chunk = pool.take_full();
        assert_eq!(chunk.bytes.len(), BUFFER_BYTES);
        chunk.packets.push(0..10);
        let place = chunk.bytes.as_ptr();
        pool.put(chunk);
        let again = pool.take_empty();
        assert_eq!((again.bytes.len(), again.packets.len(), again.bytes.as_ptr()), (0, 0, place));
    }

    #[test]
    fn idle_buffers_are_bounded() {
        let pool = BufferPool::default();
        let chunks: Vec<_> = (0..MAX_IDLE + 5).map(|_| pool.take_full()).collect();
        chunks.into_iter().for_each(|chunk| pool.put(chunk));
        assert_eq!(pool.idle.lock().unwrap().len(), MAX_IDLE);
    }
}
