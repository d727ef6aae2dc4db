//! Waits until the kernel has nothing left to do with links: deletions go on, under the lock of all interfaces, after they
//! were reported, and the next call would pay for them.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use culvert_lab::namespace::Place;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::net::{RecvFlags, SendFlags};

use super::pod_namespace;

/// The loopback's index in every namespace.
const LOOPBACK: u32 = 1;
/// **Units** bytes. The largest answer.
const ANSWER_BYTES: usize = 4096;

/// A socket in a namespace whose loopback is up.
#[derive(Debug)]
pub(super) struct Settler {
    socket: Mutex<Socket>,
}

impl Settler {
    /// Opens it.
    ///
    /// **Errors** the kernel refuses.
    pub(super) fn in_place(place: &Place) -> Result<Self> {
        let socket = pod_namespace::inside(&place.path(), || {
            let mut socket = Socket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
            socket.bind_auto()?;
            Ok(socket)
        })?;
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// Asks for what is so already, which takes the lock: whoever holds it is done when the answer comes.
    ///
    /// **Errors** the kernel does not answer.
    pub(super) fn settle(&self) -> Result<()> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut link = LinkMessage::default();
        link.header.index = LOOPBACK;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::SetLink(link));
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        rustix::net::send(&*socket, &bytes, SendFlags::empty()).context("cannot send to the kernel")?;
        let mut answer = vec![0; ANSWER_BYTES];
        rustix::net::recv(&*socket, &mut answer[..], RecvFlags::empty()).context("no answer of the kernel")?;
        Ok(())
    }
}
