//! The socket that the shim talks to: frames in, requests to the attachments' owner, replies out.
//!
//! ```text
//! shim ──frame + 2 descriptors──> read ──> decode ──> serve ──> reply ──> acknowledgement
//! ```
//! Garbage, strangers and slow clients cost one connection each and nothing else.

mod channel;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_cni::code::Code;
use culvert_cni::error::CniError;
use culvert_cni::frame::{self, Reply};
use culvert_cni::netconf::{AttachmentName, answer_version};
use culvert_cni::request::Request;
use culvert_cni::result::{AddResult, Interface, IpConfig, RouteAttributes, RouteConfig, version_list};
use culvert_cni::runtime_config::{Bandwidth, RateLimit};
use culvert_cni::version::Verb;
use culvert_core::address::gateway;
use culvert_core::attachment::{Attachment, AttachmentKey};
use culvert_core::bandwidth::{Limits, Rate};
use culvert_core::policy::PodView;
use culvert_kernel::PodNamespace;
use ipnet::IpNet;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::admin::{AdminError, AdminSocket, may_ask};
use crate::attachments::{AddRequest, AttachmentError, CheckRequest, Command, Handle};
use crate::metrics::Metrics;

/// Connections served at a time; further ones wait in the socket's backlog. Each holds at most one request.
const CONNECTIONS: usize = 128;
/// How long a client may take to send its request, and later its acknowledgement.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A socket that is bound and not served yet. It goes with this value.
pub struct CniServer {
    socket: AdminSocket,
    attachments: Handle,
    metrics: Metrics,
}

