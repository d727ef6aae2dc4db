//! UDP flows that a change of host ports left behind.
//!
//! The kernel translates a flow as its first packet was. A client that keeps sending from one port would keep
//! reaching a pod that is gone, or nobody although the pod is there by now. TCP and SCTP notice by themselves.
//! Nothing waits for this: a flow that is overlooked ends when it has been silent for half a minute.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use culvert_core::address::Family;
use culvert_core::host_port::{PortKey, PortTarget, Transport};
use culvert_core::plan::{Plan, Step};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::batch::{Channel, SEND_MAX};
use crate::message::conntrack::{self, Flow};
use crate::observe::address_of;

/// Changed ports that may wait to be looked at. With more, flows are left to time out: that many pods changed
/// at once that the next packet of a flow hardly matters.
const WAITING_MAX: usize = 4096;

/// A port whose flows may be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Changed {
    key: PortKey,
    /// Where it led before.
    led_to: Option<PortTarget>,
}

impl Changed {
    /// Whether a flow came by this port when it led elsewhere, or nowhere. `local` are the node's addresses.
    fn left(&self, flow: &Flow, local: &BTreeSet<IpAddr>) -> bool {
        let (address, port) = flow.to;
        let by_this_port = port == self.key.port
            && match self.key.host_ip {
                Some(host_ip) => host_ip == address,
                None => local.contains(&address) || address.is_loopback(),
            };
        let led_to = self.led_to.map(|target| (target.address, target.port));
        by_this_port && (Some(flow.answered_by) == led_to || flow.answered_by == flow.to)
    }
}

/// Finds and forgets stale flows, one round at a time.
pub(crate) struct StaleFlows {
    waiting: Mutex<BTreeSet<Changed>>,
    sockets: Mutex<Sockets>,
}

struct Sockets {
    flows: Channel<Socket>,
    addresses: Channel<Socket>,
}

impl StaleFlows {
    /// Open the sockets, in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let sockets = Sockets { flows: Channel::open(NETLINK_NETFILTER)?, addresses: Channel::open(NETLINK_ROUTE)? };
        Ok(Self { waiting: Mutex::default(), sockets: Mutex::new(sockets) })
    }

    /// Forget what a plan that was carried out left behind, some time soon, on a thread of its own.
    pub(crate) fn forget_soon(self: &Arc<Self>, plan: &Plan) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let before = waiting.len();
        waiting.extend(changed_ports(plan).take(WAITING_MAX.saturating_sub(before)));
        if waiting.len() > before {
            let flows = Arc::clone(self);
            tokio::task::spawn_blocking(move || flows.forget_waiting());
        }
    }

    /// One round for everything that waits; the rounds of others find nothing left then.
    fn forget_waiting(&self) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if changed.is_empty() {
            return;
        }
        match sockets.forget(&changed) {
            Ok(forgotten) => tracing::debug!(ports = changed.len(), forgotten, "stale flows of host ports forgotten"),
            Err(error) => tracing::debug!(%error, "stale flows of host ports are left to time out"),
        }
    }
}

impl Sockets {
    /// **Units** flows that were forgotten.
    fn forget(&mut self, changed: &BTreeSet<Changed>) -> io::Result<usize> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let addresses = self.addresses.dump(&request)?;
        let local: BTreeSet<IpAddr> =
            addresses.into_iter().flatten().filter_map(|found| local_address(&found)).collect();
        let ports: BTreeSet<(Family, u16)> = changed.iter().map(|one| (one.key.family, one.key.port)).collect();
        let mut forgotten = 0;
        for (family, port) in ports {
            let found = self.flows.dump(&conntrack::list_udp(family, port))?;
            let flows = found.iter().flatten().filter_map(conntrack::udp_flow);
            let stale = flows.filter(|flow| changed.iter().any(|one| one.left(flow, &local)));
            let messages: Vec<_> =
                stale.map(|flow| (conntrack::forget(family, &flow), NLM_F_REQUEST | NLM_F_ACK)).collect();
            for part in messages.chunks(SEND_MAX) {
                // One that ended by itself meanwhile is as good as forgotten.
                forgotten += self.flows.exchange(part.to_vec())?.into_iter().flatten().filter(Result::is_ok).count();
            }
        }
        Ok(forgotten)
    }
}

