//! The task that owns the attachments of this node: records, leases, rates, and the kernel links behind
//! them. Requests are served one after another; each is a few milliseconds.
//!
//! ```text
//! cni_server ──ADD, DEL, CHECK, STATUS──> AttachmentsOwner ──plan──> kernel
//! cluster_owner ──blocks, bridge────────>        │ journal before the first kernel write
//! policies ──reshape────────────────────>        └──> store
//! ```

mod addresses;
mod chained;
mod check;
mod departure;
mod error;
mod repair;
mod requests;
mod shaping;
mod tombstones;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_cni::route::RouteWish;
use culvert_core::address::Family;
use culvert_core::allocation::AddressWish;
use culvert_core::attachment::{Attachment, AttachmentKey};
use culvert_core::attachment_check::PreviousResult;
use culvert_core::bandwidth::Limits;
use culvert_core::claim::Pool;
use culvert_core::host_port::HostPort;
use culvert_core::lease::LeaseTable;
use culvert_core::policy::PodView;
use culvert_kernel::{Kernel, LinkRemover, PodNamespace};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::store::Store;
use crate::view;

use departure::Departures;
pub use error::AttachmentError;
pub use repair::StartError;

/// Requests that may wait for their turn; the sender waits when it is full. Runtimes start pods by the
/// dozen, not by the thousand.
const COMMANDS: usize = 256;
/// How long an ADD waits for the node's first blocks before the runtime is told to try again.
const BLOCK_WAIT: Duration = Duration::from_secs(2);
/// ADDs that may wait for the first blocks at a time; one more is told to try again at once.
const WAITING_ADDS: usize = 128;
/// How often records, interfaces and the runtime's own notes are compared: no runtime in use asks for GC.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Below this many free addresses in all blocks of a family, one more block is claimed.
const LOW_WATER: u32 = 8;

/// An ADD, decoded and checked.
pub struct AddRequest {
    /// Which attachment.
    pub key: AttachmentKey,
    /// CNI_NETNS, verbatim.
    pub netns: String,
    /// The pod's namespace, as the shim passed it.
    pub namespace: PodNamespace,
    /// The pod, as far as the runtime named it.
    pub pod: PodView,
    /// The pod's uid; may be empty.
    pub pod_uid: String,
    /// Which addresses it wants.
    pub wish: AddressWish,
    /// Whether its addresses stay its own when it ends.
    pub sticky: bool,
    /// The hardware address it wants.
    pub mac: Option<[u8; 6]>,
    /// The rates the runtime asks for.
    pub requested: Limits,
    /// The node's ports that shall lead to it.
    pub host_ports: Vec<HostPort>,
    /// **Units** bytes; the node's unless the configuration of the network says otherwise.
    pub mtu_bytes: Option<u32>,
    /// Whether it may reach itself through the bridge.
    pub hairpin: bool,
    /// Whether the bridge shall take in frames for any hardware address.
    pub promiscuous_bridge: bool,
    /// Whether it leaves the cluster under the node's address.
    pub masquerade: bool,
    /// Its routes.
    pub routes: RouteWish,
    /// What another plugin made, when this one comes later in a chain: then only host ports and rates are added.
    pub chained: Option<Chained>,
}

/// The interface that another plugin gave a pod.
pub struct Chained {
    /// Links of the host that the plugins before this one named.
    pub host_links: Vec<String>,
    /// The pod's addresses.
    pub addresses: Vec<IpNet>,
}

/// The bridge that pods hang on.
#[derive(Clone, Copy, Debug)]
pub struct Bridge {
    /// Its interface index.
    pub index: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// What a CHECK compares with.
pub struct CheckRequest {
    /// Which attachment.
    pub key: AttachmentKey,
    /// The pod's namespace, as the shim passed it.
    pub namespace: Option<PodNamespace>,
    /// What the runtime got from the ADD.
    pub previous: PreviousResult,
}

type Reply<T> = oneshot::Sender<Result<T, AttachmentError>>;

/// What others ask of the owner.
pub enum Command {
    /// Attach a pod.
    Add(Box<AddRequest>, Reply<Attachment>),
    /// The shim has handed the answer to the runtime.
    Acknowledged(AttachmentKey),
    /// Detach a pod; done already counts as done.
    Delete(AttachmentKey, Reply<()>),
    /// Detach every attachment of a network that is not in the list.
    Collect(String, Vec<AttachmentKey>, Reply<()>),
    /// Compare an attachment with what is there.
    Check(Box<CheckRequest>, Reply<()>),
    /// Whether an ADD with this wish would be served.
    Ready(AddressWish, Reply<()>),
    /// What this node may give addresses from.
    SetBlocks {
        /// Blocks that new addresses may come from.
        usable: Vec<IpNet>,
        /// These, and lost ones that still have attachments.
        all: Vec<IpNet>,
        /// The cluster's pools: their families are what every pod gets.
        pools: Vec<Pool>,
    },
    /// The bridge is there.
    SetBridge(Bridge),
    /// Somebody changed the packet filter: set what is missing of host ports and exemptions.
    SetElements,
    /// The bandwidth policy changed: ask again for every pod.
    Reshape,
    /// What the admin API shows.
    Leases(oneshot::Sender<(Vec<view::Lease>, Vec<String>)>),
    /// Addresses in use by block.
    Usage(oneshot::Sender<BTreeMap<String, u64>>),
    /// The addresses of a pod given by address, `namespace/name` or container id.
    Find(String, oneshot::Sender<Vec<IpAddr>>),
    /// How many attachments there are.
    Count(oneshot::Sender<usize>),
}

/// A way to talk to the owner.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Command>);

impl Handle {
    /// Sends a command that has no answer. The owner being gone means the daemon is stopping.
    pub async fn send(&self, command: Command) {
        let _stopping = self.0.send(command).await;
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// What the owner says, or that the daemon is stopping.
    pub async fn request<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, AttachmentError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).await.map_err(|_| AttachmentError::Stopping)?;
        answer.await.map_err(|_| AttachmentError::Stopping)?
    }

