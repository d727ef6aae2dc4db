//! The thread that reads packets from one queue of the TUN and gives them to the `outlet` of the peer that holds
//! their destination.
//!
//! One lookup and one copy a packet; what is under way is sent when the TUN has nothing more to read, when it is
//! full, or after a bounded burst.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use culvert_core::membership;
use culvert_core::packet::{IpPacket, MAX_PACKET_BYTES, VNET_HEADER_BYTES, VnetHeader};
use culvert_core::tunnel_table::TunnelTable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use crate::buffers::BufferPool;
use crate::counters::Counters;
use crate::datagram::DataSocket;
use crate::outlet::Outlet;
use crate::path::PathDirectory;

/// Packets read before the batches are handed over even if more are waiting: 64 super-packets take
/// about 2 ms, so a ping among them waits no longer.
const BURST: usize = 64;

/// The swarm is asked at most this often to hurry its dials for a peer that packets wait for.
const KICK_INTERVAL: Duration = Duration::from_secs(1);

/// A TUN that fails to read is tried again after this long; it is down, or about to be replaced.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What the reader needs.
pub(crate) struct ReaderContext {
    pub(crate) tun: Arc<OwnedFd>,
    /// The number of the TUN's queue.
    pub(crate) queue: u8,
    /// Where its datagrams leave.
    pub(crate) socket: Arc<DataSocket>,
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
        outlet: Outlet::new(&context),
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
        reader.outlet.refresh(&reader.context);
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
    outlet: Outlet,
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
        self.outlet.flush(&self.context);
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
        let Some(index) = self.outlet.table().peer_for(packet.destination()) else {
            counters.dropped_no_peer.add(1);
            return;
        };
        if self.outlet.send(index, &header, &packet, &self.context) {
            return;
        }
        counters.dropped_no_path.add(1);
        if let Some(peer) = self.outlet.table().peer(index) {
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
