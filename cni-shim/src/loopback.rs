//! The loopback plugin, which containerd executes for every pod beside the main one.
//!
//! It sets `lo` up and reports its addresses. The interface's name in the call is ignored, as in the
//! reference. It keeps no state, so GC has nothing to do and STATUS is always good.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use culvert_cni::code::Code;
use culvert_cni::version::{SpecVersion, Verb};
use rustix::io::Errno;

use crate::answer::{self, Failure};
use crate::call::Call;
use crate::json::{self, Member};
use crate::namespace::{NamespaceError, PodNamespace};
use crate::rtnetlink;

/// Carries out one call.
pub fn run(call: &Call) -> ExitCode {
    match carry_out(call) {
        Ok(text) => answer::print(&text),
        Err(failure) => crate::fail(&failure),
    }
}

/// The text to print.
fn carry_out(call: &Call) -> Result<String, Failure> {
    match call.environment.verb {
        Verb::Add => add(call),
        Verb::Check => check(call).map(|()| String::new()),
        Verb::Del => delete(call).map(|()| String::new()),
        Verb::Gc | Verb::Status => Ok(String::new()),
        Verb::Version => Ok(answer::version_list(call.version)),
    }
}

fn add(call: &Call) -> Result<String, Failure> {
    let previous = call.previous.as_deref().map(|text| pass_through(call, text)).transpose()?;
    let socket = open(call).map_err(|error| call.failure(error.code(), error.to_string()))?;
    rtnetlink::set_loopback(&socket, true).map_err(|reason| kernel_failure(call, "set up", reason))?;
    let addresses = rtnetlink::loopback_addresses(&socket).map_err(|reason| kernel_failure(call, "read", reason))?;
    let sandbox = call.environment.netns.as_deref().unwrap_or_default();
    Ok(previous.unwrap_or_else(|| result(call.version, sandbox, &addresses)))
}

fn check(call: &Call) -> Result<(), Failure> {
    let socket = open(call).map_err(|error| call.failure(error.code(), error.to_string()))?;
    match rtnetlink::loopback_is_up(&socket) {
        Ok(true) => Ok(()),
        Ok(false) => Err(call.failure(Code::CheckFailed, format!("lo in {} is down", netns(call)))),
        Err(reason) => Err(kernel_failure(call, "read", reason)),
    }
}

/// Sets `lo` down where the namespace is still there. A namespace that was never usable had no ADD.
fn delete(call: &Call) -> Result<(), Failure> {
    match open(call) {
        Ok(socket) => {
            rtnetlink::set_loopback(&socket, false).map_err(|reason| kernel_failure(call, "set down", reason))
        }
        Err(NamespaceError::Open { .. } | NamespaceError::NotANamespace { .. } | NamespaceError::Own { .. }) => Ok(()),
        Err(error @ (NamespaceError::Enter { .. } | NamespaceError::Inside { .. })) => {
            Err(call.failure(error.code(), error.to_string()))
        }
    }
}

fn open(call: &Call) -> Result<OwnedFd, NamespaceError> {
    PodNamespace::open(netns(call))?.open_rtnetlink(false)
}

fn netns(call: &Call) -> &str {
    call.environment.netns.as_deref().unwrap_or_default()
}

fn kernel_failure(call: &Call, action: &str, reason: Errno) -> Failure {
    call.failure(Code::Kernel, format!("lo in {} cannot be {action}: {reason}", netns(call)))
}

/// The previous result as it came, with the configuration's version where it names none.
///
/// **Errors** it is in another version, which a runtime never sends to a plugin of one list.
fn pass_through(call: &Call, previous: &str) -> Result<String, Failure> {
    let undecodable = |problem: &str| call.failure(Code::Decode, format!("prevResult {problem}"));
    let scanned = json::members(previous, ["cniVersion"]).map_err(|_| undecodable("is not an object"))?;
    match scanned {
        [Member::Text(version)] if version == call.version.as_str() => Ok(previous.to_owned()),
        [Member::Absent] => Ok(with_version(call.version, previous)),
        [Member::Text(version)] if version.is_empty() => Ok(with_version(call.version, previous)),
        [Member::Text(version)] => {
            let problem = format!("has cniVersion {version:?}, but the configuration has {}", call.version);
            Err(undecodable(&problem))
        }
        [Member::Object(_) | Member::Other] => Err(undecodable("has a cniVersion that is not a string")),
    }
}