    /// Sends a question; `None` while the daemon is stopping.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Tells which blocks this node holds.
    pub async fn set_blocks(&self, usable: Vec<IpNet>, all: Vec<IpNet>, pools: Vec<Pool>) {
        self.send(Command::SetBlocks { usable, all, pools }).await;
    }

    /// Tells about the bridge.
    pub async fn set_bridge(&self, bridge: Bridge) {
        self.send(Command::SetBridge(bridge)).await;
    }
}

/// What the owner is made of.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The state.
    pub store: Store,
    /// The owner's own kernel sockets.
    pub kernel: Kernel,
    /// What takes links away.
    pub remover: LinkRemover,
    /// The plugins.
    pub policies: Arc<Policies>,
    /// Counters.
    pub metrics: Metrics,
    /// Hears of families whose blocks run low.
    pub low: mpsc::Sender<Family>,
    /// Hears which addresses are in use.
    pub in_use: watch::Sender<BTreeSet<IpAddr>>,
}

/// The task's state.
pub struct AttachmentsOwner {
    parts: Parts,
    attachments: BTreeMap<AttachmentKey, Attachment>,
    leases: LeaseTable,
    blocks: Vec<IpNet>,
    pools: Vec<Pool>,
    bridge: Option<Bridge>,
    repaired: bool,
    waiting: Vec<Waiting>,
    departures: Departures,
    /// Attachments that looked abandoned the last time.
    suspects: BTreeSet<AttachmentKey>,
}

/// An ADD that waits for the node's first blocks.
struct Waiting {
    until: Instant,
    request: Box<AddRequest>,
    reply: Reply<Attachment>,
}

impl AttachmentsOwner {
    /// Starts the task on what the state and the kernel hold.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn start(parts: Parts) -> Result<Handle, StartError> {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let owner = Self::load(parts)?;
        tokio::spawn(owner.run(inbox));
        Ok(Handle(commands))
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let deadline = self.waiting.iter().map(|waiting| waiting.until).min();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.on_command(command).await,
                    None => return,
                },
                departed = self.departures.next() => self.on_departed(departed),
                _ = look.tick() => self.look_after().await,
                () = until(deadline) => self.give_up_waiting(),
            }
        }
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Add(request, reply) => self.on_add_request(request, reply).await,
            Command::Acknowledged(key) => self.acknowledge(&key),
            Command::Delete(key, reply) => self.begin_departure(&key, reply).await,
            Command::Collect(network, valid, reply) => {
                let collected = self.collect(&network, &valid).await;
                answer(reply, collected);
            }
            Command::Check(request, reply) => {
                let checked = self.check(&request).await;
                answer(reply, checked);
            }
            Command::Ready(wish, reply) => answer(reply, self.ready(&wish)),
            Command::SetBlocks { usable, all, pools } => self.set_blocks(usable, all, pools).await,
            Command::SetBridge(bridge) => self.set_bridge(bridge).await,
            Command::SetElements => self.set_elements().await,
            Command::Reshape => self.reshape_all().await,
            Command::Leases(reply) => {
                let leases = self.view_leases().await;
                answer(reply, leases);
            }
            Command::Usage(reply) => answer(reply, self.usage()),
            Command::Find(pod, reply) => answer(reply, self.find(&pod)),
            Command::Count(reply) => answer(reply, self.attachments.len()),
        }
    }

    async fn on_add_request(&mut self, request: Box<AddRequest>, reply: Reply<Attachment>) {
        if self.ready(&request.wish).is_err() && self.may_become_ready() && self.waiting.len() < WAITING_ADDS {
            self.waiting.push(Waiting { until: Instant::now() + BLOCK_WAIT, request, reply });
            return;
        }
        let added = self.add(*request).await;
        answer(reply, added);
    }

    /// Serves the ADDs that waited for blocks, once the blocks are there.
    async fn serve_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            if self.ready(&waiting.request.wish).is_err() {
                self.waiting.push(waiting);
                continue;
            }
            let added = self.add(*waiting.request).await;
            answer(waiting.reply, added);
        }
    }

    fn give_up_waiting(&mut self) {
        let now = Instant::now();
        let (over, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.until <= now);
        for waiting in over {
            let reason = self.ready(&waiting.request.wish).err().unwrap_or(AttachmentError::Stopping);
            answer(waiting.reply, Err(reason));
        }
        self.waiting = still;
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Nobody waits any more when the receiver is gone.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _gone = reply.send(value);
}

/// **Units** milliseconds since the epoch. A clock before it counts as the epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
