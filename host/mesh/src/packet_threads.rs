//! The threads that move packets, and the ends of their queues that the mesh's task holds.
//!
//! ```text
//! for each queue of the TUN    culvert-tun-N   reads the TUN, sends        (tun_reader, outlet)
//!                              culvert-udp-N   receives, writes the TUN    (datagram)
//! once                         culvert-tun-tx  writes what streams bring   (tun_writer)
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use culvert_core::membership;
use culvert_core::tunnel_table::TunnelTable;
use culvert_datagram::forward::Forwards;
use culvert_datagram::frame::{MAX_QUEUES, ReceiverIndex, RelayPrefix};
use culvert_datagram::rate::RateLimit;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::sync::mpsc;

use crate::buffers::{BufferPool, Chunk};
use crate::config::TunDevice;
use crate::counters::Counters;
use crate::datagram::{self, DataSocket, DatagramPeer, Notice, ReceiverContext, Receivers};
use crate::handle::StartError;
use crate::path::PathDirectory;
use crate::tun_reader::{self, ReaderContext};
use crate::tun_writer;

/// Notices of the packet threads that wait for the mesh's task: as many probes as a thousand peers send in half a
/// second. When it is full they are dropped.
const MAX_NOTICES: usize = 512;

/// What the threads share with the rest of the mesh.
pub(crate) struct PacketLinks {
    pub(crate) table: Arc<ArcSwap<TunnelTable>>,
    pub(crate) kicks: mpsc::Sender<membership::PeerId>,
    pub(crate) counters: Arc<Counters>,
}

/// What the data path needs, on a node with a TUN.
#[derive(Clone)]
pub(crate) struct TunEnds {
    pub(crate) table: Arc<ArcSwap<TunnelTable>>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) to_tun: mpsc::Sender<Chunk>,
    pub(crate) directory: Arc<PathDirectory>,
    pub(crate) datagrams: DatagramEnds,
}

/// What the mesh's task does about datagrams.
#[derive(Clone)]
pub(crate) struct DatagramEnds {
    receivers: Arc<ArcSwap<Receivers>>,
    forwards: Arc<ArcSwap<Forwards>>,
    /// Sends probes; shared with the thread of the first queue.
    pub(crate) socket: Arc<DataSocket>,
    /// How many queues send.
    pub(crate) queues: u8,
    /// The port that all sockets share.
    pub(crate) port: u16,
}

impl DatagramEnds {
    /// Gives a peer a number for the frames it sends; `None` when there are too many peers.
    pub(crate) fn number(&self, peer: Arc<DatagramPeer>, random: u32) -> Option<ReceiverIndex> {
        let mut receivers = Receivers::clone(&self.receivers.load());
        let index = receivers.insert(peer, random)?;
        self.receivers.store(Arc::new(receivers));
        Some(index)
    }

    /// Reserves a way through this node for two ends; `None` when there are too many.
    pub(crate) fn reserve(&self, limit: RateLimit, random: [[u32; 2]; 2]) -> Option<[RelayPrefix; 2]> {
        let mut forwards = Forwards::clone(&self.forwards.load());
        let ends = forwards.reserve(limit, random)?;
        self.forwards.store(Arc::new(forwards));
        Some(ends)
    }

    /// Ends a reservation for both ends.
    pub(crate) fn release(&self, end: RelayPrefix) {
        let mut forwards = Forwards::clone(&self.forwards.load());
        forwards.release(end);
        self.forwards.store(Arc::new(forwards));
    }

    /// Takes a number back. Frames with it are dropped.
    pub(crate) fn forget(&self, index: ReceiverIndex) {
        let mut receivers = Receivers::clone(&self.receivers.load());
        receivers.remove(index);
        self.receivers.store(Arc::new(receivers));
    }
}

