//! The thread that reads packets from the TUN and queues them for the peer that holds their destination.
//!
//! One lookup and one copy a packet; a batch is handed over when the TUN has nothing more to read,
//! when it is full, or after a bounded burst.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use culvert_core::membership;
use culvert_core::packet::{IpPacket, MAX_FRAME_BYTES, MAX_PACKET_BYTES, VNET_HEADER_BYTES, VnetHeader, append_frame};
use culvert_core::tunnel_table::TunnelTable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use crate::buffers::{BUFFER_BYTES, BufferPool};
use crate::counters::Counters;
use crate::path::{Batch, PathDirectory, PathQueue};

/// Packets read before the batches are handed over even if more are waiting: 64 super-packets take
/// about 2 ms, so a ping among them waits no longer.
const BURST: usize = 64;

/// A batch with more than this has no room for a further largest frame. **Units** bytes.
const FULL: usize = BUFFER_BYTES - MAX_FRAME_BYTES - 4;

/// The swarm is asked at most this often to hurry its dials for a peer that packets wait for.
const KICK_INTERVAL: Duration = Duration::from_secs(1);

/// A TUN that fails to read is tried again after this long; it is down, or about to be replaced.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What the reader needs.
pub(crate) struct ReaderContext {
    pub(crate) tun: Arc<OwnedFd>,
    /// Becomes readable when the thread must end.
    pub(crate) stop: Arc<OwnedFd>,
    pub(crate) table: Arc<ArcSwap<TunnelTable>>,
    pub(crate) paths: Arc<PathDirectory>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) counters: Arc<Counters>,
    /// Peers that packets wait for and no path reaches.
    pub(crate) kicks: mpsc::Sender<membership::PeerId>,
}

/// Reads until `stop` is readable.
pub(crate) fn run(context: ReaderContext) {
    let mut reader = Reader {
        view: View::new(&context),
        packet: vec![0; VNET_HEADER_BYTES + MAX_PACKET_BYTES],
        last_kick: None,
        context,
    };
    loop {
        match reader.wait(true, None) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "waiting for the tun failed"),
        }
        reader.view.refresh(&reader.context);
        if let Err(error) = reader.burst() {
            tracing::warn!(%error, "cannot read the tun; trying again");
            // Waits on the stop signal alone: a broken TUN counts as readable all the time.
            if matches!(reader.wait(false, Some(RETRY_INTERVAL)), Ok(true)) {
                return;
            }
        }
    }
}

struct Reader {
    context: ReaderContext,
    view: View,
    packet: Vec<u8>,
    last_kick: Option<Instant>,
}

