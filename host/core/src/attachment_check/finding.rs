//! What a check finds, in words an operator can act on.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::bandwidth::Rate;
use crate::host_port::{PortKey, PortTarget};
use crate::plan::PodRoute;

/// One difference between an attachment's record and what is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// The host end is gone.
    #[error("host end {name} is gone: delete the pod, so that it is made anew")]
    HostEndGone {
        /// Its name.
        name: String,
    },
    /// The host end is set down.
    #[error("host end {name} should be up and is down: set it up (ip link set {name} up) or delete the pod")]
    HostEndDown {
        /// Its name.
        name: String,
    },
    /// The host end is a port of another bridge, or of none.
    #[error(
        "host end {name} should be a port of the bridge with index {expected} and is {}: delete the pod",
        found.map_or("a port of none".to_owned(), |found| format!("a port of the one with index {found}"))
    )]
    HostEndOffBridge {
        /// Its name.
        name: String,
        /// The index of the bridge.
        expected: u32,
        /// The index of what it is a port of.
        found: Option<u32>,
    },
    /// An end has another MTU.
    #[error("link {name} should have an MTU of {expected_bytes} bytes and has {found_bytes}: delete the pod")]
    WrongMtu {
        /// Its name.
        name: String,
        /// **Units** bytes.
        expected_bytes: u32,
        /// **Units** bytes.
        found_bytes: u32,
    },
    /// The pod has no such interface.
    #[error("the pod's interface {name} is gone: delete the pod, so that it is made anew")]
    PodEndGone {
        /// Its name.
        name: String,
    },
    /// The pod end is set down.
    #[error("the pod's interface {name} should be up and is down: set it up inside the pod or delete the pod")]
    PodEndDown {
        /// Its name.
        name: String,
    },
    /// The pod end has another hardware address.
    #[error(
        "the pod's interface {name} should have the hardware address {} and has {}: delete the pod",
        hardware(expected),
        hardware(found)
    )]
    WrongMac {
        /// Its name.
        name: String,
        /// The record's.
        expected: [u8; 6],
        /// The one that is there.
        found: [u8; 6],
    },
    /// The pod end lacks an address.
    #[error("the pod's interface {name} should have the address {address} and has {}: delete the pod", listed(found))]
    AddressMissing {
        /// Its name.
        name: String,
        /// The address.
        address: IpNet,
        /// Those that are there.
        found: Vec<IpNet>,
    },
    /// A route is missing inside the pod.
    #[error(
        "the pod should have the route {} by its interface {name} and has {}: delete the pod",
        shown(route),
        ways(found)
    )]
    RouteMissing {
        /// The pod end's name.
        name: String,
        /// The route.
        route: Box<PodRoute>,
        /// Its routes to the same destination by the same interface.
        found: Vec<PodRoute>,
    },
    /// Traffic towards the pod, or away from it, is not held to its rate.
    #[error(
        "{link} should hold traffic {direction} to {} and holds it to {}: delete the pod",
        limit(expected),
        limit(found)
    )]
    WrongRate {
        /// The link that holds it.
        link: String,
        /// Which traffic.
        direction: Direction,
        /// The rate in force by the record.
        expected: Option<Rate>,
        /// The rate that is there.
        found: Option<Rate>,
    },
    /// The ifb is gone.
    #[error("{name}, which holds traffic from the pod to {}, is gone: restart culvertd, which makes it anew", limit(&Some(*rate)))]
    IfbGone {
        /// Its name.
        name: String,
        /// The rate it should hold to.
        rate: Rate,
    },
    /// The ifb is down: nothing leaves the pod.
    #[error("{name} should be up and is down, so that nothing leaves the pod: set it up (ip link set {name} up)")]
    IfbDown {
        /// Its name.
        name: String,
    },
    /// Traffic from the pod does not take the way through the ifb, or takes one that nobody recorded.
    #[error(
        "traffic that comes in by {name} (egress of the pod) should be redirected {} and is redirected {}: delete the pod",
        redirected(*expected),
        redirected(*found)
    )]
    WrongRedirect {
        /// The host end.
        name: String,
        /// The index of the ifb.
        expected: Option<u32>,
        /// The index of where it goes.
        found: Option<u32>,
    },
    /// The bridge lacks a gateway.
    #[error(
        "the bridge should have {gateway}, the gateway of {address}, and has {}: restart culvertd, which sets it again",
        listed(found)
    )]
    GatewayMissing {
        /// The gateway.
        gateway: IpAddr,
        /// The pod's address it is the gateway of.
        address: IpNet,
        /// The bridge's addresses.
        found: Vec<IpNet>,
    },
    /// A port of the node does not lead to the pod.
    #[error(
        "host port {key} should lead to {} and leads {}: restart culvertd, which sets it again",
        at(expected),
        found.as_ref().map_or("nowhere".to_owned(), |found| format!("to {}", at(found)))
    )]
    WrongPort {
        /// The port.
        key: PortKey,
        /// Where it should lead.
        expected: PortTarget,
        /// Where it leads.
        found: Option<PortTarget>,
    },
    /// An address is masqueraded that should not be.
    #[error("{address} should keep its address when it leaves the cluster and is masqueraded: restart culvertd")]
    Masqueraded {
        /// The pod's address.
        address: IpAddr,
    },
    /// An address is exempt from masquerading that should not be.
    #[error("{address} should be masqueraded when it leaves the cluster and is exempt: restart culvertd")]
    Exempt {
        /// The pod's address.
        address: IpAddr,
    },
    /// The static rules of the node are not what they should be.
    #[error(
        "the node's CULVERT rules for forwarding and masquerading should stand and are missing or changed: restart culvertd, which sets them again"
    )]
    RulesMissing,
    /// The runtime's result has other addresses.
    #[error(
        "the runtime's result (prevResult) gives {name} {} and the record {}: delete the pod",
        listed(found),
        listed(expected)
    )]
    OtherAddresses {
        /// The pod end's name.
        name: String,
        /// The record's.
        expected: Vec<IpNet>,
        /// The runtime's.
        found: Vec<IpNet>,
    },
    /// The runtime's result has another hardware address.
    #[error(
        "the runtime's result (prevResult) gives {name} the hardware address {} and the record {}: delete the pod",
        hardware(found),
        hardware(expected)
    )]
    OtherMac {
        /// The pod end's name.
        name: String,
        /// The record's.
        expected: [u8; 6],
        /// The runtime's.
        found: [u8; 6],
    },
    /// The runtime's result does not name an end.
    #[error(
        "the runtime's result (prevResult) should name the interface {expected} and names {}: delete the pod",
        listed(found)
    )]
    OtherInterfaces {
        /// The name it lacks.
        expected: String,
        /// The names it has.
        found: Vec<String>,
    },
}