/// Puts the version last: of a name that comes twice, readers take the last.
fn with_version(version: SpecVersion, object: &str) -> String {
    let body = object.trim_end().strip_suffix('}').unwrap_or_default().trim_end();
    let separator = if body.ends_with('{') { "" } else { "," };
    format!("{body}{separator}\"cniVersion\":\"{version}\"}}")
}

/// The result in the schema of a version.
fn result(version: SpecVersion, sandbox: &str, addresses: &[(IpAddr, u8)]) -> String {
    let mut text = format!("{{\"cniVersion\":\"{version}\"");
    if version < SpecVersion::V0_3_0 {
        push_families(&mut text, addresses);
    } else {
        text.push_str(",\"interfaces\":[{\"name\":\"lo\",\"mac\":\"00:00:00:00:00:00\",\"sandbox\":");
        json::push_string(&mut text, sandbox);
        text.push_str("}],\"ips\":[");
        for (position, (address, prefix_length)) in addresses.iter().enumerate() {
            if position > 0 {
                text.push(',');
            }
            text.push('{');
            if version < SpecVersion::V1_0_0 {
                let family = if address.is_ipv4() { "4" } else { "6" };
                text.push_str(&format!("\"version\":\"{family}\","));
            }
            text.push_str(&format!("\"interface\":0,\"address\":\"{address}/{prefix_length}\"}}"));
        }
        text.push(']');
    }
    if version < SpecVersion::V1_0_0 {
        text.push_str(",\"dns\":{}");
    }
    text.push('}');
    text
}

fn push_families(text: &mut String, addresses: &[(IpAddr, u8)]) {
    for (key, is_v4) in [("ip4", true), ("ip6", false)] {
        if let Some((address, prefix_length)) = addresses.iter().find(|(address, _)| address.is_ipv4() == is_v4) {
            text.push_str(&format!(",\"{key}\":{{\"ip\":\"{address}/{prefix_length}\"}}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use culvert_cni::version::SpecVersion;
    use serde_json::{Value, json};

    use super::{result, with_version};

    #[test]
    fn the_result_keeps_to_the_schema_of_every_version() {
        let addresses = [("127.0.0.1".parse().unwrap(), 8), ("::1".parse().unwrap(), 128)];
        let interfaces = json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/a\"b"}]);
        for version in SpecVersion::ALL {
            let read: Value = serde_json::from_str(&result(version, "/run/netns/a\"b", &addresses)).unwrap();
            let expected = if version < SpecVersion::V0_3_0 {
                json!({"cniVersion": version.as_str(), "ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}, "dns": {}})
            } else if version < SpecVersion::V1_0_0 {
                json!({"cniVersion": version.as_str(), "interfaces": interfaces, "dns": {}, "ips": [
                    {"version": "4", "interface": 0, "address": "127.0.0.1/8"},
                    {"version": "6", "interface": 0, "address": "::1/128"},
                ]})
            } else {
                json!({"cniVersion": version.as_str(), "interfaces": interfaces, "ips": [
                    {"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"},
                ]})
            };
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn a_previous_result_without_version_gets_the_configurations() {
        assert_eq!(with_version(SpecVersion::V1_0_0, "{ } "), r#"{"cniVersion":"1.0.0"}"#);
        assert_eq!(with_version(SpecVersion::V1_0_0, r#"{"a":1 }"#), r#"{"a":1,"cniVersion":"1.0.0"}"#);
    }
}
