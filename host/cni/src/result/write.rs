//! Writing a result in the schema of a version.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::{AddResult, Dns, Interface, IpConfig, ResultError, RouteConfig};
use crate::version::SpecVersion;

pub(super) fn result(result: &AddResult, version: SpecVersion) -> Result<Value, ResultError> {
    if version < SpecVersion::V0_3_0 {
        return by_family(result, version);
    }
    let mut object = Object::default();
    object.set("cniVersion", version.as_str());
    object.list("interfaces", result.interfaces.iter().map(|entry| interface(entry, version)));
    object.list("ips", result.ips.iter().map(|entry| address(entry, version)));
    object.list("routes", result.routes.iter().map(|entry| route(entry, version)));
    if version < SpecVersion::V1_0_0 || !result.dns.is_empty() {
        object.set("dns", dns(&result.dns));
    }
    Ok(object.into())
}

fn by_family(result: &AddResult, version: SpecVersion) -> Result<Value, ResultError> {
    let mut object = Object::default();
    object.set("cniVersion", version.as_str());
    for (key, is_v4) in [("ip4", true), ("ip6", false)] {
        let Some(config) = result.ips.iter().find(|config| config.address.addr().is_ipv4() == is_v4) else { continue };
        let routes = result.routes.iter().filter(|route| route.dst.addr().is_ipv4() == is_v4);
        let mut family = Object::default();
        family.set("ip", config.address.to_string());
        family.text("gateway", config.gateway.map(|gateway| gateway.to_string()));
        family.list("routes", routes.map(|entry| route(entry, version)));
        object.set(key, Value::from(family));
    }
    if result.ips.is_empty() {
        return Err(ResultError::NoAddress(version));
    }
    object.set("dns", dns(&result.dns));
    Ok(object.into())
}

fn interface(interface: &Interface, version: SpecVersion) -> Value {
    let mut object = Object::default();
    object.set("name", interface.name.as_str());
    object.text("mac", Some(interface.mac.clone()).filter(|mac| !mac.is_empty()));
    object.text("sandbox", interface.sandbox.clone());
    if version >= SpecVersion::V1_1_0 {
        object.number("mtu", interface.mtu);
        object.text("socketPath", interface.socket_path.clone());
        object.text("pciID", interface.pci_id.clone());
    }
    object.into()
}

fn address(config: &IpConfig, version: SpecVersion) -> Value {
    let mut object = Object::default();
    if version < SpecVersion::V1_0_0 {
        object.set("version", family_number(&config.address));
    }
    if let Some(interface) = config.interface {
        object.set("interface", json!(interface));
    }
    object.set("address", config.address.to_string());
    object.text("gateway", config.gateway.map(|gateway| gateway.to_string()));
    object.into()
}

fn family_number(address: &IpNet) -> &'static str {
    match address.addr() {
        IpAddr::V4(_) => "4",
        IpAddr::V6(_) => "6",
    }
}

fn route(route: &RouteConfig, version: SpecVersion) -> Value {
    let mut object = Object::default();
    object.set("dst", route.dst.to_string());
    object.text("gw", route.gw.map(|gateway| gateway.to_string()));
    if version >= SpecVersion::V1_1_0 {
        object.number("mtu", route.attributes.mtu);
        object.number("advmss", route.attributes.advmss);
        object.number("priority", route.attributes.priority);
        object.number("table", route.attributes.table);
        object.number("scope", route.attributes.scope.map(u32::from));
    }
    object.into()
}

fn dns(dns: &Dns) -> Value {
    let mut object = Object::default();
    object.list("nameservers", dns.nameservers.iter().map(|text| Value::from(text.as_str())));
    object.text("domain", Some(dns.domain.clone()).filter(|domain| !domain.is_empty()));
    object.list("search", dns.search.iter().map(|text| Value::from(text.as_str())));
    object.list("options", dns.options.iter().map(|text| Value::from(text.as_str())));
    object.into()
}

/// A JSON object that leaves out what is empty, as the specification's own types do.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn text(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    fn number(&mut self, key: &str, value: Option<u32>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    fn list(&mut self, key: &str, values: impl Iterator<Item = Value>) {
        let values: Vec<Value> = values.collect();
        if !values.is_empty() {
            self.set(key, values);
        }
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object.0)
    }
}
