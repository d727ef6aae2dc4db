//! `strace` as the one that lists system calls, and the one that kills at them or makes them fail.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::wait;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long strace may take to let go of every thread by itself.
const BOUND: Duration = Duration::from_secs(3);

/// What strace does at a system call, in its own words: `NAME:signal=KILL:when=3`, `NAME:error=EIO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    call: String,
    what: String,
}

impl Injection {
    /// Kills whoever makes the call for the `ordinal`th time, before anything of it is done. Threads count apart.
    #[must_use]
    pub fn kill(call: &str, ordinal: u64) -> Self {
        Self { call: call.to_owned(), what: format!("signal=KILL:when={ordinal}") }
    }

    /// Lets the call fail each time, without doing anything of it.
    #[must_use]
    pub fn error(call: &str, error: &str) -> Self {
        Self { call: call.to_owned(), what: format!("error={error}") }
    }

    fn words(&self) -> [String; 2] {
        ["-e".to_owned(), format!("inject={}:{}", self.call, self.what)]
    }
}

/// The words that run a program under strace: every system call goes into the file.
#[must_use]
pub fn words(log: &Path, injection: Option<&Injection>) -> Vec<String> {
    let mut words: Vec<String> = ["strace", "-f", "-o"].map(str::to_owned).to_vec();
    words.push(log.display().to_string());
    words.extend(injection.map(Injection::words).into_iter().flatten());
    words
}

/// A strace that is attached to a running process. Dropped, it lets go.
#[derive(Debug)]
pub struct Attached {
    child: Child,
    log: PathBuf,
}

impl Attached {
    /// Attaches to every thread of a process; from the return on no call is missed.
    ///
    /// **Errors** strace does not attach; its words are in the text.
    pub fn to(process: u32, log: &Path, injection: Option<&Injection>) -> Result<Self> {
        let mut command = Command::new("strace");
        command.args(["-f", "-o"]).arg(log).args(["-p", &process.to_string()]);
        if let Some(injection) = injection {
            // Only that call is traced: everything else runs at its usual speed.
            command.args(["-e", &format!("trace={}", injection.call)]).args(injection.words());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run strace")?;
        let mut said = String::new();
        let mut output = BufReader::new(child.stderr.take().context("strace without output")?);
        while !said.contains("attached") {
            if output.read_line(&mut said)? == 0 {
                bail!("strace does not attach to {process}: {said}");
            }
        }
        // What it says further is of no interest, but it must be able to say it.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Ok(Self { child, log: log.to_owned() })
    }

    /// Lets go and returns what it wrote.
    ///
    /// **Errors** it wrote nothing.
    pub fn finish(mut self) -> Result<String> {
        self.let_go();
        std::fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }

    fn let_go(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // It may end at this very moment, because what it traced did.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        if wait::until("strace to let go", BOUND, || self.child.try_wait()?.context("it runs")).is_err() {
            // What it traces goes on, freed by the kernel.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// How often each thread began each system call.
///
/// strace counts for each thread by itself, so an ordinal is one of a thread.
#[must_use]
pub fn calls(log: &str) -> BTreeMap<(u32, String), u64> {
    let mut counts = BTreeMap::new();
    for line in log.lines() {
        if let Some((thread, call)) = begun(line) {
            *counts.entry((thread, call.to_owned())).or_default() += 1;
        }
    }
    counts
}

/// The thread and the name of a system call that begins in this line: `PID NAME(…`.
fn begun(line: &str) -> Option<(u32, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (name, _) = rest.trim_start().split_once('(')?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some((thread.parse().ok()?, name))
}

/// Whether the process that was traced died by SIGKILL.
#[must_use]
pub fn was_killed(log: &str) -> bool {
    log.contains("+++ killed by SIGKILL +++")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "12  execve(\"/a\", [\"a\"], 0x7 /* 1 var */) = 0\n12  read(0, \"x(y\", 3) = 3\n13  read(0, <unfinished ...>\n\
        12  read(0, \"\", 3) = 0\n13  <... read resumed>\"\", 3) = 0\n12  --- SIGUSR1 {si_signo=10} ---\n12  +++ exited with 0 +++\n";

    #[test]
    fn a_call_is_counted_once_for_its_thread() {
        let expected = [((12, "execve".to_owned()), 1), ((12, "read".to_owned()), 2), ((13, "read".to_owned()), 1)];
        assert_eq!(calls(LOG), expected.into());
        assert!(!was_killed(LOG));
        assert!(was_killed("12  +++ killed by SIGKILL +++\n"));
    }
}
