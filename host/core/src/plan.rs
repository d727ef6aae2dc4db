//! A change as a value: an ordered list of steps, each with its inverse.
//!
//! `kernel` applies a whole plan. When step k fails it applies the inverses of steps k-1 … 0, and an
//! inverse whose object is already gone counts as done, so undo works when half of it is missing.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::bandwidth::Rate;
use crate::host_port::{PortKey, PortTarget};

/// A host end, a pod end and the bridge they hang on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Veth {
    /// The host end's name, `cv…`. **Bounds** at most 15 bytes.
    pub host_name: String,
    /// The host end's interface index, chosen by us so that one batch can name it.
    pub host_index: u32,
    /// The pod end's name (CNI_IFNAME). **Bounds** at most 15 bytes.
    pub pod_name: String,
    /// The pod end's interface index.
    pub pod_index: u32,
    /// The pod end's hardware address.
    pub pod_mac: [u8; 6],
    /// **Units** bytes.
    pub mtu_bytes: u32,
    /// The bridge's interface index.
    pub bridge_index: u32,
    /// Whether the bridge may send a frame back out of the port it came in by.
    pub hairpin: bool,
    /// Whether the bridge takes in frames for any hardware address from now on. It stays so: other pods may need it.
    pub promiscuous_bridge: bool,
}

/// A route inside a pod, through its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodRoute {
    /// The destination.
    pub to: IpNet,
    /// The next hop; `None` means on-link.
    pub gateway: Option<IpAddr>,
    /// The metric; lower is preferred.
    pub metric: Option<u32>,
    /// **Units** bytes.
    pub mtu_bytes: Option<u32>,
    /// The TCP segment size advertised. **Units** bytes.
    pub advertised_mss_bytes: Option<u32>,
    /// The routing table; `None` means the main one.
    pub table: Option<u32>,
    /// The scope, as the kernel numbers it.
    pub scope: Option<u8>,
}

impl PodRoute {
    /// A route without attributes.
    #[must_use]
    pub fn new(to: IpNet, gateway: Option<IpAddr>) -> Self {
        Self { to, gateway, metric: None, mtu_bytes: None, advertised_mss_bytes: None, table: None, scope: None }
    }
}

/// How the kernel forwards to a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelVia {
    /// Onto the bridge `cni0`.
    Bridge,
    /// To this on-link next hop.
    NextHop(IpAddr),
    /// Into the TUN device `culvert0`.
    Tunnel,
    /// Leave our table and go on with the next rule: the underlay's routes decide.
    Throw,
    /// Refuse with ICMP "administratively prohibited".
    Prohibit,
}

/// A route in Culvert's own routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KernelRoute {
    /// The destination.
    pub to: IpNet,
    /// How it is forwarded.
    pub via: KernelVia,
    /// The source address of the node's own packets on this route: the bridge gateway of the family.
    pub source: Option<IpAddr>,
    /// **Units** bytes; `None` leaves the device's.
    pub mtu_bytes: Option<u32>,
}

/// One change of the kernel's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Make the pair, its pod end born in the pod's namespace, its host end on the bridge and up,
    /// router advertisements ignored before the host end is enslaved.
    CreateVeth(Veth),
    /// Delete a link of the host namespace by name; gone already counts as done.
    DeleteLink {
        /// The link's name.
        name: String,
    },
    /// In the pod's namespace: set the link up.
    PodLinkUp {
        /// The pod end's index.
        index: u32,
    },
    /// In the pod's namespace: add an address.
    PodAddress {
        /// The pod end's index.
        index: u32,
        /// Address and prefix length.
        address: IpNet,
    },
    /// In the pod's namespace: add a route through the pod end.
    PodRoute {
        /// The pod end's index.
        index: u32,
        /// The route.
        route: PodRoute,
    },
    /// Hold traffic towards the pod to a rate: a tbf on the host end. Replaces one that is there.
    ShapeIngress {
        /// The host end's name.
        host_name: String,
        /// The rate now.
        rate: Rate,
        /// The rate before, for the inverse.
        before: Option<Rate>,
    },
    /// Take the limit towards the pod away.
    UnshapeIngress {
        /// The host end's name.
        host_name: String,
        /// The rate before, for the inverse.
        before: Rate,
    },
    /// Hold traffic from the pod to a rate: redirect the host end's ingress to an ifb with a tbf.
    /// Replaces one that is there.
    ShapeEgress {
        /// The host end's name.
        host_name: String,
        /// The ifb's name, `cv…`.
        ifb_name: String,
        /// The rate now.
        rate: Rate,
        /// The rate before, for the inverse.
        before: Option<Rate>,
    },
    /// Take the limit from the pod away, and its ifb with it.
    UnshapeEgress {
        /// The host end's name.
        host_name: String,
        /// The ifb's name.
        ifb_name: String,
        /// The rate before, for the inverse.
        before: Rate,
    },
    /// Add a route, or replace the one to the same destination (make-before-break).
    SetRoute {
        /// The route now.
        route: KernelRoute,
        /// The route before, for the inverse.
        before: Option<KernelRoute>,
    },
    /// Remove a route.
    RemoveRoute {
        /// The route that is there.
        route: KernelRoute,
    },
    /// Lead a host port to a pod, wherever it led before.
    SetPort {
        /// The port.
        key: PortKey,
        /// Where it leads now.
        target: PortTarget,
        /// Where it led before, for the inverse.
        before: Option<PortTarget>,
    },
    /// Let a host port lead nowhere; gone already counts as done.
    RemovePort {
        /// The port.
        key: PortKey,
        /// Where it led, for the inverse.
        target: PortTarget,
    },
    /// Let a pod address leave the cluster as it is, not under the node's.
    Exempt {
        /// The address.
        address: IpAddr,
    },
    /// Masquerade a pod address again; done already counts as done.
    Unexempt {
        /// The address.
        address: IpAddr,
    },
}

