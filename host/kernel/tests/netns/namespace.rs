//! Namespaces, nodes and pods for the tests.

use std::mem::ManuallyDrop;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use culvert_core::plan::{Plan, PodRoute, Step, Veth};
use culvert_kernel::{Kernel, NodeLinks, NodeSpec, PodNamespace};
use ipnet::IpNet;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

/// How long a condition may take before the test fails. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace that goes with this value.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ck{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.run("ip link set lo up");
        namespace
    }

    /// Run a command inside and return what it printed.
    pub fn run(&self, command: &str) -> String {
        let mut full = Command::new("ip");
        succeed(full.args(["netns", "exec", &self.name]).args(command.split_whitespace()))
    }

    /// Run a command inside that may fail.
    pub fn attempt(&self, command: &str) -> Output {
        let mut full = Command::new("ip");
        full.args(["netns", "exec", &self.name]).args(command.split_whitespace()).output().unwrap()
    }

    pub fn descriptor(&self) -> OwnedFd {
        std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap().into()
    }

    /// Do something on a thread that lives in the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let descriptor = self.descriptor();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                rustix::thread::move_into_link_name_space(descriptor.as_fd(), Some(LinkNameSpaceType::Network))
                    .unwrap();
                work()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The same, with a runtime and the namespace's kernel.
    pub fn with_kernel<T: Send>(&self, work: impl AsyncFnOnce(&mut Kernel) -> T + Send) -> T {
        self.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut kernel = Kernel::open().await.unwrap();
                work(&mut kernel).await
            })
        })
    }

    pub fn sysctl(&self, path: &str) -> String {
        self.run(&format!("cat /proc/sys/net/{path}")).trim().to_owned()
    }

    pub fn set_sysctl(&self, path: &str, value: &str) {
        self.inside(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap());
    }

    /// Links, addresses, routes, rules, queueing disciplines, firewall and our NAT tables, without counters and dates.
    pub fn snapshot(&self) -> String {
        let mut text = String::new();
        for command in [
            "ip -o link",
            "ip -o addr",
            "ip route show table all",
            "ip -6 route show table all",
            "ip rule",
            "ip -6 rule",
            "tc qdisc",
            "iptables-save",
            "ip6tables-save",
        ] {
            let mut lines: Vec<String> = self
                .run(command)
                .lines()
                .filter(|line| !line.starts_with('#') && !comes_with_the_carrier(line))
                .map(stable)
                .collect();
            // The kernel lists IPv6 routes in the order of its tree, which depends on what was there before.
            if command.contains("route") {
                lines.sort();
            }
            text += &format!("== {command}\n{}\n", lines.join("\n"));
        }
        text + &self.nat_tables()
    }

    /// Our nft tables, or nothing.
    pub fn nat_tables(&self) -> String {
        let list = |family| self.attempt(&format!("nft list table {family} culvert")).stdout;
        String::from_utf8(["ip", "ip6"].map(list).concat()).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// The variable that tells a test that it runs as its own child, and in which namespace.
const CHILD_NAMESPACE: &str = "CULVERT_TEST_NAMESPACE";

/// Run a test again as a child that finds programs in that folder only, and return all it printed. The search path of
/// this process must stay as it is for the other tests.
pub fn run_as_child(test: &str, search_path: &Path, namespace: &Namespace) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("PATH", search_path)
        .env(CHILD_NAMESPACE, &namespace.name)
        .output()
        .unwrap();
    String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr)
}

/// The namespace a test runs in as its own child; its parent removes it.
pub fn child_namespace() -> Option<ManuallyDrop<Namespace>> {
    let name = std::env::var(CHILD_NAMESPACE).ok()?;
    Some(ManuallyDrop::new(Namespace { name }))
}

/// A line without what changes by itself: packet counters, lifetimes, carriers.
fn stable(line: &str) -> String {
    let cut = line.find('[').filter(|_| line.starts_with(':')).unwrap_or(line.len());
    let mut words: Vec<String> = line[..cut].split_whitespace().map(str::to_owned).collect();
    words.retain(|word| !word.ends_with("sec") && !["tentative", "linkdown"].contains(&word.as_str()));
    if let Some(at) = words.iter().position(|word| word == "state") {
        words.drain(at..(at + 2).min(words.len()));
    }
    words.join(" ").replace("NO-CARRIER,", "").replace(",LOWER_UP", "")
}

