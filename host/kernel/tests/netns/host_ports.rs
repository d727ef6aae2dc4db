//! Host ports carry traffic from wherever it comes, to the pod that has them, and to nobody else.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use culvert_core::address::Family;
use culvert_core::host_port::{PortKey, PortTarget, Transport};
use culvert_core::plan::{Plan, Step};
use culvert_kernel::Kernel;

use crate::namespace::{Namespace, Pod, attach, ip, spec, uplink, wait_for};
use crate::packet::{is_sctp_init, receive_sctp, send_sctp_init};
use crate::probe::{Server, Speaks, ask, assert_refused, connect, exchange, reach, towards};

/// A node with two pods that serve port 80, and a host on its uplink, on which forwarding must be allowed
/// explicitly.
struct Site {
    far: Namespace,
    pods: [Pod; 2],
    servers: [Server; 2],
}

/// A family's addresses of the node, of its pods and of the host.
struct Addresses {
    family: Family,
    uplink: IpAddr,
    gateway: IpAddr,
    pods: [IpAddr; 2],
    far: IpAddr,
}

fn families() -> [Addresses; 2] {
    [
        Addresses {
            family: Family::V4,
            uplink: ip("192.0.2.1"),
            gateway: ip("10.244.1.1"),
            pods: [ip("10.244.1.5"), ip("10.244.1.6")],
            far: ip("192.0.2.2"),
        },
        Addresses {
            family: Family::V6,
            uplink: ip("2001:db8::1"),
            gateway: ip("fd00:244:0:1::1"),
            pods: [ip("fd00:244:0:1::5"), ip("fd00:244:0:1::6")],
            far: ip("2001:db8::2"),
        },
    ]
}

async fn set_up(kernel: &mut Kernel, node: &Namespace) -> Site {
    let far = uplink(node);
    let links = kernel.ensure_node(&spec()).await.unwrap();
    for program in ["iptables", "ip6tables"] {
        node.run(&format!("{program} -P FORWARD DROP"));
    }
    let pods = [attach(kernel, links, 5).await, attach(kernel, links, 6).await];
    let servers = [Server::new(&pods[0].namespace, 80), Server::new(&pods[1].namespace, 80)];
    Site { far, pods, servers }
}

fn key(family: Family, host_ip: Option<IpAddr>, transport: Transport) -> PortKey {
    PortKey { family, host_ip, transport, port: 8080 }
}

fn to(address: IpAddr) -> PortTarget {
    PortTarget { address, port: 80 }
}

fn set(key: PortKey, address: IpAddr, before: Option<IpAddr>) -> Step {
    Step::SetPort { key, target: to(address), before: before.map(to) }
}

async fn apply(kernel: &mut Kernel, steps: impl IntoIterator<Item = Step>) {
    kernel.apply(&Plan { steps: steps.into_iter().collect() }, None).await.unwrap();
}

/// Port 8080 of every address of both families, TCP and UDP, to the first pod.
async fn open_to_first_pod(kernel: &mut Kernel) {
    let steps = families().into_iter().flat_map(|addresses| {
        [Transport::Tcp, Transport::Udp]
            .map(|transport| set(key(addresses.family, None, transport), addresses.pods[0], None))
    });
    apply(kernel, steps).await;
}

/// Run with and without the kernel looking into what the bridge forwards (as most container nodes have it): replies
/// take different ways then. A kernel that cannot look has one way only.
fn with_and_without_bridge_filter(node: &Namespace, mut test: impl FnMut()) {
    let sysctls = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
    let there = node.attempt(&format!("cat /proc/sys/net/{}", sysctls[0])).status.success();
    for value in if there { vec!["0", "1"] } else { vec![""] } {
        sysctls.iter().filter(|_| there).for_each(|sysctl| node.set_sysctl(sysctl, value));
        test();
    }
}

#[test]
fn a_port_of_every_address_leads_to_the_pod_from_everywhere() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let site = set_up(kernel, &node).await;
        open_to_first_pod(kernel).await;
        let at = |address| SocketAddr::new(address, 8080);
        let [itself, neighbour] = [&site.pods[0].namespace, &site.pods[1].namespace];
        with_and_without_bridge_filter(&node, || {
            for (speaks, addresses) in
                [Speaks::Tcp, Speaks::Udp].into_iter().flat_map(|one| families().map(|two| (one, two)))
            {
                let Addresses { uplink, gateway, far, .. } = addresses;
                let mut reached = vec![
                    (&site.far, uplink, far),
                    (&node, uplink, uplink),
                    (&node, gateway, gateway),
                    (itself, uplink, gateway),
                    (itself, gateway, gateway),
                    (neighbour, uplink, gateway),
                    (neighbour, gateway, gateway),
                ];
                if addresses.family == Family::V4 {
                    reached.push((&node, ip("127.0.0.1"), gateway));
                }
                for (from, address, seen) in reached {
                    assert_eq!(reach(speaks, from, at(address), &site.servers[0]), seen, "{speaks:?} to {address}");
                }
            }
            // The kernel cannot bring answers back to ::1, so nobody is made to wait for them.
            assert_refused(&node, at(ip("::1")));
        });
    });
}

