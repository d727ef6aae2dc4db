//! The lab that the demo and most tests use: a cloud and two edge sites behind NAT with the same LAN range.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::binaries::Binaries;
use crate::lab::Lab;
use crate::node::Node;
use crate::node_config::NodeSetup;
use crate::pod::{Pod, PodSetup};
use crate::site::Site;

/// The relay's name.
pub const CLOUD_1: &str = "cloud-1";
/// The first node of site a.
pub const EDGE_1: &str = "edge-1";
/// The second node of site a, on the same LAN as the first.
pub const EDGE_2: &str = "edge-2";
/// The node of site b, with the same LAN address as the first of site a.
pub const EDGE_3: &str = "edge-3";

/// Four nodes in three sites. Fields are dropped in this order: daemons before their machines' links.
#[derive(Debug)]
pub struct ThreeSites {
    nodes: Vec<Node>,
    sites: Vec<Site>,
    lab: Lab,
}

impl ThreeSites {
    /// Builds the machines; no daemon runs yet.
    ///
    /// **Errors** a program is missing, or a namespace cannot be made.
    pub fn build() -> Result<Self> {
        let binaries = Arc::new(Binaries::find()?);
        let lab = Lab::new()?;
        let cloud = lab.public_host(CLOUD_1, 10)?;
        let relays = vec![(CLOUD_1.to_owned(), cloud.addresses[0].to_string())];
        let setup = |site_kind, zone: &str| NodeSetup { site_kind, zone: zone.to_owned(), relays: relays.clone() };
        let mut nodes = vec![Node::new(&lab, cloud, &setup("cloud", "cloud"), &binaries)?];
        let mut sites = Vec::new();
        for (zone, router_octet, members) in
            [("site-a", 21, [Some((EDGE_1, 11)), Some((EDGE_2, 12))]), ("site-b", 22, [Some((EDGE_3, 11)), None])]
        {
            let site = Site::behind_nat(&lab, zone, router_octet)?;
            for (name, last) in members.into_iter().flatten() {
                let host = site.host(&lab, name, last)?;
                nodes.push(Node::new(&lab, host, &setup("edge", zone), &binaries)?);
            }
            sites.push(site);
        }
        Ok(Self { nodes, sites, lab })
    }

    /// Builds the machines, starts every daemon and waits until each knows all four nodes.
    ///
    /// **Errors** as [`ThreeSites::build`], or a daemon does not come up.
    pub fn running() -> Result<Self> {
        let mut sites = Self::build()?;
        sites.start_all()?;
        Ok(sites)
    }

    /// Starts every daemon and waits until each knows all nodes.
    ///
    /// **Errors** a daemon does not come up.
    pub fn start_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start()?;
        }
        let count = self.nodes.len() as u64;
        for node in &mut self.nodes {
            node.wait_ready()?;
            node.wait_members(count)?;
        }
        Ok(())
    }

    /// The lab they are in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// All nodes, the relay first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes, to start and stop their daemons.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The sites behind NAT.
    #[must_use]
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// A node by its name.
    ///
    /// **Errors** there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node {name}"))
    }

    /// A node by its name, to start and stop its daemon.
    ///
    /// **Errors** there is none.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name() == name).with_context(|| format!("no node {name}"))
    }

    /// Attaches a plain pod on a node.
    ///
    /// **Errors** as [`Pod::attach`].
    pub fn pod(&self, node: &str, name: &str) -> Result<Pod> {
        Pod::attach(&self.lab, self.node(node)?, PodSetup::named(name))
    }
}