impl CniServer {
    /// Binds the socket, for root alone.
    ///
    /// # Errors
    /// When it cannot be made, or a live daemon has it.
    pub fn bind(path: &Path, attachments: Handle, metrics: Metrics) -> Result<Self, AdminError> {
        Ok(Self { socket: AdminSocket::bind(path)?, attachments, metrics })
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
                    let (attachments, metrics) = (self.attachments.clone(), self.metrics.clone());
                    tokio::spawn(async move {
                        serve_one(stream, attachments, metrics).await;
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

async fn serve_one(stream: UnixStream, attachments: Handle, metrics: Metrics) {
    let started = Instant::now();
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
    let served = serve(&request, descriptors, &attachments).await;
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
    if let Some(key) = served.acknowledge {
        match tokio::time::timeout(CLIENT_TIMEOUT, channel::acknowledged(&stream)).await {
            Ok(true) => attachments.send(Command::Acknowledged(key)).await,
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

async fn serve(framed: &frame::Request, descriptors: Vec<OwnedFd>, attachments: &Handle) -> Served {
    let version = answer_version(&framed.stdin);
    let request = match Request::decode(framed) {
        Ok(request) => request,
        Err(error) => {
            let reply = error.to_reply(version);
            return Served { verb: "invalid", container: String::new(), reply, error: Some(error), acknowledge: None };
        }
    };
    let (verb, container) = (request.verb.as_str(), request.container_id.clone());
    let key = key_of(&request);
    let acknowledges = request.verb == Verb::Add;
    match answer(request, descriptors, attachments).await {
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

async fn answer(request: Request, descriptors: Vec<OwnedFd>, attachments: &Handle) -> Result<Reply, CniError> {
    let version = request.config.cni_version;
    let nothing = Reply { exit_code: 0, stdout: Vec::new() };
    match request.verb {
        Verb::Add => {
            let netns = request.netns.clone().unwrap_or_default();
            let add = add_request(request, descriptors)?;
            let attachment = attachments.request(|reply| Command::Add(Box::new(add), reply)).await.map_err(to_cni)?;
            let reply = result_of(&attachment, &netns).to_reply(version);
            reply.map_err(|error| CniError::new(error.code(), error.to_string()))
        }
        Verb::Del => {
            let key = key_of(&request);
            attachments.request(|reply| Command::Delete(key, reply)).await.map_err(to_cni)?;
            Ok(nothing)
        }
        Verb::Check => {
            let check = check_request(&request)?;
            attachments.request(|reply| Command::Check(check, reply)).await.map_err(to_cni)?;
            Ok(nothing)
        }
        Verb::Gc => {
            // An absent list is no order to remove everything (CNI specification 1.1.0, section 4, GC).
            if let Some(valid) = &request.config.valid_attachments {
                let valid = valid.iter().map(|name| key_named(&request, name)).collect();
                let network = request.config.name.clone();
                attachments.request(|reply| Command::Collect(network, valid, reply)).await.map_err(to_cni)?;
            }
            Ok(nothing)
        }
        Verb::Status => {
            let ready = attachments.request(Command::Ready).await;
            ready.map_err(|error| CniError::new(Code::Unavailable, error.to_string()))?;
            Ok(nothing)
        }
        Verb::Version => Ok(Reply { exit_code: 0, stdout: version_list(version).to_string().into_bytes() }),
    }
}

fn to_cni(error: AttachmentError) -> CniError {
    CniError::new(error.code(), error.to_string())
}

fn key_of(request: &Request) -> AttachmentKey {
    AttachmentKey {
        network: request.config.name.clone(),
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
    }
}

fn key_named(request: &Request, name: &AttachmentName) -> AttachmentKey {
    AttachmentKey {
        network: request.config.name.clone(),
        container_id: name.container_id.clone(),
        ifname: name.ifname.clone(),
    }
}

fn add_request(request: Request, descriptors: Vec<OwnedFd>) -> Result<AddRequest, CniError> {
    let key = key_of(&request);
    let descriptors: Result<[OwnedFd; frame::DESCRIPTORS], _> = descriptors.try_into();
    let [netns, rtnetlink] = descriptors.map_err(|_| {
        CniError::new(
            Code::InvalidNamespace,
            "the pod's network namespace was not passed; is the shim of this version?",
        )
    })?;
    let Bandwidth { ingress, egress } = request.config.runtime.bandwidth;
    Ok(AddRequest {
        key,
        netns: request.netns.unwrap_or_default(),
        namespace: PodNamespace { netns, rtnetlink },
        pod: PodView {
            namespace: request.pod.namespace,
            name: request.pod.name,
            labels: std::collections::BTreeMap::new(),
            annotations: request.config.runtime.pod_annotations,
        },
        pod_uid: request.pod.uid,
        requested: Limits { ingress: ingress.and_then(rate), egress: egress.and_then(rate) },
        mtu_bytes: request.config.options.mtu_bytes.map(u32::from),
    })
}

/// A rate of 0 means no limit; a burst that nobody chose is left to the host (0).
fn rate(limit: RateLimit) -> Option<Rate> {
    let burst_bytes = limit.burst_bits.map_or(0, |bits| u32::try_from(bits / 8).unwrap_or(u32::MAX));
    (limit.bits_per_second > 0).then_some(Rate { bits_per_second: limit.bits_per_second, burst_bytes })
}

fn check_request(request: &Request) -> Result<CheckRequest, CniError> {
    let previous = request.config.previous.as_ref();
    let previous = previous.ok_or_else(|| CniError::new(Code::InvalidConfig, "CHECK needs prevResult"))?;
    // Addresses of other interfaces in the chain are not ours to check.
    let ours = |ip: &&IpConfig| {
        let interface = ip.interface.and_then(|index| previous.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == request.ifname)
    };
    let addresses = previous.ips.iter().filter(ours).map(|ip| ip.address).collect();
    Ok(CheckRequest { key: key_of(request), addresses })
}

/// The result of an ADD: host end, pod end, addresses, default routes.
fn result_of(attachment: &Attachment, netns: &str) -> AddResult {
    let interface = |name: &str, mac: String, sandbox: Option<String>| Interface {
        name: name.to_owned(),
        mac,
        mtu: Some(attachment.mtu_bytes),
        sandbox,
        ..Interface::default()
    };
    let mac: Vec<String> = attachment.mac.iter().map(|octet| format!("{octet:02x}")).collect();
    let ips = attachment.addresses.iter().map(|address| IpConfig {
        address: *address,
        gateway: Some(gateway(&address.trunc())),
        interface: Some(1),
    });
    let routes = attachment.addresses.iter().filter_map(|address| {
        let dst: IpNet = if address.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().ok()?;
        Some(RouteConfig { dst, gw: Some(gateway(&address.trunc())), attributes: RouteAttributes::default() })
    });
    AddResult {
        interfaces: vec![
            interface(&attachment.host_name, String::new(), None),
            interface(&attachment.key.ifname, mac.join(":"), Some(netns.to_owned())),
        ],
        ips: ips.collect(),
        routes: routes.collect(),
        ..AddResult::default()
    }
}
