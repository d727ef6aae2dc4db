//! The socket that the shim talks to: frames in, requests to the attachments' owner, replies out.
//!
//! ```text
//! shim ──frame + 2 descriptors──> read ──> decode ──> serve ──> reply ──> acknowledgement
//! ```
//! Garbage, strangers and slow clients cost one connection each and nothing else.

mod answer;
mod channel;
mod wish;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_cni::code::Code;
use culvert_cni::error::CniError;
use culvert_cni::frame::{self, Reply};
use culvert_cni::netconf::answer_version;
use culvert_cni::request::Request;
use culvert_cni::result::version_list;
use culvert_cni::version::Verb;
use culvert_core::allocation::AddressWish;
use culvert_core::attachment::AttachmentKey;
use culvert_kernel::kill_point;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::admin::{AdminError, AdminSocket, may_ask};
use crate::attachments::{self, AttachmentError, Command};
use crate::cluster_owner::{self, Command as ClusterCommand, CoverError};
use crate::config::Config;
use crate::metrics::Metrics;
use answer::{after, result_of};

/// Connections served at a time; further ones wait in the socket's backlog. Each holds at most one request.
const CONNECTIONS: usize = 128;
/// How long a client may take to send its request, and later its acknowledgement.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A socket that is bound and not served yet. It goes with this value.
pub struct CniServer {
    socket: AdminSocket,
    server: Server,
}

/// What every connection is served with.
#[derive(Clone)]
pub struct Server {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who attaches pods.
    pub attachments: attachments::Handle,
    /// Who claims blocks.
    pub cluster: cluster_owner::Handle,
    /// Counters.
    pub metrics: Metrics,
}

impl CniServer {
    /// Binds the socket, for root alone.
    ///
    /// # Errors
    /// When it cannot be made, or a live daemon has it.
    pub fn bind(path: &Path, server: Server) -> Result<Self, AdminError> {
        Ok(Self { socket: AdminSocket::bind(path)?, server })
    }

