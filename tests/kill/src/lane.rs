//! A node on which point after point is tried: its daemon, its pods that must never notice, the pod under test.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_lab::binaries::Binaries;
use culvert_lab::cni::{Answer, RawCall};
use culvert_lab::sandbox::NETWORK;
use culvert_lab::{Sandbox, SingleNode, wait};
use serde_json::{Value, json};

use crate::ledger::Ledger;
use crate::remains::{Remains, notes_folder, states};
use crate::scene::Scene;

/// How long a released address rests on these nodes: long enough to see one given too early, short enough that a block
/// lasts for the whole run.
const REST: Duration = Duration::from_secs(15);
/// How long the daemon may take to note an acknowledgement, which has no answer.
const NOTED_BOUND: Duration = Duration::from_secs(10);
/// How often a daemon is started until it stays.
const STARTS: u32 = 3;
/// How long the daemon may take to have nothing to do.
const QUIET_BOUND: Duration = Duration::from_secs(30);
/// Looks in a row at which it had nothing to do.
const QUIET_LOOKS: u32 = 15;
/// The host end that the other plugin makes.
const FOREIGN_LINK: &str = "foreign0";
/// The code of a refusal because the attachment is there.
const ALREADY_ATTACHED: u64 = 100;
/// The folder of the test build below the programs' folder.
pub const TEST_BUILD: &str = "kill-points";

/// Which daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Build {
    /// The one that is shipped.
    Shipped,
    /// The one that names places and ends itself.
    Test,
}

/// A lane.
#[derive(Debug)]
pub struct Lane {
    residents: Vec<Resident>,
    pod: Sandbox,
    pub(crate) single: SingleNode,
    pub(crate) baseline: Remains,
    pub(crate) ledger: Ledger,
    build: Build,
    serial: u64,
    starts: u64,
}

/// A pod that lives through the whole run.
#[derive(Debug)]
struct Resident {
    sandbox: Sandbox,
    result: Value,
}

/// The container under test of one trial.
#[derive(Clone, Debug)]
pub struct Subject {
    /// CNI_CONTAINERID.
    pub id: String,
    /// Its configuration.
    pub config: Value,
    /// The answer to its ADD, as far as the runtime has one.
    pub result: Option<Value>,
}

impl Lane {
    /// Makes the node, starts its daemon, attaches the pods that stay.
    ///
    /// **Errors** a program is missing, or the node does not come up.
    pub fn new() -> Result<Self> {
        let mut single = SingleNode::build()?;
        single.node_mut().configuration_mut()["ipam"]["quarantineSeconds"] = json!(REST.as_secs());
        std::fs::create_dir_all(single.node().folder().join("results"))?;
        std::fs::create_dir_all(single.node().folder().join(TEST_BUILD))?;
        // From the first DEL without a daemon on it is there, and is looked into.
        std::fs::create_dir_all(notes_folder(single.node()))?;
        single.node_mut().ensure_running()?;
        let residents = residents(&single)?;
        let pod = Sandbox::new(&single, "under-test")?;
        let mut lane = Self {
            residents,
            pod,
            single,
            baseline: Remains::default(),
            ledger: Ledger::new(REST),
            build: Build::Shipped,
            serial: 0,
            starts: 1,
        };
        for resident in &lane.residents {
            note_addresses(&mut lane.ledger, &resident.result, resident.sandbox.id())?;
        }
        lane.warm_up()?;
        Ok(lane)
    }

    /// One life of a pod and one start of each build, so that what is made once is there before anything is compared.
    fn warm_up(&mut self) -> Result<()> {
        let mut subject = self.subject(Scene::Add);
        self.attach(&mut subject)?;
        self.detach(&subject)?;
        self.use_build(Build::Test)?;
        self.use_build(Build::Shipped)?;
        self.baseline = Remains::of(self.single.node(), self.pod.namespace().name())?;
        Ok(())
    }

