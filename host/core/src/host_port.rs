//! Ports of the node that lead to a pod: what a pod asks for, and the elements that follow from it.
//!
//! ```text
//! HostPort + addresses ── admit ──> PortKey → PortTarget, one a family
//! all records ── PortTable ──> who holds each key (the newest), what an ADD sets and a DEL gives back
//! ```

mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address::Family;

pub use table::PortTable;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the node that a pod asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// The node's address it is bound to. `None` means every address; `0.0.0.0` and `::` mean every one of
    /// their family.
    pub host_ip: Option<IpAddr>,
    /// The node's port. **Bounds** at least 1.
    pub host_port: u16,
    /// The transport.
    pub transport: Transport,
    /// The pod's port. **Bounds** at least 1.
    pub container_port: u16,
}

/// What a packet to the node is looked up by: at most one pod has it at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortKey {
    /// The family.
    pub family: Family,
    /// The node's address; `None` means every local address that no other key names.
    pub host_ip: Option<IpAddr>,
    /// The transport.
    pub transport: Transport,
    /// The node's port.
    pub port: u16,
}

/// Where a host port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortTarget {
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's port.
    pub port: u16,
}

/// Host ports that cannot be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    /// The pod has no address the port could lead to.
    #[error(
        "host port {port} leads to no address of the pod, which has {}: ask for it on a host address of the same family",
        listed(addresses)
    )]
    NoAddress {
        /// The port.
        port: HostPort,
        /// The pod's addresses.
        addresses: Vec<IpAddr>,
    },
    /// One request asks for the same port twice.
    #[error("host port {key} is asked for twice ({first} and {second}): remove one of the two")]
    Duplicate {
        /// The port.
        key: PortKey,
        /// What the first asks for.
        first: HostPort,
        /// What the second asks for.
        second: HostPort,
    },
    /// A port on `::1`, which the kernel never forwards.
    #[error("host port {port} cannot be served: the kernel forwards nothing that is sent to ::1; use 127.0.0.1")]
    Loopback {
        /// The port.
        port: HostPort,
    },
}

/// The elements that follow from a pod's host ports and addresses: for each family the first address of it.
///
/// **Errors** [`HostPortError`]; nothing is left out silently.
pub fn admit(host_ports: &[HostPort], addresses: &[IpNet]) -> Result<BTreeMap<PortKey, PortTarget>, HostPortError> {
    let mut askers: BTreeMap<PortKey, HostPort> = BTreeMap::new();
    for port in host_ports {
        if port.host_ip == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
            return Err(HostPortError::Loopback { port: *port });
        }
        let elements = elements_of(port, addresses);
        if elements.is_empty() {
            let addresses = addresses.iter().map(IpNet::addr).collect();
            return Err(HostPortError::NoAddress { port: *port, addresses });
        }
        for (key, _) in elements {
            if let Some(first) = askers.insert(key, *port) {
                return Err(HostPortError::Duplicate { key, first, second: *port });
            }
        }
    }
    Ok(elements(host_ports, addresses))
}

/// The elements of host ports that were admitted.
fn elements(host_ports: &[HostPort], addresses: &[IpNet]) -> BTreeMap<PortKey, PortTarget> {
    host_ports.iter().flat_map(|port| elements_of(port, addresses)).collect()
}

/// The elements of one host port, at most one a family.
fn elements_of(port: &HostPort, addresses: &[IpNet]) -> Vec<(PortKey, PortTarget)> {
    let host_ip = port.host_ip.map(|host_ip| host_ip.to_canonical());
    let families = match host_ip {
        None => vec![Family::V4, Family::V6],
        Some(host_ip) => vec![Family::of(host_ip)],
    };
    let element = |family: Family| {
        let address = addresses.iter().find(|address| Family::of_prefix(address) == family)?.addr();
        let host_ip = host_ip.filter(|host_ip| !host_ip.is_unspecified());
        let key = PortKey { family, host_ip, transport: port.transport, port: port.host_port };
        Some((key, PortTarget { address, port: port.container_port }))
    };
    families.into_iter().filter_map(element).collect()
}

fn listed(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

impl Transport {
    /// Its number in the IP header. **Source** IANA protocol numbers.
    #[must_use]
    pub fn protocol_number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The transport of a number in the IP header.
    #[must_use]
    pub fn of_protocol_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|transport| transport.protocol_number() == number)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(host_ip)) => write!(formatter, "[{host_ip}]:{}/{}", self.host_port, self.transport),
            Some(IpAddr::V4(host_ip)) => write!(formatter, "{host_ip}:{}/{}", self.host_port, self.transport),
            None => write!(formatter, "{}/{}", self.host_port, self.transport),
        }
    }
}

