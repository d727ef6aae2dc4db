//! The thread that receives the datagrams of one queue, opens and judges them, and writes them to the TUN.
//!
//! ```text
//! recvmmsg ─> frame ─> whose? ─> open, once ─> IP packet ─> source, destination ─> coalesce ─> writev
//! ```
//! Everything stays where it was received; each step that fails counts the datagram under its own name.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use culvert_core::membership;
use culvert_core::packet::IpPacket;
use culvert_core::tunnel_table::{InboundDrop, PeerIndex, TunnelTable};
use culvert_datagram::coalesce::Coalescer;
use culvert_datagram::forward::Forwards;
use culvert_datagram::frame::{Datagram, HEADER_BYTES, Kind, RELAY_PREFIX_BYTES, ReceiverIndex, RelayPrefix};
use culvert_datagram::key::OpenError;
use culvert_datagram::segment::Checksum;
use quinn_udp::{BATCH_SIZE, RecvMeta};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::mpsc;

use crate::counters::Counters;
use crate::datagram::forwarder::{Forwarder, relayed_run};
use crate::datagram::keys::ReceiveKeys;
use crate::datagram::peer::{DatagramPeer, Receivers};
use crate::datagram::socket::{DataSocket, canonical};
use crate::datagram::tun_sink::TunSink;

/// Each buffer holds what GRO joins at most.
const BUFFER_BYTES: usize = 65_535;

/// Probes are as long as packets on Ethernet at most; what is longer is none. **Units** bytes.
const MAX_PROBE_BYTES: usize = 1500;

/// What a packet thread tells the mesh's task. When its queue is full it is dropped: all of it comes again.
#[derive(Debug)]
pub(crate) enum Notice {
    /// An authentic packet came from elsewhere than packets to that peer are sent.
    Moved {
        /// The peer.
        peer: membership::PeerId,
        /// Where it came from.
        from: SocketAddr,
        /// The relay it came through.
        relay: Option<RelayPrefix>,
    },
    /// An authentic probe, or the answer to one of ours.
    Probe {
        /// The peer.
        peer: membership::PeerId,
        /// Where it came from.
        from: SocketAddr,
        /// The relay it came through.
        relay: Option<RelayPrefix>,
        /// Which of the two.
        kind: Kind,
        /// What was sealed.
        payload: Vec<u8>,
    },
}

/// What the thread needs.
pub(crate) struct ReceiverContext {
    pub(crate) socket: Arc<DataSocket>,
    pub(crate) tun: Arc<OwnedFd>,
    /// Whether the TUN takes UDP super-packets.
    pub(crate) joins_udp: bool,
    /// Becomes readable when the thread must end.
    pub(crate) stop: Arc<OwnedFd>,
    pub(crate) table: Arc<ArcSwap<TunnelTable>>,
    pub(crate) receivers: Arc<ArcSwap<Receivers>>,
    /// What this node forwards as a relay.
    pub(crate) forwards: Arc<ArcSwap<Forwards>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) notices: mpsc::Sender<Notice>,
    /// The start of all threads: limits count time from here.
    pub(crate) since: Instant,
}

/// Receives until `stop` is readable.
pub(crate) fn run(context: ReceiverContext) {
    let mut slab = vec![0; BATCH_SIZE * BUFFER_BYTES];
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    let mut batch = Batch {
        table: context.table.load_full(),
        receivers: context.receivers.load_full(),
        positions: Vec::new(),
        coalescer: Coalescer::new(context.joins_udp),
        sink: TunSink::new(Arc::clone(&context.tun), Arc::clone(&context.counters)),
        forwarder: Forwarder::new(&context),
        last_moved: None,
        context,
    };
    loop {
        match batch.wait() {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "waiting for datagrams failed"),
        }
        // A full batch means that more may be waiting.
        while receive(&batch.context.socket, &mut slab, &mut metas).is_some_and(|count| {
            batch.refresh();
            batch.take(&mut slab, metas.get(..count).unwrap_or_default());
            count == BATCH_SIZE
        }) {}
    }
}