/// Whether a line speaks of what the kernel itself makes when a carrier comes: link-local and multicast.
fn comes_with_the_carrier(line: &str) -> bool {
    ["fe80:", "ff00::", "anycast "].iter().any(|word| line.contains(word))
}

/// Assert that two snapshots are the same, and print only where they differ.
#[track_caller]
pub fn assert_same(before: &str, after: &str) {
    let only_in = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| !other.lines().any(|also| also == *line)).map(str::to_owned).collect()
    };
    let (gone, new) = (only_in(before, after), only_in(after, before));
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
    assert_eq!(before, after);
}

pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Wait until something is there.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The node all tests set up.
pub fn spec() -> NodeSpec {
    NodeSpec {
        bridge: "cni0".into(),
        tun: "culvert0".into(),
        bridge_mtu_bytes: 1400,
        tun_mtu_bytes: 1380,
        tun_queues: 1,
        gateways: vec![net("10.244.1.1/24"), net("fd00:244:0:1::1/64")],
        cluster_prefixes: vec![net("10.244.0.0/16"), net("fd00:244::/48")],
        masquerade: true,
    }
}

/// An underlay host joined to a node: `up0` on the node, 192.0.2.1 and 2001:db8::1; `far0` on the host, .2 and ::2.
pub fn uplink(node: &Namespace) -> Namespace {
    let far = Namespace::new();
    node.run(&format!("ip link add up0 type veth peer name far0 netns {}", far.name));
    for (namespace, link, end) in [(node, "up0", "1"), (&far, "far0", "2")] {
        namespace.run(&format!("ip addr add 192.0.2.{end}/24 dev {link}"));
        namespace.run(&format!("ip addr add 2001:db8::{end}/64 dev {link} nodad"));
        namespace.run(&format!("ip link set {link} up"));
    }
    far
}

/// A pod: its namespace and what the shim would pass.
pub struct Pod {
    pub namespace: Namespace,
    pub passed: PodNamespace,
}

impl Pod {
    pub fn new() -> Self {
        let namespace = Namespace::new();
        let rtnetlink = namespace.inside(|| {
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap()
        });
        let passed = PodNamespace { netns: namespace.descriptor(), rtnetlink };
        Self { namespace, passed }
    }

    pub fn pings(&self, address: &str) -> bool {
        self.namespace.attempt(&format!("ping -n -c 5 -i 0.2 -W 2 {address}")).status.success()
    }
}

/// The veth of pod `number`.
pub fn veth(kernel: &mut Kernel, links: NodeLinks, number: u8) -> Veth {
    Veth {
        host_name: format!("cvtest{number}"),
        host_index: kernel.free_index(),
        pod_name: "eth0".into(),
        pod_index: kernel.free_index(),
        pod_mac: [0x0a, 0x58, 10, 244, 1, number],
        mtu_bytes: 1400,
        bridge_index: links.bridge_index,
        hairpin: true,
    }
}

/// The plan that attaches pod `number` as 10.244.1.N and fd00:244:0:1::N.
pub fn attachment(veth: Veth, number: u8) -> Plan {
    let index = veth.pod_index;
    let route = |to, gateway| Step::PodRoute { index, route: PodRoute::new(net(to), Some(ip(gateway))) };
    Plan {
        steps: vec![
            Step::CreateVeth(veth),
            Step::PodLinkUp { index },
            Step::PodAddress { index, address: net(&format!("10.244.1.{number}/24")) },
            Step::PodAddress { index, address: net(&format!("fd00:244:0:1::{number}/64")) },
            route("0.0.0.0/0", "10.244.1.1"),
            route("::/0", "fd00:244:0:1::1"),
        ],
    }
}

/// Attach a pod to a node that is set up.
pub async fn attach(kernel: &mut Kernel, links: NodeLinks, number: u8) -> Pod {
    let pod = Pod::new();
    let veth = veth(kernel, links, number);
    kernel.apply(&attachment(veth, number), Some(&pod.passed)).await.unwrap();
    pod
}
