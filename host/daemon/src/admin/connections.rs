//! Accepts connections and answers one request on each, within bounds of number and time.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

/// **Bounds** connections at once. An operator and a scraper need a few; when full, the next waits
/// in the socket's backlog until one ends, [`CONNECTION_TIME`] at most.
const CONNECTIONS: usize = 16;

/// **Bounds** a client that sends its request slower than this is cut off.
const HEADER_TIME: Duration = Duration::from_secs(5);

/// **Bounds** a connection as a whole, so that one that reads its answer slowly, or never, cannot
/// keep its place.
const CONNECTION_TIME: Duration = Duration::from_secs(30);

/// **Bounds** how long a shutdown waits for answers under way; then they are cut off.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// **Bounds** bytes of a request's head; a longer one is answered with 431. The longest request has
/// two pod names in its address.
const HEAD_BYTES: usize = 16 * 1024;

/// **Bounds** header lines of a request; more are answered with 431.
const HEADER_LINES: usize = 32;

/// Serves until `shutdown` is ready; `choose` says who answers a connection.
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    choose: impl Fn(&L::Io) -> Router,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut shutdown = pin!(shutdown);
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            (stream, _) = listener.accept(), if connections.len() < CONNECTIONS => {
                let router = choose(&stream);
                connections.spawn(serve_connection(stream, router, stopping.clone()));
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let drain = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if timeout(DRAIN_TIME, drain).await.is_err() {
        debug!(cut_off = connections.len(), "admin connections did not end in time");
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(%error, "answering an admin request failed");
    }
}

async fn serve_connection<S>(stream: S, router: Router, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .keep_alive(false)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADER_LINES)
            .serve_connection(TokioIo::new(stream), service)
    );
    let answered = timeout(CONNECTION_TIME, async {
        tokio::select! {
            answered = connection.as_mut() => return answered,
            _ = stopping.wait_for(|stop| *stop) => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.as_mut().await
    });
    match answered.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "an admin connection ended early"),
        Err(_) => debug!("an admin connection took too long and was cut off"),
    }
}
