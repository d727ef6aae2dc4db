//! A node: a machine of the lab that runs the real daemon.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::binaries::Binaries;
use crate::command;
use crate::lab::{Host, Lab};
use crate::namespace::{self, Namespace};
use crate::node_config::{self, NodeSetup};
use crate::probe::Vantage;
use crate::wait;

/// How long a daemon may take to serve.
const READY_BOUND: Duration = Duration::from_secs(60);
/// How long a daemon may take to end after SIGTERM.
const END_BOUND: Duration = Duration::from_secs(20);
/// What `culvertctl status` ends with on a node that serves, but not well.
const DEGRADED: i32 = 3;
/// How much of a log an error shows. **Units** lines.
const LOG_TAIL: usize = 25;

/// A node. Dropped, its daemon is killed.
#[derive(Debug)]
pub struct Node {
    host: Host,
    folder: PathBuf,
    binaries: Arc<Binaries>,
    configuration: Value,
    program: PathBuf,
    environment: Vec<(String, String)>,
    daemon: Option<Child>,
}

impl Node {
    /// Prepares a node's folder; the daemon is started by [`Node::start`].
    ///
    /// **Errors** the folder cannot be made.
    pub fn new(lab: &Lab, host: Host, setup: &NodeSetup, binaries: &Arc<Binaries>) -> Result<Self> {
        Self::in_folder(lab.folder().join(&host.name), host, setup, binaries)
    }

    /// Prepares a node that keeps its files in `folder`, below the lab's.
    ///
    /// **Errors** the folder cannot be made.
    pub fn in_folder(folder: PathBuf, host: Host, setup: &NodeSetup, binaries: &Arc<Binaries>) -> Result<Self> {
        std::fs::create_dir_all(folder.join("plugins"))?;
        std::fs::create_dir_all(folder.join("state"))?;
        let compile = binaries.program("culvert-compile");
        let configuration = node_config::configuration(&host, setup, &folder, &compile);
        let (program, environment) = (binaries.program("culvertd"), Vec::new());
        Ok(Self { host, folder, binaries: binaries.clone(), configuration, program, environment, daemon: None })
    }

    /// From the next start on, the daemon is another program, with these variables besides.
    pub fn use_daemon(&mut self, program: PathBuf, environment: Vec<(String, String)>) {
        self.program = program;
        self.environment = environment;
    }

    /// The configuration, to be changed before the next start.
    pub fn configuration_mut(&mut self) -> &mut Value {
        &mut self.configuration
    }

