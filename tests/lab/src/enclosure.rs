//! A place for a container runtime on a node: in the node's network, with mounts and processes of its own.
//!
//! Runtimes write to fixed places (`/run`, `/var/lib`, `/etc/cni`) and leave processes behind that nobody finds again. Here
//! these places are empty folders of the enclosure's own, and every process ends with its first, so that nothing reaches
//! the machine and nothing outlives the lab.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::Lab;
use crate::namespace::{self, Place};
use crate::{cgroup, command, wait};

/// How long the enclosure may take to stand.
const READY_BOUND: Duration = Duration::from_secs(20);
/// What is copied into the enclosure's `/etc` where the machine has it.
const COPIED: [&str; 5] = ["group", "hosts", "nsswitch.conf", "passwd", "resolv.conf"];

/// Run as the first process inside: `$1` is the own `/etc`, `$2` the folder of the CNI plugins, `$3` the file that says
/// that all is set. It stays, and waits for whatever loses its parent.
const FIRST: &str = "set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /opt
mkdir /opt/cni
ln -s \"$2\" /opt/cni/bin
mount --bind \"$1\" /etc
touch \"$3\"
sleep infinity &
while :; do wait; done";

/// An enclosure. Dropped, it ends every process inside; their control groups go with them.
#[derive(Debug)]
pub struct Enclosure {
    folder: PathBuf,
    groups: String,
    outer: Child,
    first: u32,
}

impl Enclosure {
    /// Makes one on a node. Its `/opt/cni/bin` leads to `plugins`.
    ///
    /// **Errors** the machine does not let us have namespaces of mounts and processes.
    pub fn on(lab: &Lab, node: &Place, plugins: &Path) -> Result<Self> {
        let folder = lab.folder().join("enclosure");
        let etc = folder.join("etc");
        std::fs::create_dir_all(etc.join("cni/net.d"))?;
        for name in COPIED {
            let from = Path::new("/etc").join(name);
            if from.exists() {
                std::fs::copy(&from, etc.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        let ready = folder.join("ready");
        let mut outer = Command::new("nsenter");
        outer.arg(format!("--net={}", node.path().display()));
        outer.args([
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ]);
        outer.args(["sh", "-c", FIRST, "enclosure"]).arg(&etc).arg(plugins).arg(&ready);
        let log = std::fs::File::create(folder.join("enclosure.log"))?;
        let outer = outer.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let outer = outer.context("cannot start nsenter")?;
        let groups = format!("{}-pods", lab.prefix());
        let mut enclosure = Self { folder, groups, outer, first: 0 };
        enclosure.first = enclosure.wait_ready(&ready)?;
        Ok(enclosure)
    }

    /// Waits until everything is mounted, and returns the first process.
    fn wait_ready(&mut self, ready: &Path) -> Result<u32> {
        wait::until("the enclosure to stand", READY_BOUND, || {
            if let Some(status) = self.outer.try_wait()? {
                let said = std::fs::read_to_string(self.folder.join("enclosure.log")).unwrap_or_default();
                return Ok(Err(anyhow::anyhow!("the enclosure ended with {status}: {}", said.trim())));
            }
            if !ready.exists() {
                bail!("{} is not there", ready.display());
            }
            let children = format!("/proc/{0}/task/{0}/children", self.outer.id());
            let listed = std::fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
            Ok(Ok(listed.trim().parse::<u32>().with_context(|| format!("{children} says {listed:?}"))?))
        })?
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--pid", "--target", &self.first.to_string(), program]);
        command
    }

    /// Runs a command line inside and returns its standard output.
    ///
    /// **Errors** as [`command::run`].
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command line")?);
        command.args(words);
        command::finish(command, line)
    }

    /// The names in a folder inside; one that is not there has none.
    ///
    /// **Errors** it cannot be read.
    pub fn names_in(&self, folder: &Path) -> Result<Vec<String>> {
        let root = Path::new("/proc").join(self.first.to_string()).join("root");
        let folder = root.join(folder.strip_prefix("/").unwrap_or(folder));
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Where files are put that both sides reach by the same path.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a network configuration list as runtimes expect it: under another name first, because they watch the folder.
    ///
    /// **Errors** it cannot be written.
    pub fn write_network(&self, list: &serde_json::Value) -> Result<()> {
        let folder = self.folder.join("etc/cni/net.d");
        let (fresh, place) = (folder.join(".fresh"), folder.join("10-culvert.conflist"));
        std::fs::write(&fresh, serde_json::to_vec_pretty(list)?)?;
        std::fs::rename(&fresh, &place).with_context(|| format!("cannot write {}", place.display()))
    }

    /// The control group for containers, as a path below the root of the groups.
    #[must_use]
    pub fn group(&self) -> String {
        format!("/{}", self.groups)
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // The kernel ends the first process with this one, and all others with the first.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        if let Err(error) = cgroup::remove(&self.groups) {
            namespace::tell(&format!("{error:#}"));
        }
    }
}
