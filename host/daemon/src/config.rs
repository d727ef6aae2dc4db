//! The one configuration file: what it may say, and every fault in it at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use culvert_cluster::ClusterFacts;
use culvert_core::config::{Fault, Faults, Section};
use culvert_core::membership::is_node_name;
use culvert_core::topology::SiteKind;
use serde_json::Value;

/// The smallest MTU that IPv6 allows on a link (RFC 8200 §5).
const SMALLEST_MTU: u64 = 1280;

/// A configuration without faults.
#[derive(Debug)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// This node.
    pub node: NodeConfig,
    /// The folder of the state: `state.db`, `node.key`, compiled plugins.
    pub state: PathBuf,
    /// The socket that the shim talks to.
    pub cni_socket: PathBuf,
    /// The socket of the admin API.
    pub admin_socket: PathBuf,
    /// Where the container runtime keeps the results of its ADDs: what tells a pod it knows from one it forgot.
    pub runtime_results: PathBuf,
    /// A loopback address for the metrics, if wanted.
    pub metrics_listen: Option<SocketAddr>,
    /// The mesh.
    pub mesh: MeshConfig,
    /// Address management.
    pub ipam: IpamConfig,
    /// What the cluster section says now.
    pub facts: ClusterFacts,
    /// Plugins.
    pub plugins: PluginConfig,
    /// Interfaces and their sizes.
    pub network: NetworkConfig,
}

/// This node, as it presents itself.
#[derive(Debug)]
pub struct NodeConfig {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Which side of the network it stands on.
    pub site_kind: SiteKind,
    /// The LAN or failure domain; may be empty.
    pub zone: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// The mesh's settings.
#[derive(Debug)]
pub struct MeshConfig {
    /// UDP and TCP port, 1 to 65,535.
    pub port: u16,
    /// UDP port of packets, another one.
    pub data_port: u16,
    /// Whether packets may travel as datagrams; otherwise streams carry them all.
    pub datagrams: bool,
    /// Keys that let a node in; the first proves, all are accepted.
    pub pre_shared_keys: Vec<String>,
    /// The relays; the first is the keeper.
    pub relay_nodes: Vec<RelayNode>,
}

/// A relay, in the words of EdgeMesh's charts.
#[derive(Clone, Debug)]
pub struct RelayNode {
    /// The relay's node name.
    pub node_name: String,
    /// Where it can be dialled: an address or a host name, with or without a port.
    pub advertise_address: Vec<String>,
    /// Its identity, when the operator pins it.
    pub peer_id: Option<String>,
}

/// Address management.
#[derive(Debug)]
pub struct IpamConfig {
    /// The shipped policy that is used unless a plugin of the folder takes its place.
    pub policy: String,
    /// Whether a node that holds no block may take one while the keeper is away.
    pub provisional_claims: bool,
    /// **Units** seconds that a released address rests.
    pub quarantine_seconds: u64,
    /// **Units** seconds that the addresses of a sticky pod wait for it to come back.
    pub sticky_seconds: u64,
}

/// Where plugins come from.
#[derive(Debug)]
pub struct PluginConfig {
    /// The watched folder, if any.
    pub folder: Option<PathBuf>,
    /// The compile child's program.
    pub compile_program: PathBuf,
    /// Settings of shipped plugins by name, as JSON.
    pub settings: BTreeMap<String, Value>,
}

/// Interfaces and their sizes.
#[derive(Debug)]
pub struct NetworkConfig {
    /// The bridge's name.
    pub bridge: String,
    /// The TUN device's name.
    pub tun: String,
    /// Whether pod traffic that leaves the cluster takes the node's address.
    pub masquerade: bool,
    /// **Units** bytes; of the bridge and the pods' interfaces.
    pub mtu_bytes: u32,
    /// **Units** bytes; of the TUN device and the routes into it.
    pub tunnel_mtu_bytes: u32,
    /// Queues of the TUN device, each with two threads. Another number needs another device.
    pub tunnel_queues: u8,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{path} is not valid YAML: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// The file has faults.
    #[error("{path} has {} fault(s):\n{}", faults.len(), listed(faults))]
    Faults {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Vec<Fault>,
    },
}

fn listed(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("  - {fault}")).collect::<Vec<_>>().join("\n")
}

impl Config {
    /// Reads and checks a file.
    ///
    /// **Errors** with all faults at once, each with its key path.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file. Files that it names (keys) are read.
    ///
    /// **Errors** as [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let tree: Value = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::Syntax { path: path.to_owned(), reason: error.to_string() })?;
        let faults = Faults::default();
        let config = read_all(path, Section::open("", tree, &faults), &faults);
        match faults.all() {
            found if found.is_empty() => Ok(config),
            found => Err(ConfigError::Faults { path: path.to_owned(), faults: found }),
        }
    }

    /// The keeper: the first relay, if any is configured.
    #[must_use]
    pub fn keeper(&self) -> Option<&RelayNode> {
        self.mesh.relay_nodes.first()
    }

    /// Whether this node is the keeper: it is named first, or nobody is.
    #[must_use]
    pub fn is_keeper(&self) -> bool {
        self.keeper().is_none_or(|keeper| keeper.node_name == self.node.name)
    }

    /// Whether this node serves as a relay.
    #[must_use]
    pub fn is_relay(&self) -> bool {
        self.mesh.relay_nodes.iter().any(|relay| relay.node_name == self.node.name)
    }
}

