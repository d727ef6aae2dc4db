//! podman with its CNI backend on a node, that calls the real shim.

use anyhow::{Result, bail};
use serde_json::json;

use crate::enclosure::Enclosure;
use crate::lab::Lab;
use crate::node::Node;
use crate::{command, containerd, image};

/// Its settings: everything by itself, nothing of systemd, which may not be there.
const SETTINGS: &str = r#"[containers]
apparmor_profile = "unconfined"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "culvert"
"#;

/// Why podman cannot be tried here; nothing when it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    for (program, package) in [("podman", "podman"), ("runc", "runc")] {
        if !command::is_installed(program) {
            return Some(format!("no {program} here: `apt-get install {package}` brings it"));
        }
    }
    image::busybox().err().map(|error| error.to_string())
}

/// A node's podman. It has no process of its own.
#[derive(Debug)]
pub struct Podman {
    enclosure: Enclosure,
}

impl Podman {
    /// Sets one up on a node whose daemon runs, imports the image, and sees that a container runs.
    ///
    /// **Errors** podman has no CNI backend any more, or does not run here.
    pub fn set_up(lab: &Lab, node: &Node) -> Result<Self> {
        let podman = Self { enclosure: Enclosure::on(lab, node.namespace(), node.binaries().folder())? };
        podman.enclosure.write_network(&containerd::network(node))?;
        let etc = podman.enclosure.folder().join("etc/containers");
        std::fs::create_dir_all(&etc)?;
        std::fs::write(etc.join("containers.conf"), SETTINGS)?;
        std::fs::write(etc.join("policy.json"), json!({"default": [{"type": "insecureAcceptAnything"}]}).to_string())?;
        let backend = podman.run("info --format {{.Host.NetworkBackend}}")?;
        if backend.trim() != "cni" {
            bail!("this podman has the network backend {}, not CNI", backend.trim());
        }
        let archive = podman.enclosure.folder().join("image.tar");
        image::write(&image::busybox()?, &archive)?;
        podman.run(&format!("load --quiet --input {}", archive.display()))?;
        let group = podman.enclosure.group();
        podman.run(&format!(
            "run --rm --network none --cgroup-parent {group} --entrypoint /bin/busybox {} true",
            image::IMAGE
        ))?;
        Ok(podman)
    }

    /// Runs `podman`.
    ///
    /// **Errors** as [`command::run`].
    pub fn run(&self, line: &str) -> Result<String> {
        let folder = self.enclosure.folder();
        let place = |name: &str| folder.join(name).display().to_string();
        self.enclosure.run(&format!(
            "podman --root {} --runroot {} --tmpdir {} --storage-driver vfs {line}",
            place("podman-root"),
            place("podman-run"),
            place("podman-tmp"),
        ))
    }

    /// The place it lives in.
    #[must_use]
    pub fn enclosure(&self) -> &Enclosure {
        &self.enclosure
    }
}
