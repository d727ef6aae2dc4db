//! What the kernel holds now: links, the routes of our table, and the underlay the node stands on.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use std::net::IpAddr;

use culvert_core::plan::{KernelRoute, KernelVia};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType};

use crate::error::KernelError;
use crate::message::route::{RouteLinks, list, table};
use crate::rtnl::Rtnl;
use crate::sysctl::has_ipv6;
use crate::{LINK_GROUP, LinkNames, POD_LINK_PREFIX, ROUTE_TABLE};

/// The kernel's state, as far as it concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every link of the namespace, by index.
    pub links: Vec<Link>,
    /// The routes of our table, sorted.
    pub routes: Vec<KernelRoute>,
    /// Destinations in our table whose routes we would never make: somebody else put them there.
    pub strange_routes: Vec<IpNet>,
    /// Where the node itself stands, sorted by link order.
    pub on_link: Vec<OnLink>,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether it is set up (whatever its carrier).
    pub up: bool,
    /// The index of the bridge it is a port of.
    pub master: Option<u32>,
    /// **Units** bytes.
    pub mtu_bytes: u32,
    /// Whether Culvert made it, by its group. A link of ours that no record names is a stray.
    pub ours: bool,
    /// Its addresses, link-local ones included.
    pub addresses: Vec<IpNet>,
}

/// An address of the node on its underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnLink {
    /// What is reached there without a gateway.
    pub subnet: IpNet,
    /// The node's address in it.
    pub address: IpAddr,
    /// The link's name.
    pub link: String,
}

/// See [`crate::Kernel::observe`].
pub(crate) async fn observe(rtnl: &mut Rtnl, names: &LinkNames) -> Result<Observed, KernelError> {
    let link_messages = rtnl.links().await?;
    let addresses = rtnl.addresses().await?;
    let index_of =
        |name: &str| link_messages.iter().find(|link| facts(link).name == name).map(|link| link.header.index);
    let route_links = RouteLinks { bridge: index_of(&names.bridge), tun: index_of(&names.tun) };
    let mut observed =
        Observed { links: link_messages.iter().map(|link| link_of(link, &addresses)).collect(), ..Observed::default() };
    observed.links.sort_by_key(|link| link.index);
    let underlay = UnderlayView { bridge: &names.bridge, tun: &names.tun };
    observed.on_link = underlay.on_link(&link_messages, &addresses);
    let mut families = vec![AddressFamily::Inet];
    if has_ipv6() {
        families.push(AddressFamily::Inet6);
    }
    for family in families {
        for message in rtnl.routes(list(family)).await? {
            observed.add_route(&message, route_links);
        }
    }
    observed.routes.sort();
    Ok(observed)
}

impl Observed {
    fn add_route(&mut self, message: &RouteMessage, links: RouteLinks) {
        if table(message) != u32::from(ROUTE_TABLE) || message.header.flags.contains(RouteFlags::Cloned) {
            return;
        }
        match (kernel_route(message, links), destination(message)) {
            (Some(route), _) => self.routes.push(route),
            (None, Some(to)) => self.strange_routes.push(to),
            (None, None) => {}
        }
    }
}

/// The route in our words; `None` when we would never have made it.
pub(crate) fn kernel_route(message: &RouteMessage, links: RouteLinks) -> Option<KernelRoute> {
    let mut route = KernelRoute { to: destination(message)?, via: KernelVia::Throw, source: None, mtu_bytes: None };
    let (mut gateway, mut link) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::PrefSource(address) => route.source = ip_of(address),
            RouteAttribute::Metrics(metrics) => route.mtu_bytes = mtu_of(metrics),
            RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    route.via = match message.header.kind {
        RouteType::Throw => KernelVia::Throw,
        RouteType::Prohibit => KernelVia::Prohibit,
        RouteType::Unicast => match (gateway, link) {
            (Some(gateway), _) => KernelVia::NextHop(gateway),
            (None, Some(index)) if Some(index) == links.bridge => KernelVia::Bridge,
            (None, Some(index)) if Some(index) == links.tun => KernelVia::Tunnel,
            (None, _) => return None,
        },
        _ => return None,
    };
    Some(route)
}

