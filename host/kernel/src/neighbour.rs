//! Whether an on-link next hop answers, as the kernel's neighbour table has it.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteAttribute;

use crate::error::KernelError;
use crate::message::{Request, address, route};
use crate::rtnl::Rtnl;

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// It answered within the kernel's reachable time (half a minute).
    Alive,
    /// It did not answer.
    Failed,
    /// Not asked yet, or the answer is still awaited.
    Unknown,
}

/// Look the neighbour up, and have the kernel ask unless it just answered.
pub(crate) async fn state(rtnl: &mut Rtnl, of: IpAddr) -> Result<Neighbour, KernelError> {
    let Some(index) = link_towards(rtnl, of).await? else {
        return Ok(Neighbour::Unknown);
    };
    let entries = rtnl.neighbours().await?;
    let entry = entries.iter().find(|entry| entry.header.ifindex == index && is_for(entry, of));
    let known = entry.map_or(Neighbour::Unknown, |entry| verdict(entry.header.state));
    if known != Neighbour::Alive {
        rtnl.request(&format!("ask for neighbour {of}"), ask(index, of)).await?;
    }
    Ok(known)
}

/// The link by which the address is reached directly; `None` when it is behind a gateway or unreachable.
async fn link_towards(rtnl: &mut Rtnl, of: IpAddr) -> Result<Option<u32>, KernelError> {
    let Some(found) = rtnl.route_to(route::query(of)).await? else {
        return Ok(None);
    };
    if found.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_))) {
        return Ok(None);
    }
    Ok(found.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    }))
}

fn is_for(entry: &NeighbourMessage, of: IpAddr) -> bool {
    let wanted = match of {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    entry.attributes.contains(&NeighbourAttribute::Destination(wanted))
}

/// The kernel's states, told apart by whether the last question was answered.
fn verdict(state: NeighbourState) -> Neighbour {
    match state {
        NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp => Neighbour::Alive,
        NeighbourState::Failed => Neighbour::Failed,
        // The entry is old or a question is under way; also what later kernels may add.
        _ => Neighbour::Unknown,
    }
}

/// Use the entry as if a packet went there, which makes the kernel resolve or confirm it.
fn ask(index: u32, of: IpAddr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = address::family(of);
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(match of {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    Request { message: RouteNetlinkMessage::NewNeighbour(message), flags: NLM_F_CREATE }
}