/// An ordered list of steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In the order they are applied.
    pub steps: Vec<Step>,
}

impl Step {
    /// What kind of change it is, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CreateVeth(_) => "create-veth",
            Self::DeleteLink { .. } => "delete-link",
            Self::PodLinkUp { .. } => "pod-link-up",
            Self::PodAddress { .. } => "pod-address",
            Self::PodRoute { .. } => "pod-route",
            Self::ShapeIngress { .. } => "shape-ingress",
            Self::UnshapeIngress { .. } => "unshape-ingress",
            Self::ShapeEgress { .. } => "shape-egress",
            Self::UnshapeEgress { .. } => "unshape-egress",
            Self::SetRoute { .. } => "set-route",
            Self::RemoveRoute { .. } => "remove-route",
            Self::SetPort { .. } => "set-port",
            Self::RemovePort { .. } => "remove-port",
            Self::Exempt { .. } => "exempt",
            Self::Unexempt { .. } => "unexempt",
        }
    }

    /// The step that undoes this one; `None` when nothing is left to undo, because what it made
    /// lives and dies with the veth pair, or because it cannot be brought back.
    #[must_use]
    pub fn inverse(&self) -> Option<Self> {
        match self.clone() {
            Self::CreateVeth(veth) => Some(Self::DeleteLink { name: veth.host_name }),
            Self::DeleteLink { .. } | Self::PodLinkUp { .. } | Self::PodAddress { .. } | Self::PodRoute { .. } => None,
            Self::ShapeIngress { host_name, rate, before } => Some(match before {
                Some(before) => Self::ShapeIngress { host_name, rate: before, before: Some(rate) },
                None => Self::UnshapeIngress { host_name, before: rate },
            }),
            Self::UnshapeIngress { host_name, before } => {
                Some(Self::ShapeIngress { host_name, rate: before, before: None })
            }
            Self::ShapeEgress { host_name, ifb_name, rate, before } => Some(match before {
                Some(before) => Self::ShapeEgress { host_name, ifb_name, rate: before, before: Some(rate) },
                None => Self::UnshapeEgress { host_name, ifb_name, before: rate },
            }),
            Self::UnshapeEgress { host_name, ifb_name, before } => {
                Some(Self::ShapeEgress { host_name, ifb_name, rate: before, before: None })
            }
            Self::SetRoute { route, before } => Some(match before {
                Some(before) => Self::SetRoute { route: before, before: Some(route) },
                None => Self::RemoveRoute { route },
            }),
            Self::RemoveRoute { route } => Some(Self::SetRoute { route, before: None }),
            Self::SetPort { key, target, before } => Some(match before {
                Some(before) => Self::SetPort { key, target: before, before: Some(target) },
                None => Self::RemovePort { key, target },
            }),
            Self::RemovePort { key, target } => Some(Self::SetPort { key, target, before: None }),
            Self::Exempt { address } => Some(Self::Unexempt { address }),
            Self::Unexempt { address } => Some(Self::Exempt { address }),
        }
    }
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The plan that undoes the first `applied` steps, the last one first.
    #[must_use]
    pub fn undo(&self, applied: usize) -> Self {
        let applied = self.steps.iter().take(applied);
        Self { steps: applied.rev().filter_map(Step::inverse).collect() }
    }
}
