//! Carries out a whole plan, or none of it.
//!
//! ```text
//! look up the links it names ─> compile ─> ports that go ─> host: one send ─> sysctls of new host ends
//!                                   │                                              └─> pod: one send ─> ports that come
//!                                   └─ impossible: nothing was changed     any failure ─> inverses, last step first
//! ```
//!
//! Ports that go and come are one transaction each on the NAT table.
//!
//! Router advertisements of a pod cannot reach the node from the moment its link exists: the firewall drops
//! whatever arrives by a host end itself (`firewall`), and IPv6 is switched off on the host end before the
//! pod end comes up, without which no packet can arrive at all.

mod compile;
mod elements;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use culvert_core::plan::{Plan, Step};
use netlink_sys::Socket;
use rustix::fd::OwnedFd;

use crate::batch::{Answer, Channel, Refusal, SEND_MAX};
use crate::error::KernelError;
use crate::kill_point::{ONE_BY_ONE, kill_point};
use crate::message::Request;
use crate::message::route::RouteLinks;
use crate::nat_table::{Change, NatTable, Refused};
use crate::observe::facts;
use crate::sysctl::{Sysctl, SysctlError, has_ipv6};
use crate::{Kernel, next_index};
use compile::{Compiled, Facts, Impossible, Side, World, compile};
use elements::{Changes, changes};

/// Requests that go together.
const TOGETHER: usize = if ONE_BY_ONE { 1 } else { SEND_MAX };

/// Errors that mean: what the request names is not there.
const GONE: [i32; 4] = [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL];

/// A pod's network namespace, as the shim passed it.
#[derive(Debug)]
pub struct PodNamespace {
    /// The namespace itself: where the pod end is born.
    pub netns: OwnedFd,
    /// A `NETLINK_ROUTE` socket that was opened inside it: how links, addresses and routes there are set
    /// without ever entering it.
    pub rtnetlink: OwnedFd,
}

/// A step that could not be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoFailure {
    /// The inverse that failed.
    pub step: Box<Step>,
    /// What the kernel said.
    pub reason: String,
}

/// A plan was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel refused a step. What had succeeded before and after it was undone, `undo` apart.
    #[error("step {position} of the plan failed ({step:?}): {source}{detail}")]
    Refused {
        /// Its position in the plan.
        position: usize,
        /// The step.
        step: Box<Step>,
        /// The kernel's error.
        #[source]
        source: io::Error,
        /// The kernel's words, if it had any, in brackets.
        detail: String,
        /// What is left behind: needs an operator or the next repair.
        undo: Vec<UndoFailure>,
    },
    /// A step cannot be expressed; nothing was changed.
    #[error("step {position} of the plan is impossible ({step:?}): {reason}")]
    Impossible {
        /// Its position in the plan.
        position: usize,
        /// The step.
        step: Box<Step>,
        /// Why.
        reason: String,
    },
    /// The sysctls of a new host end could not be set; the plan was undone.
    #[error("step {position} of the plan failed ({step:?}): {source}")]
    Sysctl {
        /// Its position in the plan.
        position: usize,
        /// The step.
        step: Box<Step>,
        /// Which sysctl.
        #[source]
        source: SysctlError,
        /// What is left behind.
        undo: Vec<UndoFailure>,
    },
    /// A socket failed, so that it is not known what succeeded; everything was undone.
    #[error("the netlink socket failed while the plan was applied: {source}")]
    Socket {
        /// Why.
        #[source]
        source: io::Error,
        /// What is left behind.
        undo: Vec<UndoFailure>,
    },
    /// What the shim passed is not a pod's namespace; nothing was changed.
    #[error("the pod's namespace cannot be used: {reason}")]
    BadNamespace {
        /// Why.
        reason: String,
    },
    /// The kernel could not be asked what is there; nothing was changed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl ApplyError {
    /// What could not be undone.
    #[must_use]
    pub fn undo_failures(&self) -> &[UndoFailure] {
        match self {
            Self::Refused { undo, .. } | Self::Sysctl { undo, .. } | Self::Socket { undo, .. } => undo,
            Self::Impossible { .. } | Self::BadNamespace { .. } | Self::Kernel(_) => &[],
        }
    }

    /// The kernel's error number, when it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket { source, .. } => source.raw_os_error(),
            Self::Impossible { .. } | Self::Sysctl { .. } | Self::BadNamespace { .. } | Self::Kernel(_) => None,
        }
    }
}

