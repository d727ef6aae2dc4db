//! The asynchronous netlink connection: dumps and single requests, one at a time.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use std::io;

use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::tc::TcMessage;
use rtnetlink::{Handle, IpVersion};
use tokio::task::JoinHandle;

use crate::error::KernelError;
use crate::message::Request;

/// One netlink connection. Every method takes `&mut self`, so requests never overlap.
pub(crate) struct Rtnl {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Rtnl {
    /// Connect, in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, KernelError> {
        let (connection, handle, _unasked) = rtnetlink::new_connection().map_err(KernelError::Open)?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// All links of the namespace.
    pub(crate) async fn links(&mut self) -> Result<Vec<LinkMessage>, KernelError> {
        self.handle.link().get().execute().try_collect().await.map_err(|error| failed("list links", error))
    }

    /// The link of that name, if there is one.
    pub(crate) async fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, KernelError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let answer: Result<Vec<LinkMessage>, _> = request.execute().try_collect().await;
        match answer {
            Ok(links) => Ok(links.into_iter().next()),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => Err(failed(&format!("look up link {name}"), error)),
        }
    }

    /// All addresses of the namespace.
    pub(crate) async fn addresses(&mut self) -> Result<Vec<AddressMessage>, KernelError> {
        self.handle.address().get().execute().try_collect().await.map_err(|error| failed("list addresses", error))
    }

    /// All rules of a family.
    pub(crate) async fn rules(&mut self, family: IpVersion) -> Result<Vec<RuleMessage>, KernelError> {
        self.handle
            .rule()
            .get(family)
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list routing rules", error))
    }

    /// All routes that match `filter`'s family, of every table.
    pub(crate) async fn routes(&mut self, filter: RouteMessage) -> Result<Vec<RouteMessage>, KernelError> {
        self.handle.route().get(filter).execute().try_collect().await.map_err(|error| failed("list routes", error))
    }

    /// The route the kernel would take; `None` when it has none.
    pub(crate) async fn route_to(&mut self, query: RouteMessage) -> Result<Option<RouteMessage>, KernelError> {
        let answer: Result<Vec<RouteMessage>, _> = self.handle.route().get(query).execute().try_collect().await;
        match answer {
            Ok(routes) => Ok(routes.into_iter().next()),
            Err(rtnetlink::Error::NetlinkError(message))
                if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES].contains(&-message.raw_code()) =>
            {
                Ok(None)
            }
            Err(error) => Err(failed("look up a route", error)),
        }
    }

    /// The whole neighbour table.
    pub(crate) async fn neighbours(&mut self) -> Result<Vec<NeighbourMessage>, KernelError> {
        self.handle.neighbours().get().execute().try_collect().await.map_err(|error| failed("list neighbours", error))
    }

    /// All queueing disciplines of the namespace.
    pub(crate) async fn disciplines(&mut self) -> Result<Vec<TcMessage>, KernelError> {
        let answer = self.handle.qdisc().get().execute().try_collect().await;
        answer.map_err(|error| failed("list queueing disciplines", error))
    }

    /// The filters that see what comes in by a link.
    pub(crate) async fn ingress_filters(&mut self, index: u32) -> Result<Vec<TcMessage>, KernelError> {
        let mut link = self.handle.traffic_filter(i32::try_from(index).unwrap_or(i32::MAX));
        let answer = link.get().ingress().execute().try_collect().await;
        answer.map_err(|error| failed("list filters", error))
    }

    /// Ask for one change and wait for its acknowledgement.
    pub(crate) async fn request(&mut self, action: &str, request: Request) -> Result<(), KernelError> {
        let mut message = NetlinkMessage::from(request.message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
        let mut answer = self.handle.request(message).map_err(|error| failed(action, error))?;
        while let Some(reply) = answer.next().await {
            if let NetlinkPayload::Error(error) = reply.payload
                && error.code.is_some()
            {
                return Err(refused(action, error.raw_code()));
            }
        }
        Ok(())
    }

    /// The same, where being told one of `fine` means that there was nothing left to do.
    pub(crate) async fn request_unless(
        &mut self,
        action: &str,
        request: Request,
        fine: &[i32],
    ) -> Result<(), KernelError> {
        match self.request(action, request).await {
            Err(KernelError::Refused { source, .. })
                if source.raw_os_error().is_some_and(|code| fine.contains(&code)) =>
            {
                Ok(())
            }
            answer => answer,
        }
    }
}

/// What the kernel's negative error number means.
fn refused(action: &str, raw_code: i32) -> KernelError {
    KernelError::Refused { action: action.to_owned(), source: io::Error::from_raw_os_error(-raw_code) }
}

/// Our words for the library's.
fn failed(action: &str, error: rtnetlink::Error) -> KernelError {
    match &error {
        rtnetlink::Error::NetlinkError(message) if message.code.is_some() => refused(action, message.raw_code()),
        _ => KernelError::NoAnswer { action: action.to_owned(), detail: error.to_string() },
    }
}
