//! Namespaces of pods without a name, and the way of a thread into a namespace and back.
//!
//! A runtime makes a pod's namespace before it calls a plugin and removes it after the last call, so neither is measured
//! here. The kernel tears a namespace down long after it was left, under the lock of all interfaces; so that nobody pays
//! for that, one namespace serves many pods, one after another.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A pod's network namespace, which lives as long as this value, at most as long as this process.
#[derive(Debug)]
pub(super) struct PodNamespace {
    file: File,
}

impl PodNamespace {
    /// Makes one, its loopback still down.
    ///
    /// **Errors** the kernel refuses.
    pub(super) fn create() -> Result<Self> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            open(Path::new(OWN))
        });
        let file = made.join().map_err(|_| anyhow!("the thread that makes a network namespace panicked"))??;
        Ok(Self { file })
    }

    /// What a runtime passes in `CNI_NETNS`.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

impl AsFd for PodNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens the file that stands for a namespace.
///
/// **Errors** it is not there.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Moves the calling thread into a network namespace. What it executes and opens from now on is there.
///
/// **Errors** the kernel refuses.
pub(super) fn enter(namespace: impl AsFd) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
}

/// Does something on a thread of its own inside a namespace.
///
/// **Errors** the namespace cannot be entered, and those of the work.
pub(super) fn inside<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = open(path)?;
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            enter(&file)?;
            work()
        });
        done.join().map_err(|_| anyhow!("a thread in {} panicked", path.display()))?
    })
}
