//! Carries out what `core` decided, in this node's kernel: links, addresses, routes, shaping, firewall, TUN.
//!
//! Nothing here chooses anything. [`Kernel`] owns one serialised netlink sequence (a socket refuses a
//! second dump while one runs), so whoever holds it is the only one who talks on it.
//!
//! ```text
//! NodeSpec ─> Kernel::ensure_node ─> bridge, TUN, sysctls, rules, firewall     (node, sysctl, firewall, nat_table, tun)
//! Plan     ─> Kernel::apply ──────> one batched send a namespace, or undone    (apply, batch, message, nat_table)
//! kernel   ─> Kernel::observe ────> links, our routes, the underlay            (observe)
//! kernel   ─> Kernel::nat_elements > host ports, exempt addresses              (nat_table)
//! kernel   ─> Kernel::watch ──────> somebody changed something, look again      (watch)
//! kernel   ─> Kernel::inspect ────> one attachment as it is, for a CHECK        (inspect)
//! ```
//!
//! Everything of ours can be told apart from everything else: links are in group [`LINK_GROUP`], routes
//! in table [`ROUTE_TABLE`] with protocol [`ROUTE_PROTOCOL`], rules carry the same protocol, chains are
//! named `CULVERT-…`, and the nft table of each family is named `culvert`.

mod apply;
mod batch;
mod error;
mod firewall;
mod inspect;
mod kill_point;
mod message;
mod nat_table;
mod neighbour;
mod node;
mod observe;
mod remover;
mod rtnl;
mod stale_flows;
mod sysctl;
mod tun;
mod watch;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use culvert_core::attachment::Attachment;
use culvert_core::attachment_check::AttachmentLinks;
use culvert_core::nat::NatElements;
use culvert_core::plan::Plan;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::fd::OwnedFd;

pub use crate::apply::{ApplyError, PodNamespace, UndoFailure};
pub use crate::error::KernelError;
pub use crate::firewall::FirewallError;
pub use crate::kill_point::kill_point;
pub use crate::nat_table::NatTableError;
pub use crate::neighbour::Neighbour;
pub use crate::node::{NodeLinks, NodeSpec};
pub use crate::observe::{Link, Observed, OnLink};
pub use crate::remover::LinkRemover;
pub use crate::sysctl::SysctlError;
pub use crate::tun::{Offloads, Tun, TunError, open_tun};
pub use crate::watch::{KernelChange, Watch};

use crate::batch::Channel;
use crate::nat_table::NatTable;
use crate::rtnl::Rtnl;
use crate::stale_flows::StaleFlows;

/// The routing table that holds all routes of Culvert and nothing else.
pub const ROUTE_TABLE: u8 = 67;
/// The "who installed this" mark of our routes and rules.
pub const ROUTE_PROTOCOL: u8 = 67;
/// The group of every link of ours: how strays are told from other people's links.
pub const LINK_GROUP: u32 = 67;
/// The group that links of ours are in while they are deleted.
pub const DEPARTING_GROUP: u32 = 6767;
/// The place of our rule: before `main` (32,766), so that our table decides first, and far enough behind 0
/// that an operator can still put rules before it.
pub const RULE_PRIORITY: u32 = 1000;
/// The bit of a packet's mark that says: the NAT table has decided on this packet's source address, and the
/// firewall's masquerade leaves it alone. Bit 12 is free of what Kubernetes (14, 15), its reference plugin for
/// host ports (13), Calico (16 to 31), Weave and Tailscale (17 to 19) use; other network plugins do not share a node.
pub const DECIDED_MARK: u32 = 0x1000;
/// What the names of host ends and of their ifbs start with.
pub const POD_LINK_PREFIX: &str = "cv";
/// **Units** bytes. The kernel's `IFNAMSIZ` without the final zero.
pub const LINK_NAME_MAX_BYTES: usize = 15;

/// The first interface index we choose. The kernel counts up from 1 by itself and would need this many
/// interfaces made in one namespace before it met ours.
const FIRST_INDEX: u32 = 0x1000_0000;
/// How many indexes we choose among before starting again, so that the number stays a positive `int`.
const INDEX_SPAN: u32 = 0x6000_0000;
/// The next index to try; one counter for the process, so that two owners never choose the same.
static NEXT_INDEX: AtomicU32 = AtomicU32::new(0);

