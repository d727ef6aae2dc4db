//! Links: the veth pair, the bridge, the ifb, and the changes made to them.

use std::os::fd::RawFd;

use culvert_core::plan::Veth;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use super::{CHANGE, CREATE, Request};
use crate::{DEPARTING_GROUP, LINK_GROUP};

/// Make the pair, the pod end born in the namespace behind `netns`, neither end up nor on a bridge.
///
/// One queue each way: a veth makes one per CPU otherwise, which doubles the time for nothing. The pod end
/// must not be born up: the kernel refuses the whole request then (its other end is not ready).
pub(crate) fn create_veth(veth: &Veth, netns: RawFd) -> Request {
    let mut peer = LinkMessage::default();
    peer.header.index = veth.pod_index;
    peer.attributes = vec![
        LinkAttribute::IfName(veth.pod_name.clone()),
        LinkAttribute::Address(veth.pod_mac.to_vec()),
        LinkAttribute::Mtu(veth.mtu_bytes),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::NetNsFd(netns),
    ];
    let data = InfoData::Veth(InfoVeth::Peer(peer));
    let mut link = born(&veth.host_name, InfoKind::Veth, Some(data));
    link.header.index = veth.host_index;
    link.attributes.push(LinkAttribute::Mtu(veth.mtu_bytes));
    Request { message: RouteNetlinkMessage::NewLink(link), flags: CREATE }
}

/// Make an ifb.
pub(crate) fn create_ifb(name: &str, index: u32) -> Request {
    let mut link = born(name, InfoKind::Ifb, None);
    link.header.index = index;
    Request { message: RouteNetlinkMessage::NewLink(link), flags: CREATE }
}

/// Make a bridge with a hardware address of its own, which no port can then change.
pub(crate) fn create_bridge(name: &str, mac: [u8; 6], mtu_bytes: u32) -> Request {
    let mut link = born(name, InfoKind::Bridge, None);
    link.attributes.push(LinkAttribute::Address(mac.to_vec()));
    link.attributes.push(LinkAttribute::Mtu(mtu_bytes));
    Request { message: RouteNetlinkMessage::NewLink(link), flags: CREATE }
}

/// Put a link on a bridge.
pub(crate) fn enslave(index: u32, bridge: u32) -> Request {
    set(index, LinkAttribute::Controller(bridge))
}

/// Let the bridge send a frame back out of the port it came in by, or not.
pub(crate) fn hairpin(index: u32, allowed: bool) -> Request {
    let mut link = by_index(index);
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(allowed)])),
    ]));
    Request { message: RouteNetlinkMessage::NewLink(link), flags: CHANGE }
}

/// Set a link up.
pub(crate) fn up(index: u32) -> Request {
    let mut link = by_index(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Request { message: RouteNetlinkMessage::SetLink(link), flags: CHANGE }
}

/// Let a link take in frames for any hardware address.
pub(crate) fn promiscuous(index: u32) -> Request {
    let mut link = by_index(index);
    link.header.flags = LinkFlags::Promisc;
    link.header.change_mask = LinkFlags::Promisc;
    Request { message: RouteNetlinkMessage::SetLink(link), flags: CHANGE }
}

/// Set a link's MTU. **Units** bytes.
pub(crate) fn mtu(index: u32, mtu_bytes: u32) -> Request {
    set(index, LinkAttribute::Mtu(mtu_bytes))
}

/// Put a link into our group.
pub(crate) fn ours(index: u32) -> Request {
    set(index, LinkAttribute::Group(LINK_GROUP))
}

/// Delete a link by name.
pub(crate) fn delete(name: &str) -> Request {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request { message: RouteNetlinkMessage::DelLink(link), flags: CHANGE }
}

/// Put a link into the group of those about to be deleted.
pub(crate) fn departing(index: u32) -> Request {
    set(index, LinkAttribute::Group(DEPARTING_GROUP))
}

/// Delete all links of that group as one.
pub(crate) fn delete_departing() -> Request {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::Group(DEPARTING_GROUP));
    Request { message: RouteNetlinkMessage::DelLink(link), flags: CHANGE }
}

/// A link of ours about to be made.
fn born(name: &str, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
    let mut link = LinkMessage::default();
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Group(LINK_GROUP),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::LinkInfo(info),
    ];
    link
}

/// A link that is there.
fn by_index(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

/// Change one attribute.
fn set(index: u32, attribute: LinkAttribute) -> Request {
    let mut link = by_index(index);
    link.attributes.push(attribute);
    Request { message: RouteNetlinkMessage::SetLink(link), flags: CHANGE }
}
