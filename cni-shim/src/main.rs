//! The program that the container runtime executes for every pod event.
//!
//! ```text
//! runtime ── exec, environment, stdin ──> culvert  ── unix socket, two descriptors ──> culvertd
//!                                         loopback (the same file under that name) needs no daemon
//! ```
//!
//! It decides nothing about the network: it checks the call, opens what only a process allowed to
//! enter the pod's namespace can open, and passes all of it on. It answers VERSION, faults of the
//! call and "the daemon is away" by itself.

mod answer;
mod call;
mod connection;
mod forward;
mod json;
mod loopback;
mod namespace;
mod rtnetlink;
mod tombstone;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use culvert_cni::version::Verb;

use crate::answer::Failure;
use crate::call::Call;

fn main() -> ExitCode {
    match Call::read() {
        Ok(call) if call.environment.verb == Verb::Version => answer::print(&answer::version_list(call.version)),
        Ok(call) if is_loopback() => loopback::run(&call),
        Ok(call) => forward::run(&call),
        Err(failure) => fail(&failure),
    }
}

/// Prints the error object and gives the exit status that goes with it.
fn fail(failure: &Failure) -> ExitCode {
    // When even the object cannot be written there is nobody left to tell; the status says the same.
    let _ = answer::print(&failure.object());
    ExitCode::FAILURE
}

/// Whether the program was executed under the name of the loopback plugin.
fn is_loopback() -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    Path::new(&program).file_name() == Some(OsStr::new("loopback"))
}
