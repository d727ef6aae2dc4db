//! The NAT table itself: its elements, its rules, and who is masqueraded.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use culvert_core::address::Family;
use culvert_core::host_port::{PortKey, PortTarget, Transport};
use culvert_core::nat::NatElements;
use culvert_core::plan::{Plan, Step};
use culvert_kernel::{ApplyError, Kernel, KernelChange};

use crate::namespace::{
    Namespace, PATIENCE, Pod, assert_same, attach, attachment, child_namespace, ip, net, run_as_child, spec, uplink,
    veth, wait_for,
};
use crate::probe::{Server, Speaks, reach};

fn key(host_ip: Option<&str>, transport: Transport, port: u16) -> PortKey {
    let host_ip = host_ip.map(ip);
    PortKey { family: host_ip.map_or(Family::V4, Family::of), host_ip, transport, port }
}

fn target(address: &str, port: u16) -> PortTarget {
    PortTarget { address: ip(address), port }
}

fn plan(steps: impl IntoIterator<Item = Step>) -> Plan {
    Plan { steps: steps.into_iter().collect() }
}

/// Elements of every kind.
fn all_kinds() -> NatElements {
    let v6 = PortKey { family: Family::V6, ..key(None, Transport::Udp, 53) };
    NatElements {
        ports: [
            (key(None, Transport::Tcp, 8080), target("10.244.1.5", 80)),
            (key(None, Transport::Sctp, 65535), target("10.244.1.5", 1)),
            (key(Some("192.0.2.1"), Transport::Udp, 53), target("10.244.1.6", 5353)),
            (v6, target("fd00:244:0:1::5", 53)),
            (key(Some("2001:db8::1"), Transport::Tcp, 443), target("fd00:244:0:1::6", 8443)),
        ]
        .into(),
        unmasqueraded: ["10.244.1.5", "fd00:244:0:1::5"].map(ip).into(),
    }
}

async fn change(kernel: &mut Kernel, from: &NatElements, to: &NatElements) {
    kernel.apply(&NatElements::diff(from, to), None).await.unwrap();
    assert_eq!(kernel.nat_elements().await.unwrap(), *to);
}

#[test]
fn elements_of_every_kind_come_and_go_and_are_seen_by_others_as_meant() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        assert_eq!(kernel.nat_elements().await.unwrap(), NatElements::default());
        kernel.ensure_node(&spec()).await.unwrap();
        let none = NatElements::default();
        assert_eq!(kernel.nat_elements().await.unwrap(), none);
        change(kernel, &none, &all_kinds()).await;
        for (list, expected) in [
            ("map ip culvert ports", "tcp . 8080 : 10.244.1.5 . 80"),
            ("map ip culvert ports", "sctp . 65535 : 10.244.1.5 . 1"),
            ("map ip culvert address-ports", "192.0.2.1 . udp . 53 : 10.244.1.6 . 5353"),
            ("map ip6 culvert ports", "udp . 53 : fd00:244:0:1::5 . 53"),
            ("map ip6 culvert address-ports", "2001:db8::1 . tcp . 443 : fd00:244:0:1::6 . 8443"),
            ("set ip culvert unmasqueraded", "elements = { 10.244.1.5 }"),
            ("set ip6 culvert unmasqueraded", "elements = { fd00:244:0:1::5 }"),
        ] {
            let listed = node.run(&format!("nft list {list}"));
            assert!(listed.contains(expected), "{expected} in {listed}");
        }
        let mut moved = all_kinds();
        moved.ports.values_mut().for_each(|target| target.port += 7);
        change(kernel, &all_kinds(), &moved).await;
        change(kernel, &moved, &none).await;
    });
}

#[test]
fn more_elements_than_fit_one_send_come_and_go() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        let ports = (1..=1000).map(|port| (key(None, Transport::Tcp, port), target("10.244.1.5", port))).collect();
        let many = NatElements { ports, unmasqueraded: BTreeSet::new() };
        change(kernel, &NatElements::default(), &many).await;
        let mut moved = many.clone();
        moved.ports.values_mut().for_each(|target| target.address = ip("10.244.1.6"));
        change(kernel, &many, &moved).await;
        change(kernel, &moved, &NatElements::default()).await;
    });
}

