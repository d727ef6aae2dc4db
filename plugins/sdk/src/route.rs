//! Route policies: the routing table of one node, compiled from a topology.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::description::Description;
use crate::error::PolicyError;
use crate::topology::Topology;

/// How packets for a prefix leave this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Onto this node's own bridge.
    Local,
    /// Plain IP forwarding to this next hop, which must be on-link.
    Direct(IpAddr),
    /// Left to the routes that are there: the underlay's own, or another CNI's.
    Underlay,
    /// Through the peer-to-peer tunnel to the node at this position, which must hold the prefix.
    Tunnel(usize),
    /// Refused, with ICMP "administratively prohibited".
    Reject,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// How.
    pub via: Via,
    /// What the host does by itself while `via` is dead (next hop unreachable, tunnel down).
    pub otherwise: Option<Via>,
}

impl Route {
    /// A route without a way out while it is dead.
    #[must_use]
    pub fn new(to: IpNet, via: Via) -> Self {
        Self { to, via, otherwise: None }
    }

    /// The same route with a way out while it is dead.
    #[must_use]
    pub fn or(self, otherwise: Via) -> Self {
        Self { otherwise: Some(otherwise), ..self }
    }
}

/// Turns a topology into the routes of one node.
pub trait RoutePolicy: Sized + 'static {
    /// Reads the deployment's settings, JSON text, "{}" when there are none.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] refuses the deployment.
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError>;

    /// The whole routing table of `topology.local` for pod traffic: a pure function of its argument. The host asks
    /// when the topology changes, on a fresh instance each time, and refuses the whole answer when any part is wrong;
    /// `wit/router.wit` lists when.
    ///
    /// **Bounds** 100 ms; 4 × nodes + 64 routes.
    ///
    /// # Errors
    /// The routes in force stay in force.
    fn plan(&self, topology: &Topology) -> Result<Vec<Route>, PolicyError>;
}