/// See [`Kernel::apply`].
pub(crate) async fn apply(kernel: &mut Kernel, plan: &Plan, pod: Option<&PodNamespace>) -> Result<(), ApplyError> {
    let pod = pod.map(open_pod).transpose()?;
    let mut world = resolve(kernel, plan).await?;
    world.netns = pod.as_ref().map(|(netns, _)| netns.as_raw_fd());
    let compiled = compile(plan, &world).map_err(|impossible| not_possible(plan, impossible))?;
    let changes = changes(plan).map_err(|impossible| not_possible(plan, impossible))?;
    let (_netns, pod) = pod.unzip();
    let (host, nat) = (Arc::clone(&kernel.channel), Arc::clone(&kernel.nat));
    let mut sequence = Sequence { host, pod, nat, world, plan: plan.clone() };
    // From here on nothing is awaited, so it runs to its end whatever becomes of this future.
    let result = sequence.run(compiled, &changes);
    if result.is_ok() {
        kernel.flows.forget_soon(plan);
    }
    result
}

/// Check the shim's two descriptors and take copies that live as long as the work does.
fn open_pod(pod: &PodNamespace) -> Result<(OwnedFd, Channel<OwnedFd>), ApplyError> {
    let bad = |reason: String| ApplyError::BadNamespace { reason };
    let netns = rustix::fs::fstat(&pod.netns).map_err(|errno| bad(errno.to_string()))?;
    let own = rustix::fs::stat("/proc/thread-self/ns/net").map_err(|errno| bad(errno.to_string()))?;
    if (netns.st_dev, netns.st_ino) == (own.st_dev, own.st_ino) {
        return Err(bad("it is the node's own network namespace".into()));
    }
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|error| bad(error.to_string()));
    let channel = Channel::adopt(copy(&pod.rtnetlink)?).map_err(|error| bad(format!("its socket: {error}")))?;
    Ok((copy(&pod.netns)?, channel))
}

fn not_possible(plan: &Plan, impossible: Impossible) -> ApplyError {
    let Impossible { position, reason } = impossible;
    ApplyError::Impossible { position, step: step_at(plan, position), reason }
}

/// The step at a position that came out of the same plan.
fn step_at(plan: &Plan, position: usize) -> Box<Step> {
    let gone = Step::DeleteLink { name: String::new() };
    Box::new(plan.steps.get(position).cloned().unwrap_or(gone))
}

/// Look up every link the plan names and does not make itself.
async fn resolve(kernel: &mut Kernel, plan: &Plan) -> Result<World, KernelError> {
    let mut world = World::default();
    if plan.steps.iter().any(|step| matches!(step, Step::SetRoute { .. } | Step::RemoveRoute { .. })) {
        let names = kernel.names.clone();
        world.routes = RouteLinks {
            bridge: lookup(kernel, &names.bridge).await?.map(|facts| facts.index),
            tun: lookup(kernel, &names.tun).await?.map(|facts| facts.index),
        };
    }
    for step in &plan.steps {
        match step {
            Step::CreateVeth(veth) => {
                let facts = Facts { index: veth.host_index, mtu_bytes: veth.mtu_bytes, exists: false };
                world.links.insert(veth.host_name.clone(), facts);
            }
            Step::ShapeIngress { host_name, .. } | Step::UnshapeIngress { host_name, .. } => {
                learn(kernel, &mut world.links, host_name).await?;
            }
            Step::ShapeEgress { host_name, ifb_name, .. } | Step::UnshapeEgress { host_name, ifb_name, .. } => {
                learn(kernel, &mut world.links, host_name).await?;
                learn(kernel, &mut world.links, ifb_name).await?;
                // An ifb that is not there is about to be made.
                let fresh = Facts { index: next_index(&kernel.index_probe), mtu_bytes: 0, exists: false };
                world.links.entry(ifb_name.clone()).or_insert(fresh);
            }
            Step::DeleteLink { .. }
            | Step::PodLinkUp { .. }
            | Step::PodAddress { .. }
            | Step::PodRoute { .. }
            | Step::SetRoute { .. }
            | Step::RemoveRoute { .. }
            | Step::SetPort { .. }
            | Step::RemovePort { .. }
            | Step::Exempt { .. }
            | Step::Unexempt { .. } => {}
        }
    }
    Ok(world)
}

async fn learn(kernel: &mut Kernel, links: &mut BTreeMap<String, Facts>, name: &str) -> Result<(), KernelError> {
    if !links.contains_key(name)
        && let Some(facts) = lookup(kernel, name).await?
    {
        links.insert(name.to_owned(), facts);
    }
    Ok(())
}

