//! The network configuration on stdin, checked.
//!
//! DEL and GC read its head only: they work from the host's own records, so nothing else in it may
//! keep them from cleaning up.

use serde_json::{Map, Value};

use crate::code::Code;
use crate::fields::{Fault, FieldError, Fields};
use crate::head::{self, HeadError};
use crate::ipam::{Ipam, IpamKind, RangeSet};
use crate::result::{AddResult, Dns, ResultError};
use crate::route::RouteWish;
use crate::runtime_config::{Bandwidth, RuntimeConfig};
use crate::version::{SpecVersion, Verb};

pub(crate) mod unsupported;

/// The network configuration of one call.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// `cniVersion`: the version to answer in.
    pub cni_version: SpecVersion,
    /// `name` of the network; empty only with VERSION.
    pub name: String,
    /// `type`, the name of the plugin's binary.
    pub plugin_type: String,
    /// What the administrator set.
    pub options: Options,
    /// `runtimeConfig`: what the runtime asks for this pod.
    pub runtime: RuntimeConfig,
    /// The ranges in force, of the runtime and of `ipam`. The pod gets one address of each set; empty leaves it to
    /// the host.
    pub sets: Vec<RangeSet>,
    /// `prevResult`: what the plugins before this one made.
    pub previous: Option<AddResult>,
    /// `cni.dev/valid-attachments`, with GC: all others are to be removed. `None` removes nothing.
    pub valid_attachments: Option<Vec<AttachmentName>>,
}

/// The configuration fields of the reference's bridge plugin, each as given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// `bridge`.
    pub bridge: Option<String>,
    /// `mtu`. **Units** bytes. **Bounds** 68 to 65,535; 0 means unset.
    pub mtu_bytes: Option<u16>,
    /// `isGateway`.
    pub is_gateway: Option<bool>,
    /// `isDefaultGateway`.
    pub is_default_gateway: Option<bool>,
    /// `forceAddress`.
    pub force_address: Option<bool>,
    /// `ipMasq`.
    pub ip_masq: Option<bool>,
    /// `hairpinMode`.
    pub hairpin_mode: Option<bool>,
    /// `promiscMode`.
    pub promisc_mode: Option<bool>,
    /// `ipam`.
    pub ipam: Ipam,
    /// `args`, as given.
    pub args: Option<Map<String, Value>>,
    /// `dns`.
    pub dns: Dns,
}

