//! Compares the record of an attachment with what is there: what a CHECK answers.
//!
//! ```text
//! record ────────────────────────────┐
//! kernel ─> AttachmentFacts ─────────┼─> findings ─> none: all is as recorded
//! runtime ─> PreviousResult ─┐       │          └──> each names an object, what it should be and what it is
//! records ─> PortTable ──────┴─> Expected
//! ```
//!
//! More than was recorded is no fault: others may add routes and addresses. An interface
//! that another plugin made is checked no further than what Culvert did to it: its rates and its host ports.

mod finding;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

pub use finding::{Direction, Finding};

use crate::attachment::Attachment;
use crate::attachment_plan::PodNetwork;
use crate::bandwidth::{LINK_HEADER_BYTES, MAX_BITS_PER_SECOND, Rate};
use crate::host_port::PortTable;
use crate::nat::{NatElements, unmasqueraded};
use crate::plan::PodRoute;

/// What the kernel shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentFacts {
    /// The attachment's links.
    pub links: AttachmentLinks,
    /// The elements of the NAT table, those of other attachments included.
    pub nat: NatElements,
    /// Whether the static rules of the node are in place.
    pub rules_stand: bool,
}

/// What the kernel shows of an attachment's links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentLinks {
    /// The host end; `None` when it is gone.
    pub host: Option<HostEnd>,
    /// The ifb; `None` when there is none.
    pub ifb: Option<Ifb>,
    /// The bridge's addresses.
    pub bridge_addresses: Vec<IpNet>,
    /// The pod end.
    pub pod: PodEnd,
}

/// A host end that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostEnd {
    /// Whether it is set up.
    pub up: bool,
    /// The index of the bridge it is a port of.
    pub bridge_index: Option<u32>,
    /// **Units** bytes.
    pub mtu_bytes: u32,
    /// What its token bucket lets out to the pod.
    pub rate: Option<Rate>,
    /// The index of the link that its incoming traffic is redirected to; 0 when that is gone.
    pub redirect: Option<u32>,
}

/// An ifb that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ifb {
    /// Its index.
    pub index: u32,
    /// Whether it is set up.
    pub up: bool,
    /// What its token bucket lets out to the bridge.
    pub rate: Option<Rate>,
}

/// The pod end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodEnd {
    /// Nobody looked into the pod: nothing is found there.
    #[default]
    NotSeen,
    /// The pod has no such interface.
    Gone,
    /// It is there.
    There(PodInterface),
}

/// A pod end that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodInterface {
    /// Whether it is set up.
    pub up: bool,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// **Units** bytes.
    pub mtu_bytes: u32,
    /// Its addresses, link-local ones included.
    pub addresses: Vec<IpNet>,
    /// The routes through it, of every table.
    pub routes: Vec<PodRoute>,
}

/// What an attachment is compared with besides its own record.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// What it hangs on.
    pub network: &'a PodNetwork,
    /// The host ports of all attachments.
    pub ports: &'a PortTable<'a>,
    /// What the runtime believes; `None` when no runtime asks.
    pub previous: Option<&'a PreviousResult>,
}

/// What the runtime's result (prevResult) says of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousResult {
    /// The addresses of its pod end.
    pub addresses: Vec<IpNet>,
    /// The hardware address of its pod end, if it gives one.
    pub mac: Option<[u8; 6]>,
    /// The names of all interfaces, on either side; empty when it gives none.
    pub interfaces: Vec<String>,
}

/// Everything that is not as recorded; empty when all is.
#[must_use]
pub fn findings(record: &Attachment, facts: &AttachmentFacts, expected: &Expected) -> Vec<Finding> {
    let mut found = host_end(record, &facts.links, expected);
    found.extend(rates(record, &facts.links));
    found.extend(ports(record, &facts.nat, expected));
    if record.foreign {
        return found;
    }
    found.extend(pod_end(record, &facts.links.pod));
    found.extend(gateways(record, &facts.links.bridge_addresses, expected.network));
    found.extend(masquerade(record, &facts.nat));
    found.extend((!facts.rules_stand).then_some(Finding::RulesMissing));
    found.extend(expected.previous.into_iter().flat_map(|previous| previous_result(record, previous)));
    found
}

