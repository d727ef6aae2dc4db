//! The datagram protocol between two nodes, and nothing else: no sockets, no clock, no randomness, no runtime.
//!
//! The engine in `mesh` brings packets, bytes, time and random numbers in as arguments, and carries the answers out.
//!
//! ```text
//! sending     TUN super-packet ─> segment ─> key::SealKey ─> frame ─> UDP
//! receiving   UDP ─> frame ─> key_set::InboundKeys (key::OpenKey, replay) ─> coalesce ─> TUN super-packet
//! relaying    UDP ─> forward ─> UDP
//! keys        agreement  (messages on the authenticated control stream) ─> key_set
//! paths       probe      (measures a path; sealed like every other frame)
//! ```

pub mod agreement;
mod checksum;
pub mod coalesce;
pub mod forward;
pub mod frame;
pub mod key;
pub mod key_set;
pub mod probe;
pub mod rate;
pub mod replay;
pub mod segment;
mod transport;

#[cfg(test)]
mod sample;
