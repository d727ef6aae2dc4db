//! The task that owns what this node knows of the cluster: members, claims, reach, topology, routes.
//!
//! Everything that takes time (asking the keeper, asking a plugin, probing a link) runs as a job beside
//! the loop and comes back as a [`Done`]; the loop itself only decides, records and programs the kernel.
//!
//! ```text
//! mesh events ─┐                        ┌─> jobs (plugin, keeper, probes) ─> Done ─┐
//! facts ───────┼─> ClusterOwner::step ──┼─> store, kernel, tunnel table            │
//! kernel ──────┤                        └─> attachments (blocks)                   │
//! commands ────┘<───────────────────────────────────────────────────────────────────┘
//! ```

mod claims;
mod cover;
mod keeper;
mod liveness;
mod records;
mod routing;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_cluster::{Cluster, ClusterFacts};
use culvert_core::address::Family;
use culvert_core::allocation::AddressWish;
use culvert_core::claim::{HeldBlocks, Ledger};
use culvert_core::decision::AdmittedRoutes;
use culvert_core::membership::{Directory, PeerId};
use culvert_core::reach::PeerReach;
use culvert_core::topology::Topology;
use culvert_core::tunnel_table::TunnelTable;
use culvert_kernel::{Kernel, KernelChange, OnLink};
use culvert_mesh::{CountersignedRecord, MeshEvent, MeshHandle, NodeKey, PeerPath};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::attachments;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::store::Store;
use crate::view;

pub use cover::CoverError;
pub use records::{StartError, known_relay};

/// Changes within this time make one plan; the first waits this long at most.
const PLAN_DEBOUNCE: Duration = Duration::from_millis(50);
/// How often claims, records and next hops are looked after when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// How often each on-link candidate is probed again: slow, because a proof lasts.
const PROBE_INTERVAL: Duration = Duration::from_secs(20);
/// Commands that may wait; the sender waits when it is full.
const COMMANDS: usize = 64;
/// Finished jobs that may wait; a job waits when it is full.
const JOBS: usize = 256;

/// What others ask of the owner.
pub enum Command {
    /// A route plugin was swapped: plan again.
    Replan,
    /// A family's blocks run low: take one more.
    NeedBlock(Family),
    /// Claim the blocks that a pod's configuration asks for, all or none.
    Cover(AddressWish, oneshot::Sender<Result<(), CoverError>>),
    /// An operator releases a name (only the keeper can).
    ReleaseName(String, oneshot::Sender<Result<(), String>>),
    /// What the admin API shows.
    Peers(oneshot::Sender<Vec<view::Peer>>),
    /// What the admin API shows.
    Routes(oneshot::Sender<view::Routes>),
    /// What the admin API shows: pools, all blocks.
    Blocks(oneshot::Sender<(Vec<String>, Vec<view::Block>)>),
    /// The part of the status that this owner knows.
    Status(oneshot::Sender<ClusterStatus>),
    /// How packets for an address leave this node.
    Explain(std::net::IpAddr, oneshot::Sender<Result<view::Explanation, String>>),
}

/// The part of the status that this owner knows.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    /// Blocks that new addresses may come from.
    pub blocks: Vec<ipnet::IpNet>,
    /// Nodes in the cluster, this one included.
    pub members: usize,
    /// Peers that are connected.
    pub connected: usize,
    /// The generation of the routes in force.
    pub generation: u64,
    /// What is degraded.
    pub problems: Vec<String>,
}

/// A way to talk to the owner.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Command>);

impl Handle {
    /// Sends a command that has no answer. The owner being gone means the daemon is stopping.
    pub async fn send(&self, command: Command) {
        let _stopping = self.0.send(command).await;
    }