fn host_end(record: &Attachment, links: &AttachmentLinks, expected: &Expected) -> Vec<Finding> {
    let name = || record.host_name.clone();
    let Some(host) = &links.host else {
        return vec![Finding::HostEndGone { name: name() }];
    };
    let mut found = Vec::new();
    if !host.up {
        found.push(Finding::HostEndDown { name: name() });
    }
    if record.foreign {
        return found;
    }
    let bridge_index = expected.network.bridge_index;
    if host.bridge_index != Some(bridge_index) {
        found.push(Finding::HostEndOffBridge { name: name(), expected: bridge_index, found: host.bridge_index });
    }
    found.extend(mtu(name(), record, host.mtu_bytes));
    found
}

fn mtu(name: String, record: &Attachment, found_bytes: u32) -> Option<Finding> {
    let expected_bytes = record.mtu_bytes;
    (found_bytes != expected_bytes).then_some(Finding::WrongMtu { name, expected_bytes, found_bytes })
}

fn pod_end(record: &Attachment, pod: &PodEnd) -> Vec<Finding> {
    let name = || record.key.ifname.clone();
    let pod = match pod {
        PodEnd::NotSeen => return Vec::new(),
        PodEnd::Gone => return vec![Finding::PodEndGone { name: name() }],
        PodEnd::There(pod) => pod,
    };
    let mut found = Vec::new();
    if !pod.up {
        found.push(Finding::PodEndDown { name: name() });
    }
    if pod.mac != record.mac {
        found.push(Finding::WrongMac { name: name(), expected: record.mac, found: pod.mac });
    }
    found.extend(mtu(name(), record, pod.mtu_bytes));
    let missing = record.addresses.iter().filter(|address| !pod.addresses.contains(address));
    found.extend(missing.map(|address| Finding::AddressMissing {
        name: name(),
        address: *address,
        found: pod.addresses.clone(),
    }));
    let missing = record.routes.iter().filter(|route| !pod.routes.iter().any(|found| is_route(route, found)));
    found.extend(missing.map(|route| Finding::RouteMissing {
        name: name(),
        route: Box::new(*route),
        found: pod.routes.iter().filter(|found| found.to.trunc() == route.to.trunc()).copied().collect(),
    }));
    found
}

/// Whether a route that is there is the one that was asked for. A metric of 0 leaves the choice to the kernel.
fn is_route(wanted: &PodRoute, found: &PodRoute) -> bool {
    wanted.to.trunc() == found.to.trunc()
        && wanted.gateway == found.gateway
        && table(wanted) == table(found)
        && wanted.metric.is_none_or(|metric| metric == 0 || found.metric == Some(metric))
}

fn table(route: &PodRoute) -> u32 {
    route.table.filter(|table| *table != 0).unwrap_or(MAIN_TABLE)
}

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;

fn rates(record: &Attachment, links: &AttachmentLinks) -> Vec<Finding> {
    // A host end that is gone is said already, and its rates went with it.
    let Some(host) = &links.host else {
        return Vec::new();
    };
    let total = record.shaping.total;
    let mut found = Vec::new();
    let wrong = |link: &String, direction, expected, found| {
        let wrong = Finding::WrongRate { link: link.clone(), direction, expected, found };
        (!is_rate(expected, found, host.mtu_bytes)).then_some(wrong)
    };
    found.extend(wrong(&record.host_name, Direction::Ingress, total.ingress, host.rate));
    let ifb_name = record.ifb_name.clone().unwrap_or_else(|| record.key.ifb_name());
    match (total.egress, &links.ifb) {
        (Some(rate), None) => found.push(Finding::IfbGone { name: ifb_name, rate }),
        (Some(rate), Some(ifb)) => {
            found.extend(wrong(&ifb_name, Direction::Egress, Some(rate), ifb.rate));
            found.extend((!ifb.up).then_some(Finding::IfbDown { name: ifb_name }));
            found.extend(redirect(record, host, Some(ifb.index)));
        }
        (None, _) => found.extend(redirect(record, host, None)),
    }
    found
}

fn redirect(record: &Attachment, host: &HostEnd, expected: Option<u32>) -> Option<Finding> {
    let wrong = Finding::WrongRedirect { name: record.host_name.clone(), expected, found: host.redirect };
    (host.redirect != expected).then_some(wrong)
}

