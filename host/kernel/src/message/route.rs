//! Routes of our table, rules that lead to it, and routes inside a pod.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use std::net::IpAddr;

use culvert_core::plan::{KernelRoute, KernelVia, PodRoute};
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::{APPEND, CHANGE, CREATE, REPLACE, Request};
use crate::{ROUTE_PROTOCOL, ROUTE_TABLE, RULE_PRIORITY};

/// The indexes of the links that routes name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteLinks {
    /// The bridge's, if it is there.
    pub(crate) bridge: Option<u32>,
    /// The TUN's, if it is there.
    pub(crate) tun: Option<u32>,
}

/// Add a route, or put it in the place of the one to the same destination.
///
/// Both families swap in one step: there is never a moment without a route, nor with two. `None` when the
/// link it needs is not there.
pub(crate) fn set(route: &KernelRoute, links: RouteLinks) -> Option<Request> {
    let mut message = ours(route.to);
    let header = &mut message.header;
    header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    header.kind = RouteType::Unicast;
    match route.via {
        KernelVia::Bridge => through(&mut message, links.bridge?),
        KernelVia::Tunnel => through(&mut message, links.tun?),
        KernelVia::NextHop(gateway) => message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway))),
        KernelVia::Throw => header.kind = RouteType::Throw,
        KernelVia::Prohibit => header.kind = RouteType::Prohibit,
    }
    // A route that forwards nothing has no source and no MTU; the kernel refuses them there.
    if message.header.kind == RouteType::Unicast {
        message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
        message.attributes.extend(route.mtu_bytes.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    }
    Some(Request { message: RouteNetlinkMessage::NewRoute(message), flags: REPLACE })
}

/// Remove our route to a destination, whichever way it goes.
pub(crate) fn remove(to: IpNet) -> Request {
    let mut message = ours(to);
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::NoWhere;
    Request { message: RouteNetlinkMessage::DelRoute(message), flags: CHANGE }
}

/// Add a route inside a pod, through its link, after those that are there: a second interface leaves the first
/// one's default route in force.
pub(crate) fn pod(index: u32, route: &PodRoute) -> Request {
    let mut message = towards(route.to);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    match route.gateway {
        Some(gateway) => message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway))),
        None => message.header.scope = link_scope(route.to),
    }
    if let Some(scope) = route.scope {
        message.header.scope = RouteScope::from(scope);
    }
    if let Some(table) = route.table {
        message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes.push(RouteAttribute::Table(table));
    }
    message.attributes.extend(route.metric.map(RouteAttribute::Priority));
    let metrics = [route.mtu_bytes.map(RouteMetric::Mtu), route.advertised_mss_bytes.map(RouteMetric::Advmss)];
    let metrics: Vec<RouteMetric> = metrics.into_iter().flatten().collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    Request { message: RouteNetlinkMessage::NewRoute(message), flags: APPEND }
}

/// What to ask to learn the way to an address.
pub(crate) fn query(to: IpAddr) -> RouteMessage {
    towards(IpNet::from(to))
}

/// What to ask to list all routes of a family.
pub(crate) fn list(of: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = of;
    message
}

/// The rule that leads to our table.
pub(crate) fn rule(of: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = of;
    message.header.table = ROUTE_TABLE;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(u32::from(ROUTE_TABLE)),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    message
}

/// Add that rule.
pub(crate) fn add_rule(of: AddressFamily) -> Request {
    Request { message: RouteNetlinkMessage::NewRule(rule(of)), flags: CREATE }
}

/// Remove a rule.
pub(crate) fn remove_rule(message: RuleMessage) -> Request {
    Request { message: RouteNetlinkMessage::DelRule(message), flags: CHANGE }
}

/// The table a route is in; large numbers travel in an attribute.
pub(crate) fn table(message: &RouteMessage) -> u32 {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(u32::from(message.header.table))
}

/// Whether a rule is the one [`add_rule`] adds, by its mark.
pub(crate) fn is_our_rule(message: &RuleMessage) -> bool {
    message.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)))
        && message.header.table == ROUTE_TABLE
}

/// Whether a rule of ours is in its place.
pub(crate) fn is_right_rule(message: &RuleMessage) -> bool {
    is_our_rule(message)
        && message.header.action == RuleAction::ToTable
        && message.attributes.contains(&RuleAttribute::Priority(RULE_PRIORITY))
}

/// A route of our table.
fn ours(to: IpNet) -> RouteMessage {
    let mut message = towards(to);
    message.header.table = ROUTE_TABLE;
    message
}

/// A route to somewhere.
fn towards(to: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to.network())));
    message
}

/// Make it leave by a link, without a next hop.
fn through(message: &mut RouteMessage, index: u32) {
    message.attributes.push(RouteAttribute::Oif(index));
    if message.header.address_family == AddressFamily::Inet {
        message.header.scope = RouteScope::Link;
    }
}

/// The scope of an on-link route; IPv6 routes have none.
fn link_scope(to: IpNet) -> RouteScope {
    match to {
        IpNet::V4(_) => RouteScope::Link,
        IpNet::V6(_) => RouteScope::Universe,
    }
}
