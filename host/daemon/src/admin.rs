//! The admin API: what the daemon shows of itself and lets an operator do, over a unix socket.
//!
//! HTTP/1.1 with one request a connection; answers are the JSON of [`crate::view`], metrics are
//! OpenMetrics text. Whoever connects must be root or the daemon's own user; everybody else gets a
//! 403 that is counted. The metrics alone can be served on a loopback port as well, to anyone on
//! this machine.
//!
//! ```text
//! culvertctl ── admin.sock ── peer's uid? ── requests ── Inspect (the daemon's owners)
//! Prometheus ── 127.0.0.1 ────────────────── /metrics ──┘
//! ```

mod connections;
mod requests;
mod socket;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use prometheus_client::metrics::counter::Counter;
use tokio::net::{TcpListener, UnixStream};
use tracing::{info, warn};

use crate::view;

pub use socket::AdminSocket;

/// What the admin API asks of the daemon. Every answer is a snapshot.
///
/// **Bounds** an answer has 10 s; then the request ends with 504 and the call is dropped.
#[async_trait]
pub trait Inspect: Send + Sync + 'static {
    /// How this node is.
    async fn status(&self) -> view::Status;
    /// The other nodes, by name.
    async fn peers(&self) -> Vec<view::Peer>;
    /// The routes in force.
    async fn routes(&self) -> view::Routes;
    /// Pools, blocks and leases.
    async fn ipam(&self) -> view::Ipam;
    /// The policies in force.
    async fn plugins(&self) -> view::Plugins;
    /// Why packets between two pods take the way they take.
    ///
    /// **Errors** say which of the two is not known and how to name a pod.
    async fn explain(&self, from: &str, to: &str) -> Result<view::Explanation, String>;
    /// Frees a node name at the keeper, so that the next identity that asks gets it.
    ///
    /// **Errors** say why the name stays bound.
    async fn release_name(&self, name: &str) -> Result<(), String>;
    /// All metrics, as OpenMetrics text.
    fn metrics(&self) -> String;
}

/// Why the admin API or the metrics port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another daemon answers on the socket.
    #[error("another daemon is serving {path}; stop it, or give this one a path of its own in the sockets section")]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// Something else stands where the socket goes. It is not removed: it may be anything.
    #[error("{path} is there and is not a socket; remove it, or write another path into the sockets section")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Others may write to the folder, so they could put their own socket there.
    #[error(
        "folder {path} is writable by other users; take that from them (chmod go-w), or write another path into the sockets section"
    )]
    OpenFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The system refused a step.
    #[error("cannot {step} {path}: {source}")]
    Socket {
        /// The step.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Metrics are for this machine alone.
    #[error("{listen} is not a loopback address; write one such as 127.0.0.1:9417 into metrics.listen")]
    NotLoopback {
        /// What was asked for.
        listen: SocketAddr,
    },
    /// The port cannot be opened.
    #[error("cannot listen on {listen} for metrics: {source}; free the port, or write another into metrics.listen")]
    Port {
        /// What was asked for.
        listen: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Binds `socket` and serves the admin API on it until `shutdown` is ready. The socket is gone
/// afterwards.
///
/// `refused` counts requests of users that may not ask.
///
/// **Errors** when the socket cannot be had; see [`AdminSocket::bind`].
pub async fn serve(
    socket: &Path,
    inspect: Arc<dyn Inspect>,
    refused: Counter,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AdminError> {
    serve_on(AdminSocket::bind(socket)?, inspect, refused, shutdown).await
}

/// Serves the admin API on a socket that was bound before.
///
/// **Errors** when the runtime cannot watch the socket.
pub async fn serve_on(
    socket: AdminSocket,
    inspect: Arc<dyn Inspect>,
    refused: Counter,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AdminError> {
    let listener = socket.listener()?;
    info!(socket = %socket.path().display(), "admin API is served");
    let (api, refusal) = (requests::api(inspect), requests::refusal());
    let choose = |stream: &UnixStream| match may_ask(stream) {
        (true, _) => api.clone(),
        (false, user) => {
            refused.inc();
            warn!(?user, "refused a request on the admin socket: not root and not the daemon's user");
            refusal.clone()
        }
    };
    connections::serve(listener, choose, shutdown).await;
    Ok(())
}

/// Serves the metrics alone on a loopback port until `shutdown` is ready.
///
/// **Errors** when `listen` is not a loopback address or cannot be bound.
pub async fn serve_metrics(
    listen: SocketAddr,
    inspect: Arc<dyn Inspect>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AdminError> {
    serve_metrics_on(bind_metrics(listen).await?, inspect, shutdown).await;
    Ok(())
}

/// Opens the metrics port.
///
/// **Errors** when `listen` is not a loopback address or cannot be bound.
pub async fn bind_metrics(listen: SocketAddr) -> Result<TcpListener, AdminError> {
    if !listen.ip().is_loopback() {
        return Err(AdminError::NotLoopback { listen });
    }
    TcpListener::bind(listen).await.map_err(|source| AdminError::Port { listen, source })
}

/// Serves the metrics on a port that was opened before.
pub async fn serve_metrics_on(
    listener: TcpListener,
    inspect: Arc<dyn Inspect>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let router = requests::metrics_only(inspect);
    connections::serve(listener, |_| router.clone(), shutdown).await;
}

/// Whether whoever connected may ask, and who it is.
pub(crate) fn may_ask(stream: &UnixStream) -> (bool, Option<u32>) {
    let own_user = rustix::process::geteuid().as_raw();
    let user = peer_user(stream);
    (user.is_some_and(|user| is_operator(user, own_user)), user)
}

/// The user at the other end when it connected, as the kernel tells it.
fn peer_user(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok().map(|credentials| credentials.uid())
}

/// Whether a user may ask: root, or whoever the daemon runs as.
fn is_operator(user: u32, own_user: u32) -> bool {
    user == 0 || user == own_user
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_daemons_own_user_may_ask() {
        assert!(is_operator(0, 0));
        assert!(is_operator(0, 812));
        assert!(is_operator(812, 812));
        assert!(!is_operator(1000, 812));
        assert!(!is_operator(1000, 0));
    }

    #[tokio::test]
    async fn metrics_are_served_on_loopback_alone() {
        let listen: SocketAddr = "192.0.2.1:9417".parse().unwrap();
        let error = bind_metrics(listen).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "192.0.2.1:9417 is not a loopback address; write one such as 127.0.0.1:9417 into metrics.listen"
        );
    }
}