async fn lookup(kernel: &mut Kernel, name: &str) -> Result<Option<Facts>, KernelError> {
    let Some(link) = kernel.rtnl.link(name).await? else {
        return Ok(None);
    };
    Ok(Some(Facts { index: link.header.index, mtu_bytes: facts(&link).mtu_bytes, exists: true }))
}

/// The work of one plan, on its own thread.
struct Sequence {
    host: Arc<Mutex<Channel<Socket>>>,
    pod: Option<Channel<OwnedFd>>,
    nat: Arc<Mutex<NatTable>>,
    world: World,
    plan: Plan,
}

/// What happened to the plan so far.
#[derive(Default)]
struct Progress {
    /// Steps of which something may be in place, by position.
    touched: Vec<usize>,
    failure: Option<Failure>,
}

/// Why the plan stops.
enum Failure {
    Refused(usize, Refusal),
    Socket(io::Error),
    Sysctl(usize, SysctlError),
}

impl Sequence {
    fn run(&mut self, compiled: Vec<Compiled>, changes: &Changes) -> Result<(), ApplyError> {
        let (host, pod): (Vec<_>, Vec<_>) = compiled.into_iter().partition(|one| one.side == Side::Host);
        let mut progress = Progress::default();
        self.change(&changes.first, &mut progress);
        self.send(Side::Host, &host, &mut progress);
        if progress.failure.is_none()
            && let Err((position, error)) = quiet_host_ends(&self.plan)
        {
            progress.failure = Some(Failure::Sysctl(position, error));
        }
        self.send(Side::Pod, &pod, &mut progress);
        self.change(&changes.last, &mut progress);
        kill_point(|| "plan applied".to_owned());
        match progress.failure {
            None => Ok(()),
            Some(failure) => {
                let undo = self.undo(&progress.touched);
                Err(self.error(failure, undo))
            }
        }
    }

    /// Send the requests of one side and note what came of them.
    fn send(&mut self, side: Side, compiled: &[Compiled], progress: &mut Progress) {
        for part in compiled.chunks(TOGETHER) {
            if progress.failure.is_some() {
                return;
            }
            if let Some(first) = part.first() {
                kill_point(|| self.place_of(first.position));
            }
            match self.exchange(side, part.iter().map(|one| one.request.clone()).collect()) {
                Ok(answers) => progress.note(part, answers),
                Err(error) => {
                    progress.touched.extend(part.iter().map(|one| one.position));
                    progress.failure = Some(Failure::Socket(error));
                }
            }
        }
    }

    /// Change elements of the NAT table and note what came of it.
    fn change(&mut self, changes: &[Change], progress: &mut Progress) {
        for part in changes.chunks(if ONE_BY_ONE { 1 } else { usize::MAX }) {
            self.change_together(part, progress);
        }
    }

    fn change_together(&mut self, changes: &[Change], progress: &mut Progress) {
        let Some(first) = changes.first().filter(|_| progress.failure.is_none()) else { return };
        kill_point(|| self.place_of(first.position));
        // A long list is cut, so what was refused may have been done in part: its inverse finds what is there.
        progress.touched.extend(changes.iter().map(|change| change.position));
        match self.nat_table().carry_out(changes) {
            Ok(Ok(())) => {}
            Ok(Err(Refused { position, refusal })) => progress.failure = Some(Failure::Refused(position, refusal)),
            Err(error) => progress.failure = Some(Failure::Socket(error)),
        }
    }

    /// The name of the place before a step of the plan.
    fn place_of(&self, position: usize) -> String {
        format!("step {}", step_at(&self.plan, position).kind())
    }