#[test]
fn a_port_of_one_address_is_served_there_alone_and_beats_the_one_of_every_address() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let site = set_up(kernel, &node).await;
        for addresses in families() {
            let Addresses { family, uplink, gateway, pods: [first, second], .. } = addresses;
            for (speaks, transport) in [(Speaks::Tcp, Transport::Tcp), (Speaks::Udp, Transport::Udp)] {
                let (one, every) = (key(family, Some(uplink), transport), key(family, None, transport));
                let at = |address| SocketAddr::new(address, 8080);
                apply(kernel, [set(one, first, None)]).await;
                reach(speaks, &site.far, at(uplink), &site.servers[0]);
                assert_refused(&node, at(gateway));
                apply(kernel, [set(every, second, None)]).await;
                reach(speaks, &site.far, at(uplink), &site.servers[0]);
                reach(speaks, &node, at(gateway), &site.servers[1]);
                apply(kernel, [Step::RemovePort { key: one, target: to(first) }]).await;
                reach(speaks, &site.far, at(uplink), &site.servers[1]);
                apply(kernel, [Step::RemovePort { key: every, target: to(second) }]).await;
                assert_refused(&site.far, at(uplink));
            }
        }
        let loopback = key(Family::V4, Some(ip("127.0.0.1")), Transport::Tcp);
        apply(kernel, [set(loopback, ip("10.244.1.5"), None)]).await;
        reach(Speaks::Tcp, &node, "127.0.0.1:8080".parse().unwrap(), &site.servers[0]);
        assert_refused(&site.far, "192.0.2.1:8080".parse().unwrap());
        assert_refused(&node, "192.0.2.1:8080".parse().unwrap());
    });
}

#[test]
fn a_port_of_two_pods_goes_to_the_newer_and_back_and_connections_stay() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let site = set_up(kernel, &node).await;
        let [old, new] = &site.servers;
        for addresses in families() {
            let Addresses { family, uplink, pods: [first, second], .. } = addresses;
            let key = key(family, None, Transport::Tcp);
            let at = SocketAddr::new(uplink, 8080);
            apply(kernel, [set(key, first, None)]).await;
            let client = connect(&site.far, at).unwrap();
            let (server, _) = wait_for("the connection", || old.accept());
            apply(kernel, [set(key, second, Some(first))]).await;
            reach(Speaks::Tcp, &site.far, at, new);
            exchange(&client, &server);
            // The older goes first: nothing is done, and the newer keeps the port. Or the newer goes first.
            apply(kernel, [set(key, first, Some(second))]).await;
            reach(Speaks::Tcp, &site.far, at, old);
            apply(kernel, [Step::RemovePort { key, target: to(first) }]).await;
            assert_refused(&site.far, at);
            exchange(&client, &server);
        }
    });
}

#[test]
fn the_same_port_of_an_address_that_is_not_the_nodes_is_not_touched() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let site = set_up(kernel, &node).await;
        open_to_first_pod(kernel).await;
        let at_far = Server::new(&site.far, 8080);
        let at_neighbour = Server::new(&site.pods[1].namespace, 8080);
        for (speaks, addresses) in
            [Speaks::Tcp, Speaks::Udp].into_iter().flat_map(|one| families().map(|two| (one, two)))
        {
            let Addresses { uplink, pods, far, .. } = addresses;
            let at = |address| SocketAddr::new(address, 8080);
            assert_eq!(reach(speaks, &site.pods[0].namespace, at(far), &at_far), uplink);
            assert_eq!(reach(speaks, &node, at(far), &at_far), uplink);
            assert_eq!(reach(speaks, &site.pods[0].namespace, at(pods[1]), &at_neighbour), pods[0]);
        }
    });
}

