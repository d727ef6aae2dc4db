//! Setting the node up, repairing it, and leaving no trace.

use culvert_core::plan::{KernelRoute, KernelVia, Plan, Step};
use culvert_kernel::{KernelChange, KernelError, Neighbour, NodeSpec, OnLink, TunError, open_tun, watch};

use crate::namespace::{Namespace, PATIENCE, assert_same, attach, ip, net, spec, uplink};

#[test]
fn setting_up_twice_changes_nothing() {
    let node = Namespace::new();
    let (first, before) =
        node.with_kernel(async |kernel| (kernel.ensure_node(&spec()).await.unwrap(), node.snapshot()));
    let (second, after) =
        node.with_kernel(async |kernel| (kernel.ensure_node(&spec()).await.unwrap(), node.snapshot()));
    assert_eq!(first, second);
    assert_same(&before, &after);
    for expected in
        ["inet 10.244.1.1/24", "inet6 fd00:244:0:1::1/64", "1000: from all lookup 67 proto 67", "CULVERT-MASQ"]
    {
        assert!(before.contains(expected), "{expected} in {before}");
    }
}

#[test]
fn removal_leaves_nothing_of_ours_and_everything_of_others() {
    let node = Namespace::new();
    let _far = uplink(&node);
    for command in [
        "ip link add br-other type bridge",
        "ip link add cvother type veth peer name other1",
        "ip rule add from 198.51.100.7 priority 500 lookup 67",
        "ip -6 rule add from 2001:db8:9::7 priority 500 lookup 67",
        "ip route add 198.51.100.0/24 via 192.0.2.2",
        "ip route add 203.0.113.0/24 via 192.0.2.2 table 67",
    ] {
        node.run(command);
    }
    for (program, prefix) in [("iptables", "198.51.100.0/24"), ("ip6tables", "2001:db8:9::/64")] {
        node.run(&format!("{program} -t nat -A POSTROUTING -s {prefix} -j MASQUERADE"));
        node.run(&format!("{program} -t mangle -A INPUT -s {prefix} -j DROP"));
        node.run(&format!("{program} -A FORWARD -s {prefix} -j ACCEPT"));
    }
    let before = node.snapshot();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let _pod = attach(kernel, links, 5).await;
        let route = KernelRoute {
            to: net("10.244.9.0/24"),
            via: KernelVia::Tunnel,
            source: Some(ip("10.244.1.1")),
            mtu_bytes: None,
        };
        kernel.apply(&Plan { steps: vec![Step::SetRoute { route, before: None }] }, None).await.unwrap();
        assert_ne!(node.snapshot(), before);
        kernel.remove_node(&spec()).await.unwrap();
        assert_same(&before, &node.snapshot());
        kernel.remove_node(&spec()).await.unwrap();
    });
    assert_same(&before, &node.snapshot());
}

#[test]
fn what_somebody_broke_is_repaired() {
    let node = Namespace::new();
    let ignoring_indexes = |text: String| -> String {
        text.lines().map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join("\n")
    };
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        let before = ignoring_indexes(node.snapshot());
        for command in [
            "ip link del cni0",
            "ip rule del priority 1000",
            "ip -6 rule del priority 1000",
            "ip link set culvert0 down",
            "ip link set culvert0 mtu 1300",
            "iptables -t mangle -F",
            "iptables -t nat -D CULVERT-MASQ 1",
            "ip6tables -t mangle -D CULVERT-INPUT 3",
            "ip6tables -t mangle -A CULVERT-INPUT -j ACCEPT",
        ] {
            node.run(command);
        }
        kernel.ensure_node(&spec()).await.unwrap();
        assert_same(&before, &ignoring_indexes(node.snapshot()));
    });
}

