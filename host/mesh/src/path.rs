//! The seam between the packet threads and whatever carries packets: a *path* carries batches of
//! packets to one peer. Streams are one kind of path (`stream_path`). Datagrams need no batches and are sent by
//! the reader thread itself (`datagram`).
//!
//! ```text
//! TUN reader thread ──batch──> PathQueue (bounded ring, one a peer) ──> feed (one task a peer) ──> Path
//!                   └─sealed─> UDP
//! ```
//! A peer that stalls fills its own ring and nothing else.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_core::membership;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::buffers::{BufferPool, Chunk};
use crate::counters::Counters;
use crate::datagram::DatagramPeer;

/// Batches that wait for one peer: 8 × 160 KiB, a quarter of a second at 40 Mbit/s. When it is full,
/// packets for that peer are dropped and counted, as a full link would.
const RING_BATCHES: usize = 8;

/// What a path that is being replaced may still take for the batch it has and for saying goodbye.
const FINISH_LIMIT: Duration = Duration::from_millis(500);

/// Paths that wait to be used for one peer; a peer has two connections as a rule.
pub(crate) const WAITING_PATHS: usize = 4;

/// How packets reach a peer.
pub(crate) trait Path: Send {
    /// Carries one batch of frames, in order. An error means that the path is broken for good.
    fn carry(&mut self, batch: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Says that no more will come, after all that was carried.
    fn finish(self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Frames for one peer, and how many packets they hold.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) chunk: Chunk,
    pub(crate) packets: u64,
}

/// The thread's end of a peer's ring.
#[derive(Debug)]
pub(crate) struct PathQueue {
    ring: mpsc::Sender<Batch>,
    ready: AtomicBool,
}

impl PathQueue {
    /// A ring and its other end.
    pub(crate) fn new() -> (Arc<Self>, mpsc::Receiver<Batch>) {
        let (ring, batches) = mpsc::channel(RING_BATCHES);
        (Arc::new(Self { ring, ready: AtomicBool::new(false) }), batches)
    }

    /// Whether a path is there to take batches.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Says whether a path is there.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Queues a batch, or gives it back when the ring is full or nobody empties it any more.
    pub(crate) fn push(&self, batch: Batch) -> Result<(), Batch> {
        self.ring.try_send(batch).map_err(|error| match error {
            mpsc::error::TrySendError::Full(batch) | mpsc::error::TrySendError::Closed(batch) => batch,
        })
    }
}

/// The ways to one peer.
#[derive(Clone, Debug)]
pub(crate) struct PeerPaths {
    /// The ring of whatever carries batches.
    pub(crate) ring: Arc<PathQueue>,
    /// Datagrams, which go before the ring while they have a way.
    pub(crate) datagrams: Arc<DatagramPeer>,
}

/// The ways to all peers, as the packet threads see them.
pub(crate) type PathDirectory = ArcSwap<BTreeMap<membership::PeerId, PeerPaths>>;

/// What a feeding task needs besides its queues.
#[derive(Clone)]
pub(crate) struct FeedContext {
    pub(crate) queue: Arc<PathQueue>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) counters: Arc<Counters>,
}

/// Feeds the newest path from the ring until `paths` ends. `broke` hears of a path that failed.
pub(crate) async fn feed<Tag, P: Path, Broke: Future<Output = ()>>(
    context: FeedContext,
    mut batches: mpsc::Receiver<Batch>,
    mut paths: mpsc::Receiver<(Tag, P)>,
    broke: impl Fn(Tag) -> Broke,
) {
    let mut current: Option<(Tag, P)> = None;
    loop {
        context.queue.set_ready(current.is_some());
        let mut next = None;
        tokio::select! {
            biased;
            path = paths.recv() => match path {
                None => break,
                Some(path) => next = Some(path),
            },
            batch = batches.recv(), if current.is_some() => {
                let (Some(batch), Some((tag, mut path))) = (batch, current.take()) else { break };
                match carry(&mut path, &batch.chunk.bytes, &mut paths, &mut next).await {
                    Carried::Whole => current = Some((tag, path)),
                    Carried::Broken => {
                        context.counters.dropped_path_broken.add(batch.packets);
                        broke(tag).await;
                    }
                    Carried::GivenUp => context.counters.dropped_path_broken.add(batch.packets),
                }
                context.pool.put(batch.chunk);
            }
        }
        if next.is_some()
            && let Some((_, old)) = std::mem::replace(&mut current, next)
        {
            // The new path's packets wait until the old one has taken its last: order is kept.
            let _ = timeout(FINISH_LIMIT, old.finish()).await;
        }
    }
    context.queue.set_ready(false);
    if let Some((_, path)) = current {
        let _ = timeout(FINISH_LIMIT, path.finish()).await;
    }
}

/// What became of a batch.
enum Carried {
    /// The path took it.
    Whole,
    /// The path broke.
    Broken,
    /// The path took too long when another one was there to replace it.
    GivenUp,
}

