//! Writes joined packets to the TUN, one `writev` each, out of the buffer they were received into.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use culvert_datagram::coalesce::{MAX_PIECES, SuperPacket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::counters::Counters;

/// How long a TUN that takes nothing is waited for before a packet is dropped.
const WRITE_LIMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The TUN's queue of one thread.
pub(crate) struct TunSink {
    tun: Arc<OwnedFd>,
    counters: Arc<Counters>,
}

impl TunSink {
    pub(crate) fn new(tun: Arc<OwnedFd>, counters: Arc<Counters>) -> Self {
        Self { tun, counters }
    }

    /// Writes all packets, and counts those that the TUN did not take.
    pub(crate) fn write(&self, buffer: &[u8], packets: &[SuperPacket]) {
        let (mut taken, mut bytes, mut refused) = (0, 0, 0);
        for packet in packets {
            match self.write_one(buffer, packet) {
                Ok(()) => {
                    taken += 1;
                    bytes += u64::try_from(packet.length()).unwrap_or_default();
                }
                Err(error) => {
                    refused += 1;
                    tracing::debug!(%error, "the tun did not take a packet");
                }
            }
        }
        if taken > 0 {
            self.counters.packets_in.add(taken);
            self.counters.bytes_in.add(bytes);
        }
        if refused > 0 {
            self.counters.dropped_tun_refused.add(refused);
        }
    }

    fn write_one(&self, buffer: &[u8], packet: &SuperPacket) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); 1 + MAX_PIECES];
        let pieces = packet.pieces().iter().map(|piece| buffer.get(piece.clone()).unwrap_or_default());
        let parts = std::iter::once(packet.header().as_slice()).chain(pieces);
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        let slices = slices.get(..count).unwrap_or_default();
        let mut waited = false;
        loop {
            match rustix::io::writev(&self.tun, slices) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if !waited => {
                    waited = true;
                    poll(&mut [PollFd::new(&self.tun, PollFlags::OUT)], Some(&WRITE_LIMIT))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
