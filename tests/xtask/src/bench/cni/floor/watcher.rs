//! Sees the kernel report that links are gone. It listens only while somebody waits for that, so that an ADD does not
//! share its processor with reports that nobody reads.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// `RTNLGRP_LINK`.
const LINKS: u32 = 1;
/// **Units** bytes. Some thousand reports, of which each takes about 2 KiB.
const RECEIVE_BYTES: usize = 16 << 20;
/// **Units** bytes. The largest report.
const REPORT_BYTES: usize = 32 * 1024;
/// How often the thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(500);
/// How long links may take to be gone.
const BOUND: Duration = Duration::from_secs(20);

/// The thread, and what it saw.
#[derive(Debug)]
pub(super) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: Socket,
    over: AtomicBool,
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    waiting: usize,
    gone: BTreeSet<u32>,
}

/// While it lives, reports are heard.
#[derive(Debug)]
pub(super) struct Listening<'a> {
    shared: &'a Shared,
}

impl Watcher {
    /// Watches the namespace of the calling thread.
    ///
    /// **Errors** the kernel refuses.
    pub(super) fn start() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        socket.bind_auto()?;
        socket.set_rx_buf_sz(RECEIVE_BYTES)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(LOOK))?;
        let (over, seen, changed) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { socket, over, seen, changed });
        let own = Arc::clone(&shared);
        Ok(Self { shared, thread: Some(std::thread::spawn(move || watch(&own))) })
    }

    /// Hears reports from now on.
    ///
    /// **Errors** the kernel refuses.
    pub(super) fn listen(&self) -> Result<Listening<'_>> {
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.waiting == 0 {
            self.shared.socket.add_membership(LINKS).context("cannot listen for reports of links")?;
        }
        seen.waiting += 1;
        Ok(Listening { shared: &self.shared })
    }
}

impl Listening<'_> {
    /// Waits until all these links are gone.
    ///
    /// **Errors** they are still there after 20 s.
    pub(super) fn wait_gone(&self, indexes: &[u32]) -> Result<()> {
        let seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |seen: &mut Seen| !indexes.iter().all(|index| seen.gone.contains(index));
        let waited = self.shared.changed.wait_timeout_while(seen, BOUND, missing);
        let (_seen, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            bail!("the kernel did not report the links {indexes:?} gone within {} s", BOUND.as_secs());
        }
        Ok(())
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.waiting -= 1;
        if seen.waiting == 0 {
            seen.gone.clear();
            // It would hear more than it needs to.
            let _ = self.shared.socket.drop_membership(LINKS);
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // It panics nowhere, and there is nothing left to do if it did.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn watch(shared: &Shared) {
    let mut buffer = vec![0; REPORT_BYTES];
    while !shared.over.load(Ordering::Relaxed) {
        match rustix::net::recv(&shared.socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => {
                let Some(link) = deleted(buffer.get(..length).unwrap_or_default()) else { continue };
                shared.seen.lock().unwrap_or_else(PoisonError::into_inner).gone.insert(link.header.index);
                shared.changed.notify_all();
            }
            // Whoever waits for a report that was lost or never came runs into the bound.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => {}
            Err(_) => return,
        }
    }
}

/// The link that a report says is deleted. That a port has left its bridge is reported with the same words, under the
/// bridge's family.
fn deleted(report: &[u8]) -> Option<LinkMessage> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(report).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) = message.payload else { return None };
    (link.header.interface_family == AddressFamily::Unspec).then_some(link)
}