/// What the runtime calls one attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentName {
    /// CNI_CONTAINERID of its ADD.
    pub container_id: String,
    /// CNI_IFNAME of its ADD.
    pub ifname: String,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("network configuration on stdin is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but no object.
    #[error("network configuration on stdin is not a JSON object; it starts with {0:?}")]
    NotAnObject(String),
    /// Name, version or verb.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A field that an administrator wrote is wrong.
    #[error("network configuration: {0}")]
    Field(#[source] FieldError),
    /// What is asked for one pod, or as its rates, makes no sense, be it by type or by value.
    #[error("network configuration: {0}")]
    Asked(#[source] FieldError),
    /// `prevResult` cannot be read.
    #[error("network configuration: {0}")]
    Previous(#[source] ResultError),
    /// CHECK came without `prevResult`.
    #[error("CHECK of network {0:?} needs the \"prevResult\" of its ADD")]
    PreviousMissing(String),
    /// STATUS: what an ADD with this configuration would be refused for.
    #[error("no ADD can be served with this configuration: {0}")]
    Unusable(#[source] Box<ConfigError>),
}

impl ConfigError {
    /// The code it is answered with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Json(_) | Self::NotAnObject(_) | Self::Previous(_) => Code::Decode,
            Self::Head(error) => error.code(),
            Self::Field(error) => match error.fault {
                Fault::Type => Code::Decode,
                Fault::Value => Code::InvalidConfig,
            },
            Self::Asked(_) | Self::PreviousMissing(_) => Code::InvalidConfig,
            Self::Unusable(_) => Code::Unavailable,
        }
    }
}

impl NetConf {
    /// Reads what this verb needs of a configuration.
    ///
    /// **Errors** in this order: JSON, name, version, verb, then the other fields.
    pub fn decode(stdin: &[u8], verb: Verb) -> Result<Self, ConfigError> {
        let document: Value = serde_json::from_slice(stdin)?;
        let Some(map) = document.as_object() else {
            return Err(ConfigError::NotAnObject(document.to_string().chars().take(16).collect()));
        };
        let fields = Fields::root(map);
        let mut config = Self::decode_head(&fields, verb)?;
        match verb {
            Verb::Version | Verb::Del => {}
            Verb::Gc => config.valid_attachments = read_valid_attachments(&fields).map_err(ConfigError::Field)?,
            Verb::Status => config.decode_rest(&fields).map_err(|error| ConfigError::Unusable(Box::new(error)))?,
            Verb::Add => config.decode_rest(&fields)?,
            Verb::Check => {
                config.decode_rest(&fields)?;
                if config.previous.is_none() {
                    return Err(ConfigError::PreviousMissing(config.name));
                }
            }
        }
        Ok(config)
    }

    /// The configuration of a VERSION call, of which only the version is asked, and that not strictly.
    #[must_use]
    pub fn for_version(stdin: &[u8]) -> Self {
        Self::empty(answer_version(stdin))
    }

    fn empty(cni_version: SpecVersion) -> Self {
        Self {
            cni_version,
            name: String::new(),
            plugin_type: String::new(),
            options: Options::default(),
            runtime: RuntimeConfig::default(),
            sets: Vec::new(),
            previous: None,
            valid_attachments: None,
        }
    }

    /// The routes that the pod shall have.
    ///
    /// In the words of the reference's plugins a pod gets a default route by `isDefaultGateway` or by one among
    /// `ipam.routes`. In our own words it gets one unless `isDefaultGateway` is false.
    #[must_use]
    pub fn routes(&self) -> RouteWish {
        let default = match self.options.ipam.kind {
            IpamKind::Own => self.options.is_default_gateway != Some(false),
            IpamKind::HostLocal | IpamKind::Static => self.options.is_default_gateway == Some(true),
        };
        RouteWish { routes: self.options.ipam.routes.clone(), default }
    }

    /// Name resolution for the pod: what the runtime asks for, else what the network has, else what `ipam` has.
    #[must_use]
    pub fn dns(&self) -> &Dns {
        let asked = self.runtime.dns.as_ref().filter(|dns| !dns.is_empty());
        let network = Some(&self.options.dns).filter(|dns| !dns.is_empty());
        asked.or(network).unwrap_or(&self.options.ipam.dns)
    }

    fn decode_head(fields: &Fields<'_>, verb: Verb) -> Result<Self, ConfigError> {
        let name = fields.text("name").map_err(ConfigError::Field)?;
        let name = head::check_name(name)?.to_owned();
        let text = fields.text("cniVersion").map_err(ConfigError::Field)?;
        let version = head::check_version(text, verb)?;
        let plugin_type = fields.text("type").map_err(ConfigError::Field)?.unwrap_or_default().to_owned();
        Ok(Self { name, plugin_type, ..Self::empty(version) })
    }

    fn decode_rest(&mut self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        self.options = Options::read(fields).map_err(ConfigError::Field)?;
        unsupported::refuse(fields).map_err(ConfigError::Field)?;
        let bandwidth = Bandwidth::read(fields).map_err(ConfigError::Asked)?;
        if let Some(runtime) = fields.object("runtimeConfig").map_err(ConfigError::Asked)? {
            self.runtime = RuntimeConfig::read(&runtime).map_err(ConfigError::Asked)?;
        }
        self.runtime.bandwidth = self.runtime.bandwidth.or(bandwidth);
        let sets = self.options.ipam.sets_with(&self.runtime.ip_ranges, self.cni_version);
        self.sets = sets.map_err(ConfigError::Field)?;
        if let Some(previous) = fields.value("prevResult") {
            self.previous = Some(AddResult::parse(previous, self.cni_version).map_err(ConfigError::Previous)?);
        }
        Ok(())
    }
}

impl Options {
    fn read(fields: &Fields<'_>) -> Result<Self, FieldError> {
        const MTU: &str = "a number of bytes from 68 to 65535";
        let mtu_bytes = fields.unsigned::<u16>("mtu", MTU)?.filter(|mtu| *mtu != 0);
        if mtu_bytes.is_some_and(|mtu| mtu < 68) {
            return Err(fields.senseless("mtu", MTU));
        }
        Ok(Self {
            bridge: fields.text("bridge")?.map(str::to_owned),
            mtu_bytes,
            is_gateway: fields.boolean("isGateway")?,
            is_default_gateway: fields.boolean("isDefaultGateway")?,
            force_address: fields.boolean("forceAddress")?,
            ip_masq: fields.boolean("ipMasq")?,
            hairpin_mode: fields.boolean("hairpinMode")?,
            promisc_mode: fields.boolean("promiscMode")?,
            ipam: fields.object("ipam")?.map_or_else(|| Ok(Ipam::default()), |ipam| Ipam::read(&ipam))?,
            args: fields.map("args")?.cloned(),
            dns: Dns::read_section(fields)?,
        })
    }
}

/// The version to answer in, however broken the rest of the configuration is: its own if it is one
/// of ours, else the latest.
#[must_use]
pub fn answer_version(stdin: &[u8]) -> SpecVersion {
    let document: Value = serde_json::from_slice(stdin).unwrap_or_default();
    let Some(map) = document.as_object() else { return SpecVersion::LATEST };
    let text = Fields::root(map).text("cniVersion").map(Option::unwrap_or_default);
    text.ok().and_then(SpecVersion::parse).unwrap_or(SpecVersion::LATEST)
}

/// The list that keeps an attachment alive. The runtime library also sends an older key of the same
/// meaning; the newer one counts alone.
fn read_valid_attachments(fields: &Fields<'_>) -> Result<Option<Vec<AttachmentName>>, FieldError> {
    const KEY: &str = "cni.dev/valid-attachments";
    if fields.value(KEY).is_none() {
        return Ok(None);
    }
    let read = |(path, value): (String, &Value)| {
        let fields = Fields::of(path, value)?;
        let required = |key: &str| match fields.text(key)? {
            Some(text) => Ok(text.to_owned()),
            None => Err(FieldError::mistyped(fields.path(key), "a string", &Value::Null)),
        };
        Ok(AttachmentName { container_id: required("containerID")?, ifname: required("ifname")? })
    };
    fields.list(KEY)?.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests;