    /// Sends a command and waits for its answer; `None` while the daemon is stopping.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// What the owner is made of.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// This node's key.
    pub key: Arc<NodeKey>,
    /// The state.
    pub store: Store,
    /// The owner's own kernel sockets.
    pub kernel: Kernel,
    /// The mesh.
    pub mesh: MeshHandle,
    /// Where claims are decided.
    pub cluster: Arc<dyn Cluster>,
    /// The plugins.
    pub policies: Arc<Policies>,
    /// The other owner.
    pub attachments: attachments::Handle,
    /// Counters.
    pub metrics: Metrics,
    /// What the packet threads read.
    pub table: Arc<ArcSwap<TunnelTable>>,
    /// Hears who the keeper is.
    pub keeper: watch::Sender<Option<PeerId>>,
    /// The topology in force, for the plugin gate.
    pub live: watch::Sender<Option<Topology>>,
}

/// Where events come from.
pub struct Sources {
    /// The mesh's events.
    pub mesh: mpsc::Receiver<MeshEvent>,
    /// The kernel's changes.
    pub kernel: mpsc::Receiver<KernelChange>,
    /// The cluster's facts.
    pub facts: watch::Receiver<ClusterFacts>,
    /// Addresses in use on this node.
    pub in_use: watch::Receiver<BTreeSet<std::net::IpAddr>>,
}

/// What a job brought back.
pub(crate) enum Done {
    /// A plugin planned routes for this generation.
    Planned(routing::Planned),
    /// A claim job ended.
    Claimed(claims::Claimed),
    /// A claim job for the blocks of a configuration ended.
    Covered(cover::Covered),
    /// The keeper answered a registration.
    Registered(Result<CountersignedRecord, String>),
    /// A probe of an on-link candidate ended.
    Probed(liveness::Probed),
}

/// The task's state.
pub struct ClusterOwner {
    parts: Parts,
    own: PeerId,
    facts: ClusterFacts,
    keeper: Option<PeerId>,
    directory: Directory,
    records: BTreeMap<String, CountersignedRecord>,
    ledger: Ledger,
    held: HeldBlocks,
    reach: BTreeMap<String, PeerReach>,
    paths: BTreeMap<PeerId, PeerPath>,
    on_link: Vec<OnLink>,
    failed_next_hops: BTreeSet<std::net::IpAddr>,
    in_use: BTreeSet<std::net::IpAddr>,
    /// Attachments that still live in blocks this node has lost.
    stranded: BTreeSet<std::net::IpAddr>,
    topology: Option<Topology>,
    admitted: AdmittedRoutes,
    decided_by: String,
    refusal: Option<String>,
    generation: u64,
    work: Work,
    covers: cover::Covers,
    jobs: mpsc::Sender<Done>,
}

/// What is in flight or due.
#[derive(Default)]
struct Work {
    plan_due: Option<Instant>,
    reconcile: bool,
    ensure: bool,
    replan: bool,
    planning: bool,
    failed_plans: u32,
    claiming: BTreeSet<Family>,
    wanted: BTreeSet<Family>,
    registering: bool,
    registered_sequence: u64,
    registration_refusal: Option<String>,
    probing: BTreeSet<(String, std::net::IpAddr)>,
    next_probe: Option<Instant>,
}

impl ClusterOwner {
    /// Starts the task on what the state holds.
    ///
    /// # Errors
    /// When the state cannot be read or the kernel cannot be asked.
    pub async fn start(parts: Parts, sources: Sources) -> Result<Handle, StartError> {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (jobs, done) = mpsc::channel(JOBS);
        let mut owner = Self::load(parts, &sources, jobs).await?;
        owner.begin().await;
        tokio::spawn(owner.run(sources, inbox, done));
        Ok(Handle(commands))
    }

