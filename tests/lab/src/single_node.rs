//! The smallest lab: one public node that is its own keeper, for what needs no second one.

use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::lab::Lab;
use crate::node::Node;
use crate::node_config::NodeSetup;
use crate::pod::{Pod, PodSetup};
use crate::sandbox::NETWORK;
use crate::three_sites::CLOUD_1;

/// One node. Fields are dropped in this order: the daemon before its machine's link.
#[derive(Debug)]
pub struct SingleNode {
    node: Node,
    lab: Lab,
}

impl SingleNode {
    /// Makes the machine; the daemon does not run yet.
    ///
    /// **Errors** a program is missing, or a namespace cannot be made.
    pub fn build() -> Result<Self> {
        let binaries = Arc::new(Binaries::find()?);
        let lab = Lab::new()?;
        let host = lab.public_host(CLOUD_1, 10)?;
        let relays = vec![(CLOUD_1.to_owned(), host.addresses[0].to_string())];
        let node =
            Node::new(&lab, host, &NodeSetup { site_kind: "cloud", zone: "cloud".to_owned(), relays }, &binaries)?;
        Ok(Self { node, lab })
    }

    /// Makes the machine, starts the daemon and waits until it is ready.
    ///
    /// **Errors** as [`SingleNode::build`], or the daemon does not come up.
    pub fn running() -> Result<Self> {
        let mut single = Self::build()?;
        single.node.start()?;
        single.node.wait_ready()?;
        Ok(single)
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The node, to stop and start its daemon.
    pub fn node_mut(&mut self) -> &mut Node {
        &mut self.node
    }

    /// The lab it is in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The configuration that a runtime passes to the plugin, without anything special.
    #[must_use]
    pub fn netconf(&self) -> Value {
        json!({"cniVersion": "1.1.0", "name": NETWORK, "type": "culvert", "socket": self.node.cni_socket()})
    }

    /// Attaches a plain pod.
    ///
    /// **Errors** as [`Pod::attach`].
    pub fn pod(&self, name: &str) -> Result<Pod> {
        Pod::attach(&self.lab, &self.node, PodSetup::named(name))
    }
}
