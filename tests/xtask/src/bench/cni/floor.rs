//! The floor: the least that the kernel can be asked to do for an ADD and a DEL, by a process that is there already.
//!
//! **What is measured.** ADD, from the call to the last acknowledgement: a netlink socket is opened in the pod's namespace;
//! one send to the node's side makes the veth with its peer born in the pod's namespace and on the bridge, hairpin on,
//! brings it up; one send to the pod's side brings `eth0` up and gives it its address and its default route. With ports
//! and bandwidth the first send also puts a token bucket on the host end, makes an ifb with a token bucket, and redirects
//! what the pod sends to it, all before the links come up; and one map element leads a host port to the pod. Indexes are
//! chosen here, so that nothing has to be asked back. DEL, from the call until `RTM_DELLINK` of the links was seen: the
//! map element is removed, the links are moved into one group, and the group is deleted by a thread of its own, because the
//! kernel acknowledges a deletion only some 20 ms after it reported it. Pods that are deleted at the same time go in one send.
//!
//! **What is not.** No process is executed, nothing is decided, recorded or checked; addresses are counted up. The
//! masquerade is one rule that is there already, as the bridge is.
//!
//! ```text
//! attach ──route, pod, nft──> kernel
//! detach ──indexes──> Deleter ──group──> kernel ──RTM_DELLINK──> Watcher ──> detach returns
//! ```

mod channel;
mod deleter;
mod link;
mod port_map;
mod traffic;
mod watcher;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_lab::namespace::Place;
use culvert_lab::{Lab, Namespace};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use self::channel::Channel;
use self::deleter::Deleter;
use self::link::{PodLinks, Veth};
use super::pod_namespace::{self, PodNamespace};
use super::way::{Pod, SetUp, Way, Who};
use crate::bench::cpu;

/// The bridge's address; pods are counted up from it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
/// **Units** bits.
const PREFIX_LENGTH: u8 = 16;
/// The first index we choose: the kernel's own stay far below in a namespace of ours.
const FIRST_INDEX: u32 = 100_000;

/// The floor on a node of its own.
#[derive(Debug)]
pub(super) struct Floor {
    namespace: Namespace,
    own: File,
    bridge: u32,
    set_up: SetUp,
    /// One of each for all callers: the kernel does one thing at a time with links and with rules.
    route: Mutex<Channel>,
    firewall: Mutex<Channel>,
    deleter: Deleter,
}

impl Floor {
    /// A node without pods: its bridge, its masquerade, its map of ports.
    ///
    /// **Errors** it cannot be made.
    pub(super) fn build(lab: &Lab, set_up: SetUp) -> Result<Self> {
        let namespace = lab.namespace("floor")?;
        namespace.ip("link set lo up")?;
        namespace.ip("link add cni0 address 02:00:00:00:00:01 type bridge")?;
        namespace.ip(&format!("address add {GATEWAY}/{PREFIX_LENGTH} dev cni0"))?;
        namespace.ip("link set cni0 up")?;
        namespace.set_sysctl("net/ipv4/ip_forward", "1")?;
        port_map::make(&namespace, lab.folder(), &format!("{GATEWAY}/{PREFIX_LENGTH}"))?;
        let links: serde_json::Value = serde_json::from_str(&namespace.ip("-json link show cni0")?)?;
        let bridge = u32::try_from(links[0]["ifindex"].as_u64().context("a bridge without index")?)?;
        let own = pod_namespace::open(&namespace.path())?;
        let (route, firewall, deleter) = pod_namespace::inside(&namespace.path(), || {
            Ok((Channel::open(NETLINK_ROUTE)?, Channel::open(NETLINK_NETFILTER)?, Deleter::start()?))
        })?;
        Ok(Self { namespace, own, bridge, set_up, route: Mutex::new(route), firewall: Mutex::new(firewall), deleter })
    }

    /// A socket in a pod's namespace.
    fn channel_in(&self, pod: &PodNamespace) -> Result<Channel> {
        pod_namespace::enter(pod)?;
        let channel = Channel::open(NETLINK_ROUTE);
        pod_namespace::enter(&self.own)?;
        channel
    }
}