    async fn run(mut self, mut sources: Sources, mut inbox: mpsc::Receiver<Command>, mut done: mpsc::Receiver<Done>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let plan_due = self.work.plan_due;
            tokio::select! {
                event = sources.mesh.recv() => match event {
                    Some(event) => self.on_mesh(event).await,
                    None => return,
                },
                command = inbox.recv() => match command {
                    Some(command) => self.on_command(command).await,
                    None => return,
                },
                Some(done) = done.recv() => self.on_done(done).await,
                Some(change) = sources.kernel.recv() => self.on_kernel_change(change),
                Ok(()) = sources.facts.changed() => {
                    let facts = sources.facts.borrow_and_update().clone();
                    self.on_facts(facts);
                }
                Ok(()) = sources.in_use.changed() => {
                    let in_use = sources.in_use.borrow_and_update().clone();
                    self.on_addresses(in_use).await;
                }
                () = sleep_until(plan_due) => self.on_plan_due().await,
                _ = tick.tick() => self.on_tick().await,
            }
        }
    }

    async fn on_mesh(&mut self, event: MeshEvent) {
        match event {
            MeshEvent::Connected { peer, path } => self.on_connected(peer, path).await,
            MeshEvent::PathChanged { peer, path } => self.note_path(&peer, Some(path)),
            MeshEvent::Disconnected { peer } => self.on_disconnected(&peer),
            MeshEvent::Told { from, records } => self.on_told(&from, records).await,
            MeshEvent::Asked { from, ask, reply } => self.on_asked(&from, ask, reply).await,
            MeshEvent::RelayIdentified { node_name, peer } => self.on_relay_identified(&node_name, peer),
            MeshEvent::RelayReady { .. }
            | MeshEvent::RelayRefused { .. }
            | MeshEvent::RelayUnreachable { .. }
            | MeshEvent::RelayIsSelf { .. }
            | MeshEvent::StrangerRefused { .. }
            | MeshEvent::RoundTrip { .. }
            | MeshEvent::ListenFailed { .. } => self.log_mesh_event(&event),
        }
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Replan => {
                self.work.replan = true;
                self.plan_soon();
            }
            Command::NeedBlock(family) => {
                self.work.wanted.insert(family);
                self.look_after_claims();
            }
            Command::Cover(wish, reply) => self.on_cover(wish, reply),
            Command::ReleaseName(name, reply) => answer(reply, self.release_name(&name)),
            Command::Peers(reply) => answer(reply, self.view_peers()),
            Command::Routes(reply) => {
                let routes = self.view_routes().await;
                answer(reply, routes);
            }
            Command::Blocks(reply) => answer(reply, self.view_blocks()),
            Command::Status(reply) => answer(reply, self.view_status()),
            Command::Explain(address, reply) => {
                let explanation = self.explain(address).await;
                answer(reply, explanation);
            }
        }
    }

    async fn on_done(&mut self, done: Done) {
        match done {
            Done::Planned(planned) => self.on_planned(planned).await,
            Done::Claimed(claimed) => self.on_claimed(claimed).await,
            Done::Covered(covered) => self.on_covered(covered).await,
            Done::Registered(registered) => self.on_registered(registered).await,
            Done::Probed(probed) => self.on_probed(&probed),
        }
    }

    fn on_facts(&mut self, facts: ClusterFacts) {
        self.ledger = Ledger::load(
            facts.pools.clone(),
            facts.service_prefixes.clone(),
            self.ledger.rows().cloned().collect::<Vec<_>>(),
        );
        self.facts = facts;
        self.plan_soon();
        self.look_after_claims();
    }

    fn on_kernel_change(&mut self, change: KernelChange) {
        match change {
            // Ours to repair, and costly to look at: what comes and goes with pods is not reported as a change.
            KernelChange::Rules | KernelChange::Firewall => self.work.ensure = true,
            KernelChange::Links | KernelChange::Addresses | KernelChange::Routes => {}
        }
        self.look_soon();
    }

    /// The kernel will be looked at.
    fn look_soon(&mut self) {
        self.work.reconcile = true;
        self.plan_soon();
    }

    async fn on_tick(&mut self) {
        self.look_after_claims();
        self.look_after_registration();
        self.look_after_probes();
        self.look_after_next_hops().await;
    }

    /// A plan will be made, together with whatever else changes until then.
    fn plan_soon(&mut self) {
        self.work.plan_due.get_or_insert_with(|| Instant::now() + PLAN_DEBOUNCE);
    }

    /// Runs something beside the loop; its result comes back as a [`Done`].
    fn spawn_job(&self, job: impl Future<Output = Done> + Send + 'static) {
        let jobs = self.jobs.clone();
        tokio::spawn(async move {
            let _stopping = jobs.send(job.await).await;
        });
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Nobody waits any more when the receiver is gone.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _gone = reply.send(value);
}
