//! The peer-to-peer layer: identity, admission by pre-shared key, connections direct and through
//! relays, control streams, and the data path between the TUN and the peers.
//!
//! ```text
//! owner ── MeshHandle ──> swarm task ──> libp2p: QUIC | TCP+Noise+Yamux | circuits, all behind the door
//!       <── MeshEvent ──      │
//!                             └─ per peer: control stream (ask, tell), data stream (a path)
//! TUN ──reader thread──> datagrams ══> peer ──> receiver thread: checks ──> TUN
//!                   └──> ring per peer ──> stream ══> peer ──> checks ──> writer thread ──> TUN
//! ```
//! It carries what others decide: which record counts, who holds a block and where a packet goes is
//! core's business; when to dial whom is decided in `dial` and `peer`, without I/O.

mod address;
mod admission;
mod behaviour;
mod buffers;
mod config;
mod control;
mod counters;
mod data_message;
mod datagram;
mod datagram_link;
mod dial;
mod event;
mod handle;
mod hex;
mod identity;
mod lanes;
mod message;
mod outlet;
mod own_endpoints;
mod packet_threads;
mod path;
mod peer;
mod pre_shared_key;
mod probe;
mod proof;
mod receive;
mod record;
mod relay;
mod stream_head;
mod stream_path;
mod swarm;
mod transport;
mod tun_reader;
mod tun_writer;

#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one kind of event and passes over the rest")]
mod tests;

pub use address::{AddressError, AdvertisedAddress, DEFAULT_RELAY_PORT};
pub use config::{MeshConfig, MeshLimits, PeerEndpoint, RelayAddress, TunDevice};
pub use control::AskError;
pub use counters::MeshCounters;
pub use culvert_datagram::frame::MAX_QUEUES as MAX_TUN_QUEUES;
pub use event::{DatagramStatus, MeshEvent, PeerPath, PeerStatus};
pub use handle::{MeshHandle, StartError, start};
pub use identity::{KeyError, NodeKey};
pub use message::{Answer, Ask, MAX_MESSAGE_BYTES};
pub use pre_shared_key::{PreSharedKeyError, PreSharedKeys};
pub use record::{CountersignedRecord, MAX_RECORD_BYTES, RecordError, SignedRecord};
pub use relay::RelayError;
pub use swarm::Audience;
