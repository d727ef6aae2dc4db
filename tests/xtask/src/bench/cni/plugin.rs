//! Executes a CNI plugin as a runtime does: environment, configuration on standard input, JSON back.
//!
//! Unlike the laboratory's calls this one inherits the calling thread's namespace, so that nothing but the plugin is
//! executed and measured.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::way::{BURST_BITS, CONTAINER_PORT, RATE_BITS, SetUp, host_port};

/// A pod, as the runtime names it.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    container_id: String,
    namespace: String,
    port: u16,
}

impl Identity {
    /// The pod of this number in the namespace at this path.
    pub(super) fn new(number: u16, namespace: String) -> Self {
        // Runtimes give 64 digits.
        Self { container_id: format!("{number:064x}"), namespace, port: host_port(number) }
    }

    /// `runtimeConfig`, as far as a plugin has the capabilities.
    pub(super) fn runtime_config(&self, set_up: SetUp) -> Value {
        match set_up {
            SetUp::Network => json!({}),
            SetUp::PortsAndBandwidth => json!({
                "portMappings": [{"hostPort": self.port, "containerPort": CONTAINER_PORT, "protocol": "tcp"}],
                "bandwidth": {
                    "ingressRate": RATE_BITS, "ingressBurst": BURST_BITS,
                    "egressRate": RATE_BITS, "egressBurst": BURST_BITS,
                },
            }),
        }
    }

    fn arguments(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=0",
            self.port, self.container_id
        )
    }
}

/// A plugin's program and the folders in which it may find others.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The program.
    pub(super) path: PathBuf,
}

impl Program {
    /// Calls it.
    ///
    /// **Errors** it cannot be executed, or answers an error; what it printed is in the text.
    pub(super) fn call(&self, command: &str, pod: &Identity, input: &Value) -> Result<Value> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let mut child = Command::new(&self.path)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_PATH", folder)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.container_id)
            .env("CNI_NETNS", &pod.namespace)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", pod.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot execute {}", self.path.display()))?;
        let mut stdin = child.stdin.take().context("a plugin without standard input")?;
        // A plugin that answers without reading closes its end; its answer counts.
        let _ = stdin.write_all(&serde_json::to_vec(input)?);
        drop(stdin);
        let output = child.wait_with_output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("{command} by {} ended with {}: {printed}{complaint}", self.path.display(), output.status);
        }
        if printed.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&printed).with_context(|| format!("{} printed {printed:?}", self.path.display()))
    }
}

/// The first address of a result.
pub(super) fn address(result: &Value) -> Option<IpAddr> {
    result["ips"][0]["address"].as_str()?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_result_is_read_without_its_prefix_length() {
        assert_eq!(address(&json!({"ips": [{"address": "10.88.0.2/16"}]})), "10.88.0.2".parse().ok());
        assert_eq!(address(&Value::Null), None);
    }

    #[test]
    fn a_pod_of_the_plain_set_up_asks_for_nothing() {
        let identity = Identity::new(7, "/proc/1/fd/3".to_owned());
        assert_eq!(identity.runtime_config(SetUp::Network), json!({}));
        let full = identity.runtime_config(SetUp::PortsAndBandwidth);
        assert_eq!(full["portMappings"][0]["hostPort"], 10_007);
        assert_eq!(identity.container_id.len(), 64);
    }
}