    /// A transaction that panicked left nothing half done: the socket is good for the next.
    fn nat_table(&self) -> std::sync::MutexGuard<'_, NatTable> {
        self.nat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&mut self, side: Side, requests: Vec<Request>) -> io::Result<Vec<Answer>> {
        match (side, &mut self.pod) {
            // A send that panicked left nothing half done: the socket is good for the next.
            (Side::Host, _) => self.host.lock().unwrap_or_else(PoisonError::into_inner).send(requests),
            (Side::Pod, Some(pod)) => pod.send(requests),
            (Side::Pod, None) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "the plan has steps in a pod and no pod was passed"))
            }
        }
    }

    /// Apply the inverses of what was touched, last first. Goes on after a failure.
    fn undo(&mut self, touched: &[usize]) -> Vec<UndoFailure> {
        let steps = self.plan.steps.iter().enumerate().rev();
        let inverses: Vec<Step> =
            steps.filter(|(position, _)| touched.contains(position)).filter_map(|(_, step)| step.inverse()).collect();
        let mut failures = Vec::new();
        for step in inverses {
            kill_point(|| format!("undo {}", step.kind()));
            if let Err(reason) = self.undo_one(&step) {
                failures.push(UndoFailure { step: Box::new(step), reason });
            }
        }
        failures
    }

    fn undo_one(&mut self, inverse: &Step) -> Result<(), String> {
        if let Step::ShapeEgress { ifb_name, before: None, .. } = inverse
            && let Some(ifb) = self.world.links.get_mut(ifb_name)
        {
            // It was there before the plan took it away: it has to be made again.
            ifb.exists = false;
        }
        if let Some(change) = Change::of(inverse, 0)? {
            let undone = self.nat_table().carry_out(&[change.unless_gone()]);
            return undone.map_err(|error| error.to_string())?.map_err(|refused| describe(&refused.refusal));
        }
        let plan = Plan { steps: vec![inverse.clone()] };
        let compiled = compile(&plan, &self.world).map_err(|impossible| impossible.reason)?;
        for one in compiled {
            let answers = self.exchange(one.side, vec![one.request.clone()]).map_err(|error| error.to_string())?;
            for refusal in answers.into_iter().filter_map(Result::err) {
                let there_still = refusal.errno == libc::EEXIST;
                if !there_still && !is_gone(&refusal, one.removes_filter()) {
                    return Err(describe(&refusal));
                }
            }
        }
        Ok(())
    }

    fn error(&self, failure: Failure, undo: Vec<UndoFailure>) -> ApplyError {
        match failure {
            Failure::Socket(source) => ApplyError::Socket { source, undo },
            Failure::Sysctl(position, source) => {
                ApplyError::Sysctl { position, step: step_at(&self.plan, position), source, undo }
            }
            Failure::Refused(position, refusal) => ApplyError::Refused {
                position,
                step: step_at(&self.plan, position),
                detail: if refusal.text.is_empty() { String::new() } else { format!(" ({})", refusal.text) },
                source: io::Error::from_raw_os_error(refusal.errno),
                undo,
            },
        }
    }
}

impl Progress {
    /// Note the answers of one send. A veth counts as touched only if its first request, which makes it,
    /// succeeded: when that fails the name belongs to somebody else's link, which must stay.
    fn note(&mut self, part: &[Compiled], answers: Vec<Answer>) {
        for (one, answer) in part.iter().zip(answers) {
            match answer {
                Ok(()) => self.touched.push(one.position),
                Err(refusal) if one.gone_is_fine && is_gone(&refusal, one.removes_filter()) => {}
                Err(refusal) => {
                    let earlier =
                        matches!(&self.failure, Some(Failure::Refused(position, _)) if *position <= one.position);
                    if !earlier {
                        self.failure = Some(Failure::Refused(one.position, refusal));
                    }
                }
            }
        }
    }
}

/// Whether the kernel says that the object is not there. For a filter "invalid" says so too: the discipline that
/// it would hang on is gone.
fn is_gone(refusal: &Refusal, removes_filter: bool) -> bool {
    GONE.contains(&refusal.errno) || (removes_filter && refusal.errno == libc::EINVAL)
}

fn describe(refusal: &Refusal) -> String {
    let error = io::Error::from_raw_os_error(refusal.errno);
    if refusal.text.is_empty() { error.to_string() } else { format!("{error} ({})", refusal.text) }
}

/// Switch IPv6 off on new host ends: a bridge port needs none, and a frame addressed to the bridge group
/// (01:80:c2:00:00:0x) is handed to the port itself, router advertisement or not.
///
/// Where /proc/sys is read-only the firewall's rule for host ends has to do alone.
fn quiet_host_ends(plan: &Plan) -> Result<(), (usize, SysctlError)> {
    if !has_ipv6() {
        return Ok(());
    }
    for (position, step) in plan.steps.iter().enumerate() {
        let Step::CreateVeth(veth) = step else {
            continue;
        };
        match Sysctl::link("ipv6", &veth.host_name, "disable_ipv6").ensure("1") {
            Ok(_) => {}
            Err(error @ SysctlError::ReadOnly { .. }) => {
                tracing::debug!(%error, "the firewall alone keeps router advertisements out")
            }
            Err(error @ SysctlError::Failed { .. }) => return Err((position, error)),
        }
    }
    Ok(())
}
