//! A pod: a namespace attached by the real shim, with the calls and the environment containerd makes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::cni::{Answer, Call};
use crate::lab::Lab;
use crate::namespace::{self, Namespace, Place};
use crate::node::Node;
use crate::probe::Vantage;

/// What a pod is made with.
#[derive(Clone, Debug)]
pub struct PodSetup {
    /// Its name; also the container's id, with the lab's prefix.
    pub name: String,
    /// Its annotations, passed as containerd does by capability.
    pub annotations: BTreeMap<String, String>,
    /// The CNI version of the configuration.
    pub cni_version: &'static str,
}

impl PodSetup {
    /// A plain pod.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), annotations: BTreeMap::new(), cni_version: "1.1.0" }
    }
}

/// An attached pod. Dropped while attached, it is detached first.
#[derive(Debug)]
pub struct Pod {
    setup: PodSetup,
    namespace: Namespace,
    runtime: Runtime,
    addresses: Vec<IpNet>,
    attached: bool,
}

/// Where and how the runtime calls the shim.
#[derive(Clone, Debug)]
struct Runtime {
    /// The node's namespace.
    place: Place,
    binaries: Arc<Binaries>,
    socket: String,
}

impl Pod {
    /// Makes the namespace, calls `loopback` and `culvert`, as containerd does for a sandbox.
    ///
    /// **Errors** a call fails; nothing of the pod is left.
    pub fn attach(lab: &Lab, node: &Node, setup: PodSetup) -> Result<Self> {
        let mut pod = Self::detached(lab, node, setup)?;
        pod.call_loopback("ADD")?.success().context("loopback ADD")?;
        pod.add()?.success().with_context(|| format!("ADD of {}", pod.setup.name))?;
        Ok(pod)
    }

    /// Makes the namespace only.
    ///
    /// **Errors** as [`Namespace::create`].
    pub fn detached(lab: &Lab, node: &Node, setup: PodSetup) -> Result<Self> {
        let namespace = lab.namespace(&setup.name)?;
        let runtime = Runtime {
            place: Place::clone(node.namespace()),
            binaries: node.binaries().clone(),
            socket: node.cni_socket().display().to_string(),
        };
        Ok(Self { setup, namespace, runtime, addresses: Vec::new(), attached: false })
    }

    /// Calls ADD; a success fills in the addresses.
    ///
    /// **Errors** the shim cannot be run, or its result cannot be read; a refusal is in the answer.
    pub fn add(&mut self) -> Result<Answer> {
        let answer = self.call("ADD", Value::Null)?;
        if answer.status == Some(0) {
            self.addresses = addresses(&answer.body)?;
            self.attached = true;
        }
        Ok(answer)
    }

    /// Calls DEL.
    ///
    /// **Errors** the shim cannot be run; a refusal is in the answer.
    pub fn del(&mut self) -> Result<Answer> {
        let answer = self.call("DEL", Value::Null)?;
        if answer.status == Some(0) {
            self.attached = false;
        }
        Ok(answer)
    }

    /// Calls CHECK with a result of ADD.
    ///
    /// **Errors** as [`Pod::del`].
    pub fn check(&self, previous: Value) -> Result<Answer> {
        self.call("CHECK", previous)
    }

    /// Takes the pod away as containerd does: DEL of both plugins, then the namespace.
    ///
    /// **Errors** a DEL fails.
    pub fn remove(mut self) -> Result<()> {
        self.del()?.success().with_context(|| format!("DEL of {}", self.setup.name))?;
        self.call_loopback("DEL")?.success().context("loopback DEL").map(drop)
    }

    /// Drops the pod without DEL, as when its node was cleaned up under it.
    pub fn forget(mut self) {
        self.attached = false;
    }

    fn call(&self, command: &'static str, previous: Value) -> Result<Answer> {
        let mut input = json!({
            "cniVersion": self.setup.cni_version, "name": "culvert", "type": "culvert",
            "socket": self.runtime.socket,
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": self.setup.annotations },
        });
        if !previous.is_null() {
            input["prevResult"] = previous;
        }
        self.run("culvert", command, "eth0", &input)
    }

    fn call_loopback(&self, command: &'static str) -> Result<Answer> {
        self.run("loopback", command, "lo", &json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}))
    }

    fn run(&self, program: &str, command: &'static str, interface: &str, input: &Value) -> Result<Answer> {
        let id = self.container_id();
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={id}",
            self.setup.name
        );
        let call = Call {
            program: self.runtime.binaries.program(program),
            command,
            environment: vec![
                ("CNI_CONTAINERID", id.to_owned()),
                ("CNI_NETNS", self.namespace.path().display().to_string()),
                ("CNI_IFNAME", interface.to_owned()),
                ("CNI_ARGS", arguments),
            ],
            input: serde_json::to_vec(input)?,
        };
        call.run(&self.runtime.place)
    }

    /// The id a runtime would give: unique on this machine.
    #[must_use]
    pub fn container_id(&self) -> &str {
        self.namespace.name()
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its name in the cluster, `default/NAME`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("default/{}", self.setup.name)
    }

    /// Its addresses, as ADD answered them.
    #[must_use]
    pub fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }

    /// Its address of a family.
    ///
    /// **Errors** it got none.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let found = self.addresses.iter().map(IpNet::addr).find(|address| address.is_ipv6() == (family == Family::V6));
        found.with_context(|| format!("{} has no {family:?} address: {:?}", self.setup.name, self.addresses))
    }

    /// Measures from inside.
    #[must_use]
    pub fn vantage(&self) -> Vantage<'_> {
        Vantage { namespace: &self.namespace, program: self.runtime.binaries.program("lab-probe") }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if !self.attached {
            return;
        }
        match self.del() {
            Ok(answer) if answer.status == Some(0) => {}
            // The daemon may be stopped: the lab removes the node's namespace, and the link with it.
            Ok(answer) => namespace::tell(&format!("DEL of {}: {}", self.setup.name, answer.message())),
            Err(error) => namespace::tell(&format!("DEL of {}: {error:#}", self.setup.name)),
        }
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// The addresses of a result of CNI 0.3.0 or later.
fn addresses(result: &Value) -> Result<Vec<IpNet>> {
    let listed = result["ips"].as_array().with_context(|| format!("a result without ips: {result}"))?;
    let parsed = listed.iter().map(|entry| entry["address"].as_str().unwrap_or_default().parse());
    parsed.collect::<Result<_, _>>().with_context(|| format!("an address of {result}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_a_result_and_a_result_without_any_is_an_error() {
        let result = json!({"ips": [{"address": "10.244.1.2/24"}, {"address": "fd00::2/64"}]});
        let expected: Vec<IpNet> = vec!["10.244.1.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        assert_eq!(addresses(&result).unwrap(), expected);
        assert!(addresses(&json!({})).is_err());
        assert!(addresses(&json!({"ips": [{"address": "x"}]})).is_err());
    }
}
