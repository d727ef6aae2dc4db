//! Packets made by hand: what a hostile pod or peer would send.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};

use culvert_core::address::Family;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::namespace::Namespace;

/// A router advertisement for `prefix` and a default route, from the link-local address of `eth0`.
pub fn send_router_advertisement(to: &str, prefix: &str) {
    let socket = rustix::net::socket_with(
        AddressFamily::INET6,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(rustix::net::ipproto::ICMPV6),
    )
    .unwrap();
    let scope = rustix::net::netdevice::name_to_index(&socket, "eth0").unwrap();
    let addresses = std::process::Command::new("ip")
        .args(["-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"])
        .output()
        .unwrap();
    let text = String::from_utf8(addresses.stdout).unwrap();
    let own: Ipv6Addr = text.split_whitespace().find_map(|word| word.strip_suffix("/64")?.parse().ok()).unwrap();
    rustix::net::bind(&socket, &SocketAddrV6::new(own, 0, 0, scope)).unwrap();
    // Receivers believe an advertisement only if no router can have forwarded it.
    rustix::net::sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
    rustix::net::sockopt::set_ipv6_unicast_hops(&socket, Some(255)).unwrap();
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    // Prefix information: 64 bits, on-link and autonomous, valid for long.
    message.extend([3, 4, 64, 0xc0]);
    message.extend([0x00, 0x01, 0x51, 0x80, 0x00, 0x01, 0x51, 0x80, 0, 0, 0, 0]);
    message.extend(prefix.parse::<Ipv6Addr>().unwrap().octets());
    let to = SocketAddrV6::new(to.parse().unwrap(), 0, 0, scope);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &to).unwrap();
}

/// An IP packet as it goes into or comes out of a TUN with a virtio header: UDP.
pub fn udp(source: (&str, u16), destination: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut body = source.1.to_be_bytes().to_vec();
    body.extend(destination.1.to_be_bytes());
    body.extend(length.to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    packet(source.0, destination.0, 17, body, 6)
}

/// An echo request.
pub fn echo(source: &str, destination: &str, number: u16) -> Vec<u8> {
    let v6 = source.contains(':');
    let mut body = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0x43, 0x55];
    body.extend(number.to_be_bytes());
    packet(source, destination, if v6 { 58 } else { 1 }, body, 2)
}

/// Whether a packet read from the TUN is the answer to [`echo`].
pub fn is_echo_reply(packet: &[u8], number: u16) -> bool {
    let (kind, at) = if packet.get(10).is_some_and(|byte| byte >> 4 == 6) { (129, 50) } else { (0, 30) };
    packet.get(at) == Some(&kind) && packet.get(at + 6..at + 8) == Some(&number.to_be_bytes())
}

/// Put the headers before a body and fill its checksum in.
fn packet(source: &str, destination: &str, protocol: u8, mut body: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let length = u16::try_from(body.len()).unwrap();
    let mut pseudo = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => pseudo.extend(v4.octets()),
            IpAddr::V6(v6) => pseudo.extend(v6.octets()),
        }
    }
    let addresses = pseudo.clone();
    pseudo.extend([0, protocol]);
    pseudo.extend(length.to_be_bytes());
    // ICMP of IPv4 is summed without the addresses.
    let mut summed = if protocol == 1 { Vec::new() } else { pseudo };
    summed.extend(&body);
    let sum = checksum(&summed).to_be_bytes();
    body[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    let mut all = vec![0; 10];
    match source {
        IpAddr::V4(_) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            header.extend(addresses);
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            all.extend(header);
        }
        IpAddr::V6(_) => {
            all.extend([0x60, 0, 0, 0]);
            all.extend(length.to_be_bytes());
            all.extend([protocol, 64]);
            all.extend(addresses);
        }
    }
    all.extend(body);
    all
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Send the first packet of an SCTP association, made by hand: few kernels have sockets for it.
pub fn send_sctp_init(from: &Namespace, source: (IpAddr, u16), destination: (IpAddr, u16)) {
    let mut packet = source.1.to_be_bytes().to_vec();
    packet.extend(destination.1.to_be_bytes());
    packet.extend([0; 8]);
    // INIT, 20 bytes: initiate tag, receiver window, one stream each way, first sequence number.
    packet.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    let socket = raw_sctp(from, source.0.is_ipv6());
    let to = std::net::SocketAddr::new(destination.0, 0);
    rustix::net::sendto(&socket, &packet, SendFlags::empty(), &to).unwrap();
}

/// Returns what takes one SCTP packet that has arrived in the namespace from then on, if there is one.
pub fn receive_sctp(namespace: &Namespace, family: Family) -> impl Fn() -> Option<Vec<u8>> {
    let socket = raw_sctp(namespace, family == Family::V6);
    move || {
        let mut buffer = vec![0; 256];
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
        // A raw socket of IPv4 gets the header too.
        let start = if family == Family::V4 { 20 } else { 0 };
        buffer.get(start..length).map(<[u8]>::to_vec)
    }
}

/// Whether a packet is the one of [`send_sctp_init`] between these ports, its checksum right.
pub fn is_sctp_init(packet: &[u8], source: u16, destination: u16) -> bool {
    let mut bare = packet.to_vec();
    bare[8..12].fill(0);
    packet[..2] == source.to_be_bytes()
        && packet[2..4] == destination.to_be_bytes()
        && packet[8..12] == crc32c(&bare).to_le_bytes()
        && packet[12] == 1
}

fn raw_sctp(namespace: &Namespace, ipv6: bool) -> OwnedFd {
    let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let protocol = Some(rustix::net::ipproto::SCTP);
    namespace.inside(|| rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap())
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}
