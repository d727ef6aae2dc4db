//! Passes a call on to the daemon and its answer back to the runtime.
//!
//! | daemon away | answered |
//! |---|---|
//! | ADD, CHECK, GC | 11, so that the runtime tries again |
//! | DEL | 0 when the interface is gone and the rest is left to the daemon in a [file](crate::tombstone), else 11 |
//! | STATUS | 50 |

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use culvert_cni::code::Code;
use culvert_cni::frame::{Reply, Request};
use culvert_cni::version::Verb;

use crate::answer::{self, Failure};
use crate::call::Call;
use crate::connection::{Connection, ExchangeError};
use crate::namespace::PodNamespace;
use crate::tombstone;

/// How long a call may take. An honest answer takes milliseconds, and 2 s when an ADD waits for a
/// claim; under a burst of pods calls queue. kubelet gives the whole sandbox two minutes, so after
/// this the pod still gets a second attempt in time, and a hanging daemon is seen as one.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// STATUS is asked every few seconds: it must not pile up behind a daemon that hangs.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// Carries out one call.
pub fn run(call: &Call) -> ExitCode {
    match exchange(call) {
        Ok(Answered::ByDaemon(reply, connection)) => finish(call, &reply, connection),
        Ok(Answered::ByTombstone) => ExitCode::SUCCESS,
        Err(failure) => crate::fail(&failure),
    }
}

/// Who carried the call out.
enum Answered {
    /// The daemon.
    ByDaemon(Reply, Connection),
    /// The shim, as far as it can without the daemon.
    ByTombstone,
}

/// Prints the answer, then acknowledges it: an ADD whose answer never reached the runtime is one
/// that the daemon may undo.
fn finish(call: &Call, reply: &Reply, connection: Connection) -> ExitCode {
    if answer::write(&reply.stdout).is_err() {
        return ExitCode::FAILURE;
    }
    if call.environment.verb == Verb::Add && reply.exit_code == 0 {
        // The runtime has the answer and the pod its network. Should the daemon have gone in this
        // moment it settles the rest when it is back; taking the answer back is not possible.
        let _ = connection.acknowledge();
    }
    ExitCode::from(reply.exit_code)
}

fn exchange(call: &Call) -> Result<Answered, Failure> {
    let pod = open_pod(call)?;
    let request = Request { env: call.variables.clone(), stdin: call.stdin.clone() };
    let descriptors = pod.as_ref().map(|pod| [pod.namespace.file(), pod.rtnetlink.as_fd()]);
    let error = match Connection::exchange(&call.socket, &request, descriptors, limit(call.environment.verb)) {
        Ok((reply, connection)) => return Ok(Answered::ByDaemon(reply, connection)),
        Err(error) => error,
    };
    // Only a daemon that is not there cannot act on the request any more.
    if call.environment.verb == Verb::Del && matches!(error, ExchangeError::Connect(_)) {
        let left = tombstone::leave(call, &request, pod.as_ref().map(|pod| &pod.rtnetlink));
        return left.map(|()| Answered::ByTombstone).map_err(|reason| not_deleted(call, &error, &reason));
    }
    Err(no_answer(call, &error))
}

fn limit(verb: Verb) -> Duration {
    match verb {
        Verb::Status => STATUS_LIMIT,
        Verb::Add | Verb::Del | Verb::Check | Verb::Gc | Verb::Version => CALL_LIMIT,
    }
}

/// What the daemon needs of the pod.
struct Pod {
    namespace: PodNamespace,
    rtnetlink: OwnedFd,
}

/// Opens the pod's namespace for the verbs that have one. DEL does without whenever it is not there
/// or not usable: the daemon knows from its own records what to remove.
fn open_pod(call: &Call) -> Result<Option<Pod>, Failure> {
    let Some(path) = &call.environment.netns else { return Ok(None) };
    let open = |write_sysctls| {
        let namespace = PodNamespace::open(path)?;
        let rtnetlink = namespace.open_rtnetlink(write_sysctls)?;
        Ok(Pod { namespace, rtnetlink })
    };
    let opened = match call.environment.verb {
        Verb::Add => open(true),
        Verb::Check => open(false),
        Verb::Del => return Ok(open(false).ok()),
        Verb::Gc | Verb::Status | Verb::Version => return Ok(None),
    };
    let refused = |error: crate::namespace::NamespaceError| call.failure(error.code(), error.to_string());
    opened.map(Some).map_err(refused)
}

/// What the runtime is told when a DEL could be carried out neither by the daemon nor without it.
fn not_deleted(call: &Call, error: &ExchangeError, reason: &std::io::Error) -> Failure {
    let message = format!(
        "DEL was not carried out by the daemon at {}: {error}; without it, it failed too: {reason}; start culvertd, the \
         runtime tries again",
        call.socket.display()
    );
    call.failure(Code::TryAgainLater, message)
}

/// What the runtime is told when there is no answer.
fn no_answer(call: &Call, error: &ExchangeError) -> Failure {
    let verb = call.environment.verb;
    if let ExchangeError::Request(reason) = error {
        return call.failure(Code::InvalidEnvironment, format!("the call is too large for the daemon: {reason}"));
    }
    let code = match verb {
        Verb::Status => Code::Unavailable,
        Verb::Add | Verb::Del | Verb::Check | Verb::Gc | Verb::Version => Code::TryAgainLater,
    };
    let message = format!(
        "{verb} was not carried out by the daemon at {}: {error}; start culvertd or read its log, the runtime tries again",
        call.socket.display()
    );
    call.failure(code, message)
}