    /// Starts the daemon; its log goes to `culvertd.log` in its folder.
    ///
    /// **Errors** it runs already, or cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            bail!("the daemon of {} runs already", self.host.name);
        }
        node_config::write(&self.configuration, &self.config_path())?;
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.host.namespace.command(&self.program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("run").arg("--config").arg(self.config_path());
        // Its own group, so that Ctrl-C at a terminal reaches us alone and we decide the order of things.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.daemon = Some(command.spawn().context("cannot start culvertd")?);
        Ok(())
    }

    /// Starts the daemon unless it runs, and waits until it is ready and the kernel has a route to each of its blocks.
    ///
    /// **Errors** it ended by itself, or as [`Node::wait_ready`].
    pub fn ensure_running(&mut self) -> Result<()> {
        if self.daemon.is_none() {
            self.start()?;
        }
        self.wait_ready()?;
        let blocks = self.ctl(&["status"])?["blocks"].clone();
        self.wait_answer("routes to its own blocks", &["routes"], |answer| {
            let installed = |block: &Value| {
                let routes = answer["routes"].as_array().into_iter().flatten();
                routes.clone().any(|route| route["to"] == *block && route["installed"] == true)
            };
            blocks.as_array().is_some_and(|blocks| blocks.iter().all(installed))
        })
    }

    /// Waits until the daemon says it is ready.
    ///
    /// **Errors** it ends, or is not ready in time; the end of its log is in the text.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_status("ready", |status| status["ready"] == true)
    }

    /// Waits until the daemon knows this many nodes, itself included.
    ///
    /// **Errors** as [`Node::wait_ready`].
    pub fn wait_members(&mut self, count: u64) -> Result<()> {
        self.wait_status(&format!("a cluster of {count}"), |status| status["members"] == count)
    }

    /// Waits until `culvertctl status` shows what is asked for.
    ///
    /// **Errors** as [`Node::wait_ready`].
    pub fn wait_status(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        self.wait_answer(what, &["status"], holds)
    }

    /// Waits until an answer of `culvertctl` shows what is asked for.
    ///
    /// **Errors** as [`Node::wait_ready`].
    pub fn wait_answer(&mut self, what: &str, arguments: &[&str], holds: impl Fn(&Value) -> bool) -> Result<()> {
        let label = format!("{} of {}", what, self.host.name);
        let waited = wait::until(&label, READY_BOUND, || {
            if let Some(status) = self.ended()? {
                return Ok(Err(status));
            }
            let answer = self.ctl(arguments)?;
            if holds(&answer) { Ok(Ok(())) } else { bail!("the daemon says {answer}") }
        });
        match waited {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("the daemon of {} ended with {status}\n{}", self.host.name, self.log_tail()),
            Err(error) => Err(error.context(self.log_tail())),
        }
    }

    /// Whether the daemon ended by itself, or by a foreign hand, within a bound. From then on there is none.
    ///
    /// **Errors** it was not started.
    pub fn ends_within(&mut self, bound: Duration) -> Result<bool> {
        let ended = wait::until("the daemon to end", bound, || self.ended()?.context("it runs"));
        if ended.is_ok() {
            self.daemon = None;
        }
        Ok(ended.is_ok())
    }

    /// Whether there is a daemon: started, and not seen to have ended.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.daemon.is_some()
    }

    /// The status of a daemon that ended by itself.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.daemon {
            Some(daemon) => Ok(daemon.try_wait()?),
            None => bail!("the daemon was not started"),
        }
    }

    /// Ends the daemon by SIGTERM, as a supervisor would.
    ///
    /// **Errors** it does not end in time, or not with status 0.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.end(Signal::TERM)?;
        if status.success() {
            return Ok(());
        }
        bail!("the daemon of {} ended with {status} after SIGTERM\n{}", self.host.name, self.log_tail())
    }

    /// Ends the daemon by SIGKILL, as a crash would.
    ///
    /// **Errors** it was not running.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL).map(drop)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().with_context(|| format!("no daemon on {}", self.host.name))?;
        kill_process(Pid::from_child(&daemon), signal).context("cannot signal the daemon")?;
        let waited = wait::until(&format!("the daemon of {} to end", self.host.name), END_BOUND, || {
            daemon.try_wait()?.context("it runs")
        });
        if waited.is_err() {
            // It is ours and deaf: it must not outlive the lab.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        waited.with_context(|| self.log_tail())
    }

    /// Asks the daemon by `culvertctl … --output json`. A degraded node answers too.
    ///
    /// **Errors** the command fails, or prints no JSON.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.ctl_command(arguments);
        command.args(["--output", "json"]);
        let label = format!("culvertctl {} on {}", arguments.join(" "), self.host.name);
        let output = command::output(command, &label)?;
        let (printed, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !matches!(output.status.code(), Some(0 | DEGRADED)) {
            bail!("`{label}` ended with {}: {}", output.status, complaint.trim());
        }
        serde_json::from_str(&printed).with_context(|| format!("`{label}` printed {printed:?}"))
    }

    /// Everything that `culvertctl metrics` prints.
    ///
    /// **Errors** the daemon does not answer.
    pub fn metrics(&self) -> Result<String> {
        command::finish(self.ctl_command(&["metrics"]), &format!("culvertctl metrics on {}", self.host.name))
    }

    /// The sum of the samples of a metric whose line begins with `selector`, as in `culvert_mesh_events_total{event="x"`.
    ///
    /// **Errors** there is none, or the daemon does not answer.
    pub fn metric(&self, selector: &str) -> Result<f64> {
        let text = self.metrics()?;
        let samples = text.lines().filter(|line| line.starts_with(selector));
        let values = samples.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()));
        let values =
            values.collect::<Option<Vec<_>>>().with_context(|| format!("a sample of {selector} is no number"))?;
        if values.is_empty() {
            bail!("no metric {selector} on {}", self.host.name);
        }
        Ok(values.iter().sum())
    }

    /// Everything the daemon wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A `culvertctl` command for this node's daemon.
    #[must_use]
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.program("culvertctl"));
        command.arg("--socket").arg(self.folder.join("admin.sock")).args(arguments);
        command
    }

    /// Runs another verb of `culvertd` with this node's configuration, in its namespace.
    ///
    /// **Errors** it fails; what it printed is in the text.
    pub fn culvertd(&self, verb: &str) -> Result<String> {
        node_config::write(&self.configuration, &self.config_path())?;
        let mut command = self.host.namespace.command(&self.binaries.program("culvertd"));
        command.arg(verb).arg("--config").arg(self.config_path());
        command::finish(command, &format!("culvertd {verb} on {}", self.host.name))
    }

    /// Puts a plugin unit into the watched folder: under another name first, then renamed, so that the
    /// daemon sees component and settings at once.
    ///
    /// **Errors** a file cannot be written.
    pub fn install_plugin(&self, unit: &str, component: &[u8], settings: &Value) -> Result<()> {
        let staged = self.folder.join(format!("staged-{unit}"));
        std::fs::create_dir_all(&staged)?;
        std::fs::write(staged.join("policy.wasm"), component)?;
        std::fs::write(staged.join("settings.json"), serde_json::to_vec_pretty(settings)?)?;
        let place = self.folder.join("plugins").join(unit);
        if place.exists() {
            std::fs::remove_dir_all(&place)?;
        }
        std::fs::rename(&staged, &place).with_context(|| format!("cannot install {}", place.display()))
    }

    /// Takes a plugin unit out of the watched folder.
    ///
    /// **Errors** it is not there.
    pub fn remove_plugin(&self, unit: &str) -> Result<()> {
        let place = self.folder.join("plugins").join(unit);
        std::fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
        format!("the log of {} ends:\n{tail}", self.host.name)
    }

    /// The resident memory of the daemon. **Units** bytes.
    ///
    /// **Errors** it does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(self.process_path("status")?)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without VmRSS")?;
        let kibibytes: u64 =
            line.trim().trim_end_matches("kB").trim().parse().with_context(|| format!("VmRSS{line}"))?;
        Ok(kibibytes * 1024)
    }

    /// How many file descriptors the daemon has open.
    ///
    /// **Errors** it does not run.
    pub fn open_descriptors(&self) -> Result<u64> {
        Ok(std::fs::read_dir(self.process_path("fd")?)?.count() as u64)
    }

    /// The daemon's process id.
    ///
    /// **Errors** it was not started.
    pub fn process_id(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().with_context(|| format!("no daemon on {}", self.host.name))?.id())
    }

    /// A file of the daemon's process.
    fn process_path(&self, file: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/{file}", self.process_id()?)))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.host.name
    }

    /// The machine.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where it lives.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.host.namespace
    }

    /// The programs it runs.
    #[must_use]
    pub fn binaries(&self) -> &Arc<Binaries> {
        &self.binaries
    }

    /// Where it keeps its files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The socket the shim calls.
    #[must_use]
    pub fn cni_socket(&self) -> PathBuf {
        self.folder.join("cni.sock")
    }

    fn config_path(&self) -> PathBuf {
        self.folder.join("culvert.yaml")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("culvertd.log")
    }

    /// Measures from the node itself.
    #[must_use]
    pub fn vantage(&self) -> Vantage<'_> {
        Vantage { namespace: &self.host.namespace, program: self.binaries.program("lab-probe") }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() && self.daemon.is_some() {
            namespace::tell(&self.log_tail());
        }
        if let Some(mut daemon) = self.daemon.take() {
            // Both fail only for a process that ended and was waited for.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
