//! Reading a result of any version.

use serde_json::Value;

use super::{AddResult, Dns, Interface, IpConfig, ResultError, RouteAttributes, RouteConfig};
use crate::fields::{FieldError, Fields};
use crate::version::SpecVersion;

pub(super) fn result(value: &Value, configured: SpecVersion) -> Result<AddResult, ResultError> {
    let fields = Fields::of("prevResult", value)?;
    let version = match fields.text("cniVersion")?.filter(|text| !text.is_empty()) {
        None => configured,
        Some(text) => SpecVersion::parse(text).ok_or_else(|| ResultError::UnknownVersion(text.to_owned()))?,
    };
    let dns = Dns::read_section(&fields)?;
    if version < SpecVersion::V0_3_0 {
        let mut result = AddResult { dns, ..AddResult::default() };
        for key in ["ip4", "ip6"] {
            family(&mut result, &fields, key)?;
        }
        return Ok(result);
    }
    let result = AddResult {
        interfaces: each(&fields, "interfaces", interface)?,
        ips: each(&fields, "ips", address)?,
        routes: each(&fields, "routes", route)?,
        dns,
    };
    check_interfaces(&result)?;
    Ok(result)
}

fn each<T>(
    fields: &Fields<'_>,
    key: &str,
    read: impl Fn(&Fields<'_>) -> Result<T, FieldError>,
) -> Result<Vec<T>, FieldError> {
    fields.list(key)?.into_iter().map(|(path, value)| read(&Fields::of(path, value)?)).collect()
}

fn family(result: &mut AddResult, fields: &Fields<'_>, key: &str) -> Result<(), FieldError> {
    let Some(object) = fields.object(key)? else { return Ok(()) };
    let address = object.required("ip", PREFIX)?;
    result.ips.push(IpConfig { address, gateway: object.parsed("gateway", ADDRESS)?, interface: None });
    result.routes.extend(each(&object, "routes", route)?);
    Ok(())
}

const ADDRESS: &str = "an IP address";
const PREFIX: &str = "an IP address with prefix length";

fn interface(fields: &Fields<'_>) -> Result<Interface, FieldError> {
    let optional = |key: &str| fields.text(key).map(|text| text.filter(|text| !text.is_empty()).map(str::to_owned));
    Ok(Interface {
        name: fields.required("name", "an interface's name")?,
        mac: optional("mac")?.unwrap_or_default(),
        mtu: fields.unsigned("mtu", "a number of bytes")?,
        sandbox: optional("sandbox")?,
        socket_path: optional("socketPath")?,
        pci_id: optional("pciID")?,
    })
}

fn address(fields: &Fields<'_>) -> Result<IpConfig, FieldError> {
    Ok(IpConfig {
        address: fields.required("address", PREFIX)?,
        gateway: fields.parsed("gateway", ADDRESS)?,
        interface: fields.unsigned("interface", "a position in the list of interfaces")?,
    })
}

pub(super) fn route(fields: &Fields<'_>) -> Result<RouteConfig, FieldError> {
    Ok(RouteConfig {
        dst: fields.required("dst", PREFIX)?,
        gw: fields.parsed("gw", ADDRESS)?,
        attributes: RouteAttributes {
            mtu: fields.unsigned("mtu", "a number of bytes")?,
            advmss: fields.unsigned("advmss", "a number of bytes")?,
            priority: fields.unsigned("priority", "a metric")?,
            table: fields.unsigned("table", "a table's number")?,
            scope: fields.unsigned("scope", "a scope's number")?,
        },
    })
}

fn check_interfaces(result: &AddResult) -> Result<(), ResultError> {
    let interfaces = result.interfaces.len();
    for (index, config) in result.ips.iter().enumerate() {
        if let Some(interface) = config.interface.filter(|interface| *interface >= interfaces) {
            return Err(ResultError::InterfaceIndex { index, interface, interfaces });
        }
    }
    Ok(())
}