/// This node's kernel. May be opened twice (attachments and routes have their own owner).
///
/// **Cancel safety** a future of [`Kernel::apply`] that is dropped still applies or undoes the whole plan;
/// only its answer is lost.
pub struct Kernel {
    rtnl: Rtnl,
    channel: Arc<Mutex<Channel<Socket>>>,
    nat: Arc<Mutex<NatTable>>,
    flows: Arc<StaleFlows>,
    index_probe: OwnedFd,
    names: LinkNames,
}

/// What the two links that routes name are called. Their indexes are looked up whenever they are needed,
/// because anybody may delete and make them again.
#[derive(Clone, Debug)]
struct LinkNames {
    bridge: String,
    tun: String,
}

impl Kernel {
    /// Open the sockets, in the calling thread's network namespace.
    ///
    /// **Errors** [`KernelError::Open`]. Needs a tokio runtime.
    pub async fn open() -> Result<Self, KernelError> {
        let rtnl = Rtnl::open()?;
        let channel = Channel::open(NETLINK_ROUTE).map_err(KernelError::Open)?;
        let nat = NatTable::open().map_err(KernelError::Open)?;
        let flows = StaleFlows::open().map_err(KernelError::Open)?;
        let index_probe = index_probe().map_err(KernelError::Open)?;
        Ok(Self {
            rtnl,
            channel: Arc::new(Mutex::new(channel)),
            nat: Arc::new(Mutex::new(nat)),
            flows: Arc::new(flows),
            index_probe,
            names: LinkNames { bridge: "cni0".into(), tun: "culvert0".into() },
        })
    }

    /// Make the node what `spec` says: TUN, bridge, gateway addresses, sysctls, rules, firewall, NAT table.
    ///
    /// What is right already is not touched, so calling it again disrupts nothing; when the rules of the NAT table
    /// differ they are replaced in one transaction, and its elements stay. It makes the TUN when [`open_tun`] has not been called
    /// yet.
    ///
    /// **Errors** [`KernelError`]; what was set up by then stays, and a later call goes on from there.
    pub async fn ensure_node(&mut self, spec: &NodeSpec) -> Result<NodeLinks, KernelError> {
        node::check_names(spec)?;
        self.names = LinkNames { bridge: spec.bridge.clone(), tun: spec.tun.clone() };
        node::ensure(&mut self.rtnl, &self.nat, spec).await
    }

    /// Take everything of ours away, pod links included, and touch nothing else.
    ///
    /// Forwarding stays switched on: by now other software may rely on it.
    ///
    /// **Errors** the first of all failures; everything that could be removed was.
    pub async fn remove_node(&mut self, spec: &NodeSpec) -> Result<(), KernelError> {
        node::check_names(spec)?;
        node::remove(&mut self.rtnl, &self.nat, spec).await
    }

    /// Carry a plan out. On any failure everything that had succeeded is undone.
    ///
    /// Steps of this node go first, in one send, those of the pod's namespace after them, in one send on its
    /// own socket. New links come up last of all, so that their queueing disciplines are attached while no
    /// packet can pass (attaching to a running link waits for every CPU). Elements of the NAT table change
    /// before all of these where their steps stand before all other steps, else after them. UDP flows that a
    /// changed port left behind are forgotten a moment later.
    ///
    /// The calling thread waits while the kernel works: a millisecond for an attachment.
    ///
    /// **Errors** [`ApplyError`], with the step, what the kernel said, and what could not be undone.
    pub async fn apply(&mut self, plan: &Plan, pod: Option<&PodNamespace>) -> Result<(), ApplyError> {
        apply::apply(self, plan, pod).await
    }

    /// What is there now.
    ///
    /// **Errors** [`KernelError`] when the kernel cannot be asked.
    pub async fn observe(&mut self) -> Result<Observed, KernelError> {
        observe::observe(&mut self.rtnl, &self.names).await
    }

