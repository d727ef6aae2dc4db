//! A relay's part of a receiver thread: sends datagrams on to the other end of their reservation.
//!
//! What GRO joined is sent on with one call, out of the buffer it was received into; eight bytes of each datagram
//! are changed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use culvert_datagram::forward::{ForwardError, Forwards};
use culvert_datagram::frame::RelayPrefix;

use crate::counters::Counters;
use crate::datagram::receiver::ReceiverContext;
use crate::datagram::socket::{DataSocket, canonical};

/// What a thread forwards by.
pub(crate) struct Forwarder {
    forwards: Arc<ArcSwap<Forwards>>,
    socket: Arc<DataSocket>,
    counters: Arc<Counters>,
    /// Time is counted from here.
    since: Instant,
}

impl Forwarder {
    pub(crate) fn new(context: &ReceiverContext) -> Self {
        Self {
            forwards: Arc::clone(&context.forwards),
            socket: Arc::clone(&context.socket),
            counters: Arc::clone(&context.counters),
            since: context.since,
        }
    }

    /// Forwards datagrams with one prefix, or drops them, if they are for another node; false when they are for this
    /// one.
    pub(crate) fn takes(&self, datagrams: &mut [u8], stride: usize, from: SocketAddr) -> bool {
        if datagrams.is_empty() {
            return false;
        }
        let count = u64::try_from(datagrams.len().div_ceil(stride)).unwrap_or(u64::MAX);
        let prepared = self.forwards.load().prepare(datagrams, stride, canonical(from), self.since.elapsed());
        match prepared {
            Err(ForwardError::Unknown) => return false,
            Err(ForwardError::Refused) => self.counters.dropped_relay_refused.add(count),
            Err(ForwardError::Waiting) => self.counters.dropped_relay_waiting.add(count),
            // As many as the quota allows pass, however the kernel joined them.
            Err(ForwardError::OverQuota) if count > 1 => {
                for datagram in datagrams.chunks_mut(stride) {
                    self.takes(datagram, stride, from);
                }
            }
            Err(ForwardError::OverQuota) => self.counters.dropped_relay_quota.add(count),
            Ok(to) => match self.socket.send(datagrams, stride, to) {
                Ok(()) => {
                    self.counters.relayed_datagrams.add(count);
                    self.counters.relayed_bytes.add(u64::try_from(datagrams.len()).unwrap_or(u64::MAX));
                }
                Err(error) => {
                    self.counters.dropped_send_failed.add(count);
                    tracing::debug!(%to, datagrams = count, %error, "relayed datagrams were not sent");
                }
            },
        }
        true
    }
}

/// **Units** bytes of the datagrams at the front that begin with one and the same relay prefix; 0 when the first has
/// none.
pub(crate) fn relayed_run(datagrams: &[u8], stride: usize) -> usize {
    let Some(prefix) = RelayPrefix::first_of(datagrams) else { return 0 };
    let run = datagrams.chunks(stride).take_while(|datagram| RelayPrefix::first_of(datagram) == Some(prefix));
    run.map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use super::relayed_run;

    #[test]
    fn a_run_ends_where_another_prefix_or_none_begins() {
        let relayed = |last: u8| [0x80, 0, 0, 1, 0, 0, 0, last, 9, 9];
        let own = [1; 10];
        let of = |parts: &[[u8; 10]]| relayed_run(&parts.concat(), 10);
        assert_eq!(of(&[relayed(1), relayed(1), relayed(2)]), 20);
        assert_eq!(of(&[relayed(1), own, relayed(1)]), 10);
        assert_eq!(of(&[own, relayed(1)]), 0);
        assert_eq!(relayed_run(&[relayed(1), relayed(1)].concat()[..18], 10), 18);
        assert_eq!(relayed_run(&[relayed(1), relayed(1)].concat()[..13], 10), 10);
        assert_eq!(relayed_run(&[], 10), 0);
    }
}
