//! Runs `culvert-compile` under limits: the one step whose cost a hostile component chooses.
//!
//! The limits are put on the child after it started and before it is sent a byte, so they hold whatever
//! the component makes the compiler do, and the daemon itself never compiles. That it can open no file and
//! no socket is a limit the child puts on itself, because its loader has to open some first.

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};

use crate::limits::CompileLimits;
use crate::text;

/// Above everything else that runs on the node: compiling can wait, pods cannot.
const CHILD_NICE: i32 = 10;

/// **Units** bytes of the child's standard error that are read: one line is expected.
const COMPLAINT_BYTES: u64 = 4 << 10;

/// Why there is no compiled code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The child does not start.
    #[error("the compiler {} does not start: {source}; is Culvert installed completely?", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The limits cannot be set on the child.
    #[error("the compiler cannot be limited: {0}")]
    Limit(#[source] io::Error),
    /// The pipes broke.
    #[error("the compiler's answer cannot be read: {0}")]
    Pipe(#[source] io::Error),
    /// The component is not valid.
    #[error("the component does not compile: {0}")]
    Invalid(String),
    /// Too much processor time.
    #[error("compiling takes more than {0} s of processor time: make the component smaller or simpler")]
    Processor(u64),
    /// Too long altogether.
    #[error("compiling takes more than {0} s: make the component smaller, or try again when the node is less busy")]
    Wall(u64),
    /// Too much memory, or another end by a signal.
    #[error(
        "compiling needs more than {limit_bytes} bytes of memory, or crashes the compiler (signal {signal}{complaint}): make the component smaller or simpler"
    )]
    Memory {
        /// What it may use.
        limit_bytes: u64,
        /// What ended it.
        signal: i32,
        /// What it said before, with a separator in front.
        complaint: String,
    },
    /// Too much code.
    #[error("the compiled code is larger than {0} bytes: make the component smaller")]
    Output(u64),
}

impl CompileError {
    /// Whether the component is to blame, and not this node: trying again would end the same way.
    #[must_use]
    pub fn blames_component(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::Processor(_) | Self::Memory { .. } | Self::Output(_) => true,
            Self::Start { .. } | Self::Limit(_) | Self::Pipe(_) | Self::Wall(_) => false,
        }
    }
}

/// The compile program with its limits. One child at a time: two would use twice the memory.
#[derive(Debug)]
pub(crate) struct Compiler {
    program: PathBuf,
    limits: CompileLimits,
    turn: Mutex<()>,
}

/// What the child left behind.
struct Outcome {
    code: io::Result<Vec<u8>>,
    complaint: String,
    status: ExitStatus,
}

impl Compiler {
    pub(crate) fn new(program: &Path, limits: CompileLimits) -> Self {
        Self { program: program.to_owned(), limits, turn: Mutex::new(()) }
    }

    /// Native code of a component.
    pub(crate) fn compile(&self, component: &[u8]) -> Result<Vec<u8>, CompileError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = self.spawn()?;
        if let Err(error) = self.limit(&child) {
            // The limits are the error to report; a child that cannot be ended has no input and ends itself.
            let _ = end(&mut child);
            return Err(CompileError::Limit(error));
        }
        let outcome = self.converse(&mut child, component)?;
        self.judge(outcome)
    }

    fn spawn(&self) -> Result<Child, CompileError> {
        Command::new(&self.program)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| CompileError::Start { program: self.program.clone(), source })
    }

    fn limit(&self, child: &Child) -> io::Result<()> {
        let pid = Pid::from_child(child);
        let limits = [
            (Resource::As, self.limits.memory_bytes),
            (Resource::Cpu, self.limits.cpu_seconds),
            (Resource::Fsize, 0),
            (Resource::Core, 0),
        ];
        for (resource, limit) in limits {
            rustix::process::prlimit(Some(pid), resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
        }
        Ok(rustix::process::setpriority_process(Some(pid), CHILD_NICE)?)
    }

    /// Sends the component and collects what comes back, or kills the child when its time is over.
    fn converse(&self, child: &mut Child, component: &[u8]) -> Result<Outcome, CompileError> {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let output_limit = self.limits.output_bytes;
        thread::scope(|scope| {
            scope.spawn(move || send(stdin, component));
            let complaint = scope.spawn(move || read_bounded(stderr, COMPLAINT_BYTES).unwrap_or_default());
            let (sender, receiver) = mpsc::sync_channel(1);
            scope.spawn(move || sender.send(read_bounded(stdout, output_limit + 1)));
            let received = receiver.recv_timeout(self.limits.wall);
            // A child that was cut off at the output limit would wait for its reader for ever.
            let finished = matches!(&received, Ok(Ok(code)) if code.len() as u64 <= output_limit);
            let status = if finished { wait(child, self.limits.wall) } else { end(child) };
            let code = received.map_err(|_| CompileError::Wall(self.limits.wall.as_secs()))?;
            let status = status.map_err(CompileError::Pipe)?;
            let complaint = complaint.join().unwrap_or_default();
            Ok(Outcome { code, complaint: text::cut(String::from_utf8_lossy(&complaint).trim()), status })
        })
    }

    fn judge(&self, outcome: Outcome) -> Result<Vec<u8>, CompileError> {
        let code = outcome.code.map_err(CompileError::Pipe)?;
        if code.len() as u64 > self.limits.output_bytes {
            return Err(CompileError::Output(self.limits.output_bytes));
        }
        match outcome.status.signal() {
            // The kernel kills at the hard limit, and warns at the soft one; here they are the same.
            Some(signal) if signal == Signal::XCPU.as_raw() || signal == Signal::KILL.as_raw() => {
                Err(CompileError::Processor(self.limits.cpu_seconds))
            }
            Some(signal) => {
                let complaint = Some(outcome.complaint).filter(|complaint| !complaint.is_empty());
                let complaint = complaint.map(|complaint| format!(": {complaint}")).unwrap_or_default();
                Err(CompileError::Memory { limit_bytes: self.limits.memory_bytes, signal, complaint })
            }
            None if outcome.status.success() => Ok(code),
            None => Err(CompileError::Invalid(outcome.complaint)),
        }
    }
}

/// Sends the component. A child that dies early breaks the pipe; its exit says why, so that is no error.
fn send(stdin: Option<ChildStdin>, component: &[u8]) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(component);
    }
}

fn read_bounded(source: Option<impl Read>, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        source.take(limit_bytes).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Waits for a child whose output has ended. It has nothing left to do but exit; one that does not is
/// killed.
fn wait(child: &mut Child, within: Duration) -> io::Result<ExitStatus> {
    let handle = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let seconds = i64::try_from(within.as_secs()).unwrap_or(i64::MAX);
    let timeout = Timespec { tv_sec: seconds, tv_nsec: i64::from(within.subsec_nanos()) };
    let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout))? > 0;
    if ended { child.wait() } else { end(child) }
}

fn end(child: &mut Child) -> io::Result<ExitStatus> {
    // It may have ended by itself just now; waiting says so either way.
    let _ = child.kill();
    child.wait()
}
