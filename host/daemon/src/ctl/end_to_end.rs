//! `culvertctl` against the admin API over a real socket, with a daemon that gives canned answers.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clap::Parser;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::{Arguments, Exit, Terminal, run};
use crate::admin::{self, AdminError, AdminSocket, Inspect};
use crate::metrics::Metrics;
use crate::view;

/// **Bounds** any wait of these tests; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Canned {
    status: view::Status,
    metrics: Metrics,
    /// Told when an endless request has begun.
    begun: Arc<Notify>,
}

impl Canned {
    fn new(status: view::Status) -> Self {
        Self { status, metrics: Metrics::new("1.2.3"), begun: Arc::new(Notify::new()) }
    }
}

#[async_trait]
impl Inspect for Canned {
    async fn status(&self) -> view::Status {
        self.status.clone()
    }

    async fn peers(&self) -> Vec<view::Peer> {
        vec![view::Peer { node: "edge-2".into(), path: "none".into(), ..view::Peer::default() }]
    }

    async fn routes(&self) -> view::Routes {
        view::Routes { schema: view::SCHEMA, generation: 17, ..view::Routes::default() }
    }

    async fn ipam(&self) -> view::Ipam {
        view::Ipam { schema: view::SCHEMA, ..view::Ipam::default() }
    }

    async fn plugins(&self) -> view::Plugins {
        view::Plugins { schema: view::SCHEMA, ..view::Plugins::default() }
    }

    async fn explain(&self, from: &str, to: &str) -> Result<view::Explanation, String> {
        match from {
            "endless" => {
                self.begun.notify_one();
                std::future::pending().await
            }
            "nobody" => {
                Err("no pod is known as \"nobody\"; write an address,\na namespace/name or a container id".into())
            }
            _ => Ok(view::Explanation {
                schema: view::SCHEMA,
                from: from.into(),
                to: to.into(),
                inputs: BTreeMap::from([("reach".into(), "routed".into())]),
                ..view::Explanation::default()
            }),
        }
    }

    async fn release_name(&self, name: &str) -> Result<(), String> {
        if name == "edge 1/é" { Ok(()) } else { Err(format!("{name} is bound to nobody")) }
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }
}

fn healthy() -> view::Status {
    view::Status { schema: view::SCHEMA, node: "edge-1".into(), ready: true, ..view::Status::default() }
}

/// A served admin socket in a folder of its own.
struct Served {
    folder: tempfile::TempDir,
    refused: Counter,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), AdminError>>,
}

impl Served {
    fn start(canned: Canned) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = AdminSocket::bind(&folder.path().join("admin.sock")).unwrap();
        let refused = canned.metrics.admin_requests_refused.clone();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _gone = stopped.await;
        };
        let server = tokio::spawn(admin::serve_on(socket, Arc::new(canned), refused.clone(), shutdown));
        Self { folder, refused, stop, server }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    async fn ctl(&self, arguments: &[&str]) -> (Exit, String, String) {
        ctl(&self.socket(), arguments).await
    }

    /// Stops the server and answers the folder, to look at what is left.
    async fn stop(self) -> tempfile::TempDir {
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.server).await.unwrap().unwrap().unwrap();
        self.folder
    }
}

