//! A containerd of the lab's own on a node, that calls the real shim.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::enclosure::Enclosure;
use crate::lab::Lab;
use crate::node::Node;
use crate::{command, image, wait};

/// How long it may take to serve.
const READY_BOUND: Duration = Duration::from_secs(40);
/// How much of its log an error shows. **Units** lines.
const LOG_TAIL: usize = 15;
/// The namespace in which the CRI keeps images and containers.
const CRI_NAMESPACE: &str = "k8s.io";

/// What has to be on the machine.
const PROGRAMS: [(&str, &str); 3] = [("containerd", "containerd"), ("ctr", "containerd"), ("runc", "runc")];

/// A containerd that serves.
#[derive(Debug)]
pub struct Containerd {
    process: Child,
    enclosure: Enclosure,
}

/// Why no containerd can be tried here; nothing when it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    let missing = PROGRAMS.into_iter().find(|(program, _)| !command::is_installed(program));
    match missing {
        Some((program, package)) => Some(format!("no {program} here: `apt-get install {package}` brings it")),
        None => image::busybox().err().map(|error| error.to_string()),
    }
}

impl Containerd {
    /// Starts one on a node whose daemon runs, imports the image, and sees that a container runs.
    ///
    /// **Errors** it does not come up here; the end of its log is in the text.
    pub fn start(lab: &Lab, node: &Node) -> Result<Self> {
        let enclosure = Enclosure::on(lab, node.namespace(), node.binaries().folder())?;
        enclosure.write_network(&network(node))?;
        let folder = enclosure.folder();
        std::fs::write(folder.join("containerd.toml"), configuration(folder))?;
        let log = File::create(folder.join("containerd.log"))?;
        let mut process = enclosure.command("containerd");
        process.arg("--config").arg(folder.join("containerd.toml"));
        let process = process.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let mut containerd = Self { process: process.context("cannot start containerd")?, enclosure };
        containerd.wait_ready()?;
        let archive = containerd.enclosure.folder().join("image.tar");
        image::write(&image::busybox()?, &archive)?;
        for namespace in [CRI_NAMESPACE, "default"] {
            containerd.ctr(namespace, &format!("images import --snapshotter native {}", archive.display()))?;
        }
        containerd.run_container("first", "", "true")?;
        Ok(containerd)
    }

    /// Waits until both its own interface and the CRI answer.
    fn wait_ready(&mut self) -> Result<()> {
        let waited = wait::until("containerd to serve", READY_BOUND, || {
            if let Some(status) = self.process.try_wait()? {
                return Ok(Err(anyhow::anyhow!("containerd ended with {status}")));
            }
            let plugins = self.ctr(CRI_NAMESPACE, "plugins ls")?;
            match plugins.lines().find(|line| line.split_whitespace().nth(1) == Some("cri")) {
                Some(line) if line.split_whitespace().last() == Some("ok") => Ok(Ok(())),
                line => bail!("the CRI plugin is not there: {}", line.unwrap_or("not listed")),
            }
        });
        waited.and_then(|ended| ended).with_context(|| self.log_tail())
    }

    /// Runs `ctr` as somebody on the node would.
    ///
    /// **Errors** as [`command::run`].
    pub fn ctr(&self, namespace: &str, line: &str) -> Result<String> {
        let socket = self.socket();
        self.enclosure.run(&format!("ctr --address {} --namespace {namespace} {line}", socket.display()))
    }

    /// Runs a command of busybox in a container by `ctr` until it ends, and returns what it printed. With `--cni` as option
    /// the container is attached before and detached after.
    ///
    /// **Errors** the container does not run, or the command fails.
    pub fn run_container(&self, name: &str, option: &str, command: &str) -> Result<String> {
        let group = self.enclosure.group();
        let image = image::IMAGE;
        let options = format!("--rm --snapshotter native --cgroup {group}/{name} {option}");
        self.ctr("default", &format!("run {options} {image} {name} /bin/busybox {command}"))
    }

    /// The socket of its interfaces, the CRI among them.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.enclosure.folder().join("containerd.sock")
    }

    /// The place it lives in.
    #[must_use]
    pub fn enclosure(&self) -> &Enclosure {
        &self.enclosure
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.enclosure.folder().join("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_TAIL)..).unwrap_or_default();
        format!("the log of containerd ends:\n{}", tail.join("\n"))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The enclosure ends what this leaves.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The network as an operator sets it up: one plugin with what containerd offers to plugins.
#[must_use]
pub fn network(node: &Node) -> Value {
    let capabilities = json!({"portMappings": true, "bandwidth": true, "io.kubernetes.cri.pod-annotations": true});
    json!({
        "cniVersion": "1.0.0", "name": "culvert",
        "plugins": [{"type": "culvert", "socket": node.cni_socket(), "capabilities": capabilities}],
    })
}

/// Everything below the folder; nothing that needs rights beyond root's in a plain virtual machine. Copied layers rather
/// than stacked ones, because not every file system can be stacked on.
fn configuration(folder: &Path) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
"#,
        root = path("root"),
        state = path("state"),
        socket = path("containerd.sock"),
        image = image::IMAGE,
    )
}