/// Fills the slab; `None` when nothing is there.
fn receive(socket: &DataSocket, slab: &mut [u8], metas: &mut [RecvMeta; BATCH_SIZE]) -> Option<usize> {
    let mut parts = slab.chunks_mut(BUFFER_BYTES);
    let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
        std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
    match socket.receive(&mut buffers, metas) {
        Ok(count) => Some(count),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => {
            // Such as an ICMP message about a datagram of ours: it has been taken off the socket by being told.
            tracing::debug!(%error, "receiving datagrams failed");
            None
        }
    }
}

/// What one thread keeps from batch to batch.
struct Batch {
    context: ReceiverContext,
    table: Arc<TunnelTable>,
    receivers: Arc<Receivers>,
    /// The table's index of the peer at each position of `receivers`, once it was asked for.
    positions: Vec<Option<Option<PeerIndex>>>,
    coalescer: Coalescer,
    sink: TunSink,
    forwarder: Forwarder,
    last_moved: Option<(ReceiverIndex, SocketAddr)>,
}

/// Who the frames of one run are from.
struct Sender {
    index: ReceiverIndex,
    peer: Arc<DatagramPeer>,
    keys: Arc<ReceiveKeys>,
    in_table: Option<PeerIndex>,
}

/// A frame that was opened.
struct Opening {
    kind: Kind,
    relay: Option<RelayPrefix>,
    checksum: Checksum,
    payload: Range<usize>,
}