fn read_all(path: &Path, mut top: Section, faults: &Faults) -> Config {
    let node = read_node(top.section("node"));
    let state = PathBuf::from(top.text("state").unwrap_or_else(|| "/var/lib/culvert".to_owned()));
    let (cni_socket, admin_socket) = read_sockets(top.section("sockets"));
    let runtime_results = read_runtime(top.section("runtime"));
    let metrics_listen = read_metrics(top.section("metrics"));
    let mesh = read_mesh(top.section("mesh"));
    let ipam = read_ipam(top.section("ipam"));
    let mut cluster = top.section("cluster");
    let facts = culvert_cluster::static_file::read(cluster.section("static"), faults);
    cluster.finish();
    let plugins = read_plugins(top.section("plugins"));
    let network = read_network(top.section("network"));
    top.finish();
    Config {
        file: path.to_owned(),
        node,
        state,
        cni_socket,
        admin_socket,
        runtime_results,
        metrics_listen,
        mesh,
        ipam,
        facts,
        plugins,
        network,
    }
}

fn read_node(mut section: Section) -> NodeConfig {
    let name = section.required_text("name");
    if !name.is_empty() && !is_node_name(&name) {
        section.fault(
            "name",
            format!("{name:?} is not a node name: lower-case letters, digits, '-' and '.', at most 253"),
        );
    }
    let site_kind = match section.text("siteKind").as_deref() {
        None | Some("edge") => SiteKind::Edge,
        Some("cloud") => SiteKind::Cloud,
        Some(other) => {
            section.fault("siteKind", format!("write cloud or edge, not {other:?}"));
            SiteKind::Edge
        }
    };
    let zone = section.text("zone").unwrap_or_default();
    let labels = section.texts("labels");
    section.finish();
    NodeConfig { name, site_kind, zone, labels }
}

fn read_sockets(mut section: Section) -> (PathBuf, PathBuf) {
    let mut path = |key, default: &str| {
        let path = section.text(key).unwrap_or_else(|| default.to_owned());
        // sun_path holds 108 bytes, its final NUL included.
        if path.len() > 107 || !path.starts_with('/') {
            section.fault(key, "write an absolute path of at most 107 bytes");
        }
        PathBuf::from(path)
    };
    let sockets = (path("cni", "/run/culvert/cni.sock"), path("admin", "/run/culvert/admin.sock"));
    section.finish();
    sockets
}

fn read_runtime(mut section: Section) -> PathBuf {
    let results = section.text("results").unwrap_or_else(|| "/var/lib/cni/results".to_owned());
    if !results.starts_with('/') {
        section.fault("results", "write an absolute path");
    }
    section.finish();
    PathBuf::from(results)
}

fn read_metrics(mut section: Section) -> Option<SocketAddr> {
    let listen: Option<SocketAddr> = section.parsed("listen", "a loopback address and port such as 127.0.0.1:9417");
    if listen.is_some_and(|address| !address.ip().is_loopback()) {
        section.fault("listen", "is not a loopback address; metrics are for this machine alone");
    }
    section.finish();
    listen
}

fn read_mesh(mut section: Section) -> MeshConfig {
    let port = section.number("port", 20_006, 1..=65_535);
    let data_port = section.number("dataPort", 20_007, 1..=65_535);
    if data_port == port {
        section.fault("dataPort", "is the port of the mesh already; write another one");
    }
    let datagrams = section.flag("datagrams", true);
    let mut pre_shared_keys: Vec<String> = section.parsed_list("preSharedKeys", "a text");
    for file in section.parsed_list::<String>("preSharedKeyFiles", "a path") {
        match std::fs::read_to_string(&file) {
            Ok(key) => pre_shared_keys.push(key.trim().to_owned()),
            Err(error) => section.fault("preSharedKeyFiles", format!("cannot read {file}: {error}")),
        }
    }
    let relay_nodes: Vec<RelayNode> = section.sections("relayNodes").into_iter().map(read_relay).collect();
    if !relay_nodes.is_empty() && pre_shared_keys.is_empty() {
        section.fault("preSharedKeys", "write at least one key, or name a file in preSharedKeyFiles; nodes join by it");
    }
    if let Err(error) = culvert_mesh::PreSharedKeys::from_texts(&pre_shared_keys)
        && !pre_shared_keys.is_empty()
    {
        section.fault("preSharedKeys", error.to_string());
    }
    section.finish();
    let port_of = |number| u16::try_from(number).unwrap_or(20_006);
    MeshConfig { port: port_of(port), data_port: port_of(data_port), datagrams, pre_shared_keys, relay_nodes }
}