#[test]
fn gateways_of_blocks_no_longer_held_go() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        let mut moved = spec();
        moved.gateways = vec![net("10.244.2.1/24"), net("fd00:244:0:1::1/64")];
        kernel.ensure_node(&moved).await.unwrap();
        let observed = kernel.observe().await.unwrap();
        let bridge = observed.links.iter().find(|link| link.name == "cni0").unwrap();
        let mut gateways: Vec<_> =
            bridge.addresses.iter().filter(|address| !address.to_string().starts_with("fe80")).copied().collect();
        gateways.sort();
        assert_eq!(gateways, moved.gateways);
    });
}

#[test]
fn links_of_others_are_refused_by_name_and_stay() {
    let node = Namespace::new();
    node.run("ip link add cni0 type bridge");
    let before = node.run("ip -o link show cni0");
    let error = node.with_kernel(async |kernel| kernel.ensure_node(&spec()).await.unwrap_err());
    assert!(matches!(&error, KernelError::ForeignLink { name, .. } if name == "cni0"), "{error}");
    assert_eq!(
        error.to_string(),
        "link cni0 exists but was made by other software: remove it (ip link delete cni0) or configure another name"
    );
    assert_eq!(node.run("ip -o link show cni0"), before);
    let other = Namespace::new();
    other.run("ip link add culvert0 type bridge");
    let error = other.with_kernel(async |kernel| kernel.ensure_node(&spec()).await.unwrap_err());
    assert!(matches!(&error, KernelError::ForeignLink { name, .. } if name == "culvert0"), "{error}");
}

#[test]
fn the_tun_opens_before_or_after_the_set_up_and_once_at_a_time() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let first = open_tun("culvert0", 1).unwrap();
        assert!(first.offloads.tso && first.queues.len() == 1);
        kernel.ensure_node(&spec()).await.unwrap();
        assert!(matches!(open_tun("culvert0", 1), Err(TunError::InUse { name }) if name == "culvert0"));
        let first_offloads = first.offloads;
        drop(first);
        // The link outlives its descriptor, so this finds the same one.
        let again = open_tun("culvert0", 1).unwrap();
        assert_eq!(again.offloads, first_offloads);
        let error = open_tun("cni0", 1).unwrap_err();
        assert!(matches!(&error, TunError::Foreign { name } if name == "cni0"), "{error:?}");
        let observed = kernel.observe().await.unwrap();
        let tun = observed.links.iter().find(|link| link.name == "culvert0").unwrap();
        assert_eq!(
            (tun.up, tun.ours, tun.mtu_bytes, tun.addresses.clone()),
            (true, true, 1380, vec![net("10.244.1.1/32")])
        );
    });
}

#[test]
fn a_tun_with_several_queues_keeps_a_flow_on_one() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&NodeSpec { tun_queues: 3, ..spec() }).await.unwrap();
        let tun = open_tun("culvert0", 3).unwrap();
        assert_eq!(tun.queues.len(), 3);
        let flags = rustix::fs::OFlags::NONBLOCK;
        tun.queues.iter().for_each(|queue| rustix::fs::fcntl_setfl(queue, flags).unwrap());
        node.run("ip route add 10.244.9.0/24 dev culvert0");
        let mut used = std::collections::BTreeSet::new();
        for port in 1..=20_u16 {
            let socket = std::net::UdpSocket::bind("10.244.1.1:0").unwrap();
            for _ in 0..5 {
                socket.send_to(b"packet", ("10.244.9.9", port)).unwrap();
            }
            let counts: Vec<usize> = tun.queues.iter().map(drain).collect();
            assert_eq!(counts.iter().filter(|count| **count > 0).count(), 1, "{counts:?}");
            assert_eq!(counts.iter().sum::<usize>(), 5);
            used.extend(counts.iter().position(|count| *count > 0));
        }
        assert!(used.len() > 1, "all flows are on {used:?}");
        let error = open_tun("culvert0", 1).unwrap_err();
        assert!(matches!(&error, TunError::Foreign { name } if name == "culvert0"), "{error:?}");
    });
}

