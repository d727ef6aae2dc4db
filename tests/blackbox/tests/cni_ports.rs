//! Host ports: who reaches a pod by a port of its node, from where, and what happens when two pods want the same one.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use culvert_blackbox::attachments::{address_in, block};
use culvert_lab::probe::{SERVE_PORT, Vantage};
use culvert_lab::{Host, Sandbox, SharedNode, SingleNode};
use serde_json::{Value, json};

static NODE: SharedNode = SharedNode::new();

const HOST_PORT: u16 = 8080;

fn mapping(protocol: &str) -> Value {
    json!({"hostPort": HOST_PORT, "containerPort": SERVE_PORT, "protocol": protocol})
}

/// An attached container with these mappings.
fn mapped(single: &SingleNode, name: &str, mappings: Value) -> Sandbox {
    let sandbox = Sandbox::new(single, name).unwrap().asking("portMappings", mappings);
    sandbox.attach().unwrap();
    sandbox
}

/// A machine beside the node, each with an address of its own: the node remembers where the last one had it.
fn client(single: &SingleNode) -> Host {
    static LAST_OCTET: AtomicU8 = AtomicU8::new(20);
    single.lab().public_host("client", LAST_OCTET.fetch_add(1, Ordering::Relaxed)).unwrap()
}

fn vantage<'a>(single: &SingleNode, host: &'a Host) -> Vantage<'a> {
    Vantage { namespace: &host.namespace, program: single.node().binaries().program("lab-probe") }
}

fn node_address(single: &SingleNode) -> IpAddr {
    single.node().host().addresses[0]
}

fn gateway(single: &SingleNode, v4: bool) -> IpAddr {
    address_in(&block(single.node(), v4).unwrap(), 1).unwrap()
}

fn connects(from: &Vantage<'_>, address: IpAddr) -> bool {
    from.connect(address, HOST_PORT).unwrap().connected
}

/// Counts the programs that a process runs, itself and its children.
struct ProgramWatch {
    tracer: Child,
    report: PathBuf,
}

