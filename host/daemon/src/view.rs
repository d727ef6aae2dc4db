//! What the daemon shows of itself over the admin API: plain values that `culvertctl` prints.
//!
//! Every answer carries `schema`, so that a script can tell when the meaning of a field changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The version of these shapes; it grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// This node's name.
    pub node: String,
    /// This node's identity.
    pub peer_id: String,
    /// The daemon's version.
    pub version: String,
    /// Whether an ADD would be served now.
    pub ready: bool,
    /// Why not, or what is degraded; empty when all is well.
    pub problems: Vec<String>,
    /// Blocks this node holds.
    pub blocks: Vec<IpNet>,
    /// Attachments on this node.
    pub attachments: usize,
    /// Nodes in the cluster, this one included.
    pub members: usize,
    /// Peers that are connected now.
    pub connected: usize,
    /// The generation of the topology that the routes in force were planned for.
    pub generation: u64,
    /// **Units** seconds since the daemon started.
    pub uptime_seconds: u64,
    /// **Units** milliseconds from the daemon's start to the moment it could serve an ADD.
    pub start_to_ready_ms: Option<u64>,
}

/// One line of `GET /v1/peers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The node's name.
    pub node: String,
    /// Its identity.
    pub peer_id: String,
    /// `cloud` or `edge`.
    pub site_kind: String,
    /// Its zone.
    pub zone: String,
    /// Its blocks.
    pub blocks: Vec<IpNet>,
    /// `direct`, `relayed`, or `none`.
    pub path: String,
    /// The other end's address, or the relay's identity.
    pub through: String,
    /// **Units** microseconds; `None` before the first measurement.
    pub rtt_us: Option<u64>,
    /// How datagrams with packets reach it; `None` while the path above carries its packets too.
    #[serde(default)]
    pub datagrams: Option<Datagrams>,
    /// `same-link`, `routed`, `tunnel-only`, `unknown`.
    pub reach: String,
    /// Verified on-link addresses.
    pub on_link: Vec<IpAddr>,
    /// Packets received from it that failed the source or destination check.
    pub refused_packets: u64,
}

/// How datagrams reach a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagrams {
    /// `direct` or `relayed`.
    pub kind: String,
    /// Where they are sent: the peer's address, or the relay's name.
    pub to: String,
    /// **Units** microseconds; `None` before the first measurement.
    pub rtt_us: Option<u64>,
    /// **Units** lost per thousand probes.
    pub loss_permille: u32,
    /// The largest packet that fits. **Units** bytes.
    pub mtu_bytes: usize,
}

/// `GET /v1/peers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// [`SCHEMA`].
    pub schema: u32,
    /// All nodes but this one, by name.
    pub peers: Vec<Peer>,
}

/// One line of `GET /v1/routes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub to: String,
    /// The node that holds it; empty for a pool's own line.
    pub node: String,
    /// What the policy decided.
    pub decision: String,
    /// What the policy wants while that way is dead.
    pub otherwise: String,
    /// What is in force in the kernel, as the host wants it.
    pub kernel: String,
    /// Whether the kernel holds exactly that.
    pub installed: bool,
}

/// `GET /v1/routes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The topology generation they were planned for.
    pub generation: u64,
    /// The policy that decided.
    pub decided_by: String,
    /// All routes, by destination.
    pub routes: Vec<Route>,
    /// Why the newest answer of the policy was refused, if it was.
    pub refusal: Option<String>,
}

/// One block of `GET /v1/ipam`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The block.
    pub block: String,
    /// The holder's node name.
    pub holder: String,
    /// `final`, `provisional` or `lost`.
    pub standing: String,
    /// Addresses in use; known for this node's own blocks.
    pub in_use: Option<u64>,
}

/// One lease of `GET /v1/ipam`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: String,
    /// The container.
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
    /// The pod, `namespace/name`, when the runtime said so.
    pub pod: String,
    /// `intended`, `applied`, `acknowledged`, `deleting`.
    pub state: String,
}

/// `GET /v1/ipam`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The pools' ranges with their block length.
    pub pools: Vec<String>,
    /// All blocks known.
    pub blocks: Vec<Block>,
    /// This node's leases, by address.
    pub leases: Vec<Lease>,
    /// Disagreements between leases, blocks and the kernel; empty when clean.
    pub findings: Vec<String>,
}

/// One plugin generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginGeneration {
    /// The unit's name: the shipped plugin's, or the folder's.
    pub unit: String,
    /// The name the plugin gives itself.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// sha256 over component and settings.
    pub digest: String,
    /// The generation number.
    pub generation: u64,
}

/// One policy of `GET /v1/plugins`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugin {
    /// `route`, `ipam` or `bandwidth`.
    pub kind: String,
    /// What decides now.
    pub active: PluginGeneration,
    /// What would come back on repeated traps.
    pub previous: Option<PluginGeneration>,
    /// Whether the active one is a previous generation that came back.
    pub rolled_back: bool,
    /// Calls since activation.
    pub calls: u64,
    /// Faults since activation, by kind.
    pub faults: BTreeMap<String, u64>,
    /// The newest fault's text.
    pub last_fault: Option<String>,
}

/// A unit that was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedUnit {
    /// The unit's name or path.
    pub unit: String,
    /// Why, and what to do.
    pub reason: String,
}

/// `GET /v1/plugins`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugins {
    /// [`SCHEMA`].
    pub schema: u32,
    /// One line a kind.
    pub plugins: Vec<Plugin>,
    /// Units in the folder that are not in force, with the reason.
    pub refused: Vec<RefusedUnit>,
}

/// `GET /v1/explain?from=POD&to=POD`: a pod is given by address, `namespace/name` or container id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The first pod's address.
    pub from: String,
    /// The second pod's address.
    pub to: String,
    /// The node that holds the second pod's block.
    pub node: String,
    /// The block that matched.
    pub block: String,
    /// The policy that decided: name, version, digest, generation.
    pub decided_by: String,
    /// What it decided.
    pub decision: String,
    /// What is in force in the kernel.
    pub kernel: String,
    /// How the tunnel reaches that node, if it does.
    pub path: String,
    /// The inputs of the decision that matter here.
    pub inputs: BTreeMap<String, String>,
    /// The same in sentences, first to last.
    pub steps: Vec<String>,
}

/// `POST /v1/names/{name}/release`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The node name that is free now.
    pub name: String,
}

/// Any answer that is not 200.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What failed, on what, and what to do.
    pub error: String,
}