#[test]
fn a_udp_flow_follows_its_port_and_the_flows_of_other_ports_stay() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let site = set_up(kernel, &node).await;
        for addresses in families() {
            let Addresses { family, uplink, pods: [first, second], .. } = addresses;
            let udp = key(family, None, Transport::Udp);
            let other = PortKey { port: 8081, ..udp };
            apply(kernel, [set(other, second, None)]).await;
            let tracked = |port: u16| {
                let flows = node.run("cat /proc/net/nf_conntrack");
                let of_family = if family == Family::V4 { "ipv4 " } else { "ipv6 " };
                let wanted = [of_family, " udp ", &format!("dport={port} ")];
                flows.lines().filter(|flow| wanted.iter().all(|word| flow.contains(word))).count()
            };
            let beside = towards(&site.far, SocketAddr::new(uplink, 8081));
            ask(&beside, &site.servers[1]);
            let client = towards(&site.far, SocketAddr::new(uplink, 8080));
            // One flow from its first packet on: to nobody, to the first pod, to the second, to nobody.
            client.send(b"ask").unwrap();
            wait_for("the flow to be tracked", || (tracked(8080) == 1).then_some(()));
            apply(kernel, [set(udp, first, None)]).await;
            ask(&client, &site.servers[0]);
            apply(kernel, [set(udp, second, Some(first))]).await;
            ask(&client, &site.servers[1]);
            apply(kernel, [Step::RemovePort { key: udp, target: to(second) }]).await;
            wait_for("the flow to be forgotten", || (tracked(8080) == 0).then_some(()));
            assert_eq!(tracked(8081), 1);
        }
    });
}

#[test]
fn an_sctp_packet_is_led_to_the_pod() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let site = set_up(kernel, &node).await;
        for addresses in families() {
            let Addresses { family, uplink, pods: [first, _], .. } = addresses;
            apply(kernel, [set(key(family, None, Transport::Sctp), first, None)]).await;
            let arrived = receive_sctp(&site.pods[0].namespace, family);
            wait_for("the packet in the pod", || {
                send_sctp_init(&site.far, (addresses.far, 5000), (uplink, 8080));
                arrived().filter(|packet| is_sctp_init(packet, 5000, 80))
            });
            let table = if family == Family::V4 { "ip" } else { "ip6" };
            let ports = node.run(&format!("nft list map {table} culvert ports"));
            assert!(ports.contains(&format!("sctp . 8080 : {first} . 80")), "{ports}");
        }
    });
}

/// What a pod can send to and from 127/8 once its own loopback is out of the way.
#[test]
fn pods_do_not_reach_what_listens_on_the_nodes_loopback_nor_speak_from_it() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let site = set_up(kernel, &node).await;
        open_to_first_pod(kernel).await;
        let pod = &site.pods[0].namespace;
        pod.set_sysctl("ipv4/conf/all/route_localnet", "1");
        for command in [
            "ip route del local 127.0.0.0/8 dev lo table local",
            "ip route del local 127.0.0.1 dev lo table local",
            "ip route add 127.0.0.1 via 10.244.1.1",
            "ip addr add 127.0.0.9/32 dev eth0",
        ] {
            pod.run(command);
        }
        let listen = |address: &str| {
            let socket = node.inside(|| UdpSocket::bind(address).unwrap());
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let (at_loopback, at_gateway, marker) =
            (listen("127.0.0.1:9000"), listen("10.244.1.1:9000"), listen("10.244.1.1:9001"));
        let from = |address: &str| pod.inside(|| UdpSocket::bind((address, 7000)).unwrap());
        let (honest, liar) = (from("10.244.1.5"), from("127.0.0.9"));
        let attack = || {
            let _unroutable = honest.send_to(b"to", "127.0.0.1:9000");
            let _unroutable = liar.send_to(b"from", "10.244.1.1:9000");
            honest.send_to(b"done", "10.244.1.1:9001").unwrap();
            wait_for("what was sent last", || marker.recv(&mut [0; 8]).ok());
            [&at_loopback, &at_gateway].map(|socket| socket.recv(&mut [0; 8]).is_ok())
        };
        // These would keep sources of 127/8 out by themselves; the rules must not depend on them.
        let trusting = || {
            node.set_sysctl("ipv4/conf/cni0/rp_filter", "0");
            node.set_sysctl("ipv4/conf/cni0/accept_local", "1");
        };
        trusting();
        assert_eq!(attack(), [false, false]);
        // The control: it is our rules that keep them out.
        node.run("nft flush chain ip culvert guard");
        let mut seen = [false, false];
        wait_for("both packets without our rules", || {
            let now = attack();
            seen = std::array::from_fn(|index| seen[index] || now[index]);
            (seen == [true, true]).then_some(())
        });
        kernel.ensure_node(&spec()).await.unwrap();
        trusting();
        attack();
        assert_eq!(attack(), [false, false]);
    });
}