/// Reads all packets that wait on a queue, and counts those to the test's network.
fn drain(queue: &std::os::fd::OwnedFd) -> usize {
    let mut packet = [0; 2_000];
    std::iter::from_fn(|| rustix::io::read(queue, &mut packet[..]).ok().map(|_| packet[26..29] == [10, 244, 9]))
        .filter(|ours| *ours)
        .count()
}

#[test]
fn the_bridge_keeps_mtu_and_hardware_address_when_a_port_comes() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let pod = crate::namespace::Pod::new();
        let mut veth = crate::namespace::veth(kernel, links, 5);
        veth.mtu_bytes = 1300;
        kernel.apply(&Plan { steps: vec![Step::CreateVeth(veth)] }, Some(&pod.passed)).await.unwrap();
        let bridge = node.run("ip -o link show cni0");
        assert!(bridge.contains("mtu 1400") && bridge.contains("0a:58:0a:f4:01:01"), "{bridge}");
    });
}

#[test]
fn uplinks_keep_their_advertisements_and_are_filtered_loosely() {
    let node = Namespace::new();
    let _far = uplink(&node);
    node.set_sysctl("ipv4/conf/all/rp_filter", "1");
    node.set_sysctl("ipv6/conf/up0/accept_ra", "1");
    node.with_kernel(async |kernel| kernel.ensure_node(&spec()).await.unwrap());
    let expected = [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/up0/accept_ra", "2"),
        ("ipv4/conf/up0/rp_filter", "2"),
        ("ipv4/conf/cni0/rp_filter", "2"),
        ("ipv4/conf/culvert0/rp_filter", "2"),
        ("ipv6/conf/cni0/accept_ra", "0"),
        ("ipv6/conf/culvert0/accept_ra", "0"),
    ];
    let found = expected.map(|(name, _)| (name, node.sysctl(name)));
    assert_eq!(found, expected.map(|(name, value)| (name, value.to_owned())));
}

#[test]
fn the_underlay_is_seen_without_our_own_links() {
    let node = Namespace::new();
    let _far = uplink(&node);
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        let on_link = |subnet, address| OnLink { subnet: net(subnet), address: ip(address), link: "up0".into() };
        let expected = vec![on_link("192.0.2.0/24", "192.0.2.1"), on_link("2001:db8::/64", "2001:db8::1")];
        assert_eq!(kernel.observe().await.unwrap().on_link, expected);
    });
}

#[test]
fn a_neighbour_that_answers_is_alive_and_a_missing_one_fails() {
    let node = Namespace::new();
    let _far = uplink(&node);
    node.with_kernel(async |kernel| {
        for (address, expected) in [
            ("192.0.2.2", Neighbour::Alive),
            ("2001:db8::2", Neighbour::Alive),
            ("192.0.2.77", Neighbour::Failed),
            ("2001:db8::77", Neighbour::Failed),
        ] {
            let start = std::time::Instant::now();
            while kernel.neighbour_state(ip(address)).await.unwrap() != expected {
                assert!(start.elapsed() < PATIENCE, "{address} never became {expected:?}");
            }
        }
        assert_eq!(kernel.neighbour_state(ip("203.0.113.9")).await.unwrap(), Neighbour::Unknown);
    });
}

#[test]
fn changes_made_by_others_are_reported() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        for (command, expected) in [
            ("ip link del cni0", KernelChange::Links),
            ("ip addr add 192.0.2.9/32 dev lo", KernelChange::Addresses),
            ("ip route add prohibit 10.244.9.0/24 table 67", KernelChange::Routes),
            ("ip rule del priority 1000", KernelChange::Rules),
            ("iptables -t mangle -F", KernelChange::Firewall),
        ] {
            let mut watch = watch().unwrap();
            node.run(command);
            let seen = async { while watch.next().await != expected {} };
            tokio::time::timeout(PATIENCE, seen)
                .await
                .unwrap_or_else(|_| panic!("`{command}` was not reported as {expected:?}"));
        }
    });
}