/// Carries a batch. When another path comes meanwhile, it is put into `next`, and this path gets a
/// bounded time to finish.
async fn carry<Tag, P: Path>(
    path: &mut P,
    batch: &[u8],
    paths: &mut mpsc::Receiver<(Tag, P)>,
    next: &mut Option<(Tag, P)>,
) -> Carried {
    let mut carrying = std::pin::pin!(path.carry(batch));
    let outcome = tokio::select! {
        biased;
        outcome = &mut carrying => Some(outcome),
        replacement = paths.recv() => {
            *next = replacement;
            timeout(FINISH_LIMIT, &mut carrying).await.ok()
        }
    };
    match outcome {
        Some(Ok(())) => Carried::Whole,
        Some(Err(error)) => {
            tracing::debug!(%error, "a path broke");
            Carried::Broken
        }
        None => Carried::GivenUp,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A path that notes what it carries, and stalls or breaks on request.
    struct Noting {
        notes: mpsc::UnboundedSender<String>,
        name: &'static str,
        stalls: bool,
        breaks: bool,
    }

    impl Path for Noting {
        async fn carry(&mut self, batch: &[u8]) -> io::Result<()> {
            if self.stalls {
                std::future::pending::<()>().await;
            }
            if self.breaks {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let _ = self.notes.send(format!("{} {}", self.name, String::from_utf8_lossy(batch)));
            Ok(())
        }

        async fn finish(self) -> io::Result<()> {
            let _ = self.notes.send(format!("{} ends", self.name));
            Ok(())
        }
    }

    struct Fixture {
        queue: Arc<PathQueue>,
        counters: Arc<Counters>,
        paths: mpsc::Sender<(u64, Noting)>,
        notes: mpsc::UnboundedReceiver<String>,
        note: mpsc::UnboundedSender<String>,
    }

    fn fixture() -> Fixture {
        let (queue, batches) = PathQueue::new();
        let (paths, next) = mpsc::channel(WAITING_PATHS);
        let (note, notes) = mpsc::unbounded_channel();
        let counters = Arc::new(Counters::default());
        let context = FeedContext { queue: Arc::clone(&queue), pool: Arc::default(), counters: Arc::clone(&counters) };
        let broken = note.clone();
        tokio::spawn(feed(context, batches, next, move |tag: u64| {
            let broken = broken.clone();
            async move {
                let _ = broken.send(format!("{tag} broke"));
            }
        }));
        Fixture { queue, counters, paths, notes, note }
    }

    impl Fixture {
        fn path(&self, name: &'static str, stalls: bool, breaks: bool) -> Noting {
            Noting { notes: self.note.clone(), name, stalls, breaks }
        }

        fn push(&self, text: &str) -> bool {
            let chunk = Chunk { bytes: text.as_bytes().to_vec(), packets: Vec::new() };
            self.queue.push(Batch { chunk, packets: 1 }).is_ok()
        }

        async fn next(&mut self) -> String {
            timeout(Duration::from_secs(10), self.notes.recv()).await.unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn a_newer_path_takes_over_after_the_older_one_has_ended() {
        let mut fixture = fixture();
        fixture.paths.send((1, fixture.path("old", false, false))).await.unwrap();
        assert!(fixture.push("a"));
        assert_eq!(fixture.next().await, "old a");
        assert!(fixture.queue.is_ready());
        fixture.paths.send((2, fixture.path("new", false, false))).await.unwrap();
        assert!(fixture.push("b"));
        assert_eq!(fixture.next().await, "old ends");
        assert_eq!(fixture.next().await, "new b");
    }

    #[tokio::test]
    async fn a_broken_path_is_reported_and_what_waits_goes_by_the_next() {
        let mut fixture = fixture();
        fixture.paths.send((7, fixture.path("bad", false, true))).await.unwrap();
        assert!(fixture.push("lost") && fixture.push("kept"));
        assert_eq!(fixture.next().await, "7 broke");
        assert!(!fixture.queue.is_ready());
        fixture.paths.send((8, fixture.path("good", false, false))).await.unwrap();
        assert_eq!(fixture.next().await, "good kept");
        assert_eq!(fixture.counters.snapshot().dropped_path_broken, 1);
    }

    #[tokio::test]
    async fn a_stalled_path_fills_its_own_ring_and_is_replaced() {
        let mut stalled = fixture();
        let mut other = fixture();
        stalled.paths.send((1, stalled.path("stalled", true, false))).await.unwrap();
        other.paths.send((1, other.path("other", false, false))).await.unwrap();
        // One batch is in the path's hands, the others wait; then the ring takes no more.
        let mut taken = 0;
        while stalled.push("x") {
            taken += 1;
            tokio::task::yield_now().await;
        }
        assert!((RING_BATCHES..=RING_BATCHES + 1).contains(&taken), "{taken}");
        assert!(other.push("y"));
        assert_eq!(other.next().await, "other y");
        stalled.paths.send((2, stalled.path("fresh", false, false))).await.unwrap();
        assert_eq!(stalled.next().await, "fresh x");
    }
}
