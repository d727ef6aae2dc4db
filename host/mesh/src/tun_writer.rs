//! The thread that writes packets from all peers to the TUN, one `write` a packet.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use crate::buffers::{BufferPool, Chunk};
use crate::counters::Counters;
use crate::receive::packet_bytes;

/// Chunks that wait for the TUN. When it is full the receiving tasks wait, and their peers with them.
pub(crate) const MAX_WAITING_CHUNKS: usize = 8;

/// How long a TUN that takes nothing is waited for before a packet is dropped.
const WRITE_LIMIT: Duration = Duration::from_millis(100);

/// Writes until all senders of `chunks` are gone.
pub(crate) fn run(tun: &OwnedFd, mut chunks: mpsc::Receiver<Chunk>, pool: &BufferPool, counters: &Arc<Counters>) {
    while let Some(chunk) = chunks.blocking_recv() {
        for range in &chunk.packets {
            let Some(record) = chunk.bytes.get(range.clone()) else { continue };
            match write(tun, record) {
                Ok(()) => {
                    counters.packets_in.add(1);
                    counters.bytes_in.add(packet_bytes(range));
                }
                Err(error) => {
                    counters.dropped_tun_refused.add(1);
                    tracing::debug!(%error, "the tun did not take a packet");
                }
            }
        }
        pool.put(chunk);
    }
}

/// Writes one virtio header with its packet; a TUN takes it whole or not at all.
fn write(tun: &OwnedFd, record: &[u8]) -> io::Result<()> {
    let mut waited = false;
    loop {
        match rustix::io::write(tun, record) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) if !waited => {
                waited = true;
                let limit = Timespec::try_from(WRITE_LIMIT).map_err(io::Error::other)?;
                poll(&mut [PollFd::new(tun, PollFlags::OUT)], Some(&limit))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
