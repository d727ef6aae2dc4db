//! The plans of an attachment: made, taken down, and held to other rates.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::address::{self, Family};
use crate::attachment::Attachment;
use crate::bandwidth::Shaping;
use crate::host_port::PortTable;
use crate::nat::unmasqueraded;
use crate::plan::{Plan, PodRoute, Step, Veth};
use crate::route_plan::BridgeGateways;

/// What an attachment hangs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetwork {
    /// The bridge's interface index.
    pub bridge_index: u32,
    /// The bridge's addresses, for a pod whose own block has none: a carve-out of one address.
    pub gateways: BridgeGateways,
}

impl PodNetwork {
    /// The next hop of a pod with this address: its block's gateway, or the bridge's for an address that has no block
    /// of its own.
    #[must_use]
    pub fn gateway_of(&self, pod_address: &IpNet) -> Option<IpAddr> {
        if pod_address.prefix_len() == pod_address.max_prefix_len() {
            return self.gateways.of(Family::of_prefix(pod_address));
        }
        Some(address::gateway(&pod_address.trunc()))
    }
}

/// The plan that makes an attachment, from its record and with the rates in it.
///
/// The pair comes first, so that undoing the plan takes everything in the pod with it; the rates
/// come before the pod can send. Last come its host ports, `ports` being those of all attachments, so that they
/// lead to a pod that is there.
#[must_use]
pub fn plan_add(attachment: &Attachment, network: &PodNetwork, ports: &PortTable) -> Plan {
    if attachment.foreign {
        let mut steps = plan_reshape(attachment, &Shaping::default(), &attachment.shaping).steps;
        steps.extend(ports.claim(attachment));
        return Plan { steps };
    }
    let mut steps = vec![Step::CreateVeth(veth(attachment, network.bridge_index))];
    steps.extend(plan_reshape(attachment, &Shaping::default(), &attachment.shaping).steps);
    let index = attachment.pod_index;
    steps.push(Step::PodLinkUp { index });
    steps.extend(attachment.addresses.iter().map(|address| Step::PodAddress { index, address: *address }));
    steps.extend(pod_routes(attachment, network));
    steps.extend(unmasqueraded(attachment).map(|address| Step::Exempt { address }));
    steps.extend(ports.claim(attachment));
    Plan { steps }
}

/// The plan that takes an attachment down. First go its host ports, or back to an older attachment, `ports` being
/// those of all attachments. Each step counts as done when its link or element is gone already;
/// the ifb is named even when the record has none, for a limit that was being set when we died.
#[must_use]
pub fn plan_del(attachment: &Attachment, ports: &PortTable) -> Plan {
    let mut steps = ports.release(attachment);
    if attachment.foreign {
        // The link is another plugin's, which may have taken it away already.
        steps.extend(plan_reshape(attachment, &attachment.shaping, &Shaping::default()).steps);
        steps.push(Step::DeleteLink { name: ifb_name(attachment) });
        return Plan { steps };
    }
    let names = [attachment.host_name.clone(), ifb_name(attachment)];
    steps.extend(unmasqueraded(attachment).map(|address| Step::Unexempt { address }));
    steps.extend(names.map(|name| Step::DeleteLink { name }));
    Plan { steps }
}

/// The plan that moves an attachment from one set of rates to another; empty when they are equal.
///
/// Only the total limits are the kernel's; the tunnel's are enforced by the data path.
#[must_use]
pub fn plan_reshape(attachment: &Attachment, from: &Shaping, to: &Shaping) -> Plan {
    let host_name = || attachment.host_name.clone();
    let ingress = match (from.total.ingress, to.total.ingress) {
        (before, after) if before == after => None,
        (before, Some(rate)) => Some(Step::ShapeIngress { host_name: host_name(), rate, before }),
        (Some(before), None) => Some(Step::UnshapeIngress { host_name: host_name(), before }),
        (None, None) => None,
    };
    let ifb_name = || ifb_name(attachment);
    let egress = match (from.total.egress, to.total.egress) {
        (before, after) if before == after => None,
        (before, Some(rate)) => Some(Step::ShapeEgress { host_name: host_name(), ifb_name: ifb_name(), rate, before }),
        (Some(before), None) => Some(Step::UnshapeEgress { host_name: host_name(), ifb_name: ifb_name(), before }),
        (None, None) => None,
    };
    Plan { steps: ingress.into_iter().chain(egress).collect() }
}

fn veth(attachment: &Attachment, bridge_index: u32) -> Veth {
    Veth {
        host_name: attachment.host_name.clone(),
        host_index: attachment.host_index,
        pod_name: attachment.key.ifname.clone(),
        pod_index: attachment.pod_index,
        pod_mac: attachment.mac,
        mtu_bytes: attachment.mtu_bytes,
        bridge_index,
        hairpin: attachment.hairpin,
        promiscuous_bridge: attachment.promiscuous_bridge,
    }
}

