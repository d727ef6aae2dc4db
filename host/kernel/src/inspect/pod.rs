//! Looks into a pod's namespace, on the socket that the shim opened there, without entering it.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use std::net::IpAddr;

use culvert_core::attachment_check::{PodEnd, PodInterface};
use culvert_core::plan::PodRoute;
use ipnet::IpNet;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::fd::OwnedFd;

use crate::PodNamespace;
use crate::batch::Channel;
use crate::error::KernelError;
use crate::message::route;
use crate::observe::{address_of, destination, facts, ip_of};
use crate::sysctl::has_ipv6;

/// What is there of the pod end `ifname`.
pub(super) async fn look_into(pod: &PodNamespace, ifname: &str) -> Result<PodEnd, KernelError> {
    let socket = pod.rtnetlink.try_clone().map_err(KernelError::PodSocket)?;
    let channel = Channel::adopt(socket).map_err(KernelError::PodSocket)?;
    let ifname = ifname.to_owned();
    tokio::task::spawn_blocking(move || pod_end(channel, &ifname)).await?
}

fn pod_end(mut channel: Channel<OwnedFd>, ifname: &str) -> Result<PodEnd, KernelError> {
    let links = list(&mut channel, "links", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let found = links.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) if facts(&link).name == ifname => Some(link),
        _ => None,
    });
    let Some(link) = found else {
        return Ok(PodEnd::Gone);
    };
    let (index, facts) = (link.header.index, facts(&link));
    Ok(PodEnd::There(PodInterface {
        up: facts.up,
        mac: mac(&link).unwrap_or_default(),
        mtu_bytes: facts.mtu_bytes,
        addresses: addresses(&mut channel, index)?,
        routes: routes(&mut channel, index)?,
    }))
}

fn mac(link: &LinkMessage) -> Option<[u8; 6]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

fn addresses(channel: &mut Channel<OwnedFd>, index: u32) -> Result<Vec<IpNet>, KernelError> {
    let all = list(channel, "addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let own = all.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(address) if address.header.index == index => Some(address),
        _ => None,
    });
    Ok(own.filter_map(|address| IpNet::new(address_of(address)?, address.header.prefix_len).ok()).collect())
}

/// The unicast routes through a link, of every table.
fn routes(channel: &mut Channel<OwnedFd>, index: u32) -> Result<Vec<PodRoute>, KernelError> {
    let mut families = vec![AddressFamily::Inet];
    if has_ipv6() {
        families.push(AddressFamily::Inet6);
    }
    let mut routes = Vec::new();
    for family in families {
        let all = list(channel, "routes", RouteNetlinkMessage::GetRoute(route::list(family)))?;
        routes.extend(all.iter().flat_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => pod_routes(route, index),
            _ => Vec::new(),
        }));
    }
    Ok(routes)
}

/// A route in our words, once for each of its next hops through the link.
fn pod_routes(message: &RouteMessage, index: u32) -> Vec<PodRoute> {
    let unicast = message.header.kind == RouteType::Unicast && !message.header.flags.contains(RouteFlags::Cloned);
    let Some(to) = destination(message).filter(|_| unicast) else {
        return Vec::new();
    };
    let mut all = PodRoute::new(to, None);
    all.table = Some(route::table(message));
    all.scope = Some(message.header.scope.into());
    let mut hops = Vec::new();
    if through(&message.attributes, index) {
        hops.push(gateway(&message.attributes));
    }
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(metric) => all.metric = Some(*metric),
            RouteAttribute::Metrics(metrics) => add_metrics(&mut all, metrics),
            RouteAttribute::MultiPath(several) => {
                let own = several.iter().filter(|hop| hop.interface_index == index);
                hops.extend(own.map(|hop| gateway(&hop.attributes)));
            }
            _ => {}
        }
    }
    hops.into_iter().map(|gateway| PodRoute { gateway, ..all }).collect()
}

fn through(attributes: &[RouteAttribute], index: u32) -> bool {
    attributes.contains(&RouteAttribute::Oif(index))
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        _ => None,
    })
}

fn add_metrics(route: &mut PodRoute, metrics: &[RouteMetric]) {
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(bytes) => route.mtu_bytes = Some(*bytes),
            RouteMetric::Advmss(bytes) => route.advertised_mss_bytes = Some(*bytes),
            _ => {}
        }
    }
}

/// Everything of a kind in the namespace of the socket, as far as it can be read: a pod that is allowed to may have
/// links and routes of kinds that nobody here knows.
fn list(
    channel: &mut Channel<OwnedFd>,
    what: &str,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
    let refused = |source| KernelError::Refused { action: format!("list the {what} of a pod"), source };
    let (mut readable, mut unreadable) = (Vec::new(), 0_u32);
    for message in channel.dump(&request).map_err(refused)? {
        match message {
            Ok(message) => readable.push(message),
            Err(_) => unreadable += 1,
        }
    }
    if unreadable > 0 {
        tracing::debug!(what, unreadable, "the kernel lists things in a pod that cannot be read");
    }
    Ok(readable)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::{RouteAddress, RouteNextHop};

    use super::*;
    use crate::message::Request;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The message of a route that a plan asks for.
    fn asked(route: &PodRoute) -> RouteMessage {
        let Request { message: RouteNetlinkMessage::NewRoute(message), .. } = route::pod(7, route) else {
            panic!("not a route")
        };
        message
    }

    fn full() -> PodRoute {
        PodRoute {
            to: "10.96.0.0/12".parse().unwrap(),
            gateway: Some(ip("10.244.1.1")),
            metric: Some(7),
            mtu_bytes: Some(1_300),
            advertised_mss_bytes: Some(1_260),
            table: Some(1_000),
            scope: Some(0),
        }
    }

    #[test]
    fn a_route_that_was_asked_for_reads_as_itself_through_its_link_alone() {
        let message = asked(&full());
        assert_eq!(pod_routes(&message, 7), [full()]);
        assert_eq!(pod_routes(&message, 8), []);
        let on_link = PodRoute { gateway: None, scope: Some(253), ..full() };
        assert_eq!(pod_routes(&asked(&on_link), 7), [on_link]);
    }

    #[test]
    fn each_next_hop_of_a_route_is_read_and_what_is_not_unicast_is_not() {
        let mut message = asked(&full());
        message.attributes.retain(|one| !matches!(one, RouteAttribute::Oif(_) | RouteAttribute::Gateway(_)));
        let hop = |index, gateway: &str| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(ip(gateway)))];
            hop
        };
        let hops = vec![hop(7, "10.244.1.1"), hop(8, "10.244.1.2"), hop(7, "10.244.1.3")];
        message.attributes.push(RouteAttribute::MultiPath(hops));
        let other = PodRoute { gateway: Some(ip("10.244.1.3")), ..full() };
        assert_eq!(pod_routes(&message, 7), [full(), other]);
        message.header.kind = RouteType::BlackHole;
        assert_eq!(pod_routes(&message, 7), []);
    }
}
