//! The call as the runtime made it: environment and stdin, checked as far as it goes without the daemon.

use std::io::Read as _;
use std::path::PathBuf;

use culvert_cni::code::Code;
use culvert_cni::environment::Environment;
use culvert_cni::frame::MAX_STDIN_BYTES;
use culvert_cni::head::{self, HeadError};
use culvert_cni::version::{SpecVersion, Verb};

use crate::answer::Failure;
use crate::json::{self, Member, ScanError};

/// Where the daemon listens unless the configuration or the environment says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/culvert/cni.sock";

/// The variable that names another socket. The configuration's key `socket` beats it.
pub const SOCKET_VARIABLE: &str = "CULVERT_SOCKET";

/// The variables that are passed on besides those whose name starts with `CNI_`.
const PASSED_ON: [&str; 4] = ["PATH", "TRACEPARENT", "TRACESTATE", "BAGGAGE"];

/// A call, checked.
#[derive(Debug)]
pub struct Call {
    /// Every variable that is passed on.
    pub variables: Vec<(String, String)>,
    /// Those that the specification asks for.
    pub environment: Environment,
    /// The configuration, verbatim.
    pub stdin: Vec<u8>,
    /// The network's name.
    pub network: String,
    /// The version to answer in.
    pub version: SpecVersion,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The configuration's `prevResult`, verbatim.
    pub previous: Option<String>,
}

impl Call {
    /// Reads and checks the call. VERSION needs no configuration.
    ///
    /// **Errors** in this order: environment, JSON, name, version, verb, socket path.
    pub fn read() -> Result<Self, Failure> {
        let variables = read_variables()?;
        let environment = match Environment::read(&variables) {
            Ok(environment) => environment,
            Err(error) => {
                let failure = Failure::new(Code::InvalidEnvironment, error.to_string());
                return Err(failure.in_version(version_if_called(&variables)));
            }
        };
        let stdin = read_stdin()?;
        if environment.verb == Verb::Version {
            let (version, socket) = (answer_version(&stdin), PathBuf::new());
            return Ok(Self { variables, environment, stdin, network: String::new(), version, socket, previous: None });
        }
        let version = answer_version(&stdin);
        let config = Config::read(&stdin, environment.verb).map_err(|failure| failure.in_version(version))?;
        Ok(Self {
            variables,
            environment,
            stdin,
            network: config.network,
            version: config.version,
            socket: config.socket,
            previous: config.previous,
        })
    }

    /// A failure of this call.
    pub fn failure(&self, code: Code, message: impl Into<String>) -> Failure {
        Failure::new(code, message).in_version(self.version)
    }
}

/// What the shim itself needs of the configuration.
struct Config {
    network: String,
    version: SpecVersion,
    socket: PathBuf,
    previous: Option<String>,
}

impl Config {
    fn read(stdin: &[u8], verb: Verb) -> Result<Self, Failure> {
        let text = std::str::from_utf8(stdin)
            .map_err(|error| undecodable(&format!("it is not UTF-8 from byte {} on", error.valid_up_to())))?;
        let [name, version, socket, previous] = json::members(text, ["name", "cniVersion", "socket", "prevResult"])
            .map_err(|error| scan_failure(&error))?;
        let refused = |error: HeadError| Failure::new(error.code(), error.to_string());
        let name = optional_text("name", name)?;
        head::check_name(name.as_deref()).map_err(refused)?;
        let version = optional_text("cniVersion", version)?;
        let version = head::check_version(version.as_deref(), verb).map_err(refused)?;
        let previous = match previous {
            Member::Object(text) => Some(text.to_owned()),
            Member::Absent => None,
            // DEL and GC work without it, so nothing in it may keep them from cleaning up.
            Member::Text(_) | Member::Other if matches!(verb, Verb::Del | Verb::Gc) => None,
            Member::Text(_) | Member::Other => return Err(undecodable("\"prevResult\" is not an object")),
        };
        let socket = choose_socket(optional_text("socket", socket)?)?;
        Ok(Self { network: name.unwrap_or_default(), version, socket, previous })
    }
}

/// Reads the variables that are passed on.
///
/// **Errors** one of the specification's is not UTF-8.
fn read_variables() -> Result<Vec<(String, String)>, Failure> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("CNI_") || PASSED_ON.contains(name)) else {
            continue;
        };
        match value.into_string() {
            Ok(value) => variables.push((name.to_owned(), value)),
            // Only for whoever looks for programs or traces: a wrong one must not stop a pod.
            Err(value) if PASSED_ON.contains(&name) => {
                variables.push((name.to_owned(), value.to_string_lossy().into_owned()));
            }
            Err(_) => return Err(Failure::new(Code::InvalidEnvironment, format!("{name} is not UTF-8"))),
        }
    }
    Ok(variables)
}

/// Reads the configuration, at most one byte more than is allowed.
fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut stdin = Vec::new();
    let limit = u64::try_from(MAX_STDIN_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let read = std::io::stdin().lock().take(limit).read_to_end(&mut stdin);
    read.map_err(|error| Failure::new(Code::Io, format!("network configuration on stdin cannot be read: {error}")))?;
    if stdin.len() > MAX_STDIN_BYTES {
        return Err(undecodable(&format!("it is longer than {MAX_STDIN_BYTES} bytes")));
    }
    Ok(stdin)
}

/// The version for an answer about the environment. Without a command no runtime has called, so
/// nobody may ever write to stdin.
fn version_if_called(variables: &[(String, String)]) -> SpecVersion {
    if !variables.iter().any(|(name, _)| name == "CNI_COMMAND") {
        return SpecVersion::LATEST;
    }
    read_stdin().map_or(SpecVersion::LATEST, |stdin| answer_version(&stdin))
}

/// The version to answer in, however broken the rest is: the configuration's own if it is one of
/// ours, else the latest.
fn answer_version(stdin: &[u8]) -> SpecVersion {
    let scanned = std::str::from_utf8(stdin).ok().and_then(|text| json::members(text, ["cniVersion"]).ok());
    match scanned {
        Some([Member::Text(version)]) => SpecVersion::parse(&version).unwrap_or(SpecVersion::LATEST),
        Some([Member::Absent]) => SpecVersion::V0_1_0,
        Some([Member::Object(_) | Member::Other]) | None => SpecVersion::LATEST,
    }
}

fn optional_text(name: &str, member: Member<'_>) -> Result<Option<String>, Failure> {
    match member {
        Member::Absent => Ok(None),
        Member::Text(text) => Ok(Some(text)),
        Member::Object(_) | Member::Other => Err(undecodable(&format!("\"{name}\" is not a string"))),
    }
}

fn choose_socket(configured: Option<String>) -> Result<PathBuf, Failure> {
    let from_environment = || std::env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty());
    let path: PathBuf = match configured {
        Some(path) => path.into(),
        None => from_environment().map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from),
    };
    if !path.is_absolute() {
        let message = format!("the daemon's socket {} must be an absolute path", path.display());
        return Err(Failure::new(Code::InvalidConfig, message));
    }
    Ok(path)
}

fn scan_failure(error: &ScanError) -> Failure {
    undecodable(&format!("byte {}: expected {}", error.position, error.expected))
}

fn undecodable(problem: &str) -> Failure {
    Failure::new(Code::Decode, format!("network configuration on stdin cannot be read: {problem}"))
}
