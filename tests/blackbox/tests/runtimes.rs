//! Container runtimes as they are: containerd through its CRI and through `ctr`, podman through its CNI backend. They call
//! the shim by themselves, each in an enclosure on a node of the lab.
//!
//! A machine without them, or on which they cannot run a container at all, cannot run these tests, and they say so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use culvert_blackbox::cri::Cri;
use culvert_blackbox::cri::message::{
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};
use culvert_blackbox::rates::rates_in_force;
use culvert_lab::probe::Vantage;
use culvert_lab::{
    Containerd, Enclosure, Node, Pod, Podman, SingleNode, Snapshot, cgroup, containerd, image, podman, wait,
};
use ipnet::IpNet;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::Value;

/// How many sandboxes come and go.
const MANY: u16 = 100;
/// How many of them at a time, as kubelet starts the pods of a node.
const AT_A_TIME: usize = 4;
/// How long what a container serves may take to answer, and what ends to be gone.
const BOUND: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = vec![
        by_containerd(
            "a_sandbox_has_the_addresses_and_rates_it_asked_for_until_it_is_stopped_and_removed_twice",
            one_sandbox,
        ),
        by_containerd("a_host_port_of_a_sandbox_is_open_to_other_machines_until_it_is_stopped", host_port),
        by_containerd("a_hundred_sandboxes_come_and_go_and_leave_nothing", many_sandboxes),
        by_containerd("a_container_of_ctr_is_attached_while_it_runs_and_leaves_nothing", by_ctr),
        Trial::ignorable_test("a_container_of_podman_is_attached_while_it_runs_and_leaves_nothing", || {
            may_run(podman::obstacle(), by_podman)
        }),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// A node that a runtime comes to. Fields are dropped in this order.
struct Setting {
    /// Stays all the time, so that the bridge never loses its carrier, which changes routes and addresses.
    _resident: Pod,
    single: SingleNode,
    before: Snapshot,
}

/// A node with a containerd. Fields are dropped in this order.
struct WithContainerd {
    cri: Cri,
    containerd: Containerd,
    setting: Setting,
}

/// A test that needs containerd.
fn by_containerd(name: &str, test: fn(&WithContainerd) -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || {
        may_run(containerd::obstacle(), || {
            let setting = Setting::running()?;
            let containerd = match Containerd::start(setting.single.lab(), setting.single.node()) {
                Ok(containerd) => containerd,
                Err(error) => return Ok(not_run("containerd runs no container here", &error)),
            };
            let with = WithContainerd { cri: Cri::connect(&containerd.socket())?, containerd, setting };
            let logs = |error| anyhow!("{error:#}\n{}\n{}", with.containerd.log_tail(), with.node().log_tail());
            test(&with).map(|()| Completion::Completed).map_err(logs)
        })
    })
}

/// Runs a test unless something stands in its way.
fn may_run(obstacle: Option<String>, test: impl FnOnce() -> Result<Completion>) -> Result<Completion, Failed> {
    match obstacle {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => test().map_err(|error| Failed::from(format!("{error:#}"))),
    }
}

/// Not run, with the reason in one line: what went wrong first, without the log.
fn not_run(what: &str, error: &Error) -> Completion {
    let reason = error.root_cause().to_string();
    Completion::ignored_with(format!("{what}: {}", reason.lines().next().unwrap_or_default()))
}

impl Setting {
    fn running() -> Result<Self> {
        let mut single = SingleNode::running()?;
        let resident = single.pod("resident")?;
        let addresses: Vec<IpAddr> = resident.addresses().iter().map(IpNet::addr).collect();
        single.node_mut().wait_answer("routes to the blocks of both families", &["routes"], |routes| {
            addresses.iter().all(|address| is_routed(routes, *address))
        })?;
        let before = snapshot(&single)?;
        Ok(Self { _resident: resident, single, before })
    }

