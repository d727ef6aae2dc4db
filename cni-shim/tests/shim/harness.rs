//! What the tests share: the program, namespaces, and a daemon that answers once.

use std::io::{ErrorKind, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert_cni::frame::{DESCRIPTORS, HEADER_BYTES, Request};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

/// No step of a test takes longer unless something is broken. It bounds waits, it asserts nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: i32,
    pub stdout: String,
}

impl Ended {
    /// The error code, after checking that the answer is one error object and the exit status says so.
    pub fn error_code(&self) -> u64 {
        let object: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(self.exit_code, 1, "{self:?}");
        assert!(object["msg"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        assert!(object["cniVersion"].is_string(), "{self:?}");
        object["code"].as_u64().unwrap_or_else(|| panic!("no code: {self:?}"))
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.exit_code, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub fn silent_success() -> Ended {
    Ended { exit_code: 0, stdout: String::new() }
}

/// One call of the program, not yet made.
pub struct Call {
    command: Command,
    stdin: Vec<u8>,
}

impl Call {
    /// A call under the name `culvert`, without any variable.
    pub fn bare() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
        command.env_clear();
        Self { command, stdin: Vec::new() }
    }

    /// A call with a good environment for every verb, and the configuration of [`config`].
    pub fn of(verb: &str, netns: &str) -> Self {
        Self::bare()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "pod-1")
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(config("1.1.0").to_string())
    }

    /// The same call under the name of the loopback plugin.
    pub fn loopback(verb: &str, netns: &str) -> Self {
        let mut call = Self::of(verb, netns);
        call.command.arg0("/opt/cni/bin/loopback");
        call.env("CNI_IFNAME", "lo")
    }

    /// The loopback plugin, executed inside the namespace itself.
    pub fn loopback_inside(verb: &str, namespace: &Namespace) -> Self {
        let mut command = Command::new("ip");
        let program = env!("CARGO_BIN_EXE_culvert");
        command.args(["netns", "exec", &namespace.name, "bash", "-c", "exec -a loopback \"$0\"", program]);
        let call = Self { command, stdin: config("1.1.0").to_string().into_bytes() };
        call.env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "pod-1")
            .env("CNI_NETNS", &namespace.path())
            .env("CNI_IFNAME", "lo")
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    pub fn socket(self, socket: &Path) -> Self {
        self.env("CULVERT_SOCKET", socket.to_str().unwrap())
    }

    pub fn run(self) -> Ended {
        self.run_into(Stdio::piped())
    }

    /// Makes the call with its answer going somewhere else.
    pub fn run_into(mut self, stdout: Stdio) -> Ended {
        let mut child = self.command.stdin(Stdio::piped()).stdout(stdout).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = std::mem::take(&mut self.stdin);
        // The program may end without reading all of it; that is for the answer to judge.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        let exit_code = output.status.code().unwrap_or_else(|| panic!("died: {output:?}"));
        Ended { exit_code, stdout: String::from_utf8(output.stdout).unwrap() }
    }
}

/// A good configuration.
pub fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "net", "type": "culvert"})
}

/// A network namespace, removed at the end.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("culvert-shim-{}-{number}", std::process::id()) };
        ip(&["netns", "add", &namespace.name]);
        namespace
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs a shell command inside.
    pub fn shell(&self, script: &str) -> String {
        ip(&["netns", "exec", &self.name, "sh", "-c", script])
    }

    pub fn loopback_is_up(&self) -> bool {
        let links: Value = serde_json::from_str(&ip(&["-n", &self.name, "-j", "link", "show", "lo"])).unwrap();
        links[0]["flags"].as_array().unwrap().contains(&json!("UP"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "delete", &self.name]).status();
        if !std::thread::panicking() {
            assert!(removed.unwrap().success());
        }
    }
}

pub fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the fake daemon saw of one call.
pub struct Served {
    pub request: Request,
    pub descriptors: Vec<OwnedFd>,
    /// The network namespace of the shim while it waited for its answer.
    pub shim_namespace: PathBuf,
    /// Everything that came after the answer.
    pub after: Vec<u8>,
}

/// A daemon on a socket of its own.
pub struct FakeDaemon {
    directory: tempfile::TempDir,
    listener: UnixListener,
}

impl FakeDaemon {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("cni.sock")).unwrap();
        Self { directory, listener }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cni.sock")
    }

    /// Answers one call with these bytes, whatever they are.
    pub fn answer_once(&self, answer: Vec<u8>) -> JoinHandle<Served> {
        let listener = self.listener.try_clone().unwrap();
        std::thread::spawn(move || {
            wait_readable(&listener);
            let (stream, _) = listener.accept().unwrap();
            serve(stream, &answer)
        })
    }
}

fn wait_readable(listener: &UnixListener) {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    let ready = rustix::event::poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "the shim never connected");
}

fn serve(mut stream: UnixStream, answer: &[u8]) -> Served {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut header = [0; HEADER_BYTES];
    let descriptors = receive_with_descriptors(&stream, &mut header);
    let mut body = vec![0; Request::body_bytes(&header).unwrap()];
    stream.read_exact(&mut body).unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap().pid.as_raw_nonzero();
    let shim_namespace = std::fs::read_link(format!("/proc/{peer}/ns/net")).unwrap();
    stream.write_all(answer).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let after = read_to_the_end(&mut stream);
    Served { request: Request::decode_body(&body).unwrap(), descriptors, shim_namespace, after }
}

/// Reads all that comes. A shim that gives an answer up without reading all of it resets the connection.
fn read_to_the_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut after = Vec::new();
    match stream.read_to_end(&mut after) {
        Ok(_) => after,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => after,
        Err(error) => panic!("{error}"),
    }
}

fn receive_with_descriptors(stream: &UnixStream, header: &mut [u8; HEADER_BYTES]) -> Vec<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut target = [IoSliceMut::new(header)];
    let received = rustix::net::recvmsg(stream, &mut target, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(received.bytes, HEADER_BYTES);
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    descriptors
}
