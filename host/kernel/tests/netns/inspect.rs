//! Looking at an attachment: what was made is found as recorded, and each disturbance by its name.

use culvert_core::attachment::{Attachment, AttachmentKey, AttachmentState};
use culvert_core::attachment_check::{AttachmentFacts, Direction, Expected, Finding, PodEnd, findings};
use culvert_core::attachment_plan::{PodNetwork, plan_add, plan_del};
use culvert_core::bandwidth::{Limits, Rate, Shaping};
use culvert_core::host_port::{HostPort, PortTable, Transport};
use culvert_core::plan::{Plan, PodRoute, Step};
use culvert_core::policy::PodView;
use culvert_core::route_plan::BridgeGateways;
use culvert_kernel::{Kernel, KernelError, NodeLinks, PodNamespace};

use crate::namespace::{Namespace, Pod, assert_same, ip, net, spec, wait_for};

const INGRESS: Rate = Rate { bits_per_second: 16_000_000, burst_bytes: 65_536 };
/// An odd rate, so that rounding shows.
const EGRESS: Rate = Rate { bits_per_second: 33_333_333, burst_bytes: 50_001 };

fn route(to: &str, gateway: &str) -> PodRoute {
    PodRoute::new(net(to), Some(ip(gateway)))
}

/// A pod with everything an attachment can have.
fn record(kernel: &mut Kernel) -> Attachment {
    let key = AttachmentKey { network: "culvert".into(), container_id: "c1".into(), ifname: "eth0".into() };
    Attachment {
        netns: String::new(),
        host_name: key.host_name(),
        ifb_name: Some(key.ifb_name()),
        host_index: kernel.free_index(),
        pod_index: kernel.free_index(),
        mac: key.mac(),
        mtu_bytes: 1_400,
        hairpin: true,
        promiscuous_bridge: false,
        addresses: vec![net("10.244.1.5/24"), net("fd00:244:0:1::5/64")],
        pod: PodView::default(),
        pod_uid: String::new(),
        routes: vec![
            route("0.0.0.0/0", "10.244.1.1"),
            PodRoute { metric: Some(7), mtu_bytes: Some(1_300), ..route("198.51.100.0/24", "10.244.1.2") },
            PodRoute { table: Some(1_000), ..route("203.0.113.0/24", "10.244.1.1") },
            route("::/0", "fd00:244:0:1::1"),
            PodRoute::new(net("2001:db8:8::/48"), None),
        ],
        foreign: false,
        sticky: false,
        requested: Limits::default(),
        shaping: Shaping { total: Limits { ingress: Some(INGRESS), egress: Some(EGRESS) }, ..Shaping::default() },
        state: AttachmentState::Acknowledged,
        serial: 1,
        host_ports: vec![HostPort { host_ip: None, host_port: 8080, transport: Transport::Tcp, container_port: 80 }],
        masquerade: false,
        key,
    }
}

fn network(links: NodeLinks) -> PodNetwork {
    PodNetwork { bridge_index: links.bridge_index, gateways: BridgeGateways::default() }
}

async fn attach(kernel: &mut Kernel, links: NodeLinks, record: &Attachment) -> Pod {
    let pod = Pod::new();
    let plan = plan_add(record, &network(links), &PortTable::default());
    kernel.apply(&plan, Some(&pod.passed)).await.unwrap();
    pod
}

async fn detach(kernel: &mut Kernel, record: &Attachment) {
    kernel.apply(&plan_del(record, &PortTable::default()), None).await.unwrap();
}

/// What a check finds. The static rules are the subject of their own test.
async fn look(kernel: &mut Kernel, links: NodeLinks, record: &Attachment, pod: &Pod) -> Vec<Finding> {
    let facts = AttachmentFacts {
        links: kernel.inspect(record, Some(&pod.passed)).await.unwrap(),
        nat: kernel.nat_elements().await.unwrap(),
        rules_stand: true,
    };
    let (network, ports) = (network(links), PortTable::of([record]));
    findings(record, &facts, &Expected { network: &network, ports: &ports, previous: None })
}

/// Both namespaces, with every detail of the attachment's links.
fn details(node: &Namespace, pod: &Pod, record: &Attachment) -> String {
    let mut text = format!("{}POD\n{}", node.snapshot(), pod.namespace.snapshot());
    let ifb = record.ifb_name.as_ref().unwrap();
    for link in [&record.host_name, ifb] {
        for command in ["ip -d -j link show dev", "tc -j qdisc show dev", "tc -j filter show ingress dev"] {
            text += &format!("{link}: {}\n", node.run(&format!("{command} {link}")));
        }
    }
    text += &pod.namespace.run("ip -d -j link show dev eth0");
    text += &pod.namespace.run("ip -j route show table all");
    without_timers(&text)
}

