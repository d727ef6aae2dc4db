//! Seals packets into datagrams and sends them, many with one call.
//!
//! One thread owns one. Datagrams of one length to one address wait in one buffer until the next does not fit.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_datagram::frame::{Flags, HEADER_BYTES, Kind, MAX_DATAGRAM_BYTES, OVERHEAD_BYTES, RELAY_PREFIX_BYTES};
use culvert_datagram::key::{SealError, SealKey};
use culvert_datagram::segment::{Checksum, Segments};

use crate::counters::Counters;
use crate::datagram::peer::Outbound;
use crate::datagram::socket::DataSocket;

/// The datagrams that wait.
pub(crate) struct Transmitter {
    socket: Arc<DataSocket>,
    counters: Arc<Counters>,
    buffer: Box<[u8]>,
    filled: usize,
    datagrams: usize,
    /// **Units** bytes of each datagram but the last.
    segment: usize,
    /// The last one was shorter: nothing follows it in one call.
    closed: bool,
    to: SocketAddr,
}

impl Transmitter {
    pub(crate) fn new(socket: Arc<DataSocket>, counters: Arc<Counters>) -> Self {
        let buffer = vec![0; MAX_DATAGRAM_BYTES].into_boxed_slice();
        let to = SocketAddr::from(([0; 4], 0));
        Self { socket, counters, buffer, filled: 0, datagrams: 0, segment: 0, closed: false, to }
    }

    /// Seals all segments of a packet. What does not fit into the buffer any more is sent at once.
    ///
    /// **Errors** why the rest of the packet was dropped.
    pub(crate) fn push(
        &mut self,
        outbound: &Outbound,
        key: &mut SealKey,
        segments: &Segments<'_>,
    ) -> Result<(), SealError> {
        let flags = Flags { partial_checksum: segments.checksum() == Checksum::Partial };
        let prefix = outbound.relay.map(|relay| relay.encode());
        let before = if prefix.is_some() { RELAY_PREFIX_BYTES } else { 0 };
        for index in 0..segments.count() {
            let payload = segments.length(index);
            let length = before + OVERHEAD_BYTES + payload;
            let no_room = SealError::NoRoom { have: MAX_DATAGRAM_BYTES };
            let datagram = self.room(length, outbound.remote).ok_or(no_room)?;
            let (front, frame) = datagram.split_at_mut_checked(before).ok_or(no_room)?;
            front.copy_from_slice(prefix.as_ref().map_or(&[], |prefix| prefix.as_slice()));
            let place = frame.get_mut(HEADER_BYTES..HEADER_BYTES + payload).ok_or(no_room)?;
            segments.write(index, place).ok_or(no_room)?;
            key.seal(Kind::Packet, flags, frame)?;
            self.took(length);
        }
        Ok(())
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self) {
        let (datagrams, batch) = (self.datagrams, self.buffer.get(..self.filled).unwrap_or_default());
        if datagrams == 0 {
            return;
        }
        if let Err(error) = self.socket.send(batch, self.segment, self.to) {
            self.note_failure(&error);
        }
        (self.filled, self.datagrams, self.closed) = (0, 0, false);
    }

    /// Room for a datagram behind those that wait; they are sent first when they cannot go with it.
    fn room(&mut self, length: usize, to: SocketAddr) -> Option<&mut [u8]> {
        let fits = !self.closed
            && self.to == to
            && length <= self.segment
            && self.filled + length <= self.buffer.len()
            && self.datagrams < self.socket.max_segments();
        if self.datagrams > 0 && !fits {
            self.flush();
        }
        if self.datagrams == 0 {
            (self.segment, self.to) = (length, to);
        }
        self.buffer.get_mut(self.filled..self.filled + length)
    }

    fn took(&mut self, length: usize) {
        self.filled += length;
        self.datagrams += 1;
        self.closed = length < self.segment;
    }

    fn note_failure(&self, error: &io::Error) {
        self.counters.dropped_send_failed.add(u64::try_from(self.datagrams).unwrap_or(u64::MAX));
        tracing::debug!(to = %self.to, datagrams = self.datagrams, bytes = self.filled, %error, "datagrams were not sent");
    }
}