async fn ctl(socket: &Path, arguments: &[&str]) -> (Exit, String, String) {
    let program = ["culvertctl", "--socket", socket.to_str().unwrap()];
    let arguments = Arguments::try_parse_from(program.iter().chain(arguments)).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run(&arguments, Terminal { out: &mut out, err: &mut err, colour: false }).await;
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Sends bytes and reads all that comes back.
async fn raw(socket: &Path, request: &str) -> String {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

/// The first line and the body of a raw answer.
fn parts(answer: &str) -> (&str, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap(), body)
}

#[tokio::test]
async fn each_command_prints_the_daemons_answer() {
    let served = Served::start(Canned::new(healthy()));
    for (command, begin) in [
        ("status", "✓ edge-1 is ready\n"),
        ("peers", "   NODE    SITE"),
        ("routes", "decided by - for topology generation 17\n"),
        ("ipam", "no pools: "),
        ("plugins", "no policy is in force yet: "),
        ("metrics", "# HELP culvert_build "),
    ] {
        let (exit, out, err) = served.ctl(&[command]).await;
        assert_eq!((exit, err.as_str()), (Exit::Ok, ""), "{command}");
        assert!(out.starts_with(begin), "{command}: {out}");
    }
    served.stop().await;
}

#[tokio::test]
async fn json_is_the_view_and_nothing_else() {
    let served = Served::start(Canned::new(healthy()));
    let (exit, out, err) = served.ctl(&["status", "--output", "json"]).await;
    assert_eq!((exit, err.as_str()), (Exit::Ok, ""));
    assert_eq!(serde_json::from_str::<view::Status>(&out).unwrap(), healthy());
    let (_, out, _) = served.ctl(&["-o", "json", "peers"]).await;
    let peers: view::Peers = serde_json::from_str(&out).unwrap();
    assert_eq!((peers.schema, peers.peers.len()), (view::SCHEMA, 1));
    let (_, out, _) = served.ctl(&["explain", "default/web-0", "fd00::5", "-o", "json"]).await;
    let explanation: view::Explanation = serde_json::from_str(&out).unwrap();
    assert_eq!((explanation.from.as_str(), explanation.to.as_str()), ("default/web-0", "fd00::5"));
    assert_eq!(explanation.inputs, BTreeMap::from([("reach".to_owned(), "routed".to_owned())]));
    served.stop().await;
}

#[tokio::test]
async fn metrics_have_no_json_form() {
    let served = Served::start(Canned::new(healthy()));
    let (exit, out, err) = served.ctl(&["metrics", "-o", "json"]).await;
    assert_eq!((exit, out.as_str()), (Exit::Usage, ""));
    assert_eq!(err, "culvertctl: metrics are OpenMetrics text and have no JSON form; leave --output json away\n");
    served.stop().await;
}

#[tokio::test]
async fn a_degraded_node_is_an_exit_code_of_its_own() {
    for status in [
        view::Status { ready: false, ..healthy() },
        view::Status { problems: vec!["the relay is away".into()], ..healthy() },
    ] {
        let served = Served::start(Canned::new(status));
        for output in ["text", "json"] {
            let (exit, out, err) = served.ctl(&["status", "--output", output]).await;
            assert_eq!((exit, err.as_str()), (Exit::Degraded, ""));
            assert!(!out.is_empty());
        }
        assert_eq!(served.ctl(&["peers"]).await.0, Exit::Ok);
        served.stop().await;
    }
}

#[tokio::test]
async fn the_daemons_own_words_say_why_it_refuses() {
    let served = Served::start(Canned::new(healthy()));
    let (exit, out, err) = served.ctl(&["explain", "nobody", "x"]).await;
    assert_eq!((exit, out.as_str()), (Exit::Failed, ""));
    assert_eq!(
        err,
        "culvertctl: no pod is known as \"nobody\"; write an address,\\na namespace/name or a container id\n"
    );
    let (exit, _, err) = served.ctl(&["release-name", "edge-9"]).await;
    assert_eq!((exit, err.as_str()), (Exit::Failed, "culvertctl: edge-9 is bound to nobody\n"));
    let (exit, _, err) = served.ctl(&["explain", "", "x"]).await;
    let expected = "culvertctl: a name in the request is empty; write which pod or node is meant\n";
    assert_eq!((exit, err.as_str()), (Exit::Failed, expected));
    let (exit, _, err) = served.ctl(&["explain", &"x".repeat(600), "x"]).await;
    let expected = "culvertctl: a name in the request has 600 bytes; at most 512 can be one\n";
    assert_eq!((exit, err.as_str()), (Exit::Failed, expected));
    served.stop().await;
}

#[tokio::test]
async fn a_name_of_any_characters_is_released_as_it_is() {
    let served = Served::start(Canned::new(healthy()));
    let (exit, out, _) = served.ctl(&["release-name", "edge 1/é"]).await;
    assert_eq!(exit, Exit::Ok);
    assert!(out.starts_with("✓ edge 1/é is free: "), "{out}");
    served.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_get_a_problem_each() {
    let served = Served::start(Canned::new(healthy()));
    let socket = served.socket();
    for (request, status, begin) in [
        ("GET /v2/status HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 Not Found", "there is no /v2/status here"),
        ("DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405 Method Not Allowed", "DELETE does not go with"),
        (
            "GET /v1/explain?from=a HTTP/1.1\r\nHost: x\r\n\r\n",
            "HTTP/1.1 400 Bad Request",
            "write /v1/explain?from=POD&to=POD",
        ),
        (
            "POST /v1/names/a/release HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
            "HTTP/1.1 413 Payload Too Large",
            "requests to the admin API have no body",
        ),
    ] {
        let answer = raw(&socket, request).await;
        let (first, body) = parts(&answer);
        assert_eq!(first, status);
        let problem: view::Problem = serde_json::from_str(body).unwrap();
        assert!(problem.error.starts_with(begin), "{}", problem.error);
    }
    assert!(raw(&socket, "garbage\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let many: String = (0..40).map(|number| format!("X-{number}: y\r\n")).collect();
    assert!(raw(&socket, &format!("GET /v1/status HTTP/1.1\r\n{many}\r\n")).await.starts_with("HTTP/1.1 431 "));
    let long = "y".repeat(64 * 1024);
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    // The daemon may answer and close before it has all of it; what counts is that it goes on.
    let _cut = stream.write_all(format!("GET /v1/status HTTP/1.1\r\nX: {long}\r\n\r\n").as_bytes()).await;
    drop(stream);
    assert_eq!(served.ctl(&["status"]).await.0, Exit::Ok);
    served.stop().await;
}

#[tokio::test]
async fn more_connections_than_there_are_places_wait_for_their_turn() {
    let served = Served::start(Canned::new(healthy()));
    let mut idle = Vec::new();
    for _ in 0..16 {
        idle.push(tokio::net::UnixStream::connect(served.socket()).await.unwrap());
    }
    let socket = served.socket();
    let waiting = tokio::spawn(async move { ctl(&socket, &["status"]).await.0 });
    // Whoever keeps a place without asking loses it after the header time, so the next is served.
    assert_eq!(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap(), Exit::Ok);
    drop(idle);
    served.stop().await;
}

#[tokio::test]
async fn a_daemon_that_is_down_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let (exit, out, err) = ctl(&socket, &["status"]).await;
    assert_eq!((exit, out.as_str()), (Exit::Unreachable, ""));
    assert!(err.starts_with(&format!("culvertctl: cannot reach the daemon at {}: ", socket.display())), "{err}");
    assert!(err.contains("systemctl status culvertd"), "{err}");
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(ctl(&socket, &["peers"]).await.0, Exit::Unreachable);
}

/// Answers one connection with `answer`, whatever it asks.
fn impostor(socket: &Path, answer: Vec<u8>) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let read = stream.read(&mut request).await.unwrap();
        assert!(read > 0);
        stream.write_all(&answer).await.unwrap();
    })
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn garbage_on_the_socket_is_called_garbage() {
    for (answer, begin) in [
        (b"\x00\xffSSH-2.0-nonsense\r\n\r\n".to_vec(), "culvertctl: what answers at "),
        (Vec::new(), "culvertctl: what answers at "),
        (http("200 OK", "<html>"), "culvertctl: the answer of "),
        (http("200 OK", "{\"ready\": true}"), "culvertctl: the answer of "),
        (http("502 Bad Gateway", "<html>"), "culvertctl: the answer of "),
        (
            http("200 OK", "{\"schema\": 2, \"ready\": true, \"problems\": []}"),
            "culvertctl: the daemon speaks schema 2 and this culvertctl 1; ",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let served = impostor(&socket, answer);
        let (exit, out, err) = ctl(&socket, &["status"]).await;
        assert_eq!((exit, out.as_str()), (Exit::Failed, ""), "{err}");
        assert!(err.starts_with(begin), "{err}");
        tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn json_passes_a_newer_schema_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let served =
        impostor(&socket, http("200 OK", "{\"schema\":2,\"ready\":true,\"problems\":[],\"new\":\"a\u{9b}b\"}"));
    let (exit, out, err) = ctl(&socket, &["status", "-o", "json"]).await;
    assert_eq!((exit, err.as_str()), (Exit::Ok, ""));
    assert_eq!(out, "{\n  \"new\": \"a\\u009bb\",\n  \"problems\": [],\n  \"ready\": true,\n  \"schema\": 2\n}\n");
    tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap();
}

#[tokio::test]
async fn another_user_is_refused_and_counted() {
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user, so it must start as root");
    let served = Served::start(Canned::new(healthy()));
    // The file's mode alone keeps others out; this opens it, to see the second lock.
    std::fs::set_permissions(served.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let closed = as_nobody(served.socket()).await.unwrap_err();
    assert_eq!(closed.kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(served.refused.get(), 0);
    std::fs::set_permissions(served.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let answer = as_nobody(served.socket()).await.unwrap();
    let (first, body) = parts(&answer);
    assert_eq!(first, "HTTP/1.1 403 Forbidden");
    let problem: view::Problem = serde_json::from_str(body).unwrap();
    assert_eq!(problem.error, "only root and the daemon's own user may use the admin socket; ask as root");
    assert_eq!(served.refused.get(), 1);
    assert_eq!(served.ctl(&["status"]).await.0, Exit::Ok);
    assert_eq!(served.refused.get(), 1);
    served.stop().await;
}

/// Asks for the status from a thread that has become user 65534. The kernel keeps users per thread,
/// so the rest of this process stays who it is.
async fn as_nobody(socket: PathBuf) -> std::io::Result<String> {
    let (done, answer) = oneshot::channel();
    std::thread::spawn(move || {
        let ask = || {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65_534))?;
            let mut stream = BlockingStream::connect(&socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        done.send(ask()).unwrap();
    });
    answer.await.unwrap()
}

#[tokio::test]
async fn a_shutdown_removes_the_socket_and_does_not_wait_for_ever() {
    let canned = Canned::new(healthy());
    let begun = canned.begun.clone();
    let served = Served::start(canned);
    let socket = served.socket();
    let endless = tokio::spawn(async move { ctl(&socket, &["explain", "endless", "x"]).await });
    tokio::time::timeout(PATIENCE, begun.notified()).await.unwrap();
    let folder = served.stop().await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let (exit, _, err) = tokio::time::timeout(PATIENCE, endless).await.unwrap().unwrap();
    assert_eq!(exit, Exit::Failed, "{err}");
}

#[tokio::test]
async fn the_metrics_port_serves_metrics_and_nothing_else() {
    let listener = admin::bind_metrics("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _gone = stopped.await;
    };
    let server = tokio::spawn(admin::serve_metrics_on(listener, Arc::new(Canned::new(healthy())), shutdown));
    for (path, status) in [("/metrics", "HTTP/1.1 200 OK"), ("/v1/status", "HTTP/1.1 404 Not Found")] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert_eq!(parts(&answer).0, status);
        if path == "/metrics" {
            assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
            assert!(answer.ends_with("# EOF\n"));
        }
    }
    stop.send(()).unwrap();
    tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap();
}

#[test]
fn wrong_usage_is_an_exit_code_of_its_own() {
    for wrong in [&["culvertctl"][..], &["culvertctl", "stats"], &["culvertctl", "explain", "a"]] {
        assert_eq!(Arguments::try_parse_from(wrong).unwrap_err().exit_code(), i32::from(Exit::Usage.code()));
    }
}