    /// How many attachments there are besides the resident's.
    fn attachments(&self) -> Result<u64> {
        let status = self.single.node().ctl(&["status"])?;
        let all = status["attachments"].as_u64().with_context(|| format!("no attachments in {status}"))?;
        Ok(all - 1)
    }

    /// Everything of pods that is still there: what changed on the node, records, and what the runtime keeps.
    fn left(&self, enclosure: &Enclosure) -> Result<Vec<String>> {
        let mut left = self.before.difference(&snapshot(&self.single)?);
        for folder in ["/run/netns", "/var/lib/cni/results"] {
            let names = enclosure.names_in(Path::new(folder))?;
            left.extend(names.into_iter().map(|name| format!("{folder}/{name}")));
        }
        left.extend((self.attachments()? > 0).then(|| "records of attachments".to_owned()));
        Ok(left)
    }
}

/// Whether a route of `culvertctl routes` that leads to an address is installed.
fn is_routed(routes: &Value, address: IpAddr) -> bool {
    let leads = |route: &Value| {
        route["to"].as_str().and_then(|to| to.parse().ok()).is_some_and(|to: IpNet| to.contains(&address))
    };
    let mut listed = routes["routes"].as_array().into_iter().flatten();
    listed.any(|route| route["decision"] == "local" && route["installed"] == true && leads(route))
}

fn snapshot(single: &SingleNode) -> Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    snapshot.add_namespace(single.node().namespace().name())?;
    Ok(snapshot)
}

impl WithContainerd {
    /// A sandbox as kubelet asks for it.
    fn sandbox(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.containerd.enclosure().folder().join("logs").display().to_string(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.containerd.enclosure().group() }),
            ..PodSandboxConfig::default()
        }
    }

    fn node(&self) -> &Node {
        self.setting.single.node()
    }

    fn nothing_is_left(&self) -> Result<()> {
        let enclosure = self.containerd.enclosure();
        let mut left = self.setting.left(enclosure)?;
        left.extend(groups(&enclosure.group())?);
        nothing_is_left(&left)
    }
}

/// Control groups of single containers.
fn groups(parent: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for group in cgroup::list(parent.trim_start_matches('/'))? {
        let entries = std::fs::read_dir(&group).with_context(|| format!("cannot read {}", group.display()))?;
        let folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.extend(folders.iter().map(|path| format!("control group {}", path.display())));
    }
    Ok(found)
}

fn nothing_is_left(left: &[String]) -> Result<()> {
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    Ok(())
}

fn one_sandbox(with: &WithContainerd) -> Result<()> {
    let conditions = with.cri.conditions()?;
    ensure!(conditions.iter().all(|condition| condition.status), "not ready: {conditions:?}");
    let id = with.cri.run_pod_sandbox(PodSandboxConfig { annotations: rates(), ..with.sandbox("till") })?;
    let addresses = with.cri.pod_addresses(&id)?;
    let families: Vec<bool> =
        addresses.iter().map(|address| Ok(address.parse::<IpAddr>()?.is_ipv4())).collect::<Result<_>>()?;
    ensure!(families == [true, false], "addresses {addresses:?}");
    for address in &addresses {
        with.node().vantage().wait_reachable(address.parse()?)?;
    }
    // `tc` speaks of bytes a second.
    let rates = rates_in_force(with.node())?;
    ensure!(rates == [1_250_000, 2_500_000], "rates {rates:?}");
    for _ in 0..2 {
        with.cri.stop_pod_sandbox(&id)?;
    }
    for _ in 0..2 {
        with.cri.remove_pod_sandbox(&id)?;
    }
    with.nothing_is_left()
}

