//! The real shim and the real daemon, on a node of the laboratory.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_lab::namespace::Place;
use culvert_lab::{Node, SingleNode};
use serde_json::{Value, json};

use super::plugin::{self, Identity, Program};
use super::pod_namespace::PodNamespace;
use super::way::{Pod, SetUp, Way, Who};
use crate::bench::cpu;

/// Our node.
#[derive(Debug)]
pub(super) struct Ours<'a> {
    node: &'a Node,
    program: Program,
    set_up: SetUp,
}

/// Starts the daemon. Pods get IPv4 alone, as the others give it.
///
/// **Errors** it does not come up.
pub(super) fn start() -> Result<SingleNode> {
    let mut single = SingleNode::build()?;
    let configuration = single.node_mut().configuration_mut();
    configuration["cluster"]["static"]["pools"] = json!([{"range": "10.244.0.0/16", "blockLength": 24}]);
    single.node_mut().start()?;
    single.node_mut().wait_ready()?;
    Ok(single)
}

impl<'a> Ours<'a> {
    /// The way by a node whose daemon runs.
    pub(super) fn on(node: &'a Node, set_up: SetUp) -> Self {
        Self { node, program: Program { path: node.binaries().program("culvert") }, set_up }
    }
}

impl Way for Ours<'_> {
    fn who(&self) -> Who {
        Who::Ours
    }

    fn place(&self) -> &Place {
        self.node.namespace()
    }

    fn pod<'a>(&'a self, number: u16, namespace: &'a PodNamespace) -> Box<dyn Pod + 'a> {
        let identity = Identity::new(number, namespace.path());
        let configuration = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "culvert", "socket": self.node.cni_socket(),
            "runtimeConfig": identity.runtime_config(self.set_up),
        });
        Box::new(OurPod { program: &self.program, identity, configuration, result: Value::Null })
    }

    fn cpu_time(&self) -> Result<Duration> {
        Ok(cpu::children()? + cpu::of_process(self.node.process_id()?)?)
    }

    fn leases(&self) -> Result<usize> {
        let status = self.node.ctl(&["status"])?;
        let attachments = status["attachments"].as_u64().with_context(|| format!("no attachments in {status}"))?;
        Ok(usize::try_from(attachments)?)
    }
}

struct OurPod<'a> {
    program: &'a Program,
    identity: Identity,
    configuration: Value,
    result: Value,
}

impl Pod for OurPod<'_> {
    fn attach(&mut self) -> Result<()> {
        self.result = self.program.call("ADD", &self.identity, &self.configuration)?;
        Ok(())
    }

    fn detach(&mut self) -> Result<()> {
        self.configuration["prevResult"] = self.result.clone();
        self.program.call("DEL", &self.identity, &self.configuration).map(drop)
    }

    fn address(&self) -> Option<IpAddr> {
        plugin::address(&self.result)
    }
}
