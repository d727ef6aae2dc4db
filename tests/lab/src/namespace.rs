//! A network namespace that exists as long as its owner.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{command, wait};

/// How long killed processes may take to be gone.
const END_BOUND: Duration = Duration::from_secs(10);

/// A named network namespace; dropped, it ends what runs inside and removes the namespace.
#[derive(Debug)]
pub struct Namespace(Place);

/// A network namespace by its name: where something runs. It owns nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: String,
}

impl Deref for Namespace {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0
    }
}

impl Namespace {
    /// Makes a namespace with its loopback still down, as a container runtime would.
    ///
    /// **Errors** it exists already, or the caller may not make one.
    pub fn create(name: &str) -> Result<Self> {
        command::run(&format!("ip netns add {name}"))?;
        let namespace = Self(Place { name: name.to_owned() });
        namespace.set_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        Ok(namespace)
    }
}

impl Place {
    /// The name under which `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, as a runtime passes it in `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/var/run/netns").join(&self.name)
    }

    /// Runs a command line inside and returns its standard output.
    ///
    /// **Errors** as [`command::run`].
    pub fn run(&self, line: &str) -> Result<String> {
        command::run(&format!("ip netns exec {} {line}", self.name))
    }

    /// Runs `ip` on this namespace, without entering it.
    ///
    /// **Errors** as [`command::run`].
    pub fn ip(&self, line: &str) -> Result<String> {
        command::run(&format!("ip -n {} {line}", self.name))
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Writes a sysctl of this namespace, named by its path below `/proc/sys`.
    ///
    /// **Errors** the kernel has no such sysctl, or refuses the value.
    pub fn set_sysctl(&self, path: &str, value: &str) -> Result<()> {
        let mut shell = self.command(Path::new("sh"));
        shell.args(["-c", &format!("echo {value} > /proc/sys/{path}")]);
        command::finish(shell, &format!("set {path} = {value} in {}", self.name)).map(drop)
    }

    /// A counter of one of its links, as in `/sys/class/net/LINK/statistics`.
    ///
    /// **Errors** there is no such link or counter.
    pub fn counter(&self, link: &str, counter: &str) -> Result<u64> {
        let text = self.run(&format!("cat /sys/class/net/{link}/statistics/{counter}"))?;
        text.trim().parse().with_context(|| format!("counter {counter} of {link} is {text:?}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(self.name()) {
            tell(&format!("{error:#}"));
        }
    }
}

/// The names of all namespaces that begin with `prefix`.
///
/// **Errors** `ip` cannot list them.
pub fn list(prefix: &str) -> Result<Vec<String>> {
    let listed = command::run("ip netns list")?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect())
}

/// Ends every process inside a namespace and removes it. One that is gone already, as when a signal made another thread
/// remove it meanwhile, is what was asked for.
///
/// **Errors** a process does not end, or the namespace stays.
pub fn remove(name: &str) -> Result<()> {
    let place = Place { name: name.to_owned() };
    wait::until(&format!("the processes in {name} to end"), END_BOUND, || {
        let left = match processes(name) {
            Err(_) if !place.path().exists() => return Ok(()),
            listed => listed?,
        };
        if left.is_empty() {
            return Ok(());
        }
        for pid in &left {
            // It may have ended by itself since it was listed, which is what is wanted.
            let _ = kill_process(*pid, Signal::KILL);
        }
        bail!("{} still there", left.len())
    })?;
    match command::run(&format!("ip netns delete {name}")) {
        Err(_) if !place.path().exists() => Ok(()),
        deleted => deleted.map(drop),
    }
}

/// The processes that live in a namespace. Processes that ended but were not waited for have none.
///
/// **Errors** the namespace is not there.
pub fn processes(name: &str) -> Result<Vec<Pid>> {
    let listed = command::run(&format!("ip netns pids {name}"))?;
    let pids = listed.split_whitespace().map(|word| word.parse().ok().and_then(Pid::from_raw));
    pids.collect::<Option<Vec<_>>>().with_context(|| format!("`ip netns pids {name}` printed {listed:?}"))
}

/// Says on standard error what went wrong while something was removed, where no caller can be told. By the macro,
/// because the test harness shows what it prints with the test it belongs to.
pub fn tell(what: &str) {
    eprintln!("lab: {what}");
}
