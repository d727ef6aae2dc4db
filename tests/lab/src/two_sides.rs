//! Two nodes on both sides of a router: they share no subnet, nothing translates addresses, and so packets between
//! their pods need the tunnel. For benches, where the least should be in the way.
//!
//! ```text
//! near 192.0.2.2 ── 192.0.2.1 router 203.0.113.1 ── 203.0.113.2 far
//! ```

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::binaries::Binaries;
use crate::lab::{self, Host, Lab};
use crate::namespace::Namespace;
use crate::node::Node;
use crate::node_config::NodeSetup;

/// The two networks, documentation ranges. **Source** RFC 5737.
const SIDES: [[u8; 3]; 2] = [[192, 0, 2], [203, 0, 113]];

/// The two nodes; the first one is the keeper. Fields are dropped in this order.
#[derive(Debug)]
pub struct TwoSides {
    near: Node,
    far: Node,
    router: Namespace,
    lab: Lab,
}

impl TwoSides {
    /// Builds the machines, starts both daemons and waits until each knows the other.
    ///
    /// **Errors** something cannot be made, or a daemon does not come up.
    pub fn running() -> Result<Self> {
        let binaries = Arc::new(Binaries::find()?);
        let lab = Lab::new()?;
        let router = lab.namespace("router")?;
        router.ip("link set lo up")?;
        router.set_sysctl("net/ipv4/ip_forward", "1")?;
        let [near, far] = SIDES;
        let (near, far) = (side(&lab, &router, "near", near)?, side(&lab, &router, "far", far)?);
        let relays = vec![("near".to_owned(), near.address()?.to_string())];
        let setup = |zone: &str| NodeSetup { site_kind: "cloud", zone: zone.to_owned(), relays: relays.clone() };
        let near = Node::new(&lab, near, &setup("near"), &binaries)?;
        let far = Node::new(&lab, far, &setup("far"), &binaries)?;
        let mut sides = Self { near, far, router, lab };
        for node in [&mut sides.near, &mut sides.far] {
            node.start()?;
        }
        for node in [&mut sides.near, &mut sides.far] {
            node.wait_ready()?;
            node.wait_members(2)?;
        }
        Ok(sides)
    }

    /// The lab they are in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The node that is also the keeper.
    #[must_use]
    pub fn near(&self) -> &Node {
        &self.near
    }

    /// The other node.
    #[must_use]
    pub fn far(&self) -> &Node {
        &self.far
    }

    /// What is between them.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// The router's address on a node's side.
    ///
    /// **Errors** the node has no IPv4 address.
    pub fn gateway_of(&self, node: &Node) -> Result<IpAddr> {
        match node.host().address()? {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Ok(IpAddr::from([a, b, c, 1]))
            }
            IpAddr::V6(address) => anyhow::bail!("{address} is not of IPv4"),
        }
    }
}

/// A machine with a network of its own behind the router.
fn side(lab: &Lab, router: &Namespace, name: &str, [a, b, c]: [u8; 3]) -> Result<Host> {
    let namespace = lab.namespace(name)?;
    namespace.ip("link set lo up")?;
    namespace.ip(&format!("link add eth0 type veth peer name {name} netns {}", router.name()))?;
    let address = |last: u8| IpNet::new(IpAddr::from([a, b, c, last]), 24).context("a network of 24 bits");
    lab::give_address(&namespace, "eth0", address(2)?)?;
    lab::give_address(router, name, address(1)?)?;
    namespace.ip("link set eth0 up")?;
    router.ip(&format!("link set {name} up"))?;
    namespace.ip(&format!("route add default via {}", address(1)?.addr()))?;
    Ok(Host { name: name.to_owned(), namespace, addresses: vec![address(2)?.addr()] })
}
