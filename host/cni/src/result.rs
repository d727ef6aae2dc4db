//! What an ADD answers, read and written in the schema of every version.
//!
//! ```text
//! 0.1.0, 0.2.0          ip4, ip6 {ip, gateway, routes}: the first address of each family
//! 0.3.0, 0.3.1, 0.4.0   interfaces {name, mac, sandbox}, ips {version, interface, address, gateway}, routes, dns
//! 1.0.0                 ips without version
//! 1.1.0                 interfaces + mtu, socketPath, pciID; routes + mtu, advmss, priority, table, scope
//! ```

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Map, Value};

use crate::code::Code;
use crate::fields::{FieldError, Fields};
use crate::frame::Reply;
use crate::version::SpecVersion;

mod read;
mod write;

/// What an ADD made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// Interfaces, host's and pod's.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes inside the pod.
    pub routes: Vec<RouteConfig>,
    /// Name resolution.
    pub dns: Dns,
}

/// An interface that ADD made or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; empty when it has none.
    pub mac: String,
    /// **Units** bytes. Written from 1.1.0 on.
    pub mtu: Option<u32>,
    /// CNI_NETNS verbatim for one inside the pod, `None` for one of the host.
    pub sandbox: Option<String>,
    /// Written from 1.1.0 on.
    pub socket_path: Option<String>,
    /// Written from 1.1.0 on.
    pub pci_id: Option<String>,
}

/// An address that ADD gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// Address and prefix length.
    pub address: IpNet,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// The position of its interface in `interfaces`.
    pub interface: Option<usize>,
}

/// A route that ADD made inside the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The destination.
    pub dst: IpNet,
    /// The next hop.
    pub gw: Option<IpAddr>,
    /// What only 1.1.0 can say.
    pub attributes: RouteAttributes,
}

/// Attributes of a route. Written from 1.1.0 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteAttributes {
    /// **Units** bytes.
    pub mtu: Option<u32>,
    /// The segment size advertised. **Units** bytes.
    pub advmss: Option<u32>,
    /// The metric; lower is preferred.
    pub priority: Option<u32>,
    /// The table.
    pub table: Option<u32>,
    /// The scope, as the kernel numbers it.
    pub scope: Option<u8>,
}

/// Name resolution for the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Servers, preferred first.
    pub nameservers: Vec<String>,
    /// The local domain; empty when none.
    pub domain: String,
    /// Search domains.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// Why a result cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// It names a version that is none of ours.
    #[error("prevResult has unknown cniVersion {0:?}; use one of {list}", list = SpecVersion::list())]
    UnknownVersion(String),
    /// A field has the wrong form.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// An address points at an interface that is not listed.
    #[error("prevResult.ips[{index}].interface is {interface}, but there are {interfaces} interfaces")]
    InterfaceIndex {
        /// The position of the address.
        index: usize,
        /// What it points at.
        interface: usize,
        /// How many are listed.
        interfaces: usize,
    },
    /// The version can only express results with an address.
    #[error("a result without any IP address cannot be written in version {0}; set cniVersion to 0.3.0 or newer")]
    NoAddress(SpecVersion),
}

impl ResultError {
    /// The code it is answered with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownVersion(_) | Self::Field(_) | Self::InterfaceIndex { .. } => Code::Decode,
            Self::NoAddress(_) => Code::InvalidConfig,
        }
    }
}

impl AddResult {
    /// Reads a result of any version; without a version of its own it is in the configuration's.
    ///
    /// **Errors** any field of the wrong form, or an address of an interface that is not listed.
    pub fn parse(value: &Value, configured: SpecVersion) -> Result<Self, ResultError> {
        read::result(value, configured)
    }

    /// This result behind the one of the plugins before: theirs first, with our addresses pointing at our interfaces.
    /// Name resolution is ours where we say something of it.
    #[must_use]
    pub fn behind(mut self, previous: Self) -> Self {
        let moved = previous.interfaces.len();
        for config in &mut self.ips {
            config.interface = config.interface.map(|interface| interface + moved);
        }
        Self {
            interfaces: [previous.interfaces, self.interfaces].concat(),
            ips: [previous.ips, self.ips].concat(),
            routes: [previous.routes, self.routes].concat(),
            dns: if self.dns.is_empty() { previous.dns } else { self.dns },
        }
    }

    /// Writes the result in a version's schema. What that schema cannot say is left out.
    ///
    /// **Errors** 0.1.0 and 0.2.0 need an address.
    pub fn to_json(&self, version: SpecVersion) -> Result<Value, ResultError> {
        write::result(self, version)
    }

    /// What the shim prints and exits with.
    ///
    /// **Errors** as [`Self::to_json`].
    pub fn to_reply(&self, version: SpecVersion) -> Result<Reply, ResultError> {
        Ok(Reply { exit_code: 0, stdout: self.to_json(version)?.to_string().into_bytes() })
    }
}

impl RouteConfig {
    /// Reads a route of a result or of `ipam`.
    ///
    /// **Errors** a field of the wrong form.
    pub fn read(fields: &Fields<'_>) -> Result<Self, FieldError> {
        read::route(fields)
    }

    /// The default route of a gateway's family.
    #[must_use]
    pub fn default_via(gateway: IpAddr) -> Self {
        let dst = match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        Self { dst, gw: Some(gateway), attributes: RouteAttributes::default() }
    }
}

impl Dns {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the object `dns` of a section; one that is not there says nothing.
    ///
    /// **Errors** it is no object, or a field of it has the wrong type.
    pub fn read_section(section: &Fields<'_>) -> Result<Self, FieldError> {
        section.object("dns")?.map_or_else(|| Ok(Self::default()), |dns| Self::read(&dns))
    }

    /// Reads a `dns` object.
    ///
    /// **Errors** a field of the wrong type.
    pub fn read(fields: &Fields<'_>) -> Result<Self, FieldError> {
        Ok(Self {
            nameservers: fields.texts("nameservers")?,
            domain: fields.text("domain")?.unwrap_or_default().to_owned(),
            search: fields.texts("search")?,
            options: fields.texts("options")?,
        })
    }
}

/// The answer to VERSION, whose `cniVersion` repeats the configuration's.
#[must_use]
pub fn version_list(version: SpecVersion) -> Value {
    let supported = SpecVersion::ALL.map(|version| Value::from(version.as_str()));
    let mut object = Map::new();
    object.insert("cniVersion".to_owned(), version.as_str().into());
    object.insert("supportedVersions".to_owned(), Value::from(supported.to_vec()));
    Value::Object(object)
}

#[cfg(test)]
mod tests;
