//! Netlink messages as values: pure builders, one for each thing we ever ask.
//!
//! The same builders serve the batched sends of a plan and the single requests of the node's set-up.

pub(crate) mod address;
pub(crate) mod conntrack;
pub(crate) mod link;
pub(crate) mod nftables;
pub(crate) mod route;
pub(crate) mod traffic;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;

/// Make it; refuse when it is there.
pub(crate) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Make it, or put this in the place of what is there.
pub(crate) const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;
/// Make it if it is missing.
pub(crate) const KEEP: u16 = NLM_F_CREATE;
/// Make it, besides what is there.
pub(crate) const APPEND: u16 = NLM_F_CREATE | NLM_F_APPEND;
/// Change or delete what is there.
pub(crate) const CHANGE: u16 = 0;

/// One message, and how it is to be taken.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// The message.
    pub(crate) message: RouteNetlinkMessage,
    /// Flags besides "request" and "acknowledge".
    pub(crate) flags: u16,
}
