//! Tells the daemon that something in the kernel changed, so that it looks again.
//!
//! An event says only what kind of thing changed; what is true now comes from [`Kernel::observe`]. So events
//! of one kind that nobody fetched yet are one event, and the memory is bounded by the number of kinds.
//!
//! [`Kernel::observe`]: crate::Kernel::observe
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::batch::is_caused_by;
use crate::error::KernelError;
use crate::message::route::table;
use crate::{POD_LINK_PREFIX, ROUTE_TABLE};

/// The kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelChange {
    /// A link came, went or changed.
    Links,
    /// An address came or went.
    Addresses,
    /// A route of our table or of `main`.
    Routes,
    /// A routing rule.
    Rules,
    /// The rules of the firewall. Only the nft backend of iptables tells.
    Firewall,
}

impl KernelChange {
    /// All kinds: what is reported when the kernel lost count.
    pub const ALL: [Self; 5] = [Self::Links, Self::Addresses, Self::Routes, Self::Rules, Self::Firewall];
}

/// The groups we listen to.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// `NFNLGRP_NFTABLES`.
const FIREWALL_GROUP: u32 = 7;

/// Changes not fetched yet.
#[derive(Default)]
struct Pending {
    kinds: Mutex<BTreeSet<KernelChange>>,
    arrived: Notify,
}

impl Pending {
    fn add(&self, kinds: impl IntoIterator<Item = KernelChange>) {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).extend(kinds);
        self.arrived.notify_one();
    }

    fn take(&self) -> Option<KernelChange> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }
}

/// A running watch; dropping it ends it.
pub struct Watch {
    pending: Arc<Pending>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Watch {
    /// The next change. Waits until there is one.
    ///
    /// **Cancel safety** nothing is lost.
    pub async fn next(&mut self) -> KernelChange {
        loop {
            if let Some(change) = self.pending.take() {
                return change;
            }
            self.pending.arrived.notified().await;
        }
    }
}

/// See [`crate::Kernel::watch`]. `own_port` is the socket whose changes of the packet filter are our own.
pub(crate) fn watch(own_port: u32) -> Result<Watch, KernelError> {
    let (connection, _handle, mut messages) =
        rtnetlink::new_multicast_connection(&GROUPS).map_err(KernelError::Open)?;
    let pending = Arc::new(Pending::default());
    let sink = Arc::clone(&pending);
    let reader = tokio::spawn(async move {
        // The library's queue has no bound of its own; this loop does nothing that could let it grow.
        while let Some((message, _)) = messages.next().await {
            let kinds = kinds_of(&message);
            if !kinds.is_empty() {
                sink.add(kinds);
            }
        }
    });
    let firewall = tokio::spawn(watch_firewall(firewall_socket()?, own_port, Arc::clone(&pending)));
    Ok(Watch { pending, tasks: vec![tokio::spawn(connection), reader, firewall] })
}

/// A socket that hears of every change of the packet filter.
fn firewall_socket() -> Result<TokioSocket, KernelError> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(KernelError::Open)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0)).map_err(KernelError::Open)?;
    socket.socket_mut().add_membership(FIREWALL_GROUP).map_err(KernelError::Open)?;
    Ok(socket)
}

/// Whatever comes on that socket, even a lost message, is a change, unless we made it.
async fn watch_firewall(socket: TokioSocket, own_port: u32, pending: Arc<Pending>) {
    loop {
        match socket.recv_from_full().await {
            Ok((datagram, _)) if is_caused_by(&[own_port], &datagram) => {}
            Ok(_) => pending.add([KernelChange::Firewall]),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => pending.add([KernelChange::Firewall]),
            Err(error) => {
                tracing::warn!(%error, "firewall changes are no longer reported; repairs wait for the next full check");
                return;
            }
        }
    }
}

/// What a message tells us to look at.
fn kinds_of(message: &NetlinkMessage<RouteNetlinkMessage>) -> Vec<KernelChange> {
    let inner = match &message.payload {
        NetlinkPayload::InnerMessage(inner) => inner,
        NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => return KernelChange::ALL.to_vec(),
        _ => return Vec::new(),
    };
    match inner {
        // What comes and goes with pods is looked after by whoever makes it.
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) if is_of_a_pod(link) => Vec::new(),
        RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => {
            vec![KernelChange::Links]
        }
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
            vec![KernelChange::Addresses]
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) if concerns_us(route) => {
            vec![KernelChange::Routes]
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => {
            vec![KernelChange::Rules]
        }
        _ => Vec::new(),
    }
}

fn is_of_a_pod(link: &LinkMessage) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if name.starts_with(POD_LINK_PREFIX)))
}

/// Our table, or the one that decides for the underlay.
fn concerns_us(route: &RouteMessage) -> bool {
    [u32::from(ROUTE_TABLE), u32::from(RouteHeader::RT_TABLE_MAIN)].contains(&table(route))
}