/// Whether a rate that is there is the one that was asked for: as far as a bucket can say it.
fn is_rate(wanted: Option<Rate>, found: Option<Rate>, mtu_bytes: u32) -> bool {
    // A bucket of the highest rate is what stands for no limit.
    let limit = |rate: Option<Rate>| rate.filter(|rate| rate.bits_per_second < MAX_BITS_PER_SECOND);
    match (limit(wanted), limit(found)) {
        (None, None) => true,
        (Some(wanted), Some(found)) => {
            let bytes_per_second = (wanted.bits_per_second / 8).max(1);
            let burst_bytes = wanted.burst_bytes.max(mtu_bytes.saturating_add(LINK_HEADER_BYTES));
            bytes_per_second == found.bits_per_second / 8
                && u64::from(burst_bytes.abs_diff(found.burst_bytes)) <= rounding_bytes(bytes_per_second)
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// How far a burst may be off that the kernel keeps as a time: two ticks at the rate, and one byte. **Units** bytes.
fn rounding_bytes(bytes_per_second: u64) -> u64 {
    bytes_per_second.saturating_mul(2 * TICK_NANOSECONDS) / 1_000_000_000 + 1
}

/// **Units** nanoseconds. The tick in which the kernel shows times of queueing disciplines (`PSCHED_SHIFT`).
const TICK_NANOSECONDS: u64 = 64;

fn gateways(record: &Attachment, present: &[IpNet], network: &PodNetwork) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let wanted = record.addresses.iter().filter_map(|address| Some((address, network.gateway_of(address)?)));
    let missing = wanted.filter(|(_, gateway)| !present.iter().any(|present| present.addr() == *gateway));
    let once = missing.filter(|(_, gateway)| seen.insert(*gateway));
    once.map(|(address, gateway)| Finding::GatewayMissing { gateway, address: *address, found: present.to_vec() })
        .collect()
}

/// Only the ports that it has, and has not lost to a newer attachment.
fn ports<'a>(
    record: &'a Attachment,
    present: &'a NatElements,
    expected: &Expected,
) -> impl Iterator<Item = Finding> + use<'a> {
    expected.ports.held_by(record).into_iter().filter_map(|(key, expected)| {
        let found = present.ports.get(&key).copied();
        (found != Some(expected)).then_some(Finding::WrongPort { key, expected, found })
    })
}

fn masquerade(record: &Attachment, present: &NatElements) -> Vec<Finding> {
    let exempt: BTreeSet<IpAddr> = unmasqueraded(record).collect();
    let wrong = |address: IpAddr| match (exempt.contains(&address), present.unmasqueraded.contains(&address)) {
        (true, false) => Some(Finding::Masqueraded { address }),
        (false, true) => Some(Finding::Exempt { address }),
        (true, true) | (false, false) => None,
    };
    record.addresses.iter().map(IpNet::addr).filter_map(wrong).collect()
}