fn host_port(with: &WithContainerd) -> Result<()> {
    const HOST_PORT: u16 = 18_080;
    let port_mappings = vec![port(HOST_PORT)];
    let id = with.cri.run_pod_sandbox(PodSandboxConfig { port_mappings, ..with.sandbox("till") })?;
    let client = with.setting.single.lab().public_host("client", 50)?;
    let node = with.node().host().address()?;
    let program = with.node().binaries().program("lab-probe");
    let vantage = Vantage { namespace: &client.namespace, program };
    let connects = || -> Result<bool> { Ok(vantage.connect(node, HOST_PORT)?.connected) };
    wait::until_true("the host port to lead to the sandbox", BOUND, connects)?;
    with.cri.stop_pod_sandbox(&id)?;
    ensure!(!connects()?, "the host port is open after the sandbox was stopped");
    with.cri.remove_pod_sandbox(&id)?;
    with.nothing_is_left()
}

fn many_sandboxes(with: &WithContainerd) -> Result<()> {
    const FIRST_PORT: u16 = 20_000;
    let ids = in_parts(&(0..MANY).collect::<Vec<_>>(), |index| {
        let port_mappings = vec![port(FIRST_PORT + index)];
        let config = with.sandbox(&format!("pod-{index}"));
        with.cri.run_pod_sandbox(PodSandboxConfig { port_mappings, annotations: rates(), ..config })
    })?;
    let attached = with.setting.attachments()?;
    ensure!(attached == u64::from(MANY), "{attached} attachments for {MANY} sandboxes");
    let addresses = in_parts(&ids, |id| with.cri.pod_addresses(id))?;
    let distinct: BTreeSet<&String> = addresses.iter().flatten().collect();
    ensure!(distinct.len() == 2 * usize::from(MANY), "{} addresses for {MANY} sandboxes", distinct.len());
    in_parts(&ids, |id| with.cri.stop_pod_sandbox(id).and_then(|()| with.cri.remove_pod_sandbox(id)))?;
    with.nothing_is_left()
}

/// A host port that leads to what the image serves.
fn port(host_port: u16) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: image::PORT.into(),
        host_port: host_port.into(),
        host_ip: String::new(),
    }
}

/// Annotations that limit both directions.
fn rates() -> BTreeMap<String, String> {
    let rates = [("ingress", "20M"), ("egress", "10M")];
    rates.map(|(way, rate)| (format!("kubernetes.io/{way}-bandwidth"), rate.to_owned())).into()
}

/// Calls something for each, by several threads, and returns what came of it in the same order.
fn in_parts<I: Sync, T: Send>(items: &[I], call: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let part = items.len().div_ceil(AT_A_TIME).max(1);
        let call = &call;
        let threads: Vec<_> = items
            .chunks(part)
            .map(|chunk| scope.spawn(move || chunk.iter().map(call).collect::<Result<Vec<T>>>()))
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a caller panicked"))??);
        }
        Ok(all)
    })
}

fn by_ctr(with: &WithContainerd) -> Result<()> {
    let printed = with.containerd.run_container("till", "--cni", "ip address show dev eth0")?;
    ensure!(printed.contains("inet 10.244.") && printed.contains("inet6 fd00:10:244:"), "eth0 has {printed}");
    with.nothing_is_left()
}

fn by_podman() -> Result<Completion> {
    let setting = Setting::running()?;
    let node = setting.single.node();
    let podman = match Podman::set_up(setting.single.lab(), node) {
        Ok(podman) => podman,
        Err(error) => return Ok(not_run("podman runs no container by CNI here", &error)),
    };
    let group = podman.enclosure().group();
    podman.run(&format!("run --detach --name till --network culvert --cgroup-parent {group} {}", image::IMAGE))?;
    // A template without blanks, because command lines are split at them.
    let address = podman.run("inspect till --format {{range.NetworkSettings.Networks}}{{.IPAddress}}{{end}}")?;
    node.vantage().wait_reachable(address.trim().parse().with_context(|| format!("podman says {address:?}"))?)?;
    ensure!(setting.attachments()? == 1, "the daemon knows of no container");
    podman.run("rm --force --time 0 till")?;
    nothing_is_left(&setting.left(podman.enclosure())?)?;
    Ok(Completion::Completed)
}
