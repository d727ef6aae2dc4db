//! The links of a pod as netlink messages: what makes them, and what the pod's side needs.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::channel::Flagged;
use super::traffic;

/// Make it; refuse when it is there.
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Change what is there.
const CHANGE: u16 = 0;

/// A pair of links.
#[derive(Clone, Debug)]
pub(super) struct Veth {
    /// The host end's name.
    pub(super) name: String,
    /// The host end's index.
    pub(super) host: u32,
    /// The pod end's index.
    pub(super) pod: u32,
    /// The bridge's index.
    pub(super) bridge: u32,
    /// The pod's namespace.
    pub(super) namespace: RawFd,
}

/// The links that a pod has on its node.
#[derive(Clone, Debug)]
pub(super) struct PodLinks {
    /// The pair.
    pub(super) veth: Veth,
    /// Name and index of the link that what the pod sends is queued on.
    pub(super) ifb: Option<(String, u32)>,
}

impl PodLinks {
    /// Everything on the node's side, in the order in which it has to be done.
    pub(super) fn host_messages(&self) -> Vec<Flagged<RouteNetlinkMessage>> {
        let host = self.veth.host;
        let mut messages = vec![create_veth(&self.veth), hairpin(host)];
        if let Some((name, ifb)) = &self.ifb {
            messages.extend([
                traffic::bucket(host),
                create(name, *ifb, InfoKind::Ifb, None),
                traffic::bucket(*ifb),
                traffic::ingress(host),
                traffic::redirect(host, *ifb),
                up(*ifb),
            ]);
        }
        messages.push(up(host));
        acknowledge_last(messages)
    }

    /// The indexes that have to be gone after a DEL.
    pub(super) fn indexes(&self) -> Vec<u32> {
        let ifb = self.ifb.iter().map(|(_, index)| *index);
        std::iter::once(self.veth.host).chain(ifb).collect()
    }
}

/// Everything on the pod's side.
pub(super) fn pod_messages(
    index: u32,
    address: Ipv4Addr,
    prefix_length: u8,
    gateway: Ipv4Addr,
) -> Vec<Flagged<RouteNetlinkMessage>> {
    let mut own = AddressMessage::default();
    own.header.family = AddressFamily::Inet;
    own.header.prefix_len = prefix_length;
    own.header.index = index;
    own.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    let mut default = RouteMessage::default();
    default.header.address_family = AddressFamily::Inet;
    default.header.table = RouteHeader::RT_TABLE_MAIN;
    default.header.protocol = RouteProtocol::Boot;
    default.header.scope = RouteScope::Universe;
    default.header.kind = RouteType::Unicast;
    default.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
    acknowledge_last(vec![
        up(index),
        (RouteNetlinkMessage::NewAddress(own), CREATE),
        (RouteNetlinkMessage::NewRoute(default), CREATE),
    ])
}

/// Moves a link into a group.
pub(super) fn into_group(index: u32, group: u32) -> Flagged<RouteNetlinkMessage> {
    let mut link = by_index(index);
    link.attributes.push(LinkAttribute::Group(group));
    (RouteNetlinkMessage::SetLink(link), CHANGE)
}

/// Deletes all links of a group.
pub(super) fn delete_group(group: u32) -> Flagged<RouteNetlinkMessage> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::Group(group));
    (RouteNetlinkMessage::DelLink(link), CHANGE)
}

/// Brings a link up.
pub(super) fn up(index: u32) -> Flagged<RouteNetlinkMessage> {
    let mut link = by_index(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(link), CHANGE)
}

/// Asks for an acknowledgement of the last one: the kernel has worked off the others by then.
pub(super) fn acknowledge_last(mut messages: Vec<Flagged<RouteNetlinkMessage>>) -> Vec<Flagged<RouteNetlinkMessage>> {
    if let Some((_, flags)) = messages.last_mut() {
        *flags |= NLM_F_ACK;
    }
    messages
}

/// The pair on its bridge, one queue each way: the kernel makes one a processor otherwise.
fn create_veth(veth: &Veth) -> Flagged<RouteNetlinkMessage> {
    let mut peer = by_index(veth.pod);
    peer.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::NetNsFd(veth.namespace),
    ];
    let peer = InfoData::Veth(InfoVeth::Peer(peer));
    let (mut message, flags) = create(&veth.name, veth.host, InfoKind::Veth, Some(peer));
    if let RouteNetlinkMessage::NewLink(link) = &mut message {
        link.attributes.push(LinkAttribute::Controller(veth.bridge));
    }
    (message, flags)
}

fn hairpin(index: u32) -> Flagged<RouteNetlinkMessage> {
    let mut link = by_index(index);
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ]));
    (RouteNetlinkMessage::NewLink(link), CHANGE)
}

fn create(name: &str, index: u32, kind: InfoKind, data: Option<InfoData>) -> Flagged<RouteNetlinkMessage> {
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    let mut link = by_index(index);
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::LinkInfo(info),
    ];
    (RouteNetlinkMessage::NewLink(link), CREATE)
}

fn by_index(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}
