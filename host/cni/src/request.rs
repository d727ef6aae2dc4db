//! A whole call, checked: the one door through which the runtime's words enter the daemon.
//!
//! The order of the checks is the reference's: environment (4), JSON (6), name (7), version (6 for
//! its type, 1 for its value), verb at that version (1), then the fields.

use std::net::IpAddr;

use serde_json::Value;

use crate::arguments::{Arguments, PodIdentity};
use crate::code::Code;
use crate::environment::Environment;
use crate::error::CniError;
use crate::fields::{FieldError, Fields};
use crate::frame;
use crate::ipam::AddressWish;
use crate::mac::MacAddress;
use crate::netconf::{ConfigError, NetConf};
use crate::runtime_config::read_address;
use crate::version::Verb;

/// A call, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What is asked for.
    pub verb: Verb,
    /// CNI_CONTAINERID; empty with GC, STATUS and VERSION.
    pub container_id: String,
    /// CNI_IFNAME; empty with GC, STATUS and VERSION.
    pub ifname: String,
    /// CNI_NETNS verbatim, as results repeat it; `None` when absent or empty.
    pub netns: Option<String>,
    /// For which pod.
    pub pod: PodIdentity,
    /// The addresses the pod shall get. With ADD and CHECK only.
    pub addresses: AddressWish,
    /// The hardware address the pod shall get. With ADD and CHECK only.
    pub mac: Option<MacAddress>,
    /// The network. With DEL and GC only its head.
    pub config: NetConf,
}

impl Request {
    /// Reads and checks a call. DEL and GC forgive everything they do not need.
    ///
    /// **Errors** the first rule broken, as the runtime shall see it.
    pub fn decode(request: &frame::Request) -> Result<Self, CniError> {
        let environment = Environment::read(&request.env)?;
        let verb = environment.verb;
        let config = match verb {
            Verb::Version => NetConf::for_version(&request.stdin),
            Verb::Add | Verb::Del | Verb::Check | Verb::Gc | Verb::Status => NetConf::decode(&request.stdin, verb)?,
        };
        let (arguments, wanted) = match verb {
            Verb::Add | Verb::Check => {
                let arguments = Arguments::parse(&environment.arguments)?;
                let wanted = Wanted::read(&arguments, &config)?;
                (arguments, wanted)
            }
            Verb::Del | Verb::Gc | Verb::Status | Verb::Version => {
                (Arguments::parse_leniently(&environment.arguments), Wanted::default())
            }
        };
        Ok(Self {
            verb,
            container_id: environment.container_id,
            ifname: environment.ifname,
            netns: environment.netns,
            pod: arguments.pod(),
            addresses: wanted.addresses,
            mac: wanted.mac,
            config,
        })
    }
}

/// What one pod shall have instead of any free address, whichever way the runtime said so: `runtimeConfig` beats
/// `args.cni`, which beats CNI_ARGS. **Source** CONVENTIONS.md.
#[derive(Default)]
struct Wanted {
    addresses: AddressWish,
    mac: Option<MacAddress>,
}

impl Wanted {
    fn read(arguments: &Arguments, config: &NetConf) -> Result<Self, CniError> {
        let (args_addresses, args_mac) = read_args(config).map_err(ConfigError::Asked)?;
        let mut mac = config.runtime.mac.or(args_mac);
        if let Some(text) = arguments.value("MAC").filter(|_| mac.is_none()) {
            mac = Some(argument("MAC", text, text.parse().ok())?);
        }
        let mut wanted = config.runtime.ips.clone();
        if wanted.is_empty() {
            wanted = args_addresses;
        }
        if let Some(text) = arguments.value("IP").filter(|_| wanted.is_empty()) {
            let address =
                |text: &str| argument("IP", text, read_address(String::new(), &Value::from(text.trim())).ok());
            wanted = text.split(',').map(address).collect::<Result<_, _>>()?;
        }
        let addresses = AddressWish::new(config.options.ipam.kind, config.sets.clone(), wanted);
        Ok(Self { addresses: addresses.map_err(ConfigError::Asked)?, mac })
    }
}

/// Reads `args.cni`; everything else in `args` is for others.
fn read_args(config: &NetConf) -> Result<(Vec<IpAddr>, Option<MacAddress>), FieldError> {
    let cni = config.options.args.as_ref().and_then(|args| args.get("cni")).filter(|cni| cni.is_object());
    let Some(cni) = cni else { return Ok((Vec::new(), None)) };
    let fields = Fields::of("args.cni", cni)?;
    let addresses = fields.list("ips")?.into_iter().map(|(path, value)| read_address(path, value));
    Ok((addresses.collect::<Result<_, _>>()?, fields.parsed("mac", "a hardware address")?))
}

fn argument<T>(key: &str, text: &str, parsed: Option<T>) -> Result<T, CniError> {
    parsed.ok_or_else(|| CniError::new(Code::InvalidConfig, format!("CNI_ARGS {key}={text:?} is no address")))
}

#[cfg(test)]
mod tests;