    /// Serves until the task is dropped.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub async fn serve(self) -> Result<(), AdminError> {
        let listener = self.socket.listener()?;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.server.clone();
                    tokio::spawn(async move {
                        serve_one(stream, server).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept a CNI request; tried again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve_one(stream: UnixStream, server: Server) {
    let (metrics, started) = (&server.metrics, Instant::now());
    if let (false, user) = may_ask(&stream) {
        tracing::warn!(?user, "a CNI request from a user who may not ask is refused");
        metrics.cni.served("refused", Code::InvalidEnvironment.number(), started.elapsed());
        return;
    }
    let (request, descriptors) = match tokio::time::timeout(CLIENT_TIMEOUT, channel::receive(&stream)).await {
        Ok(Ok(received)) => received,
        Ok(Err(error)) => {
            metrics.cni.served("garbage", Code::Decode.number(), started.elapsed());
            tracing::warn!(%error, "a CNI request cannot be read; the connection is closed");
            return;
        }
        Err(_elapsed) => {
            metrics.cni.served("garbage", Code::Io.number(), started.elapsed());
            tracing::warn!("a client of the CNI socket sent no request in time; the connection is closed");
            return;
        }
    };
    kill_point(|| "request read".to_owned());
    let served = serve(&request, descriptors, &server).await;
    kill_point(|| "before the answer".to_owned());
    let code = served.error.as_ref().map_or(0, |error| error.code.number());
    metrics.cni.served(served.verb, code, started.elapsed());
    if let Some(error) = &served.error {
        tracing::warn!(
            verb = served.verb,
            code,
            container = served.container,
            error = error.message,
            "CNI request failed"
        );
    } else {
        tracing::info!(verb = served.verb, container = served.container, took = ?started.elapsed(), "CNI request served");
    }
    if let Err(error) = channel::send(&stream, &served.reply).await {
        tracing::warn!(%error, "a CNI reply could not be sent; the runtime tries again");
        return;
    }
    kill_point(|| "after the answer".to_owned());
    if let Some(key) = served.acknowledge {
        match tokio::time::timeout(CLIENT_TIMEOUT, channel::acknowledged(&stream)).await {
            Ok(true) => {
                kill_point(|| "acknowledgement read".to_owned());
                server.attachments.send(Command::Acknowledged(key)).await;
            }
            Ok(false) | Err(_) => tracing::warn!(attachment = %key, "an ADD was not acknowledged; a retry redoes it"),
        }
    }
}

/// What came of a request.
struct Served {
    verb: &'static str,
    container: String,
    reply: Reply,
    error: Option<CniError>,
    /// The attachment whose acknowledgement is awaited.
    acknowledge: Option<AttachmentKey>,
}

async fn serve(framed: &frame::Request, descriptors: Vec<OwnedFd>, server: &Server) -> Served {
    let version = answer_version(&framed.stdin);
    let request = match Request::decode(framed) {
        Ok(request) => request,
        Err(error) => {
            let reply = error.to_reply(version);
            return Served { verb: "invalid", container: String::new(), reply, error: Some(error), acknowledge: None };
        }
    };
    let (verb, container) = (request.verb.as_str(), request.container_id.clone());
    let key = wish::key_of(&request);
    let acknowledges = request.verb == Verb::Add;
    match answer(request, descriptors, server).await {
        Ok(reply) => {
            let acknowledge = acknowledges.then_some(key);
            Served { verb, container, reply, error: None, acknowledge }
        }
        Err(error) => {
            let reply = error.to_reply(version);
            Served { verb, container, reply, error: Some(error), acknowledge: None }
        }
    }
}

/// How long an ADD waits for blocks that its configuration asks for and that this node does not hold yet.
const COVER_LIMIT: Duration = Duration::from_secs(2);

async fn answer(request: Request, descriptors: Vec<OwnedFd>, server: &Server) -> Result<Reply, CniError> {
    let version = request.config.cni_version;
    let nothing = Reply { exit_code: 0, stdout: Vec::new() };
    let attachments = &server.attachments;
    match request.verb {
        Verb::Add => {
            let (dns, previous) = (request.config.dns().clone(), request.config.previous.clone());
            let add = wish::add_request(request, descriptors, &server.config)?;
            if add.chained.is_none() {
                cover(server, &add.wish).await?;
            }
            let only_adds = add.chained.is_some();
            let attachment = attachments.request(|reply| Command::Add(Box::new(add), reply)).await.map_err(to_cni)?;
            let result = match previous {
                // Host ports and rates cannot be said in a result.
                Some(previous) if only_adds => previous,
                Some(previous) => after(previous, result_of(&attachment, dns)),
                None => result_of(&attachment, dns),
            };
            result.to_reply(version).map_err(|error| CniError::new(error.code(), error.to_string()))
        }
        Verb::Del => {
            let key = wish::key_of(&request);
            attachments.request(|reply| Command::Delete(key, reply)).await.map_err(to_cni)?;
            Ok(nothing)
        }
        Verb::Check => {
            let check = wish::check_request(&request, descriptors)?;
            attachments.request(|reply| Command::Check(Box::new(check), reply)).await.map_err(to_cni)?;
            Ok(nothing)
        }
        Verb::Gc => {
            // An absent list is no order to remove everything (CNI specification 1.1.0, section 4, GC).
            if let Some(valid) = &request.config.valid_attachments {
                let valid = valid.iter().map(|name| wish::key_named(&request, name)).collect();
                let network = request.config.name.clone();
                attachments.request(|reply| Command::Collect(network, valid, reply)).await.map_err(to_cni)?;
            }
            Ok(nothing)
        }
        Verb::Status => {
            let unavailable = |error: CniError| CniError::new(Code::Unavailable, error.message);
            let wish = wish::address_wish(&request).map_err(unavailable)?;
            // A first pod would wait for its blocks: they are claimed when the network is first asked about.
            cover(server, &wish).await.map_err(unavailable)?;
            let ready = attachments.request(|reply| Command::Ready(wish, reply)).await;
            ready.map_err(|error| CniError::new(Code::Unavailable, error.to_string()))?;
            Ok(nothing)
        }
        Verb::Version => Ok(Reply { exit_code: 0, stdout: version_list(version).to_string().into_bytes() }),
    }
}

/// Makes the blocks that a wish needs this node's.
async fn cover(server: &Server, wish: &AddressWish) -> Result<(), CniError> {
    if wish.is_empty() {
        return Ok(());
    }
    let asked = server.cluster.ask(|reply| ClusterCommand::Cover(wish.clone(), reply));
    let later = |reason: String| CniError::new(Code::TryAgainLater, reason);
    match tokio::time::timeout(COVER_LIMIT, asked).await {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(error @ CoverError::Later { .. }))) => Err(later(format!("{error}; try again"))),
        Ok(Some(Err(error))) => Err(CniError::new(Code::InvalidConfig, error.to_string())),
        Ok(None) => Err(later("the daemon is stopping; try again".to_owned())),
        Err(_elapsed) => Err(later("the blocks of this configuration are still being claimed; try again".to_owned())),
    }
}

fn to_cni(error: AttachmentError) -> CniError {
    CniError::new(error.code(), error.to_string())
}
