//! A site: a LAN behind a router that masquerades and lets nothing new in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::lab::{self, Host, Lab, SEGMENT};
use crate::namespace::Namespace;

/// The LAN's IPv4 range: the same in every site, as home and shop routers have it.
const LAN_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 1, 0), 24);
/// The LAN's IPv6 range: unique-local and without an uplink. **Source** RFC 4193.
const LAN_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0), 64);

/// The firewall of a cheap router: masquerade what leaves, forward only what was asked for.
const ROUTER_RULES: [&str; 4] = [
    "iptables -t nat -A POSTROUTING -o wan0 -j MASQUERADE",
    "iptables -A FORWARD -i wan0 -m conntrack --ctstate NEW,INVALID -j DROP",
    "iptables -A INPUT -i wan0 -m conntrack --ctstate NEW,INVALID -j DROP",
    // Private destinations have no route on the internet.
    "iptables -A FORWARD -o wan0 -d 192.168.0.0/16 -j DROP",
];

/// A site and its router.
#[derive(Debug)]
pub struct Site {
    name: String,
    router: Namespace,
}

impl Site {
    /// Makes a router at `198.51.100.LAST` with an empty LAN behind it.
    ///
    /// **Errors** a namespace, link or rule cannot be made.
    pub fn behind_nat(lab: &Lab, name: &str, last_octet: u8) -> Result<Self> {
        let router = lab.namespace(&format!("router-{name}"))?;
        lab::make_segment(&router)?;
        lab.plug_into_internet(&router, "wan0", last_octet)?;
        lab::give_address(&router, SEGMENT, lan_v4(1)?)?;
        lab::give_address(&router, SEGMENT, lan_v6(1)?)?;
        router.set_sysctl("net/ipv4/ip_forward", "1")?;
        for rule in ROUTER_RULES {
            router.run(rule)?;
        }
        Ok(Self { name: name.to_owned(), router })
    }

    /// The site's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The router, to disturb it.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// A machine on the LAN, at `192.168.1.LAST` and `fd01::LAST`.
    ///
    /// **Errors** the machine cannot be made.
    pub fn host(&self, lab: &Lab, name: &str, last: u8) -> Result<Host> {
        let namespace = lab.namespace(name)?;
        namespace.ip("link set lo up")?;
        lab.plug(&self.router, &namespace, "eth0")?;
        let (v4, v6) = (lan_v4(last)?, lan_v6(last)?);
        lab::give_address(&namespace, "eth0", v4)?;
        lab::give_address(&namespace, "eth0", v6)?;
        namespace.ip(&format!("route add default via {}", lan_v4(1)?.addr()))?;
        Ok(Host { name: name.to_owned(), namespace, addresses: vec![v4.addr(), v6.addr()] })
    }
}

fn lan_v4(last: u8) -> Result<IpNet> {
    let address = Ipv4Addr::from_bits(LAN_V4.network().to_bits() | u32::from(last));
    Ok(IpNet::new(IpAddr::V4(address), LAN_V4.prefix_len())?)
}

fn lan_v6(last: u8) -> Result<IpNet> {
    // The last octet is written as the same digits in both families, so that a person can match them.
    let digits = u128::from_str_radix(&last.to_string(), 16)?;
    let address = Ipv6Addr::from_bits(LAN_V6.network().to_bits() | digits);
    Ok(IpNet::new(IpAddr::V6(address), LAN_V6.prefix_len())?)
}
