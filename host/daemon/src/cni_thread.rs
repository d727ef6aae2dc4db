//! The thread that serves the container runtime: the CNI server and the owner of attachments, alone on a small
//! runtime of their own.
//!
//! An ADD is decoded, decided, carried out and answered without another thread having to wake up in between, which would
//! cost more than the decisions do; and while the kernel works for a pod, nobody else waits.

use std::future::Future;

use anyhow::Context;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The thread; dropping this ends it and what runs on it.
pub struct CniThread {
    runtime: Handle,
    _ends_when_dropped: oneshot::Sender<()>,
}

impl CniThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread or no descriptor left for it.
    pub fn start() -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("cannot start the CNI runtime")?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        let serve = move || {
            let _ended = runtime.block_on(ended);
        };
        std::thread::Builder::new()
            .name("culvert-cni".to_owned())
            .spawn(serve)
            .context("cannot start the CNI thread")?;
        Ok(Self { runtime: handle, _ends_when_dropped: alive })
    }

    /// Runs something on the thread.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }
}