fn local_address(message: &RouteNetlinkMessage) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    address_of(message)
}

/// The UDP ports a plan leads elsewhere.
fn changed_ports(plan: &Plan) -> impl Iterator<Item = Changed> {
    plan.steps.iter().filter_map(|step| {
        let (key, led_to) = match step {
            Step::SetPort { key, target, before } if Some(*target) != *before => (*key, *before),
            Step::RemovePort { key, target } => (*key, Some(*target)),
            Step::SetPort { .. }
            | Step::Exempt { .. }
            | Step::Unexempt { .. }
            | Step::CreateVeth(_)
            | Step::DeleteLink { .. }
            | Step::PodLinkUp { .. }
            | Step::PodAddress { .. }
            | Step::PodRoute { .. }
            | Step::ShapeIngress { .. }
            | Step::UnshapeIngress { .. }
            | Step::ShapeEgress { .. }
            | Step::UnshapeEgress { .. }
            | Step::SetRoute { .. }
            | Step::RemoveRoute { .. } => return None,
        };
        (key.transport == Transport::Udp).then_some(Changed { key, led_to })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn target(address: &str) -> PortTarget {
        PortTarget { address: ip(address), port: 53 }
    }

    fn changed(host_ip: Option<&str>, led_to: Option<&str>) -> Changed {
        let key = PortKey { family: Family::V4, host_ip: host_ip.map(ip), transport: Transport::Udp, port: 5353 };
        Changed { key, led_to: led_to.map(target) }
    }

    #[test]
    fn only_flows_that_came_by_the_port_when_it_led_elsewhere_are_stale() {
        let local = BTreeSet::from([ip("192.0.2.1"), ip("192.0.2.9")]);
        let (node, pod, other) = (("192.0.2.1", 5353), ("10.244.1.5", 53), ("10.244.1.6", 53));
        for (changed, to, answered_by, stale) in [
            (changed(None, Some("10.244.1.5")), node, pod, true),
            (changed(None, Some("10.244.1.5")), node, other, false),
            (changed(None, Some("10.244.1.5")), ("10.96.0.10", 5353), pod, false),
            (changed(None, Some("10.244.1.5")), ("192.0.2.1", 53), pod, false),
            (changed(None, None), node, node, true),
            (changed(None, None), ("127.0.0.1", 5353), ("127.0.0.1", 5353), true),
            (changed(None, None), ("8.8.8.8", 5353), ("8.8.8.8", 5353), false),
            (changed(Some("192.0.2.9"), None), node, node, false),
            (changed(Some("192.0.2.9"), None), ("192.0.2.9", 5353), ("192.0.2.9", 5353), true),
        ] {
            let end = |(address, port)| (ip(address), port);
            let flow = Flow { to: end(to), answered_by: end(answered_by), identity: Vec::new() };
            assert_eq!(changed.left(&flow, &local), stale, "{changed:?} {flow:?}");
        }
    }

    #[test]
    fn a_plan_that_leads_no_udp_port_elsewhere_leaves_nothing_behind() {
        let udp = changed(None, None).key;
        let tcp = PortKey { transport: Transport::Tcp, ..udp };
        let (old, new) = (target("10.244.1.5"), target("10.244.1.6"));
        let steps = vec![
            Step::SetPort { key: udp, target: new, before: Some(new) },
            Step::SetPort { key: tcp, target: new, before: Some(old) },
            Step::RemovePort { key: tcp, target: old },
            Step::Exempt { address: new.address },
        ];
        assert_eq!(changed_ports(&Plan { steps }).count(), 0);
        let steps = vec![
            Step::SetPort { key: udp, target: new, before: Some(old) },
            Step::SetPort { key: udp, target: new, before: None },
            Step::RemovePort { key: udp, target: new },
        ];
        let found: Vec<_> = changed_ports(&Plan { steps }).map(|one| one.led_to).collect();
        assert_eq!(found, [Some(old), None, Some(new)]);
    }
}