impl Batch {
    /// Waits for a datagram or the stop signal; true means stop.
    fn wait(&self) -> io::Result<bool> {
        let mut waits =
            [PollFd::new(&self.context.stop, PollFlags::IN), PollFd::new(&*self.context.socket, PollFlags::IN)];
        match poll(&mut waits, None) {
            Ok(_) => Ok(!waits[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes over a newer table or newer peers.
    fn refresh(&mut self) {
        let (table, receivers) = (self.context.table.load(), self.context.receivers.load());
        if !Arc::ptr_eq(&table, &self.table) || !Arc::ptr_eq(&receivers, &self.receivers) {
            (self.table, self.receivers) = (Arc::clone(&table), Arc::clone(&receivers));
            self.positions.clear();
        }
        self.positions.resize(self.receivers.positions(), None);
    }

    /// Takes all datagrams of a batch, and writes what may pass.
    fn take(&mut self, slab: &mut [u8], metas: &[RecvMeta]) {
        let mut sender = None;
        for (position, meta) in metas.iter().enumerate() {
            let (start, stride) = (position * BUFFER_BYTES, meta.stride.max(1));
            let end = start + meta.len.min(BUFFER_BYTES);
            let mut at = start;
            // What one sender sends to us and through us may arrive joined.
            while at < end {
                let rest = slab.get_mut(at..end).unwrap_or_default();
                let run = relayed_run(rest, stride);
                let taken = rest.get_mut(..run).is_some_and(|run| self.forwarder.takes(run, stride, meta.addr));
                let until = if run > 0 { at + run } else { end.min(at + stride) };
                if !taken {
                    self.take_own(slab, (at..until, stride), meta.addr, &mut sender);
                }
                at = until;
            }
        }
        self.write(slab);
    }

    /// Takes datagrams for this node.
    fn take_own(
        &mut self,
        slab: &mut [u8],
        (places, stride): (Range<usize>, usize),
        from: SocketAddr,
        sender: &mut Option<Sender>,
    ) {
        for at in places.clone().step_by(stride) {
            if self.coalescer.is_full() {
                self.write(slab);
            }
            self.take_one(slab, at..places.end.min(at + stride), from, sender);
        }
    }

    fn write(&mut self, slab: &mut [u8]) {
        let packets = self.coalescer.finish(slab);
        self.sink.write(slab, packets);
        self.coalescer.clear();
    }

    fn take_one(&mut self, slab: &mut [u8], place: Range<usize>, from: SocketAddr, sender: &mut Option<Sender>) {
        let Some(opening) = self.open(slab, place, sender) else { return };
        let Some(sender) = sender else { return };
        match opening.kind {
            Kind::Packet => {
                self.note_address(sender, from, opening.relay);
                self.judge(slab, &opening, sender);
            }
            Kind::Probe | Kind::Answer => self.pass_probe(slab, opening, sender, from),
        }
    }

    /// Opens the frame at `place`, each one once.
    fn open(&mut self, slab: &mut [u8], place: Range<usize>, sender: &mut Option<Sender>) -> Option<Opening> {
        let counters = Arc::clone(&self.context.counters);
        let start = place.start;
        let Ok(datagram) = Datagram::new_checked(slab.get_mut(place)?) else {
            counters.dropped_frame_malformed.add(1);
            return None;
        };
        let (relay, header) = (datagram.relay, *datagram.frame.header());
        if sender.as_ref().is_none_or(|sender| sender.index != header.receiver()) {
            *sender = self.sender(header.receiver());
        }
        let Some(sender) = sender else {
            counters.dropped_frame_unknown.add(1);
            return None;
        };
        match sender.keys.open(datagram.frame) {
            Ok(opened) => {
                let before = if relay.is_some() { RELAY_PREFIX_BYTES } else { 0 };
                let start = start + before + HEADER_BYTES;
                let checksum = if header.flags().partial_checksum { Checksum::Partial } else { Checksum::Complete };
                Some(Opening { kind: header.kind(), relay, checksum, payload: start..start + opened.payload.len() })
            }
            Err(OpenError::Forged) => {
                counters.dropped_frame_forged.add(1);
                None
            }
            Err(OpenError::NoKey) => {
                counters.dropped_frame_no_key.add(1);
                None
            }
            Err(OpenError::Replay(_)) => {
                counters.dropped_frame_replayed.add(1);
                None
            }
        }
    }

    fn sender(&mut self, index: ReceiverIndex) -> Option<Sender> {
        let (position, peer) = self.receivers.find(index)?;
        let slot = self.positions.get_mut(position)?;
        let in_table = *slot.get_or_insert_with(|| self.table.index_of(&peer.name));
        Some(Sender { index, peer: Arc::clone(peer), keys: peer.inbound.load_full(), in_table })
    }

    /// Passes a packet on to the coalescer, or counts why not.
    fn judge(&mut self, slab: &[u8], opening: &Opening, sender: &Sender) {
        let counters = &self.context.counters;
        let bytes = slab.get(opening.payload.clone()).unwrap_or_default();
        let Ok(packet) = IpPacket::new_checked(bytes) else {
            counters.dropped_malformed_in.add(1);
            return;
        };
        let judged =
            sender.in_table.ok_or(InboundDrop::ForeignSource).and_then(|peer| self.table.check_inbound(peer, &packet));
        if let Err(reason) = judged {
            sender.peer.refused.add(1);
            counters.of_inbound_drop(reason).add(1);
            tracing::trace!(source = %packet.source(), destination = %packet.destination(), %reason, "dropped a packet");
            return;
        }
        let pushed = self.coalescer.push(slab, opening.payload.start, &packet, opening.checksum);
        if pushed.is_err() {
            counters.dropped_offload.add(1);
        }
    }

    /// Tells that a peer's packets come from elsewhere than ours are sent, once for each new address.
    fn note_address(&mut self, sender: &Sender, from: SocketAddr, relay: Option<RelayPrefix>) {
        let outbound = sender.peer.outbound.load();
        let Some(outbound) = outbound.as_ref() else { return };
        let from = canonical(from);
        if (outbound.remote == from && outbound.relay == relay) || self.last_moved == Some((sender.index, from)) {
            return;
        }
        self.last_moved = Some((sender.index, from));
        let notice = Notice::Moved { peer: sender.peer.name.clone(), from, relay };
        // A full queue has older news of the same kind; this comes again with the peer's next address.
        let _ = self.context.notices.try_send(notice);
    }

    fn pass_probe(&self, slab: &[u8], opening: Opening, sender: &Sender, from: SocketAddr) {
        let payload = slab.get(opening.payload).filter(|payload| payload.len() <= MAX_PROBE_BYTES);
        let Some(payload) = payload else {
            self.context.counters.dropped_frame_malformed.add(1);
            return;
        };
        let (peer, from, payload) = (sender.peer.name.clone(), canonical(from), payload.to_vec());
        let notice = Notice::Probe { peer, from, relay: opening.relay, kind: opening.kind, payload };
        // Probes that get lost are what their sender measures.
        let _ = self.context.notices.try_send(notice);
    }
}