fn previous_result(record: &Attachment, previous: &PreviousResult) -> Vec<Finding> {
    let name = || record.key.ifname.clone();
    let mut found = Vec::new();
    let sorted = |addresses: &[IpNet]| addresses.iter().copied().collect::<BTreeSet<_>>();
    if sorted(&previous.addresses) != sorted(&record.addresses) {
        let (expected, other) = (record.addresses.clone(), previous.addresses.clone());
        found.push(Finding::OtherAddresses { name: name(), expected, found: other });
    }
    if let Some(mac) = previous.mac.filter(|mac| *mac != record.mac) {
        found.push(Finding::OtherMac { name: name(), expected: record.mac, found: mac });
    }
    let ends = [&record.host_name, &record.key.ifname].into_iter();
    let lacking = ends.filter(|end| !previous.interfaces.is_empty() && !previous.interfaces.contains(end));
    found.extend(
        lacking.map(|end| Finding::OtherInterfaces { expected: end.clone(), found: previous.interfaces.clone() }),
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Family;
    use crate::attachment::{AttachmentKey, AttachmentState};
    use crate::bandwidth::{Limits, Shaping};
    use crate::host_port::{HostPort, PortKey, PortTarget, Transport};
    use crate::policy::PodView;
    use crate::route_plan::BridgeGateways;

    const INGRESS: Rate = Rate { bits_per_second: 8_000_000, burst_bytes: 20_000 };
    const EGRESS: Rate = Rate { bits_per_second: 16_000_000, burst_bytes: 30_000 };
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn record() -> Attachment {
        let key =
            AttachmentKey { network: "culvert".to_owned(), container_id: "c1".to_owned(), ifname: "eth0".to_owned() };
        let route = |to, gateway| PodRoute::new(net(to), Some(ip(gateway)));
        Attachment {
            netns: "/run/netns/pod".to_owned(),
            host_name: "cvhost".to_owned(),
            ifb_name: Some("cvifb".to_owned()),
            host_index: 10,
            pod_index: 11,
            mac: MAC,
            mtu_bytes: 1_400,
            hairpin: true,
            promiscuous_bridge: false,
            addresses: vec![net("10.244.1.7/24"), net("fd10::7/64")],
            pod: PodView::default(),
            pod_uid: String::new(),
            routes: vec![
                route("0.0.0.0/0", "10.244.1.1"),
                PodRoute { metric: Some(7), ..route("10.96.0.0/12", "10.244.1.1") },
                route("::/0", "fd10::1"),
            ],
            foreign: false,
            sticky: false,
            requested: Limits::default(),
            shaping: Shaping { total: Limits { ingress: Some(INGRESS), egress: Some(EGRESS) }, ..Shaping::default() },
            state: AttachmentState::Acknowledged,
            serial: 2,
            host_ports: vec![HostPort {
                host_ip: Some(ip("0.0.0.0")),
                host_port: 8080,
                transport: Transport::Tcp,
                container_port: 80,
            }],
            masquerade: false,
            key,
        }
    }

    /// What is there when all is well.
    fn whole() -> AttachmentFacts {
        let record = record();
        let mut routes = record.routes.clone();
        for route in &mut routes {
            *route = PodRoute { table: Some(MAIN_TABLE), metric: route.metric.or(Some(1_024)), ..*route };
        }
        AttachmentFacts {
            links: AttachmentLinks {
                host: Some(HostEnd {
                    up: true,
                    bridge_index: Some(3),
                    mtu_bytes: 1_400,
                    rate: Some(INGRESS),
                    redirect: Some(12),
                }),
                ifb: Some(Ifb { index: 12, up: true, rate: Some(EGRESS) }),
                bridge_addresses: vec![net("10.244.1.1/24"), net("fd10::1/64"), net("fe80::1/64")],
                pod: PodEnd::There(PodInterface {
                    up: true,
                    mac: MAC,
                    mtu_bytes: 1_400,
                    addresses: record.addresses.clone(),
                    routes,
                }),
            },
            nat: NatElements::of([&record]),
            rules_stand: true,
        }
    }

    fn previous() -> PreviousResult {
        PreviousResult {
            addresses: vec![net("fd10::7/64"), net("10.244.1.7/24")],
            mac: Some(MAC),
            interfaces: ["cni0", "cvhost", "eth0"].map(str::to_owned).into(),
        }
    }

    fn network() -> PodNetwork {
        PodNetwork { bridge_index: 3, gateways: BridgeGateways::default() }
    }

    /// The findings on a record and facts, with a result of the runtime's.
    fn check(record: &Attachment, facts: &AttachmentFacts, previous: &PreviousResult) -> Vec<Finding> {
        let (network, ports) = (network(), PortTable::of([record]));
        findings(record, facts, &Expected { network: &network, ports: &ports, previous: Some(previous) })
    }

    /// The findings after something about a whole attachment was changed.
    fn after(change: impl FnOnce(&mut AttachmentFacts)) -> Vec<Finding> {
        let mut facts = whole();
        change(&mut facts);
        check(&record(), &facts, &previous())
    }

    fn after_host(change: impl FnOnce(&mut HostEnd)) -> Vec<Finding> {
        after(|facts| change(facts.links.host.as_mut().unwrap()))
    }

    fn after_ifb(change: impl FnOnce(&mut Ifb)) -> Vec<Finding> {
        after(|facts| change(facts.links.ifb.as_mut().unwrap()))
    }

    fn after_pod(change: impl FnOnce(&mut PodInterface)) -> Vec<Finding> {
        after(|facts| match &mut facts.links.pod {
            PodEnd::There(pod) => change(pod),
            PodEnd::NotSeen | PodEnd::Gone => panic!("the pod end is there"),
        })
    }

    fn messages(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(Finding::to_string).collect()
    }

    #[test]
    fn an_attachment_that_is_as_recorded_has_no_findings() {
        assert_eq!(after(|_| {}), []);
        assert_eq!(after(|facts| facts.links.pod = PodEnd::NotSeen), []);
    }

    #[test]
    fn a_host_end_that_is_gone_is_said_once() {
        assert_eq!(
            messages(&after(|facts| facts.links.host = None)),
            ["host end cvhost is gone: delete the pod, so that it is made anew"]
        );
    }

    #[test]
    fn a_host_end_that_is_down_or_off_the_bridge_or_of_another_mtu_is_found() {
        assert_eq!(
            messages(&after_host(|host| host.up = false)),
            ["host end cvhost should be up and is down: set it up (ip link set cvhost up) or delete the pod"]
        );
        assert_eq!(
            messages(&after_host(|host| host.bridge_index = None)),
            ["host end cvhost should be a port of the bridge with index 3 and is a port of none: delete the pod"]
        );
        let elsewhere = Finding::HostEndOffBridge { name: "cvhost".to_owned(), expected: 3, found: Some(4) };
        assert_eq!(after_host(|host| host.bridge_index = Some(4)), [elsewhere]);
        assert_eq!(
            messages(&after_host(|host| host.mtu_bytes = 1_500)),
            ["link cvhost should have an MTU of 1400 bytes and has 1500: delete the pod"]
        );
    }

    #[test]
    fn a_pod_end_that_is_gone_or_down_or_of_another_mac_or_mtu_is_found() {
        let name = || "eth0".to_owned();
        assert_eq!(after(|facts| facts.links.pod = PodEnd::Gone), [Finding::PodEndGone { name: name() }]);
        assert_eq!(after_pod(|pod| pod.up = false), [Finding::PodEndDown { name: name() }]);
        assert_eq!(
            messages(&after_pod(|pod| pod.mac[5] = 0xab)),
            [
                "the pod's interface eth0 should have the hardware address 02:00:00:00:00:01 and has 02:00:00:00:00:ab: delete the pod"
            ]
        );
        let wrong = Finding::WrongMtu { name: name(), expected_bytes: 1_400, found_bytes: 9_000 };
        assert_eq!(after_pod(|pod| pod.mtu_bytes = 9_000), [wrong]);
    }

    #[test]
    fn an_address_that_is_missing_or_of_another_length_is_found() {
        assert_eq!(
            messages(&after_pod(|pod| pod.addresses.retain(|address| address.addr().is_ipv6()))),
            ["the pod's interface eth0 should have the address 10.244.1.7/24 and has fd10::7/64: delete the pod"]
        );
        let found = after_pod(|pod| pod.addresses[0] = net("10.244.1.7/16"));
        assert!(matches!(found.as_slice(), [Finding::AddressMissing { .. }]), "{found:?}");
    }

    #[test]
    fn further_addresses_and_routes_are_no_fault() {
        let found = after_pod(|pod| {
            pod.addresses.extend([net("fe80::5/64"), net("169.254.1.1/16"), net("192.0.2.1/32")]);
            pod.routes.push(PodRoute::new(net("192.0.2.0/24"), None));
        });
        assert_eq!(found, []);
    }

    #[test]
    fn a_route_that_is_missing_or_goes_another_way_is_found() {
        let missing = |route: usize, found: Vec<PodRoute>| Finding::RouteMissing {
            name: "eth0".to_owned(),
            route: Box::new(record().routes[route]),
            found,
        };
        assert_eq!(after_pod(|pod| pod.routes.truncate(2)), [missing(2, Vec::new())]);
        for change in [
            |route: &mut PodRoute| route.gateway = Some(ip("10.244.1.9")),
            |route: &mut PodRoute| route.gateway = None,
            |route: &mut PodRoute| route.metric = Some(8),
            |route: &mut PodRoute| route.table = Some(100),
        ] {
            let mut other = PodRoute::new(net("10.96.0.0/12"), None);
            let found = after_pod(|pod| {
                change(&mut pod.routes[1]);
                other = pod.routes[1];
            });
            assert_eq!(found, [missing(1, vec![other])]);
        }
        assert_eq!(
            messages(&after_pod(|pod| pod.routes[1].metric = Some(8))),
            [
                "the pod should have the route 10.96.0.0/12 via 10.244.1.1 metric 7 by its interface eth0 and has 10.96.0.0/12 via 10.244.1.1 metric 8 table 254: delete the pod"
            ]
        );
    }

    #[test]
    fn a_rate_towards_the_pod_that_is_missing_or_another_is_found() {
        assert_eq!(
            messages(&after_host(|host| host.rate = None)),
            [
                "cvhost should hold traffic towards the pod (ingress) to 8000000 bit/s with a burst of 20000 bytes and holds it to no rate: delete the pod"
            ]
        );
        for other in [Rate { bits_per_second: 8_000_008, ..INGRESS }, Rate { burst_bytes: 20_003, ..INGRESS }] {
            let (link, direction) = ("cvhost".to_owned(), Direction::Ingress);
            let wrong = Finding::WrongRate { link, direction, expected: Some(INGRESS), found: Some(other) };
            assert_eq!(after_host(|host| host.rate = Some(other)), [wrong]);
        }
    }

    #[test]
    fn a_rate_that_nobody_recorded_is_found_and_an_open_bucket_is_none() {
        let open = Rate { bits_per_second: MAX_BITS_PER_SECOND, burst_bytes: 1 << 24 };
        let free = Attachment { shaping: Shaping::default(), ifb_name: None, ..record() };
        let mut facts = whole();
        facts.links.ifb = None;
        facts.links.host = facts.links.host.map(|host| HostEnd { rate: Some(open), redirect: None, ..host });
        assert_eq!(check(&free, &facts, &previous()), []);
        facts.links.host = facts.links.host.map(|host| HostEnd { rate: Some(INGRESS), redirect: Some(9), ..host });
        assert_eq!(
            messages(&check(&free, &facts, &previous())),
            [
                "cvhost should hold traffic towards the pod (ingress) to no rate and holds it to 8000000 bit/s with a burst of 20000 bytes: delete the pod",
                "traffic that comes in by cvhost (egress of the pod) should be redirected nowhere and is redirected to the link with index 9: delete the pod",
            ]
        );
    }

    #[test]
    fn bursts_are_the_same_within_what_a_bucket_can_say() {
        let same = |wanted, found| {
            let rate = |burst_bytes| Some(Rate { bits_per_second: 8_000_000_000, burst_bytes });
            is_rate(rate(wanted), rate(found), 1_400)
        };
        // Two ticks of 64 ns at 1 GB/s, and one byte.
        assert!(same(1_000_000, 1_000_129) && same(1_000_000, 999_871));
        assert!(!same(1_000_000, 1_000_130) && !same(1_000_000, 999_870));
        // A bucket takes at least one frame.
        assert!(same(1, 1_418) && !same(1, 1_000));
        let odd = |bits_per_second| Some(Rate { bits_per_second, burst_bytes: 20_000 });
        assert!(is_rate(odd(16_007), odd(16_000), 1_400));
    }

    #[test]
    fn a_rate_from_the_pod_without_its_ifb_filter_or_bucket_is_found() {
        let ifb = || "cvifb".to_owned();
        let gone = after(|facts| {
            facts.links.ifb = None;
            facts.links.host.as_mut().unwrap().redirect = Some(0);
        });
        assert_eq!(gone, [Finding::IfbGone { name: ifb(), rate: EGRESS }]);
        assert_eq!(after_ifb(|ifb| ifb.up = false), [Finding::IfbDown { name: ifb() }]);
        let (link, direction) = (ifb(), Direction::Egress);
        let wrong = Finding::WrongRate { link, direction, expected: Some(EGRESS), found: None };
        assert_eq!(after_ifb(|ifb| ifb.rate = None), [wrong]);
        for found in [None, Some(99)] {
            let wrong = Finding::WrongRedirect { name: "cvhost".to_owned(), expected: Some(12), found };
            assert_eq!(after_host(|host| host.redirect = found), [wrong]);
        }
    }

    #[test]
    fn a_missing_gateway_is_found_once() {
        let mut record = record();
        record.addresses.push(net("10.244.1.8/24"));
        let mut facts = whole();
        facts.links.bridge_addresses.remove(0);
        facts.links.pod = PodEnd::NotSeen;
        record.masquerade = true;
        facts.nat.unmasqueraded.clear();
        let previous = PreviousResult { addresses: record.addresses.clone(), ..previous() };
        assert_eq!(
            messages(&check(&record, &facts, &previous)),
            [
                "the bridge should have 10.244.1.1, the gateway of 10.244.1.7/24, and has fd10::1/64, fe80::1/64: restart culvertd, which sets it again"
            ]
        );
    }

    #[test]
    fn a_port_that_leads_elsewhere_is_found_unless_a_newer_attachment_has_it() {
        let key = PortKey { family: Family::V4, host_ip: None, transport: Transport::Tcp, port: 8080 };
        let target = |address: &str| PortTarget { address: ip(address), port: 80 };
        assert_eq!(
            messages(&after(|facts| facts.nat.ports.clear())),
            [
                "host port 0.0.0.0:8080/tcp should lead to 10.244.1.7:80 and leads nowhere: restart culvertd, which sets it again"
            ]
        );
        let (expected, found) = (target("10.244.1.7"), Some(target("10.244.1.9")));
        let elsewhere = |facts: &mut AttachmentFacts| facts.nat.ports.extend([(key, target("10.244.1.9"))]);
        assert_eq!(after(elsewhere), [Finding::WrongPort { key, expected, found }]);
        let mut newer = Attachment { serial: 3, addresses: vec![net("10.244.1.9/24")], ..record() };
        newer.key.container_id = "c2".to_owned();
        let (record, mut facts, network) = (record(), whole(), network());
        elsewhere(&mut facts);
        let ports = PortTable::of([&record, &newer]);
        assert_eq!(findings(&record, &facts, &Expected { network: &network, ports: &ports, previous: None }), []);
    }

    #[test]
    fn a_wrong_masquerade_and_missing_rules_are_found() {
        let address = ip("10.244.1.7");
        let exemption_gone = after(|facts| assert!(facts.nat.unmasqueraded.remove(&address)));
        assert_eq!(exemption_gone, [Finding::Masqueraded { address }]);
        let record = Attachment { masquerade: true, ..record() };
        let exempt = ["10.244.1.7", "fd10::7"].map(|address| Finding::Exempt { address: ip(address) });
        assert_eq!(check(&record, &whole(), &previous()), exempt);
        assert_eq!(after(|facts| facts.rules_stand = false), [Finding::RulesMissing]);
    }

    #[test]
    fn a_result_of_another_attachment_is_found() {
        let (record, facts) = (record(), whole());
        let cut = PreviousResult { addresses: vec![net("10.244.1.7/24")], ..previous() };
        assert_eq!(
            messages(&check(&record, &facts, &cut)),
            [
                "the runtime's result (prevResult) gives eth0 10.244.1.7/24 and the record 10.244.1.7/24, fd10::7/64: delete the pod"
            ]
        );
        let (expected, found) = (MAC, [2, 9, 9, 9, 9, 9]);
        let other = PreviousResult { mac: Some(found), ..previous() };
        assert_eq!(check(&record, &facts, &other), [Finding::OtherMac { name: "eth0".to_owned(), expected, found }]);
        let unnamed = PreviousResult { interfaces: vec!["eth0".to_owned()], ..previous() };
        assert_eq!(
            messages(&check(&record, &facts, &unnamed)),
            ["the runtime's result (prevResult) should name the interface cvhost and names eth0: delete the pod"]
        );
        let silent = PreviousResult { mac: None, interfaces: Vec::new(), ..previous() };
        assert_eq!(check(&record, &facts, &silent), []);
    }

    #[test]
    fn of_an_interface_of_another_plugin_only_its_end_rates_and_ports_are_checked() {
        let record = Attachment { foreign: true, ..record() };
        let mut facts = whole();
        facts.links.host = facts.links.host.map(|host| HostEnd { bridge_index: None, mtu_bytes: 1_500, ..host });
        facts.links.bridge_addresses.clear();
        facts.links.pod = PodEnd::Gone;
        facts.nat.unmasqueraded.clear();
        facts.rules_stand = false;
        assert_eq!(check(&record, &facts, &PreviousResult::default()), []);
        facts.links.host = facts.links.host.map(|host| HostEnd { up: false, rate: None, ..host });
        facts.nat.ports.clear();
        let found = check(&record, &facts, &PreviousResult::default());
        assert!(
            matches!(
                found.as_slice(),
                [Finding::HostEndDown { .. }, Finding::WrongRate { .. }, Finding::WrongPort { .. }]
            ),
            "{found:?}"
        );
    }
}
