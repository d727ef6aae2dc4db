//! Which path datagrams take to a peer: which candidates there are, when each is probed, what the answers say, and
//! which one is best.
//!
//! ```text
//! candidates (told by the peer, or seen) ──> PathSet ──due probes──> the wire
//!                                              ^   └─ answers ─> quality: alive, round trip, loss
//!                                              └─ choice: the best, or the stream when none is alive
//! ```
//! Time is counted from any fixed moment. A probe is authentic when it gets here.

use std::net::SocketAddr;

use crate::membership::PeerId;

mod choice;
mod mtu;
mod quality;
mod set;

pub use choice::{Change, Chooser, Contender, HOLD, MARGIN, MARGIN_PERCENT, RELAY_COST, Reason, SETTLED_ANSWERS};
pub use mtu::{MTU_STEPS, PathMtu, ProbeSize};
pub use quality::{Health, Quality, UNANSWERED_TO_DIE};
pub use set::{BUSY_INTERVAL, IDLE_INTERVAL, MAX_SEEN, MAX_TOLD, PathReport, PathSet, ProbeOrder, QUIET_INTERVAL};

/// A path's number, for this node alone. Not used again for another path of the same peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub u32);

/// Where datagrams are sent to reach a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// To the peer, or to what its NAT shows of it.
    Direct(SocketAddr),
    /// To a relay, which forwards by the index.
    Relayed {
        /// The relay.
        relay: PeerId,
        /// Where it takes datagrams.
        at: SocketAddr,
        /// The reservation's number.
        index: u32,
        /// The reservation's random number.
        tag: u32,
    },
}

impl Endpoint {
    /// Where the datagrams go first.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        match self {
            Self::Direct(remote) => *remote,
            Self::Relayed { at, .. } => *at,
        }
    }

    /// Whether no relay is on the way.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Direct(_))
    }
}

/// How a candidate came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The peer says that it has this address.
    Told,
    /// An authentic frame came from there.
    Seen,
}