impl fmt::Display for PortKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host_ip = self.host_ip.unwrap_or(match self.family {
            Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        });
        let port = HostPort {
            host_ip: Some(host_ip),
            host_port: self.port,
            transport: self.transport,
            container_port: self.port,
        };
        port.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn tcp(host_ip: Option<&str>) -> HostPort {
        HostPort { host_ip: host_ip.map(ip), host_port: 8080, transport: Transport::Tcp, container_port: 80 }
    }

    fn element(family: Family, host_ip: Option<&str>, address: &str) -> (PortKey, PortTarget) {
        let key = PortKey { family, host_ip: host_ip.map(ip), transport: Transport::Tcp, port: 8080 };
        (key, PortTarget { address: ip(address), port: 80 })
    }

    const DUAL: [&str; 4] = ["10.244.1.5/24", "10.244.1.6/24", "fd00::5/64", "fd00::6/64"];

    #[test]
    fn a_port_leads_to_the_first_address_of_each_family_its_host_address_allows() {
        let (v4, v6) = (Family::V4, Family::V6);
        let any_v4 = element(v4, None, "10.244.1.5");
        let any_v6 = element(v6, None, "fd00::5");
        for (host_ip, expected) in [
            (None, vec![any_v4, any_v6]),
            (Some("0.0.0.0"), vec![any_v4]),
            (Some("::"), vec![any_v6]),
            (Some("192.0.2.1"), vec![element(v4, Some("192.0.2.1"), "10.244.1.5")]),
            (Some("::ffff:192.0.2.1"), vec![element(v4, Some("192.0.2.1"), "10.244.1.5")]),
            (Some("2001:db8::1"), vec![element(v6, Some("2001:db8::1"), "fd00::5")]),
        ] {
            let admitted = admit(&[tcp(host_ip)], &nets(&DUAL)).unwrap();
            assert_eq!(admitted, expected.into_iter().collect(), "{host_ip:?}");
        }
    }

    #[test]
    fn a_host_address_of_a_family_the_pod_lacks_is_refused_and_both_are_named() {
        for (host_ip, address, message) in [
            (
                Some("2001:db8::1"),
                "10.244.1.5/24",
                "host port [2001:db8::1]:8080/tcp leads to no address of the pod, which has 10.244.1.5: ask for it on a host address of the same family",
            ),
            (
                Some("0.0.0.0"),
                "fd00::5/64",
                "host port 0.0.0.0:8080/tcp leads to no address of the pod, which has fd00::5: ask for it on a host address of the same family",
            ),
        ] {
            let error = admit(&[tcp(host_ip)], &nets(&[address])).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let error = admit(&[tcp(None)], &[]).unwrap_err();
        assert!(error.to_string().contains("host port 8080/tcp leads to no address of the pod, which has none"));
    }

    #[test]
    fn one_port_asked_for_twice_is_refused_and_named() {
        let other = HostPort { container_port: 81, host_ip: Some(ip("0.0.0.0")), ..tcp(None) };
        for second in [tcp(None), other] {
            let error = admit(&[tcp(None), second], &nets(&DUAL)).unwrap_err();
            assert!(error.to_string().starts_with("host port 0.0.0.0:8080/tcp is asked for twice"), "{error}");
        }
        let udp = HostPort { transport: Transport::Udp, ..tcp(None) };
        let apart = [tcp(None), tcp(Some("192.0.2.1")), tcp(Some("192.0.2.2")), udp];
        assert_eq!(admit(&apart, &nets(&["10.244.1.5/24"])).unwrap().len(), 4);
    }

    #[test]
    fn the_ipv6_loopback_is_refused_and_the_ipv4_one_is_not() {
        let error = admit(&[tcp(Some("::1"))], &nets(&DUAL)).unwrap_err();
        assert_eq!(error, HostPortError::Loopback { port: tcp(Some("::1")) });
        assert_eq!(admit(&[tcp(Some("127.0.0.1"))], &nets(&DUAL)).unwrap().len(), 1);
    }

    #[test]
    fn transports_and_their_numbers_go_both_ways() {
        for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
            assert_eq!(Transport::of_protocol_number(transport.protocol_number()), Some(transport));
        }
        assert_eq!(Transport::of_protocol_number(1), None);
    }
}
