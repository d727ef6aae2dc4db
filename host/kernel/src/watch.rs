//! Tells the daemon that something in the kernel changed, so that it looks again.
//!
//! An event says only what kind of thing changed; what is true now comes from [`Kernel::observe`]. So events
//! of one kind that nobody fetched yet are one event, and the memory is bounded by the number of kinds.
//!
//! [`Kernel::observe`]: crate::Kernel::observe
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use netlink_packet_route::route::RouteHeader;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::batch::{Event, attributes, events};
use crate::error::KernelError;
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

/// The groups of links, addresses, routes and rules.
const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
];
/// `NFNLGRP_NFTABLES`.
const FIREWALL_GROUP: u32 = 7;
/// **Units** bytes. The largest datagram of an event.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// **Units** bytes, of `struct ifinfomsg`.
const LINK_HEADER_BYTES: usize = 16;
/// **Units** bytes, of `struct rtmsg`.
const ROUTE_HEADER_BYTES: usize = 12;
/// Where that has the table, when it fits a byte.
const ROUTE_HEADER_TABLE: usize = 4;

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
    let pending = Arc::new(Pending::default());
    let links = socket(NETLINK_ROUTE, GROUPS)?;
    let filter = socket(NETLINK_NETFILTER, [FIREWALL_GROUP])?;
    let firewall = move |event: Event<'_>| (event.port != own_port).then_some(KernelChange::Firewall);
    let tasks = vec![
        tokio::spawn(follow(links, kind_of, &KernelChange::ALL, Arc::clone(&pending))),
        tokio::spawn(follow(filter, firewall, &[KernelChange::Firewall], Arc::clone(&pending))),
    ];
    Ok(Watch { pending, tasks })
}

/// A socket that hears of these groups.
fn socket(protocol: isize, groups: impl IntoIterator<Item = u32>) -> Result<TokioSocket, KernelError> {
    let mut socket = TokioSocket::new(protocol).map_err(KernelError::Open)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0)).map_err(KernelError::Open)?;
    for group in groups {
        socket.socket_mut().add_membership(group).map_err(KernelError::Open)?;
    }
    Ok(socket)
}

/// Notes what the events on a socket mean; `lost` is what they may have meant when the kernel dropped some.
///
/// Dozens come with each pod and mean nothing, so they are looked at where they lie instead of being decoded.
async fn follow(
    socket: TokioSocket,
    meaning: impl Fn(Event<'_>) -> Option<KernelChange>,
    lost: &'static [KernelChange],
    pending: Arc<Pending>,
) {
    let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
    loop {
        datagram.clear();
        let kinds: BTreeSet<KernelChange> = match socket.recv(&mut datagram).await {
            Ok(_) => events(&datagram).filter_map(&meaning).collect(),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost.iter().copied().collect(),
            Err(error) => {
                tracing::warn!(%error, ?lost, "changes are no longer reported; repairs wait for the next full check");
                return;
            }
        };
        if !kinds.is_empty() {
            pending.add(kinds);
        }
    }
}

/// What an event of links, addresses, routes and rules tells us to look at.
fn kind_of(event: Event<'_>) -> Option<KernelChange> {
    match event.kind {
        // What comes and goes with pods is looked after by whoever makes it.
        libc::RTM_NEWLINK | libc::RTM_DELLINK => (!is_of_a_pod(event.body)).then_some(KernelChange::Links),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Some(KernelChange::Addresses),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => concerns_us(event.body).then_some(KernelChange::Routes),
        libc::RTM_NEWRULE | libc::RTM_DELRULE => Some(KernelChange::Rules),
        _ => None,
    }
}

fn is_of_a_pod(link: &[u8]) -> bool {
    attribute(link, LINK_HEADER_BYTES, libc::IFLA_IFNAME)
        .is_some_and(|name| name.starts_with(POD_LINK_PREFIX.as_bytes()))
}

/// Our table, or the one that decides for the underlay.
fn concerns_us(route: &[u8]) -> bool {
    let in_attribute = attribute(route, ROUTE_HEADER_BYTES, libc::RTA_TABLE);
    let in_attribute = in_attribute.and_then(|value| value.try_into().ok()).map(u32::from_ne_bytes);
    let table = in_attribute.or_else(|| route.get(ROUTE_HEADER_TABLE).copied().map(u32::from));
    table.is_some_and(|table| [u32::from(ROUTE_TABLE), u32::from(RouteHeader::RT_TABLE_MAIN)].contains(&table))
}

/// The value of an attribute behind a header of that length.
fn attribute(body: &[u8], header_bytes: usize, kind: u16) -> Option<&[u8]> {
    attributes(body.get(header_bytes..)?).find(|(found, _)| *found == kind).map(|(_, value)| value)
}
