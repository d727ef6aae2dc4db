//! What a peer, playing at the far end of the TUN, gets through; and under which address pods leave.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::path::Path;

use culvert_core::address::Family;
use culvert_core::host_port::{PortKey, PortTarget, Transport};
use culvert_core::plan::{KernelRoute, KernelVia, Plan, Step};
use culvert_kernel::{Kernel, open_tun};

use crate::namespace::{
    Namespace, PATIENCE, Pod, assert_same, attach, child_namespace, ip, net, run_as_child, spec, uplink, wait_for,
};
use crate::packet::{echo, is_echo_reply, udp};

/// A family's addresses: a remote pod, the node's gateway, a pod here, the node's and a host's underlay address.
struct Addresses {
    remote: &'static str,
    gateway: &'static str,
    pod: &'static str,
    uplink: &'static str,
    far: &'static str,
}

const V4: Addresses =
    Addresses { remote: "10.244.2.5", gateway: "10.244.1.1", pod: "10.244.1.5", uplink: "192.0.2.1", far: "192.0.2.2" };
const V6: Addresses = Addresses {
    remote: "fd00:244:0:2::5",
    gateway: "fd00:244:0:1::1",
    pod: "fd00:244:0:1::5",
    uplink: "2001:db8::1",
    far: "2001:db8::2",
};

/// A node with a pod, an underlay host, and remote pods behind the TUN.
async fn set_up(kernel: &mut Kernel) -> Pod {
    let links = kernel.ensure_node(&spec()).await.unwrap();
    let pod = attach(kernel, links, 5).await;
    let route =
        |to, source| KernelRoute { to: net(to), via: KernelVia::Tunnel, source: Some(ip(source)), mtu_bytes: None };
    let routes = [route("10.244.2.0/24", V4.gateway), route("fd00:244:0:2::/64", V6.gateway)];
    let steps = routes.into_iter().map(|route| Step::SetRoute { route, before: None }).collect();
    kernel.apply(&Plan { steps }, None).await.unwrap();
    pod
}

fn listen(namespace: &Namespace, address: &str, port: u16) -> UdpSocket {
    let address = (ip(address), port);
    let socket = namespace.inside(|| UdpSocket::bind(address).unwrap());
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Everything that has arrived.
fn arrived(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect()
}

/// The far end of the tunnel.
struct Peer(std::fs::File);

impl Peer {
    fn new() -> Self {
        let queue = open_tun("culvert0", 1).unwrap().queues.remove(0);
        rustix::io::ioctl_fionbio(&queue, true).unwrap();
        Self(queue.into())
    }

    fn send(&mut self, packet: &[u8]) {
        self.0.write_all(packet).unwrap();
    }

    /// One packet, if there is one.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_600];
        let length = self.0.read(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    }

    fn wait_for(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        wait_for(what, || self.receive().filter(|packet| wanted(packet)))
    }

    /// Wait until the node answered a ping: whatever was sent before it has been dealt with by then.
    fn settle(&mut self, addresses: &Addresses, number: u16) {
        self.send(&echo(addresses.remote, addresses.gateway, number));
        self.wait_for("an echo reply", |packet| is_echo_reply(packet, number));
    }
}

#[test]
fn what_comes_by_the_tunnel_is_taken_also_while_the_way_back_is_the_link() {
    let node = Namespace::new();
    let _far = uplink(&node);
    node.with_kernel(async |kernel| {
        let pod = set_up(kernel).await;
        let mut peer = Peer::new();
        for (family, addresses, block) in [(4, &V4, "10.244.2.0/24"), (6, &V6, "fd00:244:0:2::/64")] {
            let back = KernelRoute {
                to: net(block),
                via: KernelVia::NextHop(ip(addresses.far)),
                source: None,
                mtu_bytes: None,
            };
            let steps = vec![Step::SetRoute { route: back, before: None }];
            kernel.apply(&Plan { steps }, None).await.unwrap();
            let at_pod = listen(&pod.namespace, addresses.pod, 7000);
            let packet = udp((addresses.remote, 5000), (addresses.pod, 7000), b"by the tunnel");
            wait_for(&format!("the IPv{family} packet to the pod"), || {
                peer.send(&packet);
                arrived(&at_pod).contains(&b"by the tunnel".to_vec()).then_some(())
            });
        }
    });
}

#[test]
fn a_peer_reaches_pods_and_pings_the_node_and_nothing_else() {
    let node = Namespace::new();
    let far = uplink(&node);
    node.with_kernel(async |kernel| {
        let pod = set_up(kernel).await;
        let mut peer = Peer::new();
        for (family, addresses) in [(4, &V4), (6, &V6)] {
            let at_gateway = listen(&node, addresses.gateway, 10250);
            let at_uplink = listen(&node, addresses.uplink, 10250);
            let at_far = listen(&far, addresses.far, 7000);
            let at_pod = listen(&pod.namespace, addresses.pod, 7000);
            far.run(&format!("ip route replace {} via {}", addresses.remote, addresses.uplink));
            let from = (addresses.remote, 5000);
            let forbidden = [
                udp(from, (addresses.gateway, 10250), b"kubelet by gateway"),
                udp(from, (addresses.uplink, 10250), b"kubelet by node"),
                udp(from, (addresses.far, 7000), b"transit"),
            ];
            let attack = |peer: &mut Peer, number: u16| {
                forbidden.iter().for_each(|packet| peer.send(packet));
                peer.send(&udp(from, (addresses.pod, 7000), b"to a pod"));
                wait_for("the packet to the pod", || arrived(&at_pod).contains(&b"to a pod".to_vec()).then_some(()));
                peer.settle(addresses, number);
                [&at_gateway, &at_uplink, &at_far].map(arrived).concat()
            };
            assert_eq!(attack(&mut peer, 1), Vec::<Vec<u8>>::new(), "family {family}");
            // The control: without our rules each of them gets through.
            let program = if family == 4 { "iptables" } else { "ip6tables" };
            node.run(&format!("{program} -t mangle -F"));
            attack(&mut peer, 2);
            let mut seen = Vec::new();
            wait_for("the packets without our rules", || {
                forbidden.iter().for_each(|packet| peer.send(packet));
                seen.extend([&at_gateway, &at_uplink, &at_far].map(arrived).concat());
                let all: [&[u8]; 3] = [b"kubelet by gateway", b"kubelet by node", b"transit"];
                all.iter().all(|wanted| seen.iter().any(|one| one == wanted)).then_some(())
            });
            kernel.ensure_node(&spec()).await.unwrap();
            peer.settle(addresses, 3);
            let _before_the_repair = [&at_gateway, &at_uplink, &at_far].map(arrived);
            assert_eq!(attack(&mut peer, 4), Vec::<Vec<u8>>::new(), "family {family} after the repair");
        }
    });
}

#[test]
fn the_node_gets_replies_to_its_own_connections() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let _pod = set_up(kernel).await;
        let mut peer = Peer::new();
        for addresses in [&V4, &V6] {
            let target = (ip(addresses.remote), 53);
            let any = if addresses.remote.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(target).unwrap();
            assert_eq!(socket.local_addr().unwrap().ip(), ip(addresses.gateway));
            // The link carries packets only a moment after the TUN was opened.
            wait_for("the question in the tunnel", || {
                socket.send(b"question").unwrap();
                peer.receive().filter(|packet| packet.ends_with(b"question"))
            });
            let port = socket.local_addr().unwrap().port();
            peer.send(&udp((addresses.remote, 53), (addresses.gateway, port), b"answer"));
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"answer");
        }
    });
}

