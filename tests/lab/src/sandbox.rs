//! A container without a runtime: its namespace, and the calls that a runtime would make for it, of which a test may
//! change every part. [`crate::Pod`] is what containerd makes; this is for everything else a runtime may do.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cni::{Answer, RawCall};
use crate::namespace::{self, Namespace, Place};
use crate::probe::Vantage;
use crate::single_node::SingleNode;

/// The name of the network of every call, unless a test changes it.
pub const NETWORK: &str = "culvert";

/// A container. Dropped, its `eth0` is detached first.
#[derive(Debug)]
pub struct Sandbox {
    call: RawCall,
    config: Value,
    probe: PathBuf,
    runtime: Place,
    namespace: Namespace,
}

impl Sandbox {
    /// Makes the namespace only. Calls are in version 1.1.0 and ask for nothing special.
    ///
    /// **Errors** as [`Namespace::create`].
    pub fn new(single: &SingleNode, name: &str) -> Result<Self> {
        let (node, namespace) = (single.node(), single.lab().namespace(name)?);
        let call = RawCall::of(&node.binaries().program("culvert"), "ADD")
            .env("CNI_CONTAINERID", namespace.name())
            .env("CNI_NETNS", &namespace.path().display().to_string())
            .env("CNI_IFNAME", "eth0");
        let runtime = Place::clone(node.namespace());
        Ok(Self { call, config: single.netconf(), probe: node.binaries().program("lab-probe"), runtime, namespace })
    }

    /// The same container with a field of the configuration.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }

    /// The same container with a field of `runtimeConfig`.
    #[must_use]
    pub fn asking(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config["runtimeConfig"][key] = value.into();
        self
    }

    /// The same container with another configuration, of which only the daemon's socket is kept.
    #[must_use]
    pub fn with_config(mut self, config: &Value) -> Self {
        let socket = self.config["socket"].take();
        self.config = config.clone();
        self.config["socket"] = socket;
        self
    }

    /// The same container with another variable in each call.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.call = self.call.clone().env(name, value);
        self
    }

    /// The configuration of its calls.
    #[must_use]
    pub fn config(&self) -> Value {
        self.config.clone()
    }

    /// A call, to be changed further and [`Sandbox::run`].
    #[must_use]
    pub fn call(&self, command: &str) -> RawCall {
        self.call.clone().env("CNI_COMMAND", command).config(&self.config)
    }

    /// Runs a call where the runtime lives.
    ///
    /// **Errors** as [`RawCall::run`].
    pub fn run(&self, call: &RawCall) -> Result<Answer> {
        call.run(&self.runtime)
    }

    /// Calls ADD.
    ///
    /// **Errors** the shim cannot be run; a refusal is in the answer.
    pub fn add(&self) -> Result<Answer> {
        self.run(&self.call("ADD"))
    }

    /// Calls ADD and returns its result.
    ///
    /// **Errors** it is refused.
    pub fn attach(&self) -> Result<Value> {
        self.add()?.success()
    }

    /// Calls DEL.
    ///
    /// **Errors** as [`Sandbox::add`].
    pub fn del(&self) -> Result<Answer> {
        self.run(&self.call("DEL"))
    }

    /// Calls CHECK with a previous result.
    ///
    /// **Errors** as [`Sandbox::add`].
    pub fn check(&self, previous: &Value) -> Result<Answer> {
        let mut config = self.config.clone();
        config["prevResult"] = previous.clone();
        self.run(&self.call("CHECK").config(&config))
    }

    /// Calls GC with these attachments to be kept, each a container id and an interface name.
    ///
    /// **Errors** as [`Sandbox::add`].
    pub fn collect(&self, valid: &[(&str, &str)]) -> Result<Answer> {
        let valid = valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}));
        let mut config = self.config.clone();
        config["cni.dev/valid-attachments"] = valid.collect();
        self.run(&self.call("GC").config(&config))
    }

    /// Its id and its namespace's name.
    #[must_use]
    pub fn id(&self) -> &str {
        self.namespace.name()
    }

    /// Measures from inside.
    #[must_use]
    pub fn vantage(&self) -> Vantage<'_> {
        Vantage { namespace: &self.namespace, program: self.probe.clone() }
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Whatever a test made of the configuration: DEL needs the network and the socket alone.
        let head = json!({
            "cniVersion": "1.1.0", "name": self.config["name"], "type": "culvert", "socket": self.config["socket"],
        });
        // The daemon may be stopped: the lab removes the node's namespace, and the link with it.
        if let Err(error) = self.run(&self.call("DEL").config(&head)) {
            namespace::tell(&format!("DEL of {}: {error:#}", self.id()));
        }
    }
}