/// All packet threads. Dropping it lets them end.
pub(crate) struct PacketThreads {
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl PacketThreads {
    /// Starts the threads of a TUN. What they notice arrives at the receiver returned.
    pub(crate) fn start(
        tun: TunDevice,
        data_port: u16,
        links: PacketLinks,
    ) -> Result<(TunEnds, mpsc::Receiver<Notice>, Self), StartError> {
        let queues = u8::try_from(tun.queues.len()).ok().filter(|queues| (1..=MAX_QUEUES).contains(queues));
        let queues = queues.ok_or(StartError::TunQueues { queues: tun.queues.len() })?;
        let prepared = tun.queues.into_iter().map(without_blocking).collect::<io::Result<Vec<_>>>();
        let tuns = prepared.map_err(StartError::Tun)?;
        let sockets = DataSocket::bind(data_port, queues);
        let failed = |source| StartError::DataPort { port: data_port, source };
        let sockets: Vec<_> = sockets.map_err(failed)?.into_iter().map(Arc::new).collect();
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|error| StartError::Tun(error.into()))?);
        let mut threads = Self { stop: Arc::clone(&stop), threads: Vec::new() };
        let (notice_sender, notices) = mpsc::channel(MAX_NOTICES);
        let (to_tun, chunks) = mpsc::channel(tun_writer::MAX_WAITING_CHUNKS);
        let (Some(first_tun), Some(first_socket)) = (tuns.first().cloned(), sockets.first().cloned()) else {
            return Err(StartError::TunQueues { queues: 0 });
        };
        let port = first_socket.port().map_err(failed)?;
        let ends = TunEnds {
            table: links.table,
            pool: Arc::default(),
            to_tun,
            directory: Arc::default(),
            datagrams: DatagramEnds {
                receivers: Arc::default(),
                forwards: Arc::default(),
                socket: first_socket,
                queues,
                port,
            },
        };
        let since = Instant::now();
        for ((queue, device), socket) in (0..queues).zip(tuns).zip(sockets) {
            let reading = ReaderContext {
                tun: Arc::clone(&device),
                queue,
                socket: Arc::clone(&socket),
                stop: Arc::clone(&stop),
                table: Arc::clone(&ends.table),
                paths: Arc::clone(&ends.directory),
                pool: Arc::clone(&ends.pool),
                counters: Arc::clone(&links.counters),
                kicks: links.kicks.clone(),
            };
            let receiving = ReceiverContext {
                socket,
                tun: device,
                joins_udp: tun.takes_udp,
                stop: Arc::clone(&stop),
                table: Arc::clone(&ends.table),
                receivers: Arc::clone(&ends.datagrams.receivers),
                counters: Arc::clone(&links.counters),
                forwards: Arc::clone(&ends.datagrams.forwards),
                notices: notice_sender.clone(),
                since,
            };
            threads.spawn(format!("culvert-tun-{queue}"), move || tun_reader::run(reading))?;
            threads.spawn(format!("culvert-udp-{queue}"), move || datagram::run(receiving))?;
        }
        let (pool, counters) = (Arc::clone(&ends.pool), links.counters);
        threads.spawn("culvert-tun-tx".to_owned(), move || tun_writer::run(&first_tun, chunks, &pool, &counters))?;
        Ok((ends, notices, threads))
    }

    /// Waits for the end of all threads.
    pub(crate) fn join(mut self) {
        self.signal();
        for thread in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                tracing::error!("a packet thread panicked");
            }
        }
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread = std::thread::Builder::new().name(name).spawn(work).map_err(StartError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    fn signal(&self) {
        if let Err(error) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot stop the packet threads");
        }
    }
}

impl Drop for PacketThreads {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.signal();
        }
    }
}

fn without_blocking(tun: OwnedFd) -> io::Result<Arc<OwnedFd>> {
    let flags = fcntl_getfl(&tun)?;
    fcntl_setfl(&tun, flags | OFlags::NONBLOCK)?;
    Ok(Arc::new(tun))
}