fn ifb_name(attachment: &Attachment) -> String {
    attachment.ifb_name.clone().unwrap_or_else(|| attachment.key.ifb_name())
}

/// The routes of the record; a next hop outside the pod's own prefix is made reachable first.
fn pod_routes(attachment: &Attachment, network: &PodNetwork) -> Vec<Step> {
    let index = attachment.pod_index;
    let gateways = attachment.addresses.iter().filter_map(|address| Some((address, network.gateway_of(address)?)));
    let distant = gateways.filter(|(address, gateway)| !address.contains(gateway)).map(|(_, gateway)| gateway);
    let on_link = distant.collect::<BTreeSet<_>>().into_iter().map(|gateway| PodRoute::new(gateway.into(), None));
    on_link.chain(attachment.routes.iter().copied()).map(|route| Step::PodRoute { index, route }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::attachment::{AttachmentKey, AttachmentState};
    use crate::bandwidth::{Limits, Rate};
    use crate::host_port::{HostPort, PortKey, PortTarget, Transport};
    use crate::plan::{KernelRoute, KernelVia};
    use crate::policy::PodView;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rate(bits_per_second: u64) -> Rate {
        Rate { bits_per_second, burst_bytes: 20_000 }
    }

    fn shaping(ingress: Option<u64>, egress: Option<u64>) -> Shaping {
        Shaping { total: Limits { ingress: ingress.map(rate), egress: egress.map(rate) }, ..Shaping::default() }
    }

    fn attachment(addresses: &[&str], shaping: Shaping) -> Attachment {
        let key =
            AttachmentKey { network: "culvert".to_owned(), container_id: "c1".to_owned(), ifname: "eth0".to_owned() };
        Attachment {
            netns: "/run/netns/pod".to_owned(),
            host_name: "cvhost".to_owned(),
            ifb_name: Some("cvifb".to_owned()),
            host_index: 10,
            pod_index: 11,
            mac: [2, 0, 0, 0, 0, 1],
            mtu_bytes: 1_400,
            hairpin: true,
            promiscuous_bridge: false,
            addresses: addresses.iter().map(|address| net(address)).collect(),
            pod: PodView::default(),
            pod_uid: String::new(),
            sticky: false,
            foreign: false,
            routes: [("0.0.0.0/0", "10.244.1.1"), ("10.96.0.0/12", "10.244.1.1"), ("::/0", "fd10::1")]
                .map(|(to, gateway)| PodRoute::new(net(to), Some(ip(gateway))))
                .into(),
            requested: Limits::default(),
            shaping,
            state: AttachmentState::Intended,
            serial: 2,
            host_ports: Vec::new(),
            masquerade: true,
            key,
        }
    }

    fn tcp(host_port: u16) -> HostPort {
        HostPort { host_ip: None, host_port, transport: Transport::Tcp, container_port: 80 }
    }

    fn tcp_element(port: u16, address: &str) -> (PortKey, PortTarget) {
        let key = PortKey { family: Family::V4, host_ip: None, transport: Transport::Tcp, port };
        (key, PortTarget { address: ip(address), port: 80 })
    }

    /// An attachment that is not masqueraded and asks for two ports, and an older one that has the first of them.
    fn with_ports() -> (Attachment, Attachment) {
        let mut older = attachment(&["10.244.1.6/24"], Shaping::default());
        older.key.container_id = "c0".to_owned();
        older.serial = 1;
        older.host_ports = vec![tcp(8080)];
        let mut attachment = attachment(&["10.244.1.7/24", "fd10::7/64"], shaping(Some(1), Some(2)));
        let any_v4 = Some(ip("0.0.0.0"));
        attachment.host_ports = [8080, 8081].map(|port| HostPort { host_ip: any_v4, ..tcp(port) }).into();
        attachment.masquerade = false;
        (attachment, older)
    }

    fn network() -> PodNetwork {
        PodNetwork { bridge_index: 3, gateways: BridgeGateways { v4: Some(ip("10.244.1.1")), v6: None } }
    }

    fn veth_step() -> Step {
        Step::CreateVeth(Veth {
            host_name: "cvhost".to_owned(),
            host_index: 10,
            pod_name: "eth0".to_owned(),
            pod_index: 11,
            pod_mac: [2, 0, 0, 0, 0, 1],
            mtu_bytes: 1_400,
            bridge_index: 3,
            hairpin: true,
            promiscuous_bridge: false,
        })
    }

    fn pod_route(to: &str, gateway: Option<&str>) -> Step {
        Step::PodRoute { index: 11, route: PodRoute::new(net(to), gateway.map(ip)) }
    }

    #[test]
    fn an_attachment_is_made_in_one_plan() {
        let attachment = attachment(&["10.244.1.7/24", "fd10::7/64"], shaping(Some(1), Some(2)));
        assert_eq!(
            plan_add(&attachment, &network(), &PortTable::default()).steps,
            [
                veth_step(),
                Step::ShapeIngress { host_name: "cvhost".to_owned(), rate: rate(1), before: None },
                Step::ShapeEgress {
                    host_name: "cvhost".to_owned(),
                    ifb_name: "cvifb".to_owned(),
                    rate: rate(2),
                    before: None,
                },
                Step::PodLinkUp { index: 11 },
                Step::PodAddress { index: 11, address: net("10.244.1.7/24") },
                Step::PodAddress { index: 11, address: net("fd10::7/64") },
                pod_route("0.0.0.0/0", Some("10.244.1.1")),
                pod_route("10.96.0.0/12", Some("10.244.1.1")),
                pod_route("::/0", Some("fd10::1")),
            ]
        );
    }

    #[test]
    fn a_carved_out_address_reaches_the_bridge_through_an_on_link_route() {
        let steps =
            plan_add(&attachment(&["10.244.9.7/32"], Shaping::default()), &network(), &PortTable::default()).steps;
        assert_eq!(
            steps[3..],
            [
                pod_route("10.244.1.1/32", None),
                pod_route("0.0.0.0/0", Some("10.244.1.1")),
                pod_route("10.96.0.0/12", Some("10.244.1.1")),
                pod_route("::/0", Some("fd10::1")),
            ]
        );
    }

    #[test]
    fn taking_down_names_both_links_even_when_the_record_has_no_ifb() {
        let mut attachment = attachment(&[], Shaping::default());
        let delete = |name: &str| Step::DeleteLink { name: name.to_owned() };
        assert_eq!(plan_del(&attachment, &PortTable::default()).steps, [delete("cvhost"), delete("cvifb")]);
        attachment.ifb_name = None;
        let derived = attachment.key.ifb_name();
        assert_eq!(plan_del(&attachment, &PortTable::default()).steps, [delete("cvhost"), delete(&derived)]);
    }

    #[test]
    fn ports_and_the_exemption_are_set_last_and_go_first() {
        let (attachment, older) = with_ports();
        let table = PortTable::of([&attachment, &older]);
        let ((shared, own), (_, others)) = (tcp_element(8080, "10.244.1.7"), tcp_element(8080, "10.244.1.6"));
        let (single, single_target) = tcp_element(8081, "10.244.1.7");
        let exempt = ["10.244.1.7", "fd10::7"].map(ip);
        let add = plan_add(&attachment, &network(), &table).steps;
        assert_eq!(
            add[add.len() - 4..],
            [
                Step::Exempt { address: exempt[0] },
                Step::Exempt { address: exempt[1] },
                Step::SetPort { key: shared, target: own, before: Some(others) },
                Step::SetPort { key: single, target: single_target, before: None },
            ]
        );
        assert_eq!(
            plan_del(&attachment, &table).steps[..5],
            [
                Step::SetPort { key: shared, target: others, before: Some(own) },
                Step::RemovePort { key: single, target: single_target },
                Step::Unexempt { address: exempt[0] },
                Step::Unexempt { address: exempt[1] },
                Step::DeleteLink { name: "cvhost".to_owned() },
            ]
        );
        assert_eq!(plan_del(&older, &table).steps[0], Step::DeleteLink { name: "cvhost".to_owned() });
    }

    /// What the steps of these plans leave behind.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Kernel {
        links: BTreeSet<String>,
        pod: Vec<Step>,
        ingress: BTreeMap<String, Rate>,
        egress: BTreeMap<String, (String, Rate)>,
        routes: BTreeMap<IpNet, KernelRoute>,
        ports: BTreeMap<PortKey, PortTarget>,
        unmasqueraded: BTreeSet<IpAddr>,
    }

    impl Kernel {
        fn apply(&mut self, step: &Step) {
            match step.clone() {
                Step::CreateVeth(veth) => assert!(self.links.insert(veth.host_name)),
                Step::DeleteLink { name } => {
                    if self.links.remove(&name) {
                        self.ingress.remove(&name);
                        self.pod.clear();
                    }
                }
                step @ (Step::PodLinkUp { .. } | Step::PodAddress { .. } | Step::PodRoute { .. }) => {
                    self.pod.push(step);
                }
                Step::ShapeIngress { host_name, rate, before } => {
                    assert_eq!(self.ingress.insert(host_name, rate), before);
                }
                Step::UnshapeIngress { host_name, before } => {
                    assert_eq!(self.ingress.remove(&host_name), Some(before));
                }
                Step::ShapeEgress { host_name, ifb_name, rate, before } => {
                    let old = self.egress.insert(host_name, (ifb_name, rate)).map(|(_, rate)| rate);
                    assert_eq!(old, before);
                }
                Step::UnshapeEgress { host_name, ifb_name, before } => {
                    assert_eq!(self.egress.remove(&host_name), Some((ifb_name, before)));
                }
                Step::SetRoute { route, before } => assert_eq!(self.routes.insert(route.to, route), before),
                Step::RemoveRoute { route } => assert_eq!(self.routes.remove(&route.to), Some(route)),
                Step::SetPort { key, target, before } => assert_eq!(self.ports.insert(key, target), before),
                Step::RemovePort { key, target } => assert_eq!(self.ports.remove(&key), Some(target)),
                Step::Exempt { address } => assert!(self.unmasqueraded.insert(address)),
                Step::Unexempt { address } => assert!(self.unmasqueraded.remove(&address)),
            }
        }

        fn after(&self, plan: &Plan, steps: usize) -> Self {
            let mut kernel = self.clone();
            plan.steps.iter().take(steps).for_each(|step| kernel.apply(step));
            kernel
        }
    }

    fn undo_restores_after_every_failed_step(before: &Kernel, plan: &Plan) {
        for failed in 0..=plan.steps.len() {
            let half = before.after(plan, failed);
            let undo = plan.undo(failed);
            assert_eq!(half.after(&undo, undo.steps.len()), *before, "step {failed} failed");
        }
    }

    #[test]
    fn a_failed_add_is_undone_at_every_step() {
        let (attachment, older) = with_ports();
        let table = PortTable::of([&older]);
        let before = Kernel { ports: table.elements(), ..Kernel::default() };
        undo_restores_after_every_failed_step(&before, &plan_add(&attachment, &network(), &table));
    }

    #[test]
    fn a_failed_release_of_ports_is_undone_at_every_step() {
        let (attachment, older) = with_ports();
        let table = PortTable::of([&attachment, &older]);
        let unmasqueraded = attachment.addresses.iter().map(IpNet::addr).collect();
        let before = Kernel { ports: table.elements(), unmasqueraded, ..Kernel::default() };
        let mut plan = plan_del(&attachment, &table);
        // What lived in the links cannot be brought back.
        plan.steps.retain(|step| !matches!(step, Step::DeleteLink { .. }));
        undo_restores_after_every_failed_step(&before, &plan);
        let after = before.after(&plan, plan.steps.len());
        assert_eq!(after.ports, PortTable::of([&older]).elements());
        assert!(after.unmasqueraded.is_empty());
    }

    #[test]
    fn rates_move_between_any_two_settings_and_back() {
        let rates = [None, Some(1), Some(2)];
        let settings: Vec<Shaping> =
            rates.iter().flat_map(|ingress| rates.map(|egress| shaping(*ingress, egress))).collect();
        for from in &settings {
            let attachment = attachment(&["10.244.1.7/24"], *from);
            let add = plan_add(&attachment, &network(), &PortTable::default());
            let before = Kernel::default().after(&add, add.steps.len());
            for to in &settings {
                let plan = plan_reshape(&attachment, from, to);
                undo_restores_after_every_failed_step(&before, &plan);
                let after = before.after(&plan, plan.steps.len());
                assert_eq!(after.ingress.get("cvhost").copied(), to.total.ingress);
                assert_eq!(after.egress.get("cvhost").map(|(_, rate)| *rate), to.total.egress);
                assert_eq!(plan.is_empty(), from == to);
            }
        }
    }

    #[test]
    fn tunnel_rates_are_not_the_kernels() {
        let tunnel = Shaping { tunnel: Limits { ingress: Some(rate(1)), egress: Some(rate(1)) }, ..Shaping::default() };
        let attachment = attachment(&[], Shaping::default());
        assert_eq!(plan_reshape(&attachment, &Shaping::default(), &tunnel), Plan::default());
    }

    #[test]
    fn a_failed_change_of_routes_is_undone_at_every_step() {
        let route = |to: &str, via: KernelVia| KernelRoute { to: net(to), via, source: None, mtu_bytes: None };
        let current = [
            route("10.244.1.0/24", KernelVia::Bridge),
            route("10.244.2.0/24", KernelVia::Tunnel),
            route("10.244.3.0/24", KernelVia::Tunnel),
        ];
        let wanted = [
            route("10.244.1.0/24", KernelVia::Bridge),
            route("10.244.2.0/24", KernelVia::NextHop(ip("192.168.1.2"))),
            route("10.244.4.0/24", KernelVia::Throw),
        ];
        let table = |routes: &[KernelRoute]| routes.iter().map(|route| (route.to, *route)).collect::<BTreeMap<_, _>>();
        let before = Kernel { routes: table(&current), ..Kernel::default() };
        let plan = crate::route_plan::diff(&current, &table(&wanted));
        undo_restores_after_every_failed_step(&before, &plan);
        assert_eq!(before.after(&plan, plan.steps.len()).routes, table(&wanted));
    }
}