    /// The elements of the NAT table that are there now. A table that is not there has none.
    ///
    /// **Errors** [`KernelError`] when the kernel cannot be asked.
    pub async fn nat_elements(&mut self) -> Result<NatElements, KernelError> {
        let nat = Arc::clone(&self.nat);
        let list = move || nat.lock().unwrap_or_else(PoisonError::into_inner).elements();
        tokio::task::spawn_blocking(list).await?.map_err(nat_failed("list the elements of the NAT table"))
    }

    /// Watch what others change in the calling thread's network namespace. The elements that this handle changes are
    /// no change in that sense, nor are the links of pods.
    ///
    /// **Errors** [`KernelError::Open`]. Needs a tokio runtime.
    pub fn watch(&self) -> Result<Watch, KernelError> {
        watch::watch(self.nat.lock().unwrap_or_else(PoisonError::into_inner).port())
    }

    /// Whether an on-link next hop answers.
    ///
    /// Unless its entry is fresh the kernel is asked to find out, so that the next call knows.
    ///
    /// **Errors** [`KernelError`] when the kernel cannot be asked.
    pub async fn neighbour_state(&mut self, address: std::net::IpAddr) -> Result<Neighbour, KernelError> {
        neighbour::state(&mut self.rtnl, address).await
    }

    /// What is there of one attachment, inside its pod too when its namespace is passed. Changes nothing; what is
    /// missing is told, not refused.
    ///
    /// **Errors** [`KernelError`] when the kernel cannot be asked, or what was passed is no socket of a pod.
    pub async fn inspect(
        &mut self,
        attachment: &Attachment,
        pod: Option<&PodNamespace>,
    ) -> Result<AttachmentLinks, KernelError> {
        inspect::inspect(self, attachment, pod).await
    }

    /// Whether the static rules of the node are as [`Kernel::ensure_node`] leaves them. Changes nothing.
    ///
    /// It asks the programs of iptables some dozens of questions, one process each: not while a pod waits for its network.
    ///
    /// **Errors** [`KernelError`] when they cannot be asked.
    pub async fn firewall_stands(&mut self, spec: &NodeSpec) -> Result<bool, KernelError> {
        node::check_names(spec)?;
        let firewall = firewall::Wanted::new(spec, sysctl::has_ipv6());
        let (nat, bridge) = (Arc::clone(&self.nat), spec.bridge.clone());
        let nat_stands = move || nat.lock().unwrap_or_else(PoisonError::into_inner).rules_stand(&bridge);
        let nat_stands = tokio::task::spawn_blocking(nat_stands).await?;
        if !nat_stands.map_err(nat_failed("list the rules of the NAT table"))? {
            return Ok(false);
        }
        Ok(tokio::task::spawn_blocking(move || firewall.stands()).await??)
    }

    /// An interface index that no link of this namespace uses, and that no earlier call returned.
    pub fn free_index(&mut self) -> u32 {
        next_index(&self.index_probe)
    }
}

/// A socket of the calling thread's network namespace, to ask which links are there.
fn index_probe() -> std::io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// Our words for a failure of the NAT table's socket.
fn nat_failed(action: &'static str) -> impl FnOnce(std::io::Error) -> KernelError {
    move |source| KernelError::Refused { action: action.to_owned(), source }
}

/// The next index that is unused in the namespace `probe` was opened in.
fn next_index(probe: &OwnedFd) -> u32 {
    loop {
        let index = FIRST_INDEX + (index_seed().wrapping_add(NEXT_INDEX.fetch_add(1, Ordering::Relaxed))) % INDEX_SPAN;
        // Anything but "no such device" leaves it in doubt: take the next. The loop ends because a
        // namespace cannot hold as many links as there are indexes to choose among.
        let taken = rustix::net::netdevice::index_to_name(probe, index);
        if let Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) = taken {
            return index;
        }
    }
}

/// Where this process starts counting: another place at each start, because links of an earlier process
/// may still be in pod namespaces, where we cannot look.
fn index_seed() -> u32 {
    static SEED: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *SEED.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = u32::try_from(since.as_secs() & u64::from(u32::MAX)).unwrap_or(0);
        seconds.wrapping_mul(0x9E37_79B1) ^ since.subsec_nanos() ^ std::process::id().rotate_left(16)
    })
}
