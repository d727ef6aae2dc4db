//! `culvertd run`: the order in which the parts start and stop.
//!
//! ```text
//! state, key ─> plugins ─> TUN, mesh ─> attachments owner ─> cluster owner ─> sockets ─> ready
//! SIGTERM: sockets close, the mesh says goodbye; interfaces, routes and the TUN stay as they are
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use culvert_cluster::{Cluster, static_file::StaticCluster};
use culvert_core::address::Family;
use culvert_core::allocation::AddressWish;
use culvert_core::membership::PeerId;
use culvert_core::topology::Topology;
use culvert_core::tunnel_table::TunnelTable;
use culvert_kernel::{Kernel, KernelChange, LinkRemover, Watch};
use culvert_mesh::{MeshEvent, MeshHandle, MeshLimits, NodeKey, PreSharedKeys, RelayAddress, TunDevice};
use culvert_plugin::{FolderSnapshot, FolderSource, Kind, Limits, PluginHost, PluginHostConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::admin::{self, AdminSocket};
use crate::attachments::{self, AttachmentsOwner, Command as AttachmentCommand};
use crate::cluster_owner::{self, ClusterOwner, Command as ClusterCommand};
use crate::cni_server::{CniServer, Server};
use crate::cni_thread::CniThread;
use crate::config::Config;
use crate::inspect::Inspector;
use crate::keeper_link::KeeperLink;
use crate::metrics::{Metrics, TunnelCounters};
use crate::policies::Policies;
use crate::store::{Durability, Kind as RowKind, Store};

/// How long the start waits for the folder's first state before it goes on with what it has.
const FOLDER_WAIT: Duration = Duration::from_secs(2);
/// How long the mesh may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// Kernel changes that may wait; one that waits already says "look again".
const KERNEL_CHANGES: usize = 16;
/// Families that may wait for a block; one entry a family is enough.
const LOW_FAMILIES: usize = 2;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When a part cannot start; nothing that was there before is touched then.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(run_async(Arc::new(config)))
}

async fn run_async(config: Arc<Config>) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut stop = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    // First, so that a second daemon stops here before it touches anything.
    let admin_socket = AdminSocket::bind(&config.admin_socket)?;
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let store = Store::open(&config.state)?;
    let key = Arc::new(NodeKey::load_or_create(&config.state.join("node.key"))?);
    let plugins = start_plugins(&config, &store, &metrics).await?;
    let cni_thread = CniThread::start()?;
    let parts = Started { config: Arc::clone(&config), store, key, metrics, policies: plugins.policies, cni_thread };
    let node = parts.start_node().await?;
    let ready_after = Arc::new(OnceLock::new());
    let inspector = Arc::new(Inspector {
        node: config.node.name.clone(),
        peer_id: parts.key.peer_id().to_string(),
        started,
        start_to_ready_ms: Arc::clone(&ready_after),
        attachments: node.attachments.clone(),
        cluster: node.cluster.clone(),
        policies: Arc::clone(&parts.policies),
        metrics: parts.metrics.clone(),
    });
    let _folder = plugins.folder.map(|(source, snapshots)| {
        follow_folder(&parts.policies, &node, snapshots);
        source
    });
    let server = Server {
        config: Arc::clone(&config),
        attachments: node.attachments.clone(),
        cluster: node.cluster.clone(),
        metrics: parts.metrics.clone(),
    };
    let cni = CniServer::bind(&config.cni_socket, server)?;
    let cni = parts.cni_thread.spawn(cni.serve());
    let (stop_admin, stopped) = watch::channel(false);
    let refused = parts.metrics.admin_requests_refused.clone();
    let admin = tokio::spawn(admin::serve_on(admin_socket, inspector.clone(), refused, told_to_stop(stopped.clone())));
    if let Some(listen) = config.metrics_listen {
        let listener = admin::bind_metrics(listen).await?;
        tokio::spawn(admin::serve_metrics_on(listener, inspector, told_to_stop(stopped)));
    }
    tokio::spawn(note_ready(node.attachments.clone(), started, ready_after));
    notify_supervisor(&[sd_notify::NotifyState::Ready]);
    tracing::info!(node = config.node.name, took = ?started.elapsed(), "started");
    tokio::select! {
        _ = stop.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; interfaces and routes stay");
    notify_supervisor(&[sd_notify::NotifyState::Stopping]);
    cni.abort();
    stop_admin.send_replace(true);
    let _admin_ended = tokio::time::timeout(GOODBYE, admin).await;
    let _mesh_ended = tokio::time::timeout(GOODBYE, node.mesh.shutdown()).await;
    if let Err(error) = parts.store.settle() {
        tracing::warn!(%error, "the state stays in two files; the next start reads both");
    }
    Ok(())
}

async fn told_to_stop(mut stopped: watch::Receiver<bool>) {
    let _sender_gone = stopped.wait_for(|stopped| *stopped).await;
}

fn notify_supervisor(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "no service supervisor to notify");
    }
}