/// A route's destination; the default route carries none.
pub(crate) fn destination(message: &RouteMessage) -> Option<IpNet> {
    let given = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip_of(address),
        _ => None,
    });
    let address = match (given, message.header.address_family) {
        (Some(address), _) => address,
        (None, AddressFamily::Inet) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        (None, AddressFamily::Inet6) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        (None, _) => return None,
    };
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

pub(crate) fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu_bytes) => Some(*mtu_bytes),
        _ => None,
    })
}

/// What we read out of a link message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkFacts {
    pub(crate) name: String,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) group: u32,
    pub(crate) mtu_bytes: u32,
    /// Its hardware address, if it has one of six bytes.
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) master: Option<u32>,
    pub(crate) up: bool,
    pub(crate) running: bool,
}

/// Read them out.
pub(crate) fn facts(message: &LinkMessage) -> LinkFacts {
    let flags = message.header.flags;
    let mut facts = LinkFacts {
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Running),
        ..LinkFacts::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => facts.name.clone_from(name),
            LinkAttribute::Group(group) => facts.group = *group,
            LinkAttribute::Mtu(mtu_bytes) => facts.mtu_bytes = *mtu_bytes,
            LinkAttribute::Address(bytes) => facts.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Controller(master) => facts.master = Some(*master),
            LinkAttribute::LinkInfo(info) => {
                facts.kind = info.iter().find_map(|part| match part {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    facts
}

fn link_of(message: &LinkMessage, addresses: &[AddressMessage]) -> Link {
    let facts = facts(message);
    let index = message.header.index;
    let own = addresses.iter().filter(|address| address.header.index == index);
    Link {
        name: facts.name,
        index,
        up: facts.up,
        master: facts.master,
        mtu_bytes: facts.mtu_bytes,
        ours: facts.group == LINK_GROUP,
        addresses: own.filter_map(|address| IpNet::new(address_of(address)?, address.header.prefix_len).ok()).collect(),
    }
}

/// The node's own address in a message: on a point-to-point link the other end's stands beside it.
pub(crate) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| peer_of(message))
}

fn peer_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// Addresses that mean something on their link only.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Tells the underlay's links from ours.
pub(crate) struct UnderlayView<'a> {
    pub(crate) bridge: &'a str,
    pub(crate) tun: &'a str,
}

impl UnderlayView<'_> {
    /// Whether a link belongs to the underlay.
    pub(crate) fn is_underlay(&self, name: &str) -> bool {
        name != "lo" && name != self.bridge && name != self.tun && !name.starts_with(POD_LINK_PREFIX)
    }

    /// The underlay's links that have an address.
    pub(crate) fn links_with_addresses(&self, links: &[LinkMessage], addresses: &[AddressMessage]) -> Vec<String> {
        let has_address =
            |link: &&LinkMessage| addresses.iter().any(|address| address.header.index == link.header.index);
        links.iter().filter(has_address).map(|link| facts(link).name).filter(|name| self.is_underlay(name)).collect()
    }

    /// The node's usable addresses on links with a carrier.
    fn on_link(&self, links: &[LinkMessage], addresses: &[AddressMessage]) -> Vec<OnLink> {
        let usable = links.iter().map(|link| (link.header.index, facts(link)));
        let usable = usable.filter(|(_, facts)| facts.up && facts.running && self.is_underlay(&facts.name));
        let mut found = Vec::new();
        for (index, facts) in usable {
            let own = addresses.iter().filter(|address| address.header.index == index);
            found.extend(own.filter_map(|address| on_link(address, &facts.name)));
        }
        found
    }
}

/// One address, unless it cannot be relied on: link-local, temporary, or not (no longer) proven unique.
fn on_link(message: &AddressMessage, link: &str) -> Option<OnLink> {
    let address = address_of(message)?;
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    let unproven = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    // The same bit means "temporary" on IPv6 and merely "not the first of its subnet" on IPv4.
    let temporary = address.is_ipv6() && flags.contains(AddressFlags::Secondary);
    if is_link_local(address) || temporary || flags.intersects(unproven) {
        return None;
    }
    let subnet = IpNet::new(peer_of(message)?, message.header.prefix_len).ok()?.trunc();
    Some(OnLink { subnet, address, link: link.to_owned() })
}
