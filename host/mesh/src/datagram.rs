//! The datagram path: packets between the TUN and peers as sealed datagrams on UDP, by threads of their own.
//!
//! ```text
//! TUN queue ─> reader thread: outlet ─> Transmitter ══ UDP ══> receiver thread ─> TunSink ─> TUN queue
//!                                ^                                   ^
//!                     DatagramPeer::outbound              Receivers, DatagramPeer::inbound
//!                                └──────────── the mesh's task ──────┘
//! ```
//! No packet meets a lock, a channel or an allocation. The mesh's task decides who is reached how, and with which keys.

mod forwarder;
mod keys;
mod peer;
mod receiver;
mod socket;
mod steering;
mod transmitter;
mod tun_sink;

pub(crate) use keys::{HeldKey, ReceiveKeys, SendKeys};
pub(crate) use peer::{DatagramPeer, Outbound, Receivers};
pub(crate) use receiver::{Notice, ReceiverContext, run};
pub(crate) use socket::DataSocket;
pub(crate) use transmitter::Transmitter;

#[cfg(test)]
mod tests;