/// Notes how long it took until an ADD could be served.
async fn note_ready(attachments: attachments::Handle, started: Instant, ready_after: Arc<OnceLock<u64>>) {
    while attachments.request(|reply| AttachmentCommand::Ready(AddressWish::default(), reply)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let _set_once = ready_after.set(milliseconds);
    tracing::info!(milliseconds, "ready for pods");
}

/// The plugins and where changes of them come from.
struct Plugins {
    policies: Arc<Policies>,
    folder: Option<(FolderSource, mpsc::Receiver<FolderSnapshot>)>,
}

async fn start_plugins(config: &Arc<Config>, store: &Store, metrics: &Metrics) -> anyhow::Result<Plugins> {
    let host = PluginHost::new(PluginHostConfig {
        compile_program: config.plugins.compile_program.clone(),
        cache_folder: config.state.join("plugins"),
        limits: Limits::default(),
    })?;
    let mut folder = match &config.plugins.folder {
        Some(path) => Some(FolderSource::watch(path.clone())?),
        None => None,
    };
    let first = match &mut folder {
        Some((_, snapshots)) => tokio::time::timeout(FOLDER_WAIT, snapshots.recv()).await.ok().flatten(),
        None => None,
    };
    let (config, store, metrics) = (Arc::clone(config), store.clone(), metrics.clone());
    let started =
        tokio::task::spawn_blocking(move || Policies::start(host, &config, first.as_ref(), store, metrics)).await;
    Ok(Plugins { policies: Arc::new(started.context("the plugins' start was cut short")??), folder })
}

/// What is there before the node itself.
struct Started {
    config: Arc<Config>,
    store: Store,
    key: Arc<NodeKey>,
    metrics: Metrics,
    policies: Arc<Policies>,
    cni_thread: CniThread,
}

/// The running node.
struct Node {
    mesh: MeshHandle,
    attachments: attachments::Handle,
    cluster: cluster_owner::Handle,
    live: watch::Receiver<Option<Topology>>,
}

impl Started {
    async fn start_node(&self) -> anyhow::Result<Node> {
        let config = &self.config;
        let table = Arc::new(ArcSwap::from_pointee(TunnelTable::default()));
        let tun = culvert_kernel::open_tun(&config.network.tun, config.network.tunnel_queues)?;
        tracing::info!(offloads = ?tun.offloads, queues = tun.queues.len(), "TUN opened");
        let device = TunDevice { queues: tun.queues, takes_udp: tun.offloads.uso };
        let (mesh, mesh_events) = self.start_mesh(device, &table)?;
        let counted = mesh.clone();
        self.metrics.watch_tunnel(move || tunnel_counters(&counted));
        let (low, low_families) = mpsc::channel(LOW_FAMILIES);
        let (in_use, addresses_in_use) = watch::channel(BTreeSet::new());
        let (attachments, kernel_changes) = self.start_attachments(low, in_use).await?;
        let (keeper, keeper_known) = watch::channel(None::<PeerId>);
        let (live, live_topology) = watch::channel(None);
        let link = KeeperLink::new(mesh.clone(), self.key.peer_id(), keeper_known);
        let cluster = StaticCluster::start(&config.file, config.facts.clone(), Arc::new(link))?;
        let facts = cluster.facts();
        let parts = cluster_owner::Parts {
            config: Arc::clone(config),
            key: Arc::clone(&self.key),
            store: self.store.clone(),
            kernel: Kernel::open().await?,
            mesh: mesh.clone(),
            cluster: Arc::new(cluster),
            policies: Arc::clone(&self.policies),
            attachments: attachments.clone(),
            metrics: self.metrics.clone(),
            table,
            keeper,
            live,
        };
        let sources =
            cluster_owner::Sources { mesh: mesh_events, kernel: kernel_changes, facts, in_use: addresses_in_use };
        let cluster = ClusterOwner::start(parts, sources).await?;
        tokio::spawn(ask_for_blocks(low_families, cluster.clone()));
        Ok(Node { mesh, attachments, cluster, live: live_topology })
    }

    /// Starts the owner of attachments on its thread; and what others than it change in the kernel.
    async fn start_attachments(
        &self,
        low: mpsc::Sender<Family>,
        in_use: watch::Sender<BTreeSet<IpAddr>>,
    ) -> anyhow::Result<(attachments::Handle, mpsc::Receiver<KernelChange>)> {
        let (config, store) = (Arc::clone(&self.config), self.store.clone());
        let (policies, metrics) = (Arc::clone(&self.policies), self.metrics.clone());
        let others = tokio::runtime::Handle::current();
        let started = self.cni_thread.spawn(async move {
            let kernel = Kernel::open().await?;
            // Events of others are nothing that a pod should wait for.
            let watch = {
                let _elsewhere = others.enter();
                kernel.watch()?
            };
            let remover = LinkRemover::start()?;
            let parts = attachments::Parts { config, store, kernel, remover, policies, metrics, low, in_use };
            anyhow::Ok((AttachmentsOwner::start(parts)?, watch))
        });
        let (attachments, watch) = started.await.context("the CNI thread ended")??;
        Ok((attachments, follow_kernel(watch)))
    }

    fn start_mesh(
        &self,
        tun: TunDevice,
        table: &Arc<ArcSwap<TunnelTable>>,
    ) -> anyhow::Result<(MeshHandle, mpsc::Receiver<MeshEvent>)> {
        let mesh = &self.config.mesh;
        let relays = mesh.relay_nodes.iter().filter(|relay| relay.node_name != self.config.node.name);
        let relays = relays.map(|relay| {
            let peer = cluster_owner::known_relay(&self.store, relay)?;
            Ok(RelayAddress { node_name: relay.node_name.clone(), addresses: relay.advertise_address.clone(), peer })
        });
        let config = culvert_mesh::MeshConfig {
            key: NodeKey::clone(&self.key),
            pre_shared_keys: self.pre_shared_keys()?,
            listen_port: mesh.port,
            data_port: mesh.data_port,
            carry_datagrams: mesh.datagrams,
            relays: relays.collect::<Result<Vec<_>, crate::store::StoreError>>()?,
            serve_relay: self.config.is_relay(),
            limits: MeshLimits::default(),
        };
        Ok(culvert_mesh::start(config, Some(tun), Arc::clone(table))?)
    }

    /// The configured keys; a node that is alone has one that nobody else knows.
    fn pre_shared_keys(&self) -> anyhow::Result<PreSharedKeys> {
        let configured = &self.config.mesh.pre_shared_keys;
        if !configured.is_empty() {
            return Ok(PreSharedKeys::from_texts(configured)?);
        }
        let own = match self.store.get::<String>(RowKind::Single, "lonely-key")? {
            Some(own) => own,
            None => {
                let own = random_text(Path::new("/dev/urandom"))?;
                self.store.put(RowKind::Single, "lonely-key", &own, Durability::Power)?;
                own
            }
        };
        Ok(PreSharedKeys::from_texts(&[own])?)
    }
}

fn random_text(source: &Path) -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = [0; 32];
    let mut file = std::fs::File::open(source).with_context(|| format!("cannot open {}", source.display()))?;
    file.read_exact(&mut bytes).with_context(|| format!("cannot read {}", source.display()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn follow_kernel(mut watch: Watch) -> mpsc::Receiver<KernelChange> {
    let (sender, changes) = mpsc::channel(KERNEL_CHANGES);
    tokio::spawn(async move {
        loop {
            let change = watch.next().await;
            if sender.send(change).await.is_err() {
                return;
            }
        }
    });
    changes
}

async fn ask_for_blocks(mut families: mpsc::Receiver<Family>, cluster: cluster_owner::Handle) {
    while let Some(family) = families.recv().await {
        cluster.send(ClusterCommand::NeedBlock(family)).await;
    }
}

/// Takes each state of the folder in, for as long as it is watched.
fn follow_folder(policies: &Arc<Policies>, node: &Node, mut snapshots: mpsc::Receiver<FolderSnapshot>) {
    let (attachments, cluster, live) = (node.attachments.clone(), node.cluster.clone(), node.live.clone());
    let policies = Arc::clone(policies);
    tokio::spawn(async move {
        while let Some(snapshot) = snapshots.recv().await {
            let (considering, topology) = (Arc::clone(&policies), live.borrow().clone());
            let consider = move || considering.consider(&snapshot, topology.as_ref());
            match tokio::task::spawn_blocking(consider).await {
                Ok(kinds) => {
                    for kind in kinds {
                        ask_again(kind, &attachments, &cluster).await;
                    }
                }
                Err(error) => tracing::error!(%error, "a state of the plugin folder could not be considered"),
            }
        }
    });
}

/// What another policy of this kind changes at once.
async fn ask_again(kind: Kind, attachments: &attachments::Handle, cluster: &cluster_owner::Handle) {
    match kind {
        Kind::Route => cluster.send(ClusterCommand::Replan).await,
        Kind::Bandwidth => attachments.send(AttachmentCommand::Reshape).await,
        // A new strategy applies to new blocks and addresses; leases stay what they are.
        Kind::Ipam => {}
    }
}

fn tunnel_counters(mesh: &MeshHandle) -> TunnelCounters {
    let counters = mesh.counters();
    let (drops, events) = counters
        .list()
        .into_iter()
        .filter(|(name, _)| !NAMED.contains(name))
        .partition(|(name, _)| name.starts_with("dropped_"));
    TunnelCounters {
        packets_in: counters.packets_in,
        bytes_in: counters.bytes_in,
        packets_out: counters.packets_out,
        bytes_out: counters.bytes_out,
        strangers_refused: counters.strangers_refused,
        drops,
        events,
    }
}

/// Counters that have a metric of their own.
const NAMED: [&str; 5] = ["packets_in", "bytes_in", "packets_out", "bytes_out", "strangers_refused"];