fn read_relay(mut section: Section) -> RelayNode {
    let node_name = section.required_text("nodeName");
    let advertise_address: Vec<String> = section.parsed_list("advertiseAddress", "an address");
    if advertise_address.is_empty() {
        section.fault("advertiseAddress", "write at least one address at which the relay can be dialled");
    }
    let peer_id = section.text("peerId");
    section.finish();
    RelayNode { node_name, advertise_address, peer_id }
}

fn read_ipam(mut section: Section) -> IpamConfig {
    let policy = section.text("policy").unwrap_or_else(|| "ipam-hash".to_owned());
    if !["ipam-hash", "ipam-pool"].contains(&policy.as_str()) {
        section.fault(
            "policy",
            format!("{policy:?} is not shipped; write ipam-hash or ipam-pool, or put a plugin into the folder"),
        );
    }
    let provisional_claims = section.flag("provisionalClaims", false);
    let quarantine_seconds = section.number("quarantineSeconds", 30, 0..=86_400);
    let sticky_seconds = section.number("stickySeconds", 86_400, 0..=31_536_000);
    section.finish();
    IpamConfig { policy, provisional_claims, quarantine_seconds, sticky_seconds }
}

fn read_plugins(mut section: Section) -> PluginConfig {
    let folder = section.text("folder").map(PathBuf::from);
    let compile_program = section.text("compileProgram").map_or_else(beside_this_program, PathBuf::from);
    if !compile_program.is_file() {
        section
            .fault("compileProgram", format!("{} is not a file; it ships beside culvertd", compile_program.display()));
    }
    let settings = section.trees("settings");
    section.finish();
    PluginConfig { folder, compile_program, settings }
}

fn beside_this_program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("culvert-compile")
}

fn read_network(mut section: Section) -> NetworkConfig {
    let mut interface = |key, default: &str| {
        let name = section.text(key).unwrap_or_else(|| default.to_owned());
        // IFNAMSIZ is 16 with the final NUL.
        if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) {
            section.fault(key, format!("{name:?} is not an interface name of 1 to 15 bytes"));
        }
        name
    };
    let bridge = interface("bridge", "cni0");
    let tun = interface("tun", "culvert0");
    let masquerade = section.flag("masquerade", true);
    let mtu = section.number("mtu", 1500, SMALLEST_MTU..=65_535);
    let tunnel_mtu = section.number("tunnelMtu", 1420, SMALLEST_MTU..=65_535);
    // One serves a small node best; each further one needs a core of its own to pay.
    let queues = section.number("tunnelQueues", 1, 1..=u64::from(culvert_mesh::MAX_TUN_QUEUES));
    section.finish();
    let tunnel_queues = u8::try_from(queues).unwrap_or(1);
    let bytes = |mtu| u32::try_from(mtu).unwrap_or(1280);
    NetworkConfig { bridge, tun, masquerade, mtu_bytes: bytes(mtu), tunnel_mtu_bytes: bytes(tunnel_mtu), tunnel_queues }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        match Config::parse(Path::new("culvert.yaml"), text) {
            Err(ConfigError::Faults { faults, .. }) => faults.iter().map(ToString::to_string).collect(),
            other => panic!("expected faults, got {other:?}"),
        }
    }

    #[test]
    fn all_faults_are_reported_at_once_with_their_key_paths() {
        let text = r"
node: { name: Edge_1, siteKind: moon }
sockets: { cni: relative.sock }
metrics: { listen: '0.0.0.0:1' }
mesh: { port: 0, relayNodes: [ { nodeName: cloud-1 } ], colour: blue }
ipam: { policy: ipam-magic }
cluster: { static: { pools: [ { range: 10.244.0.1/16 }, { blockLength: 24 } ] } }
plugins: { compileProgram: /nonexistent/culvert-compile }
network: { bridge: a-name-far-too-long, mtu: 9 }
";
        let found = faults(text);
        let paths: Vec<&str> = found.iter().filter_map(|fault| fault.split(": ").next()).collect();
        assert_eq!(
            paths,
            [
                "node.name",
                "node.siteKind",
                "sockets.cni",
                "metrics.listen",
                "mesh.port",
                "mesh.relayNodes[0].advertiseAddress",
                "mesh.preSharedKeys",
                "mesh.colour",
                "ipam.policy",
                "cluster.static.pools[0].range",
                "cluster.static.pools[1].range",
                "plugins.compileProgram",
                "network.bridge",
                "network.mtu",
            ]
        );
    }

    #[test]
    fn broken_yaml_names_the_file() {
        let error = Config::parse(Path::new("culvert.yaml"), "node: [").map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("culvert.yaml is not valid YAML"), "{error}");
    }
}