#[test]
fn an_element_ends_as_the_plan_says_whatever_was_there() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        let key = key(None, Transport::Udp, 53);
        let (old, new) = (target("10.244.1.5", 53), target("10.244.1.6", 53));
        let exempt = || Step::Exempt { address: ip("10.244.1.5") };
        let unexempt = || Step::Unexempt { address: ip("10.244.1.5") };
        let set = |target, before| Step::SetPort { key, target, before };
        let remove = |target| Step::RemovePort { key, target };
        for (there, step, after) in [
            (None, set(new, Some(old)), Some(new)),
            (Some(old), set(new, None), Some(new)),
            (Some(new), set(new, None), Some(new)),
            (Some(new), set(new, Some(old)), Some(new)),
            (Some(old), remove(new), None),
            (None, remove(old), None),
        ] {
            let present = |target: Option<PortTarget>| target.map(|target| (key, target)).into_iter().collect();
            let now = kernel.nat_elements().await.unwrap();
            change(kernel, &now, &NatElements { ports: present(there), ..now.clone() }).await;
            kernel.apply(&plan([exempt(), exempt(), step.clone()]), None).await.unwrap();
            let found = kernel.nat_elements().await.unwrap();
            assert_eq!(found.ports, present(after), "{there:?} {step:?}");
            assert_eq!(found.unmasqueraded, [ip("10.244.1.5")].into());
            kernel.apply(&plan([unexempt(), unexempt()]), None).await.unwrap();
        }
    });
}

#[test]
fn a_plan_that_fails_leaves_every_element_as_it_was() {
    let node = Namespace::new();
    let pod = Pod::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let before = NatElements {
            ports: [(key(None, Transport::Tcp, 8080), target("10.244.1.6", 80))].into(),
            unmasqueraded: [ip("10.244.1.6")].into(),
        };
        change(kernel, &NatElements::default(), &before).await;
        let both = || format!("{}POD\n{}", node.snapshot(), pod.namespace.snapshot());
        let clean = both();
        // A port of one family that leads to an address of the other cannot be expressed: nothing is begun.
        let mut last = attachment(veth(kernel, links, 5), 5);
        last.steps.extend(NatElements::diff(&before, &all_kinds()).steps);
        let mut mixed = last.clone();
        mixed.steps.push(Step::RemovePort { key: key(None, Transport::Tcp, 1), target: target("fd00::1", 1) });
        let error = kernel.apply(&mixed, Some(&pod.passed)).await.unwrap_err();
        assert!(matches!(error, ApplyError::Impossible { .. }), "{error}");
        assert_same(&clean, &both());
        // The elements were changed, then an address is refused.
        let mut first = NatElements::diff(&before, &all_kinds());
        first.steps.extend(attachment(veth(kernel, links, 5), 5).steps);
        first.steps.push(Step::PodAddress { index: 0x7000_0000, address: net("10.244.1.7/24") });
        let error = kernel.apply(&first, Some(&pod.passed)).await.unwrap_err();
        assert_eq!((error.errno(), error.undo_failures()), (Some(libc::ENODEV), [].as_slice()), "{error}");
        assert_same(&clean, &both());
        // The table of one family is gone when the pod is there already: the pod goes again.
        node.run("nft delete table ip6 culvert");
        let clean = both();
        let error = kernel.apply(&last, Some(&pod.passed)).await.unwrap_err();
        assert_eq!((error.errno(), error.undo_failures()), (Some(libc::ENOENT), [].as_slice()));
        assert!(error.to_string().contains("table culvert is not there: set the node up again"), "{error}");
        assert_same(&clean, &both());
        kernel.ensure_node(&spec()).await.unwrap();
        kernel.apply(&last, Some(&pod.passed)).await.unwrap();
        assert_eq!(kernel.nat_elements().await.unwrap(), all_kinds());
    });
}

