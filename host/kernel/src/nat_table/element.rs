//! Host ports and exempt addresses as elements of the NAT table, and back: pure.
//!
//! Every part of a key or of data is padded to 32 bits and stands as it does in a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_core::address::Family;
use culvert_core::host_port::{PortKey, PortTarget, Transport};

use crate::message::nftables::Element;

/// The map of host ports of every address: transport, port → address, port.
pub(super) const PORTS: &str = "ports";
/// The map of host ports of one address: address, transport, port → address, port. Looked up first.
pub(super) const ADDRESS_PORTS: &str = "address-ports";
/// The set of addresses that are not masqueraded.
pub(super) const UNMASQUERADED: &str = "unmasqueraded";

/// The element of a host port; `None` when its addresses are not of its family.
pub(super) fn of_port(key: &PortKey, target: &PortTarget) -> Option<Element> {
    let of_family = |address: IpAddr| Some(address).filter(|address| Family::of(*address) == key.family);
    let (set, mut bytes) = match key.host_ip {
        None => (PORTS, Vec::new()),
        Some(host_ip) => (ADDRESS_PORTS, octets(of_family(host_ip)?)),
    };
    bytes.extend([key.transport.protocol_number(), 0, 0, 0]);
    bytes.extend(padded(key.port));
    let mut data = octets(of_family(target.address)?);
    data.extend(padded(target.port));
    Some(Element { family: key.family, set, key: bytes, data: Some(data) })
}

/// The element of an exempt address.
pub(super) fn of_exemption(address: IpAddr) -> Element {
    Element { family: Family::of(address), set: UNMASQUERADED, key: octets(address), data: None }
}

/// The host port an element stands for; `None` when we would never have made it.
pub(super) fn port(element: &Element) -> Option<(PortKey, PortTarget)> {
    let (host_ip, rest) = match element.set {
        PORTS => (None, element.key.as_slice()),
        ADDRESS_PORTS => {
            let (host_ip, rest) = address(element.family, &element.key)?;
            (Some(host_ip), rest)
        }
        _ => return None,
    };
    let &[protocol, 0, 0, 0, ref rest @ ..] = rest else {
        return None;
    };
    let transport = Transport::of_protocol_number(protocol)?;
    let key = PortKey { family: element.family, host_ip, transport, port: unpadded(rest)? };
    let (address, rest) = address(element.family, element.data.as_deref()?)?;
    Some((key, PortTarget { address, port: unpadded(rest)? }))
}

/// The exempt address an element stands for.
pub(super) fn exemption(element: &Element) -> Option<IpAddr> {
    let (address, rest) = address(element.family, &element.key)?;
    (element.set == UNMASQUERADED && rest.is_empty()).then_some(address)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address at the start, and what follows it.
fn address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (octets, rest) = bytes.split_first_chunk::<4>()?;
            Some((IpAddr::V4(Ipv4Addr::from(*octets)), rest))
        }
        Family::V6 => {
            let (octets, rest) = bytes.split_first_chunk::<16>()?;
            Some((IpAddr::V6(Ipv6Addr::from(*octets)), rest))
        }
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn unpadded(bytes: &[u8]) -> Option<u16> {
    match *bytes {
        [high, low, 0, 0] => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn of(family: Family, host_ip: Option<&str>, address: &str) -> Element {
        let key = PortKey { family, host_ip: host_ip.map(ip), transport: Transport::Sctp, port: 8080 };
        of_port(&key, &PortTarget { address: ip(address), port: 80 }).unwrap()
    }

    #[test]
    fn keys_and_data_stand_as_the_kernel_compares_them() {
        let any = of(Family::V4, None, "10.244.1.5");
        assert_eq!((any.set, any.key), ("ports", vec![132, 0, 0, 0, 0x1f, 0x90, 0, 0]));
        assert_eq!(any.data.unwrap(), [10, 244, 1, 5, 0, 80, 0, 0]);
        let one = of(Family::V4, Some("192.0.2.1"), "10.244.1.5");
        assert_eq!((one.set, one.key), ("address-ports", vec![192, 0, 2, 1, 132, 0, 0, 0, 0x1f, 0x90, 0, 0]));
        let v6 = of(Family::V6, Some("2001:db8::1"), "fd00::5");
        assert_eq!((v6.key.len(), v6.data.unwrap().len()), (24, 20));
        assert_eq!(of_exemption(ip("10.244.1.5")).key, [10, 244, 1, 5]);
    }

    #[test]
    fn an_element_of_two_families_or_of_strange_bytes_is_none_of_ours() {
        let key = PortKey { family: Family::V4, host_ip: None, transport: Transport::Tcp, port: 1 };
        assert_eq!(of_port(&key, &PortTarget { address: ip("fd00::5"), port: 1 }), None);
        let fine = of(Family::V4, None, "10.244.1.5");
        for strange in [
            Element { key: vec![1, 0, 0, 0, 0, 1, 0, 0], ..fine.clone() },
            Element { key: vec![6, 0, 0, 0, 0, 1], ..fine.clone() },
            Element { data: None, ..fine.clone() },
            Element { set: UNMASQUERADED, ..fine.clone() },
            Element { family: Family::V6, ..fine.clone() },
        ] {
            assert_eq!((port(&strange), exemption(&strange)), (None, None), "{strange:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_again(
            v6 in any::<bool>(), bound in any::<bool>(), words: [u128; 2], ports: [u16; 2], number in 0_usize..3
        ) {
            let address = |word: u128| match v6 {
                true => IpAddr::V6(Ipv6Addr::from_bits(word)),
                false => IpAddr::V4(Ipv4Addr::from_bits((word % (1 << 32)) as u32)),
            };
            let key = PortKey {
                family: if v6 { Family::V6 } else { Family::V4 },
                host_ip: bound.then(|| address(words[0])),
                transport: [Transport::Tcp, Transport::Udp, Transport::Sctp][number],
                port: ports[0],
            };
            let target = PortTarget { address: address(words[1]), port: ports[1] };
            prop_assert_eq!(port(&of_port(&key, &target).unwrap()), Some((key, target)));
            prop_assert_eq!(exemption(&of_exemption(target.address)), Some(target.address));
        }
    }
}