impl ProgramWatch {
    fn begin(single: &SingleNode) -> Self {
        let report = single.node().folder().join("programs");
        let process = single.node().process_id().unwrap().to_string();
        let mut tracer = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=execve,execveat", "-o"])
            .arg(&report)
            .args(["-p", &process])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let threads =
            || std::fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|thread| thread.unwrap().path());
        let traced = |thread: PathBuf| {
            let status = std::fs::read_to_string(thread.join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        culvert_lab::wait::until_true("the tracer to be attached", Duration::from_secs(30), || {
            anyhow::ensure!(tracer.try_wait()?.is_none(), "strace ended");
            Ok(threads().all(traced))
        })
        .unwrap();
        Self { tracer, report }
    }

    fn finish(mut self) -> Vec<String> {
        let process = rustix::process::Pid::from_child(&self.tracer);
        rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
        self.tracer.wait().unwrap();
        std::fs::read_to_string(&self.report).unwrap().lines().map(str::to_owned).collect()
    }
}

#[test]
fn no_program_is_run_for_a_pod() {
    let single = NODE.running().unwrap();
    let watch = ProgramWatch::begin(&single);
    for _ in 0..10 {
        let sandbox = mapped(&single, "till", json!([mapping("tcp"), mapping("udp")]));
        sandbox.del().unwrap().success().unwrap();
    }
    assert_eq!(watch.finish(), Vec::<String>::new());
    // The watch sees what there is to be seen: rules that somebody took away are set again by programs.
    let watch = ProgramWatch::begin(&single);
    single.node().namespace().run("nft flush chain ip culvert host-ports").unwrap();
    culvert_lab::wait::until_true("the rules to be back", Duration::from_secs(30), || {
        let rules = single.node().namespace().run("nft list chain ip culvert host-ports")?;
        Ok(rules.contains("dnat"))
    })
    .unwrap();
    assert!(!watch.finish().is_empty());
}

#[test]
fn a_tcp_port_is_reached_from_outside_the_node_a_pod_and_itself_until_del() {
    let single = NODE.running().unwrap();
    let (machine, other) = (client(&single), Sandbox::new(&single, "scale").unwrap());
    other.attach().unwrap();
    let outside = vantage(&single, &machine);
    assert!(!connects(&outside, node_address(&single)), "nobody listens yet");
    let sandbox = mapped(&single, "till", json!([mapping("tcp")]));
    let serving = sandbox.vantage().serve().unwrap();
    assert!(connects(&outside, node_address(&single)), "from outside");
    assert!(connects(&single.node().vantage(), "127.0.0.1".parse().unwrap()), "by the loopback address");
    assert!(connects(&single.node().vantage(), node_address(&single)), "from the node by its own address");
    assert!(connects(&other.vantage(), node_address(&single)), "from another pod");
    assert!(connects(&sandbox.vantage(), node_address(&single)), "from the pod itself");
    drop(serving);
    sandbox.del().unwrap().success().unwrap();
    assert!(!connects(&outside, node_address(&single)));
}

#[test]
fn a_tcp_port_is_reached_by_ipv6_too() {
    let single = NODE.running().unwrap();
    let other = Sandbox::new(&single, "scale").unwrap();
    other.attach().unwrap();
    let sandbox = mapped(&single, "till", json!([mapping("TCP")]));
    let _serving = sandbox.vantage().serve().unwrap();
    for from in [other.vantage(), sandbox.vantage(), single.node().vantage()] {
        assert!(connects(&from, gateway(&single, false)), "{from:?}");
    }
}

#[test]
fn a_udp_port_is_reached_from_outside_and_from_the_node() {
    let single = NODE.running().unwrap();
    let machine = client(&single);
    let sandbox = mapped(&single, "till", json!([mapping("udp")]));
    for (from, to) in [
        (vantage(&single, &machine), node_address(&single)),
        (single.node().vantage(), node_address(&single)),
        (single.node().vantage(), "127.0.0.1".parse().unwrap()),
        (sandbox.vantage(), node_address(&single)),
    ] {
        let receiving = sandbox.vantage().receive_datagrams(SERVE_PORT).unwrap();
        assert_eq!(from.send_datagrams(to, HOST_PORT, 5, 100).unwrap().datagrams, 5);
        assert_eq!(receiving.finish().unwrap().datagrams, 5, "{from:?}");
    }
}

/// Not every kernel has sockets of SCTP: the rule is what is looked at.
#[test]
fn an_sctp_port_is_a_rule_until_del() {
    let single = NODE.running().unwrap();
    let rules = || single.node().namespace().run("nft --stateless list ruleset").unwrap();
    let before = rules();
    let sandbox = mapped(&single, "till", json!([mapping("sctp")]));
    let with = rules();
    assert!(with.contains(&format!("sctp . {HOST_PORT}")), "{with}");
    sandbox.del().unwrap().success().unwrap();
    assert_eq!(rules(), before);
}

#[test]
fn a_port_of_one_address_is_reached_by_no_other() {
    let single = NODE.running().unwrap();
    let machine = client(&single);
    let outside = vantage(&single, &machine);
    let at = |address: &str| {
        let mut mapping = mapping("tcp");
        mapping["hostIP"] = json!(address);
        mapped(&single, "till", json!([mapping]))
    };
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    let table =
        [("127.0.0.1", false, true), (&node_address(&single).to_string(), true, false), ("0.0.0.0", true, true)];
    for (address, from_outside, by_loopback) in table {
        let sandbox = at(address);
        let _serving = sandbox.vantage().serve().unwrap();
        assert_eq!(connects(&outside, node_address(&single)), from_outside, "{address}");
        assert_eq!(connects(&single.node().vantage(), loopback), by_loopback, "{address}");
    }
}

#[test]
fn several_ports_of_a_pod_lead_where_each_says() {
    let single = NODE.running().unwrap();
    let one = |host_port: u16, container_port: u16| json!({"hostPort": host_port, "containerPort": container_port, "protocol": "tcp"});
    let sandbox = mapped(&single, "till", json!([one(8081, 81), one(8082, 82)]));
    let _serving = sandbox.vantage().serve_on(82).unwrap();
    let from = single.node().vantage();
    assert!(!from.connect(node_address(&single), 8081).unwrap().connected);
    assert!(from.connect(node_address(&single), 8082).unwrap().connected);
    assert!(!from.connect(node_address(&single), 82).unwrap().connected, "only mapped ports are the node's");
}

#[test]
fn a_port_of_two_pods_goes_to_the_newer_and_survives_the_end_of_the_older() {
    let single = NODE.running().unwrap();
    let from = single.node().vantage();
    let older = mapped(&single, "till", json!([mapping("tcp")]));
    let newer = mapped(&single, "scale", json!([mapping("tcp")]));
    let serving = newer.vantage().serve().unwrap();
    assert!(connects(&from, node_address(&single)), "only the newer one serves");
    older.del().unwrap().success().unwrap();
    assert!(connects(&from, node_address(&single)), "the older one took nothing with it");
    drop(serving);
    newer.del().unwrap().success().unwrap();
    assert!(!connects(&from, node_address(&single)));
}

#[test]
fn connections_to_other_machines_on_a_mapped_port_are_left_alone() {
    let single = NODE.running().unwrap();
    let machine = client(&single);
    let (sandbox, other) = (mapped(&single, "till", json!([mapping("tcp")])), Sandbox::new(&single, "scale").unwrap());
    other.attach().unwrap();
    let _serving = vantage(&single, &machine).serve_on(HOST_PORT).unwrap();
    // Nobody serves in the pod with the port: whoever connects has reached the machine.
    for from in [other.vantage(), sandbox.vantage(), single.node().vantage()] {
        assert!(connects(&from, machine.addresses[0]), "{from:?}");
    }
}
