//! Debian's reference plugins, called as libcni calls a list: one after another, each with the result of the one before
//! it; DEL in reverse order, each with the result of the last.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_lab::namespace::Place;
use culvert_lab::{Lab, Namespace};
use serde_json::{Value, json};

use super::plugin::{self, Identity, Program};
use super::pod_namespace::PodNamespace;
use super::way::{Pod, SetUp, Way, Who};
use crate::bench::cpu;

/// Where Debian puts the plugins.
const FOLDER: &str = "/usr/lib/cni";
/// Those that are executed here; `bridge` executes the second by itself.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "portmap", "bandwidth"];

/// The reference on a node of its own.
#[derive(Debug)]
pub(super) struct Reference {
    namespace: Namespace,
    set_up: SetUp,
    leases: PathBuf,
}

/// Makes sure that the plugins are there.
///
/// **Errors** one is not; the text says how to get it.
pub(super) fn ensure_installed() -> Result<()> {
    for name in PLUGINS {
        if !Path::new(FOLDER).join(name).is_file() {
            bail!("no {FOLDER}/{name} to compare with: `apt-get install containernetworking-plugins` brings it");
        }
    }
    Ok(())
}

impl Reference {
    /// A node without pods.
    ///
    /// **Errors** it cannot be made.
    pub(super) fn build(lab: &Lab, set_up: SetUp) -> Result<Self> {
        let namespace = lab.namespace("reference")?;
        namespace.ip("link set lo up")?;
        Ok(Self { namespace, set_up, leases: lab.folder().join("host-local") })
    }

    /// The list: the bridge plugin with the settings of KubeEdge's guides, and what the set-up needs besides.
    fn configurations(&self, pod: &Identity) -> Vec<(Program, Value)> {
        let bridge = json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": self.leases,
            },
        });
        let (portmap, bandwidth) = (json!({"type": "portmap"}), json!({"type": "bandwidth"}));
        let list = match self.set_up {
            SetUp::Network => vec![bridge],
            SetUp::PortsAndBandwidth => vec![bridge, portmap, bandwidth],
        };
        list.into_iter().map(|configuration| self.complete(configuration, pod)).collect()
    }

    /// Adds what libcni adds, and names the program.
    fn complete(&self, mut configuration: Value, pod: &Identity) -> (Program, Value) {
        configuration["cniVersion"] = json!("1.0.0");
        configuration["name"] = json!("bench");
        let asked = pod.runtime_config(self.set_up);
        let name = configuration["type"].as_str().unwrap_or_default().to_owned();
        match name.as_str() {
            "portmap" => configuration["runtimeConfig"] = json!({"portMappings": asked["portMappings"]}),
            "bandwidth" => configuration["runtimeConfig"] = json!({"bandwidth": asked["bandwidth"]}),
            _ => {}
        }
        (Program { path: Path::new(FOLDER).join(name) }, configuration)
    }
}

impl Way for Reference {
    fn who(&self) -> Who {
        Who::Reference
    }

    fn place(&self) -> &Place {
        &self.namespace
    }

    fn pod<'a>(&'a self, number: u16, namespace: &'a PodNamespace) -> Box<dyn Pod + 'a> {
        let identity = Identity::new(number, namespace.path());
        Box::new(ReferencePod { list: self.configurations(&identity), identity, result: Value::Null })
    }

    fn cpu_time(&self) -> Result<Duration> {
        cpu::children()
    }

    /// host-local keeps a file an address, beside a lock and the address it gave last.
    fn leases(&self) -> Result<usize> {
        let folder = self.leases.join("bench");
        let names = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names = names.collect::<Result<Vec<String>>>()?;
        Ok(names.iter().filter(|name| name.parse::<IpAddr>().is_ok()).count())
    }
}

struct ReferencePod {
    identity: Identity,
    list: Vec<(Program, Value)>,
    result: Value,
}

impl Pod for ReferencePod {
    fn attach(&mut self) -> Result<()> {
        let mut result = Value::Null;
        for (program, configuration) in &mut self.list {
            if !result.is_null() {
                configuration["prevResult"] = result;
            }
            result = program.call("ADD", &self.identity, configuration)?;
        }
        self.result = result;
        Ok(())
    }

    fn detach(&mut self) -> Result<()> {
        for (program, configuration) in self.list.iter_mut().rev() {
            configuration["prevResult"] = self.result.clone();
            program.call("DEL", &self.identity, configuration)?;
        }
        Ok(())
    }

    fn address(&self) -> Option<IpAddr> {
        plugin::address(&self.result)
    }
}