#[test]
fn pods_leave_the_cluster_under_the_nodes_address_and_stay_themselves_inside_it() {
    let node = Namespace::new();
    let far = uplink(&node);
    node.with_kernel(async |kernel| {
        let pod = set_up(kernel).await;
        let mut peer = Peer::new();
        for addresses in [&V4, &V6] {
            let at_far = listen(&far, addresses.far, 7000);
            let from_pod = listen(&pod.namespace, addresses.pod, 6000);
            from_pod.send_to(b"out", (ip(addresses.far), 7000)).unwrap();
            let mut buffer = [0; 64];
            let (_, seen) = wait_for("the pod's packet", || at_far.recv_from(&mut buffer).ok());
            assert_eq!(seen.ip(), ip(addresses.uplink));
            from_pod.send_to(b"inside", (ip(addresses.remote), 7000)).unwrap();
            let packet = peer.wait_for("the pod's packet in the tunnel", |packet| packet.ends_with(b"inside"));
            let expected: Vec<u8> = match ip(addresses.pod) {
                std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
                std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            assert!(packet.windows(expected.len()).any(|window| window == expected), "{packet:?}");
        }
        let mut plain = spec();
        plain.masquerade = false;
        kernel.ensure_node(&plain).await.unwrap();
        assert!(!node.run("iptables-save").contains("MASQ"));
    });
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    if let Some(namespace) = child_namespace() {
        let error = namespace.with_kernel(async |kernel| kernel.ensure_node(&spec()).await.unwrap_err());
        return eprintln!("{error}");
    }
    let node = Namespace::new();
    let before = node.snapshot();
    let name = "firewall::a_missing_program_is_named_with_its_package";
    let text = run_as_child(name, Path::new("/nonexistent"), &node);
    assert!(text.contains("iptables is not installed: install the Debian package iptables"), "{text}");
    assert_same(&before, &node.snapshot());
}

#[test]
fn a_peer_reaches_a_pod_by_a_host_port_of_the_gateway() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let pod = set_up(kernel).await;
        let mut peer = Peer::new();
        for addresses in [&V4, &V6] {
            let key =
                PortKey { family: Family::of(ip(addresses.pod)), host_ip: None, transport: Transport::Udp, port: 8080 };
            let target = PortTarget { address: ip(addresses.pod), port: 7000 };
            kernel.apply(&Plan { steps: vec![Step::SetPort { key, target, before: None }] }, None).await.unwrap();
            let at_pod = listen(&pod.namespace, addresses.pod, 7000);
            let (question, mut buffer) = (udp((addresses.remote, 5000), (addresses.gateway, 8080), b"ask"), [0; 64]);
            let (_, from) = wait_for("the question in the pod", || {
                peer.send(&question);
                at_pod.recv_from(&mut buffer).ok()
            });
            assert_eq!(from, (ip(addresses.remote), 5000).into());
            at_pod.send_to(b"yes", from).unwrap();
            // The peer sees the port it asked: 8080 comes first in the header of the answer.
            let answer = peer.wait_for("the answer in the tunnel", |packet| packet.ends_with(b"yes"));
            assert_eq!(answer[answer.len() - 11..][..4], [0x1f, 0x90, 0x13, 0x88]);
        }
    });
}