/// The timers of a bridge port run by themselves.
fn without_timers(text: &str) -> String {
    let value = |character: char| character.is_ascii_digit() || character == '.';
    let parts: Vec<&str> = text.split("_timer\":").map(|part| part.trim_start_matches(value)).collect();
    parts.join("_timer\":")
}

#[test]
fn an_attachment_is_found_as_recorded_and_looking_changes_nothing() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let record = record(kernel);
        let pod = attach(kernel, links, &record).await;
        wait_for("carriers to be seen", || {
            let ends = [
                node.run(&format!("ip -o link show {}", record.host_name)),
                node.run(&format!("ip -o link show {}", record.key.ifb_name())),
                pod.namespace.run("ip -o link show eth0"),
            ];
            ends.iter().all(|end| !end.contains("state DOWN") && !end.contains("state LOWER")).then_some(())
        });
        let before = details(&node, &pod, &record);
        assert_eq!(look(kernel, links, &record, &pod).await, []);
        assert!(kernel.firewall_stands(&spec()).await.unwrap());
        assert_same(&before, &details(&node, &pod, &record));
        detach(kernel, &record).await;
    });
}

#[test]
fn an_attachment_without_limits_is_found_as_recorded() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let record = Attachment { shaping: Shaping::default(), ifb_name: None, ..record(kernel) };
        let pod = attach(kernel, links, &record).await;
        assert_eq!(look(kernel, links, &record, &pod).await, []);
        let seen = kernel.inspect(&record, None).await.unwrap();
        assert_eq!((seen.pod, seen.ifb), (PodEnd::NotSeen, None));
        detach(kernel, &record).await;
    });
}

/// What somebody does to an attachment, and what is found then, among other things.
struct Disturbance {
    in_pod: bool,
    command: String,
    found: Finding,
}

fn on_node(command: String, found: Finding) -> Disturbance {
    Disturbance { in_pod: false, command, found }
}

fn in_pod(command: &str, found: Finding) -> Disturbance {
    Disturbance { in_pod: true, command: command.to_owned(), found }
}

fn node_disturbances(record: &Attachment, links: NodeLinks) -> Vec<Disturbance> {
    let (host, ifb) = (record.host_name.clone(), record.key.ifb_name());
    let end = || host.clone();
    let slow = Rate { bits_per_second: 1_000_000, burst_bytes: 20_480 };
    let wrong_rate = |link: &String, direction, found| {
        let expected = Some(if direction == Direction::Ingress { INGRESS } else { EGRESS });
        Finding::WrongRate { link: link.clone(), direction, expected, found }
    };
    vec![
        on_node(format!("ip link set {host} down"), Finding::HostEndDown { name: end() }),
        on_node(
            format!("ip link set {host} nomaster"),
            Finding::HostEndOffBridge { name: end(), expected: links.bridge_index, found: None },
        ),
        on_node(
            format!("ip link set {host} mtu 1300"),
            Finding::WrongMtu { name: end(), expected_bytes: 1_400, found_bytes: 1_300 },
        ),
        on_node(format!("ip link del {host}"), Finding::HostEndGone { name: end() }),
        on_node(format!("ip link del {host}"), Finding::PodEndGone { name: "eth0".into() }),
        on_node(format!("tc qdisc del dev {host} root"), wrong_rate(&host, Direction::Ingress, None)),
        on_node(
            format!("tc qdisc replace dev {host} root handle 67: tbf rate 1mbit burst 20480 latency 50ms"),
            wrong_rate(&host, Direction::Ingress, Some(slow)),
        ),
        on_node(format!("tc qdisc del dev {ifb} root"), wrong_rate(&ifb, Direction::Egress, None)),
        on_node(format!("ip link del {ifb}"), Finding::IfbGone { name: ifb.clone(), rate: EGRESS }),
        on_node(format!("ip link set {ifb} down"), Finding::IfbDown { name: ifb.clone() }),
    ]
}

fn pod_disturbances(record: &Attachment) -> Vec<Disturbance> {
    let name = || "eth0".to_owned();
    let missing =
        |number: usize, found| Finding::RouteMissing { name: name(), route: Box::new(record.routes[number]), found };
    let elsewhere = PodRoute { table: Some(254), scope: Some(0), ..route("0.0.0.0/0", "10.244.1.9") };
    vec![
        in_pod("ip link set eth0 down", Finding::PodEndDown { name: name() }),
        in_pod(
            "ip link set eth0 address 02:00:00:00:00:09",
            Finding::WrongMac { name: name(), expected: record.mac, found: [2, 0, 0, 0, 0, 9] },
        ),
        in_pod(
            "ip link set eth0 mtu 1300",
            Finding::WrongMtu { name: name(), expected_bytes: 1_400, found_bytes: 1_300 },
        ),
        in_pod("ip route del default", missing(0, Vec::new())),
        in_pod("ip route replace default via 10.244.1.9", missing(0, vec![elsewhere])),
        in_pod("ip route del 198.51.100.0/24", missing(1, Vec::new())),
        in_pod("ip route flush table 1000", missing(2, Vec::new())),
        in_pod("ip -6 route del default", missing(3, Vec::new())),
        in_pod("ip -6 route del 2001:db8:8::/48", missing(4, Vec::new())),
    ]
}

