//! Where a TUN's reader sends by: for each peer, sealed datagrams, or batches for the ring of its stream.
//!
//! A reader thread owns one. It looks at the table, the peers and their keys once a burst, so that no packet waits for
//! any of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_core::membership;
use culvert_core::packet::{Gso, IpPacket, MAX_FRAME_BYTES, VNET_HEADER_BYTES, VnetHeader, append_frame};
use culvert_core::tunnel_table::{PeerIndex, TunnelTable};
use culvert_datagram::segment::{SegmentError, Segments};

use crate::buffers::BUFFER_BYTES;
use crate::counters::Counters;
use crate::datagram::{HeldKey, Outbound, Transmitter};
use crate::path::{Batch, PeerPaths};
use crate::tun_reader::ReaderContext;

/// A batch with more than this has no room for a further largest frame. **Units** bytes.
const FULL: usize = BUFFER_BYTES - MAX_FRAME_BYTES - 4;

/// The table and the peers as they were at the start of a burst, with what is under way.
pub(crate) struct Outlet {
    table: Arc<TunnelTable>,
    paths: Arc<BTreeMap<membership::PeerId, PeerPaths>>,
    /// By the table's peer index.
    slots: Vec<Slot>,
    /// Slots that this burst has used, each once.
    used: Vec<usize>,
    transmitter: Transmitter,
    sent: Sent,
}

/// What a burst sent as datagrams, counted once for all.
#[derive(Default)]
struct Sent {
    packets: u64,
    bytes: u64,
}

/// One peer.
#[derive(Default)]
struct Slot {
    paths: Option<PeerPaths>,
    batch: Option<Batch>,
    /// Whether this burst has looked at the peer's datagrams.
    is_used: bool,
    outbound: Option<Arc<Outbound>>,
    key: Option<HeldKey>,
}

impl Outlet {
    pub(crate) fn new(context: &ReaderContext) -> Self {
        let (table, paths) = (context.table.load_full(), context.paths.load_full());
        let slots = slots(&table, &paths);
        let transmitter = Transmitter::new(Arc::clone(&context.socket), Arc::clone(&context.counters));
        Self { table, paths, slots, used: Vec::new(), transmitter, sent: Sent::default() }
    }

    /// The table of this burst.
    pub(crate) fn table(&self) -> &TunnelTable {
        &self.table
    }

    /// Takes over a newer table or newer peers. Nothing is under way between bursts.
    pub(crate) fn refresh(&mut self, context: &ReaderContext) {
        let table = context.table.load();
        let paths = context.paths.load();
        if !Arc::ptr_eq(&table, &self.table) || !Arc::ptr_eq(&paths, &self.paths) {
            self.table = Arc::clone(&table);
            self.paths = Arc::clone(&paths);
            // The old slots give their keys back first.
            self.slots.clear();
            self.slots = slots(&self.table, &self.paths);
        }
    }

    /// Sends a packet to a peer, or begins to; false when no path reaches it.
    pub(crate) fn send(
        &mut self,
        peer: PeerIndex,
        header: &VnetHeader,
        packet: &IpPacket<'_>,
        context: &ReaderContext,
    ) -> bool {
        let Ok(position) = usize::try_from(peer.0) else { return false };
        let Some(slot) = self.slots.get_mut(position) else { return false };
        if !slot.is_used {
            slot.begin(context.queue);
            self.used.push(position);
        }
        let Some((outbound, key)) = slot.outbound.as_ref().zip(slot.key.as_mut().and_then(HeldKey::key)) else {
            return slot.append(header, packet, context);
        };
        let planned = Segments::plan(header, packet, outbound.mtu_bytes);
        let segments = match planned {
            Ok(segments) => segments,
            Err(error) => {
                count_unsent(&error, &context.counters);
                return true;
            }
        };
        match self.transmitter.push(outbound, key, &segments) {
            Ok(()) => {
                self.sent.packets += 1;
                self.sent.bytes += u64::try_from(packet.bytes().len()).unwrap_or_default();
            }
            Err(error) => {
                context.counters.dropped_not_sealed.add(1);
                tracing::debug!(%error, "a packet was not sealed");
            }
        }
        true
    }