#[test]
fn a_pod_goes_even_when_the_table_is_gone() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let _pod = attach(kernel, links, 5).await;
        node.run("nft delete table ip culvert");
        let (own, older) = (target("10.244.1.5", 80), target("10.244.1.6", 80));
        let steps = [
            Step::SetPort { key: key(None, Transport::Tcp, 8080), target: older, before: Some(own) },
            Step::RemovePort { key: key(None, Transport::Tcp, 8081), target: own },
            Step::Unexempt { address: own.address },
            Step::DeleteLink { name: "cvtest5".into() },
        ];
        kernel.apply(&plan(steps), None).await.unwrap();
        assert!(!kernel.observe().await.unwrap().links.iter().any(|link| link.name == "cvtest5"));
    });
}

#[test]
fn setting_up_again_repairs_the_rules_and_keeps_the_elements() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        change(kernel, &NatElements::default(), &all_kinds()).await;
        let before = node.nat_tables();
        for command in [
            "nft flush chain ip culvert host-ports",
            "nft add rule ip6 culvert postrouting drop",
            "nft flush chain ip culvert guard",
            "sysctl -w net.ipv4.conf.cni0.route_localnet=0",
        ] {
            node.run(command);
            kernel.ensure_node(&spec()).await.unwrap();
            assert_same(&before, &node.nat_tables());
        }
        assert_eq!(node.sysctl("ipv4/conf/cni0/route_localnet"), "1");
        assert_eq!(node.sysctl("ipv4/conf/all/route_localnet"), "0");
        node.run("nft flush ruleset");
        kernel.ensure_node(&spec()).await.unwrap();
        let empty = kernel.nat_elements().await.unwrap();
        change(kernel, &empty, &all_kinds()).await;
        assert_same(&before, &node.nat_tables());
        kernel.remove_node(&spec()).await.unwrap();
        assert_eq!(node.nat_tables(), "");
    });
}

#[test]
fn rules_that_stand_are_left_alone() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        // Handles grow with each rule that is made.
        let handles = || node.run("nft -a list table ip culvert") + &node.run("nft -a list table ip6 culvert");
        let before = handles();
        kernel.ensure_node(&spec()).await.unwrap();
        assert_same(&before, &handles());
    });
}

#[test]
fn elements_and_links_of_pods_are_reported_only_when_somebody_else_changes_them() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        // The first pod takes the bridge's carrier along.
        let _first = attach(kernel, links, 4).await;
        wait_for("the bridge's carrier", || node.run("ip link show cni0").contains("state UP").then_some(()));
        let mut watch = kernel.watch().unwrap();
        let mut seen_until = async |marker| {
            let mut seen = Vec::new();
            while seen.last() != Some(&marker) {
                seen.push(tokio::time::timeout(PATIENCE, watch.next()).await.unwrap());
            }
            seen
        };
        change(kernel, &NatElements::default(), &all_kinds()).await;
        let _second = attach(kernel, links, 5).await;
        node.run("ip rule add priority 999 lookup 67");
        let seen = seen_until(KernelChange::Rules).await;
        assert!(!seen.contains(&KernelChange::Links) && !seen.contains(&KernelChange::Firewall), "{seen:?}");
        node.run("nft flush map ip culvert ports");
        seen_until(KernelChange::Firewall).await;
    });
}