impl Way for Floor {
    fn who(&self) -> Who {
        Who::Floor
    }

    fn place(&self) -> &Place {
        &self.namespace
    }

    fn pod<'a>(&'a self, number: u16, namespace: &'a PodNamespace) -> Box<dyn Pod + 'a> {
        let first = FIRST_INDEX + u32::from(number) * 3;
        let veth = Veth {
            name: format!("fl{number}"),
            host: first,
            pod: first + 1,
            bridge: self.bridge,
            namespace: namespace.as_fd().as_raw_fd(),
        };
        let links = match self.set_up {
            SetUp::Network => PodLinks { veth, ifb: None },
            SetUp::PortsAndBandwidth => PodLinks { veth, ifb: Some((format!("fb{number}"), first + 2)) },
        };
        let address = Ipv4Addr::from_bits(GATEWAY.to_bits() + 1 + u32::from(number));
        Box::new(FloorPod { floor: self, namespace, number, links, address })
    }

    /// Everything happens in this process, and nothing else does while the floor is measured.
    fn cpu_time(&self) -> Result<Duration> {
        cpu::own()
    }

    fn settle(&self) -> Result<()> {
        self.deleter.settle()
    }

    fn leases(&self) -> Result<usize> {
        Ok(0)
    }
}

struct FloorPod<'a> {
    floor: &'a Floor,
    namespace: &'a PodNamespace,
    number: u16,
    links: PodLinks,
    address: Ipv4Addr,
}

impl FloorPod<'_> {
    /// The map element of its port, for a set-up that has ports.
    fn element(&self) -> Option<port_map::Element> {
        match self.floor.set_up {
            SetUp::Network => None,
            SetUp::PortsAndBandwidth => Some(port_map::Element { number: self.number, address: self.address }),
        }
    }
}

impl Pod for FloorPod<'_> {
    fn attach(&mut self) -> Result<()> {
        let mut pod = self.floor.channel_in(self.namespace)?;
        owned(&self.floor.route).send(self.links.host_messages()).context("the node's side")?;
        let messages = link::pod_messages(self.links.veth.pod, self.address, PREFIX_LENGTH, GATEWAY);
        pod.send(messages).context("the pod's side")?;
        match self.element() {
            Some(element) => owned(&self.floor.firewall).send(element.add()).context("the port's map element"),
            None => Ok(()),
        }
    }

    fn detach(&mut self) -> Result<()> {
        if let Some(element) = self.element() {
            owned(&self.floor.firewall).send(element.remove()).context("the port's map element")?;
        }
        self.floor.deleter.delete(&self.links.indexes())
    }

    fn address(&self) -> Option<IpAddr> {
        Some(IpAddr::V4(self.address))
    }
}

/// A socket for this thread alone. A send that panicked left nothing half done.
fn owned(channel: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_can_be_attached_and_detached_with_ports_and_bandwidth() {
        let lab = Lab::new().unwrap();
        let floor = Floor::build(&lab, SetUp::PortsAndBandwidth).unwrap();
        let namespace = PodNamespace::create().unwrap();
        let seen = |what: &str| floor.namespace.run(what).unwrap();
        pod_namespace::inside(&floor.namespace.path(), || {
            let mut pod = floor.pod(7, &namespace);
            pod.attach()?;
            floor.namespace.run(&format!("ping -c 1 -W 5 {}", pod.address().context("no address")?))?;
            assert!(seen("nft list ruleset").contains("10007"), "{}", seen("nft list ruleset"));
            assert_eq!(seen("tc qdisc show").matches("tbf").count(), 2);
            assert!(seen("bridge -details link show").contains("hairpin on"));
            pod.detach()?;
            floor.settle()
        })
        .unwrap();
        assert!(!seen("ip link show").contains("fl7"));
        assert!(!seen("nft list ruleset").contains("10007"));
    }
}
