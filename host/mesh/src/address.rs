//! Addresses in their three forms: as operators write them, as sockets, and as libp2p names them.

use std::net::{IpAddr, SocketAddr};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

/// The port of a relay that advertises an address without one, as in EdgeMesh's charts.
pub const DEFAULT_RELAY_PORT: u16 = 20_006;

/// A relay's advertised address, before its name is resolved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdvertisedAddress {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A host name and port.
    Host(String, u16),
}

/// Why an advertised address is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no relay address; write IP, IP:port, [IPv6]:port or host:port")]
pub struct AddressError {
    /// What was written.
    pub text: String,
}

impl AdvertisedAddress {
    /// Reads `IP`, `IP:port`, `[IPv6]`, `[IPv6]:port`, `host` or `host:port`.
    ///
    /// # Errors
    /// [`AddressError`] when it is none of these.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let trimmed = text.trim();
        if let Ok(socket) = trimmed.parse::<SocketAddr>() {
            return if socket.port() == 0 { Err(error(text)) } else { Ok(Self::Socket(socket)) };
        }
        let bare = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(trimmed);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Socket(SocketAddr::new(address, DEFAULT_RELAY_PORT)));
        }
        let (host, port) = match trimmed.rsplit_once(':') {
            None => (trimmed, DEFAULT_RELAY_PORT),
            Some((host, port)) => (host, port.parse().map_err(|_| error(text))?),
        };
        if port == 0 || !is_host_name(host) {
            return Err(error(text));
        }
        Ok(Self::Host(host.to_owned(), port))
    }
}

fn error(text: &str) -> AddressError {
    AddressError { text: text.to_owned() }
}

/// **Source** RFC 1123 §2.1: labels of letters, digits and hyphens, 253 bytes in all. A name whose
/// last label is digits alone would be a mistyped IPv4 address.
fn is_host_name(text: &str) -> bool {
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let numeric_end = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= 253 && !numeric_end && name.split('.').all(label_fits)
}

/// The QUIC form of a socket address.
pub(crate) fn quic(socket: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(socket.ip().into()).with(Protocol::Udp(socket.port())).with(Protocol::QuicV1)
}

/// The TCP form of a socket address.
pub(crate) fn tcp(socket: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(socket.ip().into()).with(Protocol::Tcp(socket.port()))
}

/// The socket address at the front of a libp2p address, if it has one.
pub(crate) fn socket_of(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = parts.next().and_then(|part| match_ip(&part))?;
    parts.next().and_then(|part| match_port(&part)).map(|port| SocketAddr::new(ip, port))
}

fn match_ip(part: &Protocol<'_>) -> Option<IpAddr> {
    if let Protocol::Ip4(ip) = part {
        Some(IpAddr::V4(*ip))
    } else if let Protocol::Ip6(ip) = part {
        Some(IpAddr::V6(*ip))
    } else {
        None
    }
}

fn match_port(part: &Protocol<'_>) -> Option<u16> {
    if let Protocol::Udp(port) | Protocol::Tcp(port) = part { Some(*port) } else { None }
}

/// Whether a libp2p address leads through a relay.
pub(crate) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The relay's peer id in an address that leads through a relay.
pub(crate) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    let before = address.iter().take_while(|part| *part != Protocol::P2pCircuit);
    before.filter_map(|part| if let Protocol::P2p(peer) = part { Some(peer) } else { None }).last()
}

/// Where to listen, to be reachable through a relay.
pub(crate) fn circuit(relay_address: &Multiaddr, relay: PeerId) -> Multiaddr {
    without_peer(relay_address).with(Protocol::P2p(relay)).with(Protocol::P2pCircuit)
}

/// An address without the peer id at its end.
fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn socket(text: &str) -> AdvertisedAddress {
        AdvertisedAddress::Socket(text.parse().unwrap())
    }

    #[test]
    fn every_form_of_the_charts_is_read() {
        let read = |text| AdvertisedAddress::parse(text).unwrap();
        assert_eq!(read("192.0.2.1"), socket("192.0.2.1:20006"));
        assert_eq!(read("192.0.2.1:4001"), socket("192.0.2.1:4001"));
        assert_eq!(read("2001:db8::1"), socket("[2001:db8::1]:20006"));
        assert_eq!(read("[2001:db8::1]"), socket("[2001:db8::1]:20006"));
        assert_eq!(read(" [2001:db8::1]:4001 "), socket("[2001:db8::1]:4001"));
        assert_eq!(read("relay.example.org"), AdvertisedAddress::Host("relay.example.org".into(), 20_006));
        assert_eq!(read("relay-1:4001"), AdvertisedAddress::Host("relay-1".into(), 4001));
    }

    #[test]
    fn what_names_no_place_is_refused_with_its_text() {
        for text in
            ["", ":1", "host:", "host:0", "1.2.3.4:0", "1.2.3.256", "host:70000", "a b", "-a", "http://x", "[::1"]
        {
            assert_eq!(AdvertisedAddress::parse(text), Err(AddressError { text: text.into() }));
        }
    }

    proptest! {
        #[test]
        fn sockets_survive_both_libp2p_forms(address: IpAddr, port in 1..=u16::MAX) {
            let socket = SocketAddr::new(address, port);
            prop_assert_eq!(socket_of(&quic(socket)), Some(socket));
            prop_assert_eq!(socket_of(&tcp(socket)), Some(socket));
            let relay = PeerId::random();
            let through = circuit(&quic(socket).with(Protocol::P2p(relay)), relay);
            prop_assert!(is_relayed(&through) && !is_relayed(&quic(socket)));
            prop_assert_eq!(relay_of(&through.with(Protocol::P2p(PeerId::random()))), Some(relay));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = AdvertisedAddress::parse(&text);
        }
    }
}
