//! The configuration file of a node's daemon, as an operator would write it.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::Host;

/// The mesh port of every node.
pub const MESH_PORT: u16 = 20006;
/// The pre-shared key of a lab's cluster.
pub const PRE_SHARED_KEY: &str = "a laboratory's own pre-shared key";

/// What distinguishes one node's configuration from another's.
#[derive(Clone, Debug)]
pub struct NodeSetup {
    /// `cloud` or `edge`.
    pub site_kind: &'static str,
    /// The site.
    pub zone: String,
    /// The relays: name and address; the first is the keeper.
    pub relays: Vec<(String, String)>,
}

/// The configuration of a node that keeps everything below `folder`.
#[must_use]
pub fn configuration(host: &Host, setup: &NodeSetup, folder: &Path, compile: &Path) -> Value {
    let relays = setup.relays.iter().map(|(name, address)| json!({"nodeName": name, "advertiseAddress": [address]}));
    json!({
        "node": {"name": host.name, "siteKind": setup.site_kind, "zone": setup.zone, "labels": {}},
        "state": folder.join("state"),
        "sockets": {"cni": folder.join("cni.sock"), "admin": folder.join("admin.sock")},
        "runtime": {"results": folder.join("results")},
        "mesh": {
            "port": MESH_PORT,
            "preSharedKeys": [PRE_SHARED_KEY],
            "relayNodes": relays.collect::<Vec<_>>(),
        },
        "ipam": {"policy": "ipam-hash"},
        "cluster": {"static": {
            "pools": [
                {"range": "10.244.0.0/16", "blockLength": 24},
                {"range": "fd00:10:244::/48", "blockLength": 64},
            ],
            "servicePrefixes": ["10.96.0.0/12"],
        }},
        "plugins": {"folder": folder.join("plugins"), "compileProgram": compile},
    })
}

/// Writes a configuration where the daemon reads it.
///
/// **Errors** the file cannot be written.
pub fn write(configuration: &Value, path: &Path) -> Result<()> {
    let text = serde_saphyr::to_string(configuration).context("the configuration as YAML")?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