/// Which way traffic goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards it.
    Ingress,
    /// Away from it.
    Egress,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Ingress => "towards the pod (ingress)",
            Self::Egress => "from the pod (egress)",
        })
    }
}

fn hardware(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn listed<T: ToString>(all: &[T]) -> String {
    if all.is_empty() {
        return "none".to_owned();
    }
    all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn shown(route: &PodRoute) -> String {
    let mut text = route.to.to_string();
    text.extend(route.gateway.map(|gateway| format!(" via {gateway}")));
    text.extend(route.metric.map(|metric| format!(" metric {metric}")));
    text.extend(route.table.map(|table| format!(" table {table}")));
    text
}

fn ways(routes: &[PodRoute]) -> String {
    if routes.is_empty() {
        return "no route to there".to_owned();
    }
    routes.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn limit(rate: &Option<Rate>) -> String {
    match rate {
        Some(rate) => format!("{} bit/s with a burst of {} bytes", rate.bits_per_second, rate.burst_bytes),
        None => "no rate".to_owned(),
    }
}

fn redirected(index: Option<u32>) -> String {
    match index {
        Some(0) => "to a link that is gone".to_owned(),
        Some(index) => format!("to the link with index {index}"),
        None => "nowhere".to_owned(),
    }
}

fn at(target: &PortTarget) -> String {
    std::net::SocketAddr::new(target.address, target.port).to_string()
}