    /// Sends all that is under way.
    pub(crate) fn flush(&mut self, context: &ReaderContext) {
        self.transmitter.flush();
        while let Some(position) = self.used.pop() {
            if let Some(slot) = self.slots.get_mut(position) {
                slot.is_used = false;
                slot.flush(context);
            }
        }
        let Sent { packets, bytes } = std::mem::take(&mut self.sent);
        if packets > 0 {
            context.counters.packets_out.add(packets);
            context.counters.bytes_out.add(bytes);
        }
    }
}

impl Slot {
    /// Looks at how datagrams reach the peer now, and at the key for them.
    fn begin(&mut self, queue: u8) {
        self.is_used = true;
        self.outbound = self.paths.as_ref().and_then(|paths| paths.datagrams.outbound.load_full());
        let Some(outbound) = &self.outbound else {
            self.key = None;
            return;
        };
        if let Some(paths) = &self.paths {
            paths.datagrams.is_busy.store(true, Ordering::Relaxed);
        }
        if self.key.as_ref().is_none_or(|key| !key.is_of(&outbound.keys)) {
            self.key = HeldKey::take(&outbound.keys, queue);
        }
    }

    /// Appends a packet to the batch for the ring; false when no path empties it.
    fn append(&mut self, header: &VnetHeader, packet: &IpPacket<'_>, context: &ReaderContext) -> bool {
        if !self.paths.as_ref().is_some_and(|paths| paths.ring.is_ready()) {
            return false;
        }
        // The far TUN may not take UDP super-packets, and does not say so.
        if header.gso() == Ok(Gso::UdpL4) {
            self.append_datagrams(header, packet, context);
        } else {
            self.append_one(header, packet.bytes(), context);
        }
        true
    }

    fn append_one(&mut self, header: &VnetHeader, packet: &[u8], context: &ReaderContext) {
        let batch = self.batch.get_or_insert_with(|| Batch { chunk: context.pool.take_empty(), packets: 0 });
        if append_frame(&mut batch.chunk.bytes, header, packet).is_err() {
            context.counters.dropped_malformed_out.add(1);
            return;
        }
        batch.packets += 1;
        if batch.chunk.bytes.len() > FULL {
            self.flush(context);
        }
    }

    /// Appends the packets that a UDP super-packet stands for.
    fn append_datagrams(&mut self, header: &VnetHeader, packet: &IpPacket<'_>, context: &ReaderContext) {
        let segments = match Segments::plan(header, packet, packet.bytes().len()) {
            Ok(segments) => segments,
            Err(error) => return count_unsent(&error, &context.counters),
        };
        let mut segment = Vec::new();
        for index in 0..segments.count() {
            segment.resize(segments.length(index), 0);
            match segments.write_single(index, &mut segment) {
                Some(header) => self.append_one(&header, &segment, context),
                None => context.counters.dropped_malformed_out.add(1),
            }
        }
    }

    /// Hands the batch over, or drops it when the peer's ring is full.
    fn flush(&mut self, context: &ReaderContext) {
        let (Some(batch), Some(paths)) = (self.batch.take(), &self.paths) else { return };
        let packets = batch.packets;
        // Each frame has a length field and a virtio header in front of its packet.
        let overhead = packets * (VNET_HEADER_BYTES as u64 + 4);
        let bytes = (batch.chunk.bytes.len() as u64).saturating_sub(overhead);
        match paths.ring.push(batch) {
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

fn count_unsent(error: &SegmentError, counters: &Counters) {
    match error {
        SegmentError::TooBig { .. } => counters.dropped_too_big.add(1),
        SegmentError::Offload(_) | SegmentError::NoTransport { .. } | SegmentError::TooMany { .. } => {
            counters.dropped_malformed_out.add(1);
        }
    }
}

fn slots(table: &TunnelTable, paths: &BTreeMap<membership::PeerId, PeerPaths>) -> Vec<Slot> {
    table.peers().iter().map(|peer| Slot { paths: paths.get(peer).cloned(), ..Slot::default() }).collect()
}
