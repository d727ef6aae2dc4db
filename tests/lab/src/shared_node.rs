//! One node for all tests of a file that leave it as they found it: a daemon takes longer to start than most of them
//! to run.
//!
//! A static value is never dropped, so a process of its own removes the lab: it waits until the test program has ended,
//! however that came about, because its standard input closes then.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Lab;
use crate::single_node::SingleNode;

/// A node in a static, made when it is first asked for.
///
/// ```no_run
/// static NODE: culvert_lab::SharedNode = culvert_lab::SharedNode::new();
/// let single = NODE.running()?;
/// # anyhow::Ok(())
/// ```
#[derive(Debug)]
pub struct SharedNode {
    configure: fn(&mut Value),
    made: OnceLock<Made>,
    making: Mutex<()>,
}

#[derive(Debug)]
struct Made {
    single: Mutex<SingleNode>,
    /// Ends the lab when this process ends.
    _remover: Child,
}

impl SharedNode {
    /// A node as every lab has it.
    #[must_use]
    pub const fn new() -> Self {
        Self::configured(|_| ())
    }

    /// A node whose daemon's configuration is changed before it starts.
    #[must_use]
    pub const fn configured(configure: fn(&mut Value)) -> Self {
        Self { configure, made: OnceLock::new(), making: Mutex::new(()) }
    }

    /// The node with its daemon running, for this test alone until the guard is dropped. A daemon that an earlier test
    /// left stopped is started.
    ///
    /// **Errors** it cannot be made, or does not become ready.
    pub fn running(&self) -> Result<MutexGuard<'_, SingleNode>> {
        let making = lock(&self.making);
        let made = match self.made.get() {
            Some(made) => made,
            None => {
                let made = self.make()?;
                self.made.get_or_init(|| made)
            }
        };
        drop(making);
        let mut single = lock(&made.single);
        single.node_mut().ensure_running()?;
        Ok(single)
    }

    fn make(&self) -> Result<Made> {
        let mut single = SingleNode::build()?;
        let remover = remove_at_end(single.lab(), &single)?;
        (self.configure)(single.node_mut().configuration_mut());
        Ok(Made { single: Mutex::new(single), _remover: remover })
    }
}

impl Default for SharedNode {
    fn default() -> Self {
        Self::new()
    }
}

/// A test that failed may have left the node in any state; the next one sees what it can make of it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_at_end(lab: &Lab, single: &SingleNode) -> Result<Child> {
    let mut remover = Command::new(single.node().binaries().program("lab-probe"));
    remover.arg("remove-lab").arg(lab.prefix());
    // Its own group, so that Ctrl-C does not end it before its work.
    remover.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null());
    remover.spawn().context("cannot start what removes the lab")
}
