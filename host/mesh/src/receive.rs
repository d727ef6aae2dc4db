//! Packets from one peer: reads its data stream, judges every packet, and hands what may pass to the
//! TUN's writer. One task a peer; when the writer is behind, the task waits, and so does the peer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_core::membership;
use culvert_core::packet::{FrameError, IpPacket, VNET_HEADER_BYTES, VnetHeader, next_frame};
use culvert_core::tunnel_table::{InboundDrop, PeerIndex, TunnelTable};
use futures::AsyncReadExt as _;
use libp2p::Stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::buffers::{BufferPool, Chunk};
use crate::counters::{Count, Counters};
use crate::stream_head::StreamHead;

/// How long packets of a peer's new stream wait for the rest of its old one, so that none overtakes
/// another. A peer that restarted has another session, and is not waited for.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// The length field of a frame.
const LENGTH_BYTES: usize = 4;

/// What a receiving task needs.
#[derive(Clone)]
pub(crate) struct ReceiveContext {
    pub(crate) peer: membership::PeerId,
    pub(crate) table: Arc<ArcSwap<TunnelTable>>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) to_tun: mpsc::Sender<Chunk>,
    pub(crate) counters: Arc<Counters>,
    /// What this peer alone was refused by the source or destination check.
    pub(crate) refused: Arc<Count>,
}

/// Receives from the peer's newest data stream until `streams` ends.
pub(crate) async fn receive(context: ReceiveContext, mut streams: mpsc::Receiver<(StreamHead, Stream)>) {
    let mut current: Option<Inbound> = None;
    loop {
        let next = match &mut current {
            None => streams.recv().await,
            Some(inbound) => tokio::select! {
                biased;
                read = inbound.read(&context) => {
                    if !inbound.goes_on(read, &context) {
                        current = None;
                    }
                    continue;
                }
                next = streams.recv() => next,
            },
        };
        let Some((head, stream)) = next else { break };
        if let Some(old) = current.take_if(|old| old.head.session == head.session) {
            if head.serial < old.head.serial {
                // It was overtaken by a newer one; its sender has given it up.
                current = Some(old);
                continue;
            }
            drain(old, &context).await;
        }
        current = Some(Inbound { head, stream, chunk: context.pool.take_full(), filled: 0, consumed: 0, fault: None });
    }
}

/// Reads a replaced stream to its end, in bounded time.
async fn drain(mut old: Inbound, context: &ReceiveContext) {
    let deadline = Instant::now() + DRAIN_LIMIT;
    while let Ok(read) = timeout_at(deadline, old.read(context)).await {
        if !old.goes_on(read, context) {
            return;
        }
    }
    tracing::debug!(peer = %context.peer, "a replaced data stream did not end in time");
}

/// One data stream of a peer.
struct Inbound {
    head: StreamHead,
    stream: Stream,
    chunk: Chunk,
    /// Bytes of the chunk that arrived.
    filled: usize,
    /// Bytes of the chunk that were whole frames.
    consumed: usize,
    /// Why nothing can be read after them.
    fault: Option<FrameError>,
}

impl Inbound {
    /// Reads once and passes on what is complete. **Cancel safety** nothing is lost: what was read
    /// and not passed on is passed on by the next call.
    async fn read(&mut self, context: &ReceiveContext) -> io::Result<()> {
        if !self.chunk.packets.is_empty() {
            self.hand_over(context).await?;
        }
        if let Some(fault) = self.fault.take() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
        }
        let count = self.stream.read(&mut self.chunk.bytes[self.filled..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled += count;
        // What came before the fault was whole, and passes.
        self.fault = self.sort(context).err();
        self.hand_over(context).await
    }

    /// Whether the stream is still good after a read; says why not.
    fn goes_on(&self, read: io::Result<()>, context: &ReceiveContext) -> bool {
        let Err(error) = read else { return true };
        if error.kind() == io::ErrorKind::InvalidData {
            context.counters.data_streams_malformed.add(1);
            tracing::warn!(peer = %context.peer, %error, "ended a data stream");
        } else {
            tracing::debug!(peer = %context.peer, %error, "a data stream ended");
        }
        false
    }

    /// Finds the whole frames and notes those that may pass.
    fn sort(&mut self, context: &ReceiveContext) -> Result<(), FrameError> {
        let table = context.table.load();
        let index = table.index_of(&context.peer);
        while let Some((frame, taken)) = next_frame(&self.chunk.bytes[self.consumed..self.filled])? {
            if admit(&table, index, &frame.header, frame.packet, context) {
                self.chunk.packets.push(self.consumed + LENGTH_BYTES..self.consumed + taken);
            }
            self.consumed += taken;
        }
        Ok(())
    }

    /// Gives the chunk to the writer and goes on in a fresh one, with the frame that is arriving.
    async fn hand_over(&mut self, context: &ReceiveContext) -> io::Result<()> {
        if self.chunk.packets.is_empty() {
            self.chunk.bytes.copy_within(self.consumed..self.filled, 0);
        } else {
            let place = context.to_tun.reserve().await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            let mut fresh = context.pool.take_full();
            fresh.bytes[..self.filled - self.consumed].copy_from_slice(&self.chunk.bytes[self.consumed..self.filled]);
            place.send(std::mem::replace(&mut self.chunk, fresh));
        }
        self.filled -= self.consumed;
        self.consumed = 0;
        Ok(())
    }
}

/// Judges one packet, and counts it if it must not pass.
fn admit(
    table: &TunnelTable,
    peer: Option<PeerIndex>,
    header: &VnetHeader,
    bytes: &[u8],
    context: &ReceiveContext,
) -> bool {
    let counters = &context.counters;
    let Ok(packet) = IpPacket::new_checked(bytes) else {
        counters.dropped_malformed_in.add(1);
        return false;
    };
    let judged = peer.ok_or(InboundDrop::ForeignSource).and_then(|peer| table.check_inbound(peer, &packet));
    match judged {
        Err(reason) => {
            context.refused.add(1);
            counters.of_inbound_drop(reason).add(1);
        }
        Ok(()) if header.admit(&packet).is_err() => counters.dropped_offload.add(1),
        Ok(()) => return true,
    }
    tracing::trace!(source = %packet.source(), destination = %packet.destination(), "dropped a packet from a peer");
    false
}

/// The packet's own length in a range that starts with its virtio header.
pub(crate) fn packet_bytes(range: &std::ops::Range<usize>) -> u64 {
    range.len().saturating_sub(VNET_HEADER_BYTES) as u64
}
