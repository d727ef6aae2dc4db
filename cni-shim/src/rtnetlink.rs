//! The few rtnetlink messages of the shim, built and read by hand.
//!
//! **Source** `rtnetlink(7)`, `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_addr.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The kernel gives `lo` this index in every namespace.
const LOOPBACK_INDEX: u32 = 1;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER_BYTES: usize = 16;
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;

/// The most datagrams of one answer. One holds some hundred addresses; a namespace with more than
/// this has a fault, and the call ends instead of reading on.
const MAX_DATAGRAMS: usize = 256;

/// **Units** bytes. The kernel fills at most 32 KiB of a dump into one datagram.
const DATAGRAM_BYTES: usize = 32 * 1024;

/// Opens an rtnetlink socket in the namespace the thread is in.
pub fn open() -> Result<OwnedFd, Errno> {
    // The protocol of a netlink socket is a number whose zero is rtnetlink.
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
}

/// Sets `lo` up or down.
///
/// **Errors** the kernel's.
pub fn set_loopback(socket: &OwnedFd, up: bool) -> Result<(), Errno> {
    let flags = if up { IFF_UP } else { 0 };
    request(socket, RTM_NEWLINK, NLM_F_ACK, &link(flags, IFF_UP))?;
    answers(socket, |_, _| ())
}

/// Whether `lo` is up.
///
/// **Errors** the kernel's.
pub fn loopback_is_up(socket: &OwnedFd) -> Result<bool, Errno> {
    request(socket, RTM_GETLINK, NLM_F_ACK, &link(0, 0))?;
    let mut up = false;
    answers(socket, |kind, payload| {
        if kind == RTM_NEWLINK && number(payload, 4) == Some(LOOPBACK_INDEX) {
            up = number(payload, 8).is_some_and(|flags| flags & IFF_UP != 0);
        }
    })?;
    Ok(up)
}

/// The addresses of `lo` that belong there, with their prefix lengths.
///
/// **Errors** the kernel's.
pub fn loopback_addresses(socket: &OwnedFd) -> Result<Vec<(IpAddr, u8)>, Errno> {
    request(socket, RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_BYTES])?;
    let mut addresses = Vec::new();
    answers(socket, |kind, payload| {
        if kind == RTM_NEWADDR && number(payload, 4) == Some(LOOPBACK_INDEX) {
            addresses.extend(address(payload).filter(|(address, _)| address.is_loopback()));
        }
    })?;
    Ok(addresses)
}

/// Deletes a link.
///
/// **Errors** the kernel's; [`Errno::NODEV`] when there is none of that name.
pub fn delete_link(socket: &OwnedFd, name: &str) -> Result<(), Errno> {
    let value = name.len() + 1;
    let mut message = vec![0; LINK_BYTES];
    message.extend_from_slice(&u16::try_from(4 + value).map_err(|_| Errno::INVAL)?.to_ne_bytes());
    message.extend_from_slice(&IFLA_IFNAME.to_ne_bytes());
    message.extend_from_slice(name.as_bytes());
    message.resize(LINK_BYTES + 4 + value.next_multiple_of(4), 0);
    request(socket, RTM_DELLINK, NLM_F_ACK, &message)?;
    answers(socket, |_, _| ())
}

/// An `ifinfomsg` for `lo`.
fn link(flags: u32, change: u32) -> [u8; LINK_BYTES] {
    let mut message = [0; LINK_BYTES];
    let fields = [0, LOOPBACK_INDEX, flags, change];
    for (target, field) in message.chunks_exact_mut(4).zip(fields) {
        target.copy_from_slice(&field.to_ne_bytes());
    }
    message
}

fn request(socket: &OwnedFd, kind: u16, flags: u16, payload: &[u8]) -> Result<(), Errno> {
    let length = u32::try_from(HEADER_BYTES + payload.len()).map_err(|_| Errno::MSGSIZE)?;
    let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(payload);
    rustix::net::send(socket, &message, SendFlags::empty()).map(|_| ())
}

/// Hands every message of the answer to `each`, up to the kernel's acknowledgement or the dump's end.
fn answers(socket: &OwnedFd, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    for _ in 0..MAX_DATAGRAMS {
        let (length, _) = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()))?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, payload, next)) = split_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return acknowledgement(payload),
                other => each(other, payload),
            }
            rest = next;
        }
    }
    Err(Errno::OVERFLOW)
}

fn acknowledgement(payload: &[u8]) -> Result<(), Errno> {
    match number(payload, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code.saturating_neg())),
        None => Err(Errno::BADMSG),
    }
}

/// Kind and payload of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(number(bytes, 0)?).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let payload = bytes.get(HEADER_BYTES..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, next))
}

/// The first IFA_ADDRESS of an `ifaddrmsg`.
fn address(payload: &[u8]) -> Option<(IpAddr, u8)> {
    let [family, prefix_length] = *payload.first_chunk()?;
    let mut rest = payload.get(ADDRESS_BYTES..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        if kind == IFA_ADDRESS {
            return Some((parse_address(family, value)?, prefix_length));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn parse_address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?))),
        _ => None,
    }
}

fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{address, split_message};

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some((_, payload, next)) = split_message(&bytes) {
                assert!(payload.len() + next.len() <= bytes.len());
            }
            let _ = address(&bytes);
        }
    }
}