impl Reader {
    /// Waits for a packet or the stop signal; true means stop.
    fn wait(&self, with_tun: bool, limit: Option<Duration>) -> io::Result<bool> {
        let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let stop = PollFd::new(&self.context.stop, PollFlags::IN);
        let tun = PollFd::new(&self.context.tun, PollFlags::IN);
        let mut waits = [stop, tun];
        let count = if with_tun { 2 } else { 1 };
        match poll(&mut waits[..count], limit.as_ref()) {
            Ok(_) => Ok(!waits[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what is there, up to [`BURST`] packets, and hands it over.
    fn burst(&mut self) -> io::Result<()> {
        let mut outcome = Ok(());
        for _ in 0..BURST {
            match rustix::io::read(&self.context.tun, self.packet.as_mut_slice()) {
                Ok(count) => self.route(count),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => {
                    outcome = Err(error.into());
                    break;
                }
            }
        }
        self.view.flush(&self.context);
        outcome
    }

    /// Puts the packet just read into the batch of the peer that holds its destination.
    fn route(&mut self, count: usize) {
        let counters = &self.context.counters;
        let record = self.packet.get(..count).unwrap_or_default();
        let parsed = VnetHeader::decode(record).ok().and_then(|header| {
            let packet = IpPacket::new_checked(record.get(VNET_HEADER_BYTES..)?).ok()?;
            Some((header, packet))
        });
        let Some((header, packet)) = parsed else {
            counters.dropped_malformed_out.add(1);
            return;
        };
        let Some(index) = self.view.table.peer_for(packet.destination()) else {
            counters.dropped_no_peer.add(1);
            return;
        };
        let position = index.0 as usize;
        if self.view.append(position, &header, packet.bytes(), &self.context) {
            return;
        }
        counters.dropped_no_path.add(1);
        if let Some(peer) = self.view.table.peer(index) {
            kick(&mut self.last_kick, &self.context.kicks, peer);
        }
    }
}

fn kick(last: &mut Option<Instant>, kicks: &mpsc::Sender<membership::PeerId>, peer: &membership::PeerId) {
    let now = Instant::now();
    if last.is_none_or(|last| now.duration_since(last) >= KICK_INTERVAL) {
        *last = Some(now);
        // A full queue means that the swarm has enough to hurry already.
        let _ = kicks.try_send(peer.clone());
    }
}

/// The table and the rings as they were at the start of a burst, with a batch under way per peer.
struct View {
    table: Arc<TunnelTable>,
    paths: Arc<BTreeMap<membership::PeerId, Arc<PathQueue>>>,
    /// By the table's peer index.
    slots: Vec<Slot>,
    /// Slots with a batch under way, each once.
    dirty: Vec<usize>,
}

#[derive(Default)]
struct Slot {
    queue: Option<Arc<PathQueue>>,
    batch: Option<Batch>,
}

impl View {
    fn new(context: &ReaderContext) -> Self {
        let (table, paths) = (context.table.load_full(), context.paths.load_full());
        let slots = slots(&table, &paths);
        Self { table, paths, slots, dirty: Vec::new() }
    }

    /// Takes over a newer table or newer rings. No batch is under way between bursts.
    fn refresh(&mut self, context: &ReaderContext) {
        let table = context.table.load();
        let paths = context.paths.load();
        if !Arc::ptr_eq(&table, &self.table) || !Arc::ptr_eq(&paths, &self.paths) {
            self.table = Arc::clone(&table);
            self.paths = Arc::clone(&paths);
            self.slots = slots(&self.table, &self.paths);
        }
    }

    /// Appends a frame to the batch of a peer; false when no path reaches it.
    fn append(&mut self, position: usize, header: &VnetHeader, packet: &[u8], context: &ReaderContext) -> bool {
        let Some(slot) = self.slots.get_mut(position) else { return false };
        if !slot.queue.as_ref().is_some_and(|queue| queue.is_ready()) {
            return false;
        }
        if slot.batch.is_none() {
            self.dirty.push(position);
        }
        let batch = slot.batch.get_or_insert_with(|| Batch { chunk: context.pool.take_empty(), packets: 0 });
        if append_frame(&mut batch.chunk.bytes, header, packet).is_err() {
            context.counters.dropped_malformed_out.add(1);
            return true;
        }
        batch.packets += 1;
        if batch.chunk.bytes.len() > FULL {
            self.dirty.retain(|other| *other != position);
            slot.flush(context);
        }
        true
    }

    fn flush(&mut self, context: &ReaderContext) {
        while let Some(position) = self.dirty.pop() {
            if let Some(slot) = self.slots.get_mut(position) {
                slot.flush(context);
            }
        }
    }
}

impl Slot {
    /// Hands the batch over, or drops it when the peer's ring is full.
    fn flush(&mut self, context: &ReaderContext) {
        let (Some(batch), Some(queue)) = (self.batch.take(), &self.queue) else { return };
        let packets = batch.packets;
        // Each frame has a length field and a virtio header in front of its packet.
        let overhead = packets * (VNET_HEADER_BYTES as u64 + 4);
        let bytes = (batch.chunk.bytes.len() as u64).saturating_sub(overhead);
        match queue.push(batch) {
            Ok(()) => {
                context.counters.packets_out.add(packets);
                context.counters.bytes_out.add(bytes);
            }
            Err(batch) => {
                context.counters.dropped_queue_full.add(packets);
                context.pool.put(batch.chunk);
            }
        }
    }
}

fn slots(table: &TunnelTable, paths: &BTreeMap<membership::PeerId, Arc<PathQueue>>) -> Vec<Slot> {
    table.peers().iter().map(|peer| Slot { queue: paths.get(peer).cloned(), batch: None }).collect()
}