#[test]
fn an_exempt_pod_leaves_the_cluster_under_its_own_address() {
    let node = Namespace::new();
    let far = uplink(&node);
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let (exempt, plain) = (attach(kernel, links, 5).await, attach(kernel, links, 6).await);
        let server = Server::new(&far, 80);
        let rules = || node.run("iptables-save -t nat") + &node.run("ip6tables-save -t nat");
        let before = rules();
        for (pod, other, uplink, host) in [
            ("10.244.1.5", "10.244.1.6", "192.0.2.1", "192.0.2.2"),
            ("fd00:244:0:1::5", "fd00:244:0:1::6", "2001:db8::1", "2001:db8::2"),
        ] {
            far.run(&format!("ip route add {pod} via {uplink}"));
            let seen = |pod: &Pod| {
                [Speaks::Tcp, Speaks::Udp]
                    .map(|speaks| reach(speaks, &pod.namespace, SocketAddr::new(ip(host), 80), &server))
            };
            assert_eq!(seen(&exempt), [ip(uplink); 2]);
            kernel.apply(&plan([Step::Exempt { address: ip(pod) }]), None).await.unwrap();
            assert_eq!((seen(&exempt), seen(&plain)), ([ip(pod); 2], [ip(uplink); 2]));
            assert!([pod, other].iter().all(|address| !rules().contains(address)));
            reaches_itself_by_a_host_port(kernel, &exempt, ip(pod), ip(uplink)).await;
            kernel.apply(&plan([Step::Unexempt { address: ip(pod) }]), None).await.unwrap();
            assert_eq!(seen(&exempt), [ip(uplink); 2]);
        }
        assert_eq!(before.lines().count(), rules().lines().count());
    });
}

/// An exempt pod is masqueraded all the same where an answer could not come back otherwise.
async fn reaches_itself_by_a_host_port(kernel: &mut Kernel, pod: &Pod, address: IpAddr, node: IpAddr) {
    let server = Server::new(&pod.namespace, 80);
    let key = PortKey { family: Family::of(address), host_ip: None, transport: Transport::Tcp, port: 8080 };
    let set = Step::SetPort { key, target: PortTarget { address, port: 80 }, before: None };
    kernel.apply(&plan([set]), None).await.unwrap();
    assert_ne!(reach(Speaks::Tcp, &pod.namespace, SocketAddr::new(node, 8080), &server), address);
}

/// A directory to search programs in: iptables as it is, and `nft` if it is given.
fn search_path(nft: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for program in ["iptables", "ip6tables"] {
        std::os::unix::fs::symlink(format!("/usr/sbin/{program}"), folder.path().join(program)).unwrap();
    }
    if let Some(script) = nft {
        let path = folder.path().join("nft");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    folder
}

#[test]
fn a_kernel_without_the_table_still_carries_pods_and_a_missing_program_is_named() {
    const NAME: &str = "nat_table::a_kernel_without_the_table_still_carries_pods_and_a_missing_program_is_named";
    if let Some(node) = child_namespace() {
        return print_what_works(&node);
    }
    let node = Namespace::new();
    let refusing = "#!/bin/sh\necho '/dev/stdin:3:1-9: Error: Could not process rule: Not supported' >&2\nexit 1\n";
    let printed = run_as_child(NAME, search_path(Some(refusing)).path(), &node);
    for expected in [
        "set up: true, route_localnet: 0",
        "port: step 0 of the plan failed",
        "table culvert is not there: set the node up again",
    ] {
        assert!(printed.contains(expected), "{expected} in {printed}");
    }
    let node = Namespace::new();
    let printed = run_as_child(NAME, search_path(None).path(), &node);
    assert!(printed.contains("nft is not installed: install the Debian package nftables"), "{printed}");
}

fn print_what_works(node: &Namespace) {
    node.with_kernel(async |kernel| match kernel.ensure_node(&spec()).await {
        Ok(links) => {
            let value = std::fs::read_to_string("/proc/sys/net/ipv4/conf/cni0/route_localnet");
            eprintln!("set up: {}, route_localnet: {}", links.bridge_index > 0, value.unwrap());
            let set =
                Step::SetPort { key: key(None, Transport::Tcp, 80), target: target("10.244.1.5", 80), before: None };
            eprintln!("port: {}", kernel.apply(&plan([set]), None).await.unwrap_err());
        }
        Err(error) => eprintln!("{error}"),
    });
}
