//! Deletes links on a thread of its own: all that are asked for at the same time in one send.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::channel::Channel;
use super::link::{acknowledge_last, delete_group, into_group};
use super::watcher::Watcher;

/// The group in which links go.
const DOOMED: u32 = 99;
/// How long deletions may take to be acknowledged.
const BOUND: Duration = Duration::from_secs(20);

/// The thread that deletes and the one that sees what is gone.
#[derive(Debug)]
pub(super) struct Deleter {
    requests: Sender<Vec<u32>>,
    work: Arc<Work>,
    watcher: Watcher,
}

/// What is asked for and not acknowledged yet.
#[derive(Debug, Default)]
struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    failure: Option<String>,
}

impl Deleter {
    /// Deletes in the namespace of the calling thread.
    ///
    /// **Errors** the kernel refuses a socket.
    pub(super) fn start() -> Result<Self> {
        let watcher = Watcher::start()?;
        let channel_to_kernel = Channel::open(NETLINK_ROUTE)?;
        let (requests, inbox) = channel();
        let work = Arc::new(Work::default());
        let shared = Arc::clone(&work);
        // It ends when the last sender does.
        std::thread::spawn(move || run(channel_to_kernel, &inbox, &shared));
        Ok(Self { requests, work, watcher })
    }

    /// Deletes links and returns when the kernel has reported all of them gone.
    ///
    /// **Errors** it does not within 20 s.
    pub(super) fn delete(&self, indexes: &[u32]) -> Result<()> {
        let listening = self.watcher.listen()?;
        self.work.state.lock().unwrap_or_else(PoisonError::into_inner).open += 1;
        self.requests.send(indexes.to_vec()).context("the thread that deletes links has ended")?;
        listening.wait_gone(indexes)
    }

    /// Waits until everything that was asked for is acknowledged.
    ///
    /// **Errors** it is not within 20 s, or the kernel refused some of it.
    pub(super) fn settle(&self) -> Result<()> {
        let state = self.work.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.work.changed.wait_timeout_while(state, BOUND, |state| state.open > 0);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        match &state.failure {
            Some(failure) => bail!("links could not be deleted: {failure}"),
            None if timeout.timed_out() => bail!("a deletion was not acknowledged within {} s", BOUND.as_secs()),
            None => Ok(()),
        }
    }
}

fn run(mut kernel: Channel, inbox: &Receiver<Vec<u32>>, work: &Work) {
    while let Ok(first) = inbox.recv() {
        let all: Vec<Vec<u32>> = std::iter::once(first).chain(inbox.try_iter()).collect();
        let doomed = all.iter().flatten().map(|index| into_group(*index, DOOMED));
        let messages = doomed.chain(std::iter::once(delete_group(DOOMED))).collect();
        let deleted = kernel.send(acknowledge_last(messages));
        let mut state = work.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.open -= all.len();
        state.failure = state.failure.take().or(deleted.err().map(|error| format!("{error:#}")));
        work.changed.notify_all();
    }
}
