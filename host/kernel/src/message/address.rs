//! Addresses, in this namespace and in a pod's.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{CHANGE, CREATE, Request};

/// Add an address. IPv6 skips duplicate address detection: the lease table already made it unique, and a
/// tentative address could not be used for a second.
pub(crate) fn add(index: u32, address: IpNet) -> Request {
    let mut message = body(index, address);
    match address {
        IpNet::V4(v4) if v4.prefix_len() < 31 => message.attributes.push(AddressAttribute::Broadcast(v4.broadcast())),
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    Request { message: RouteNetlinkMessage::NewAddress(message), flags: CREATE }
}

/// Remove an address.
pub(crate) fn remove(index: u32, address: IpNet) -> Request {
    Request { message: RouteNetlinkMessage::DelAddress(body(index, address)), flags: CHANGE }
}

/// The address part that adding and removing share.
fn body(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    message
}

/// The netlink name of an address's family.
pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
