//! What the mesh counts. Names are those of the metrics; each says what it does not count.

use std::sync::atomic::{AtomicU64, Ordering};

use culvert_core::tunnel_table::InboundDrop;

/// A number that only grows. Any thread may add to it.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Adds to the number.
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// The number now.
    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// The live counters, shared by all threads of one mesh.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: Count,)+
        }

        /// All counters of a mesh since it started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct MeshCounters {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Counters {
            /// All counters as they are now. Each is exact; together they are not one instant.
            pub(crate) fn snapshot(&self) -> MeshCounters {
                MeshCounters { $($name: self.$name.read(),)+ }
            }
        }

        impl MeshCounters {
            /// Every counter with its name, in a fixed order.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

counters! {
    /// Packets from peers that were written to the TUN. A super-packet counts once.
    packets_in,
    /// **Units** bytes of those packets, without frame and virtio header.
    bytes_in,
    /// Packets from the TUN that were handed to a path. A super-packet counts once; one lost later on a path that broke is not taken off.
    packets_out,
    /// **Units** bytes of those packets.
    bytes_out,
    /// Packets from the TUN whose destination no peer holds.
    dropped_no_peer,
    /// Packets from the TUN for a peer that no path reaches now.
    dropped_no_path,
    /// Packets from the TUN for a peer whose queue is full.
    dropped_queue_full,
    /// Packets from the TUN that are no IP packet.
    dropped_malformed_out,
    /// Packets that were in flight on a path when it broke. What the system's own buffers held is not known.
    dropped_path_broken,
    /// Packets from a peer that are no IP packet.
    dropped_malformed_in,
    /// Packets from a peer whose virtio header does not fit them.
    dropped_offload,
    /// Packets from a peer with a source that is not that peer's.
    dropped_foreign_source,
    /// Packets from a peer to an address that is not this node's.
    dropped_foreign_destination,
    /// Packets from a peer to an address that no pod can have.
    dropped_forbidden_destination,
    /// Packets that the TUN did not take.
    dropped_tun_refused,
    /// Packets from the TUN that are larger than the path takes, and that must not be cut.
    dropped_too_big,
    /// Packets from the TUN that their key did not seal: it has sealed as many as it may, and newer keys are late.
    dropped_not_sealed,
    /// Datagrams that the system did not send.
    dropped_send_failed,
    /// Datagrams that are no frame, whoever sent them.
    dropped_frame_malformed,
    /// Datagrams that this node sent on as a relay.
    relayed_datagrams,
    /// **Units** bytes of those, with their frames' headers.
    relayed_bytes,
    /// Datagrams with the relay index of a reservation, but not its tag, or without a frame.
    dropped_relay_refused,
    /// Datagrams to relay to an end that has not shown itself.
    dropped_relay_waiting,
    /// Datagrams to relay from an end that has used its share.
    dropped_relay_quota,
    /// Frames with a receiver index that was not given out: strangers, or a peer that missed our restart.
    dropped_frame_unknown,
    /// Frames of a peer for an epoch or queue without a key: too early, or too late.
    dropped_frame_no_key,
    /// Frames that do not open: somebody else made them.
    dropped_frame_forged,
    /// Frames that were received before, or are too far behind to tell.
    dropped_frame_replayed,
    /// Data streams ended because their framing was broken.
    data_streams_malformed,
    /// Control streams ended because a message was no message.
    control_streams_malformed,
    /// Streams refused because the peer had too many.
    streams_refused,
    /// Messages of a kind this version does not know. They are ignored.
    messages_unknown,
    /// Records not told to a peer because its queue was full.
    tells_dropped,
    /// Agreements on data keys that came to nothing, on either side. Those whose peer just went away count too.
    key_agreements_failed,
    /// Times that a peer's packets were moved to another path, the stream included.
    path_changes,
    /// Connections ended at the door. Those that broke before their encryption stood are not counted.
    strangers_refused,
    /// Connections whose other end left before it had proved anything: dials that another one overtook, and passers-by.
    left_at_the_door,
    /// Incoming connections refused because there were too many already.
    connections_denied,
    /// Probes of this node's address that were answered.
    probes_answered,
    /// Dials that reached nobody, or somebody else.
    dials_failed,
}

impl Counters {
    /// What counts packets from a peer that failed the source or destination check.
    pub(crate) fn of_inbound_drop(&self, reason: InboundDrop) -> &Count {
        match reason {
            InboundDrop::ForeignSource => &self.dropped_foreign_source,
            InboundDrop::ForeignDestination => &self.dropped_foreign_destination,
            InboundDrop::ForbiddenDestination => &self.dropped_forbidden_destination,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Counters;

    #[test]
    fn a_snapshot_holds_what_was_counted() {
        let counters = Counters::default();
        counters.packets_in.add(2);
        counters.bytes_in.add(3000);
        let snapshot = counters.snapshot();
        assert_eq!((snapshot.packets_in, snapshot.bytes_in, snapshot.packets_out), (2, 3000, 0));
        assert_eq!(snapshot.list().first(), Some(&("packets_in", 2)));
    }
}