#[test]
fn each_disturbance_is_found_and_named() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let record = record(kernel);
        let all = node_disturbances(&record, links).into_iter().chain(pod_disturbances(&record));
        for Disturbance { in_pod, command, found } in all {
            let pod = attach(kernel, links, &record).await;
            if in_pod { &pod.namespace } else { &node }.run(&command);
            let findings = look(kernel, links, &record, &pod).await;
            assert!(findings.contains(&found), "{command}: {findings:#?}");
            detach(kernel, &record).await;
        }
    });
}

#[test]
fn a_missing_address_and_a_missing_filter_are_found_and_named() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let record = record(kernel);
        let pod = attach(kernel, links, &record).await;
        for address in &record.addresses {
            pod.namespace.run(&format!("ip addr del {address} dev eth0"));
            let findings = look(kernel, links, &record, &pod).await;
            let named =
                |one: &Finding| matches!(one, Finding::AddressMissing { address: missing, .. } if missing == address);
            assert!(findings.iter().any(named), "{address}: {findings:#?}");
        }
        detach(kernel, &record).await;
        let pod = attach(kernel, links, &record).await;
        node.run(&format!("tc filter del dev {} ingress", record.host_name));
        let findings = look(kernel, links, &record, &pod).await;
        assert!(matches!(findings.as_slice(), [Finding::WrongRedirect { found: None, .. }]), "{findings:#?}");
        detach(kernel, &record).await;
    });
}

#[test]
fn missing_gateways_ports_and_exemptions_are_found_and_named() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let record = record(kernel);
        let pod = attach(kernel, links, &record).await;
        node.run("ip addr del 10.244.1.1/24 dev cni0");
        let findings = look(kernel, links, &record, &pod).await;
        assert!(
            matches!(findings.as_slice(), [Finding::GatewayMissing { gateway, .. }] if *gateway == ip("10.244.1.1")),
            "{findings:#?}"
        );
        kernel.ensure_node(&spec()).await.unwrap();
        let held = PortTable::of([&record]).held_by(&record);
        let mut steps: Vec<Step> = held.into_iter().map(|(key, target)| Step::RemovePort { key, target }).collect();
        steps.push(Step::Unexempt { address: ip("10.244.1.5") });
        kernel.apply(&Plan { steps }, None).await.unwrap();
        let findings = look(kernel, links, &record, &pod).await;
        assert!(
            matches!(
                findings.as_slice(),
                [
                    Finding::WrongPort { found: None, .. },
                    Finding::WrongPort { found: None, .. },
                    Finding::Masqueraded { address },
                ] if *address == ip("10.244.1.5")
            ),
            "{findings:#?}"
        );
        detach(kernel, &record).await;
    });
}

#[test]
fn rules_that_somebody_flushed_or_cut_off_do_not_stand() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        assert!(!kernel.firewall_stands(&spec()).await.unwrap());
        for command in [
            "iptables -t nat -F CULVERT-MASQ",
            "iptables -F",
            "ip6tables -t mangle -D INPUT -j CULVERT-INPUT",
            "ip6tables -t mangle -A CULVERT-TRANSIT -j ACCEPT",
            "nft flush chain ip culvert host-ports",
            "nft add rule ip6 culvert output accept",
            "nft delete table ip culvert",
        ] {
            kernel.ensure_node(&spec()).await.unwrap();
            assert!(kernel.firewall_stands(&spec()).await.unwrap());
            node.run(command);
            let before = node.snapshot();
            assert!(!kernel.firewall_stands(&spec()).await.unwrap(), "{command}");
            assert_same(&before, &node.snapshot());
        }
        let mut unmasqueraded = spec();
        unmasqueraded.masquerade = false;
        assert!(!kernel.firewall_stands(&unmasqueraded).await.unwrap());
        kernel.ensure_node(&unmasqueraded).await.unwrap();
        assert!(kernel.firewall_stands(&unmasqueraded).await.unwrap());
    });
}

#[test]
fn what_is_no_socket_of_a_pod_is_refused() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let record = record(kernel);
        let pod = Pod::new();
        let wrong = PodNamespace { netns: pod.namespace.descriptor(), rtnetlink: pod.namespace.descriptor() };
        let error = kernel.inspect(&record, Some(&wrong)).await.unwrap_err();
        assert!(matches!(error, KernelError::PodSocket(_)), "{error:?}");
        let gone = kernel.inspect(&record, Some(&pod.passed)).await.unwrap();
        assert_eq!((gone.host, gone.ifb, gone.pod), (None, None, PodEnd::Gone));
    });
}