    /// A new container for a scene.
    pub fn subject(&mut self, scene: Scene) -> Subject {
        self.serial += 1;
        let mut config = self.single.netconf();
        config["ipMasq"] = json!(false);
        config["runtimeConfig"] = json!({
            // The first leads to a pod that stays, and shall do so again.
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8081, "containerPort": 81, "protocol": "tcp"},
                {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
            ],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000},
        });
        if scene == Scene::AddRefused {
            // A next hop that no interface of the pod leads to.
            config["ipam"] = json!({"routes": [{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]});
        }
        if scene.is_after_another() {
            let sandbox = self.pod.namespace().path();
            config["prevResult"] = json!({
                "cniVersion": "1.1.0",
                "interfaces": [{"name": FOREIGN_LINK}, {"name": "eth0", "sandbox": sandbox}],
                "ips": [{"address": "10.99.0.2/24", "interface": 1}],
            });
        }
        Subject { id: format!("pod-{}", self.serial), config, result: None }
    }

    /// A call about a container.
    #[must_use]
    pub fn call(&self, subject: &Subject, verb: &str) -> RawCall {
        let mut config = subject.config.clone();
        if verb == "GC" {
            let listed =
                self.residents.iter().map(|resident| json!({"containerID": resident.sandbox.id(), "ifname": "eth0"}));
            config["cni.dev/valid-attachments"] = listed.collect();
        }
        if let ("CHECK", Some(result)) = (verb, &subject.result) {
            config["prevResult"] = result.clone();
        }
        self.pod.call(verb).env("CNI_CONTAINERID", &subject.id).config(&config)
    }

    /// Makes a call about a container and takes in the addresses of its answer.
    ///
    /// **Errors** the shim cannot be run, or an address was given twice.
    pub fn run(&mut self, subject: &Subject, call: &RawCall) -> Result<Answer> {
        let answer = self.pod.run(call)?;
        let own = subject.config["prevResult"].is_null();
        if own && answer.body["ips"].is_array() {
            note_addresses(&mut self.ledger, &answer.body, &subject.id)?;
        }
        Ok(answer)
    }

    /// What has to be there before an ADD, made unless it is there.
    ///
    /// **Errors** `ip` fails.
    pub fn prepare(&self, subject: &Subject) -> Result<()> {
        if subject.config["prevResult"].is_null() {
            return Ok(());
        }
        let (node, pod) = (self.single.node().namespace(), self.pod.namespace().name());
        if node.ip("-o link show")?.contains(FOREIGN_LINK) {
            return Ok(());
        }
        node.ip(&format!("link add {FOREIGN_LINK} up type veth peer name eth0 netns {pod}")).map(drop)
    }

    /// Attaches a container, and waits until the daemon knows that the runtime knows.
    ///
    /// **Errors** it is refused.
    pub fn attach(&mut self, subject: &mut Subject) -> Result<()> {
        self.prepare(subject)?;
        let result = self.run(subject, &self.call(subject, "ADD"))?.success().context("the ADD before")?;
        subject.result = Some(result);
        self.remember(subject)?;
        let (node, id) = (self.single.node(), &subject.id);
        wait::until_true("the acknowledgement", NOTED_BOUND, || {
            let states = states(node, id)?;
            Ok(!states.is_empty() && states.iter().all(|state| state == "acknowledged"))
        })
    }

    /// Keeps the answer as the runtime's library does.
    ///
    /// **Errors** it cannot be written.
    pub fn remember(&self, subject: &Subject) -> Result<()> {
        std::fs::write(self.result_file(subject), "{}").context("cannot keep a result")
    }

    fn result_file(&self, subject: &Subject) -> PathBuf {
        self.single.node().folder().join(format!("results/{NETWORK}-{}-eth0", subject.id))
    }

    /// Calls DEL twice, as runtimes do, and checks that nothing is left.
    ///
    /// **Errors** it fails, or something is left.
    pub fn detach(&mut self, subject: &Subject) -> Result<()> {
        self.ledger.free(&subject.id, Instant::now());
        for _ in 0..2 {
            self.run(subject, &self.call(subject, "DEL"))?.success().context("the DEL afterwards")?;
        }
        self.expect_nothing_left(subject)
    }

    /// Checks that nothing of a container is left; the link of the other plugin goes first.
    ///
    /// **Errors** something is.
    pub fn expect_nothing_left(&mut self, subject: &Subject) -> Result<()> {
        self.ledger.free(&subject.id, Instant::now());
        // The runtime forgets it too; it may never have kept it.
        let _ = std::fs::remove_file(self.result_file(subject));
        if !subject.config["prevResult"].is_null() {
            // It may have gone with the shim's own removal.
            let _ = self.single.node().namespace().ip(&format!("link delete {FOREIGN_LINK}"));
        }
        if self.baseline == Remains::default() {
            return Ok(());
        }
        self.baseline.wait_again(self.single.node(), self.pod.namespace().name())
    }

    /// What there is now.
    ///
    /// **Errors** a tool fails.
    pub fn remains(&self) -> Result<Remains> {
        Remains::of(self.single.node(), self.pod.namespace().name())
    }

    /// Checks that an ADD is refused because the attachment is there, and that it changes nothing.
    ///
    /// **Errors** it succeeds, or changes something.
    pub fn expect_second_add_refused(&mut self, subject: &Subject) -> Result<()> {
        let before = self.remains()?;
        let answer = self.run(subject, &self.call(subject, "ADD"))?;
        ensure!(
            answer.code() == Some(ALREADY_ATTACHED),
            "an ADD of what the runtime has already was answered {answer:?}"
        );
        before.wait_again(self.single.node(), self.pod.namespace().name()).context("the refused ADD changed something")
    }

    /// Whether CHECK passes with the answer to the ADD.
    ///
    /// **Errors** the shim cannot be run, or there is no answer to check with.
    pub fn check(&mut self, subject: &Subject) -> Result<Answer> {
        ensure!(subject.result.is_some(), "there is no result to check with");
        self.run(subject, &self.call(subject, "CHECK"))
    }

    /// Lets the wanted build run.
    ///
    /// **Errors** it does not come up.
    pub fn use_build(&mut self, build: Build) -> Result<()> {
        if self.build == build && self.single.node().is_started() {
            return Ok(());
        }
        if self.single.node().is_started() {
            self.single.node_mut().kill()?;
        }
        self.build = build;
        self.start()
    }

    /// Starts the daemon, which is away, and waits until it serves. One that gives up is started again, as a supervisor
    /// does it: on a machine that is too busy a plugin may miss its deadline.
    ///
    /// **Errors** it does not come up.
    pub fn start(&mut self) -> Result<()> {
        let mut last = Ok(());
        for _ in 0..STARTS {
            if !self.single.node().is_started() {
                self.begin_start()?;
            }
            last = self.single.node_mut().ensure_running();
            if last.is_ok() {
                break;
            }
            self.single.node_mut().ends_within(Duration::ZERO)?;
        }
        last
    }

    /// Starts the daemon and waits for nothing.
    ///
    /// **Errors** it cannot be started.
    pub fn begin_start(&mut self) -> Result<()> {
        let points = self.points();
        let program = program(self.single.node().binaries(), self.build);
        let variables = match self.build {
            Build::Shipped => Vec::new(),
            Build::Test => vec![("CULVERT_KILL_POINTS".to_owned(), points.display().to_string())],
        };
        let node = self.single.node_mut();
        node.use_daemon(program, variables);
        node.start()?;
        self.starts += 1;
        Ok(())
    }

    /// Kills the daemon and starts it again.
    ///
    /// **Errors** it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.single.node_mut().kill()?;
        self.start()
    }

    /// Waits until the daemon executes no programs: after a start it looks at the firewall once more.
    ///
    /// **Errors** it does so for ever, or there is none.
    pub fn wait_quiet(&self) -> Result<()> {
        let process = self.single.node().process_id()?;
        let mut quiet = 0;
        wait::until("the daemon to execute nothing", QUIET_BOUND, || {
            quiet = if has_children(process)? { 0 } else { quiet + 1 };
            ensure!(quiet >= QUIET_LOOKS, "it executes programs");
            Ok(())
        })
    }

    /// Which daemon runs, or did last.
    #[must_use]
    pub fn build(&self) -> Build {
        self.build
    }

    /// How often the daemon was started.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// The folder in which the test build is told where to die.
    #[must_use]
    pub fn points(&self) -> PathBuf {
        self.single.node().folder().join(TEST_BUILD)
    }

    /// A file for strace.
    #[must_use]
    pub fn trace_file(&self) -> PathBuf {
        self.single.node().folder().join("strace")
    }

    /// Checks that the pods that stay were never disturbed.
    ///
    /// **Errors** one was.
    pub fn expect_residents_well(&mut self) -> Result<()> {
        if !self.single.node().is_started() {
            self.start()?;
        }
        for resident in &self.residents {
            let checked = resident.sandbox.check(&resident.result)?;
            checked.success().with_context(|| format!("{}, which stayed all the time", resident.sandbox.id()))?;
        }
        Ok(())
    }
}

/// The program of a build.
#[must_use]
pub fn program(binaries: &Binaries, build: Build) -> PathBuf {
    match build {
        Build::Shipped => binaries.program("culvertd"),
        Build::Test => binaries.program(TEST_BUILD).join("culvertd"),
    }
}

/// Checks that the shipped daemon knows no such places, and the test build does.
///
/// **Errors** it is not so, or one is not there.
pub fn expect_places_only_in_the_test_build(binaries: &Binaries) -> Result<()> {
    let knows = |path: &Path| -> Result<bool> {
        let bytes =
            std::fs::read(path).with_context(|| format!("no {}: build it with `cargo xtask kill`", path.display()))?;
        Ok(bytes.windows(19).any(|window| window == b"CULVERT_KILL_POINTS"))
    };
    if knows(&program(binaries, Build::Shipped))? {
        bail!("the shipped daemon can be told to end itself");
    }
    ensure!(knows(&program(binaries, Build::Test))?, "the test build cannot be told to end itself");
    Ok(())
}

fn has_children(process: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end meanwhile.
        let children = std::fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        if !children.trim().is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn residents(single: &SingleNode) -> Result<Vec<Resident>> {
    let plain = Sandbox::new(single, "stays-plain")?;
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let published = Sandbox::new(single, "stays-published")?.asking("portMappings", ports);
    let made = [plain, published].into_iter().map(|sandbox| {
        let result = sandbox.attach()?;
        let kept = single.node().folder().join(format!("results/{NETWORK}-{}-eth0", sandbox.id()));
        std::fs::write(kept, "{}")?;
        Ok(Resident { sandbox, result })
    });
    made.collect()
}

fn note_addresses(ledger: &mut Ledger, result: &Value, holder: &str) -> Result<()> {
    for ip in result["ips"].as_array().into_iter().flatten() {
        let text = ip["address"].as_str().unwrap_or_default();
        let address =
            text.split('/').next().unwrap_or_default().parse().with_context(|| format!("address {text:?}"))?;
        ledger.give(address, holder, Instant::now())?;
    }
    Ok(())
}
