//! What a node holds for its pods, as an operator sees it, and what the plugin's answers say.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use culvert_lab::Node;
use culvert_lab::cni::Answer;
use culvert_lab::namespace::Place;
use ipnet::IpNet;
use serde_json::Value;

/// The names of the node's links that belong to pods, sorted.
///
/// **Errors** `ip` fails.
pub fn host_ends(node: &Node) -> Result<Vec<String>> {
    let listed: Vec<Value> = serde_json::from_str(&node.namespace().ip("-json link show master cni0")?)?;
    let mut names: Vec<String> = listed.iter().map(|link| text(&link["ifname"])).collect();
    names.sort_unstable();
    Ok(names)
}

/// The addresses that a container holds on a node, by the daemon's own account.
///
/// **Errors** the daemon does not answer.
pub fn leases(node: &Node, container_id: &str) -> Result<Vec<String>> {
    let answer = node.ctl(&["ipam"])?;
    let leases = answer["leases"].as_array().context("an answer without leases")?;
    let own = leases.iter().filter(|lease| lease["container_id"] == container_id);
    Ok(own.map(|lease| text(&lease["address"])).collect())
}

/// The block of a family that a node holds.
///
/// **Errors** it holds none.
pub fn block(node: &Node, v4: bool) -> Result<IpNet> {
    let status = node.ctl(&["status"])?;
    let blocks = status["blocks"].as_array().context("a status without blocks")?;
    let blocks = blocks.iter().filter_map(|block| block.as_str()?.parse::<IpNet>().ok());
    blocks.into_iter().find(|block| block.addr().is_ipv4() == v4).context("no block of this family")
}

/// The address that stands `offset` behind the begin of a block.
///
/// **Errors** there is none.
pub fn address_in(block: &IpNet, offset: u32) -> Result<IpAddr> {
    let address = match block.network() {
        IpAddr::V4(network) => IpAddr::V4((network.to_bits() + offset).into()),
        IpAddr::V6(network) => IpAddr::V6((network.to_bits() + u128::from(offset)).into()),
    };
    if block.contains(&address) { Ok(address) } else { bail!("{address} lies outside {block}") }
}

/// The addresses of a result of 0.3.0 or later, in its order.
///
/// **Errors** one is none.
pub fn addresses(result: &Value) -> Result<Vec<IpNet>> {
    let listed = result["ips"].as_array().with_context(|| format!("a result without ips: {result}"))?;
    let parsed = listed.iter().map(|config| text(&config["address"]).parse());
    parsed.collect::<Result<_, _>>().with_context(|| format!("an address of {result}"))
}

/// The address of a family in a result.
///
/// **Errors** there is none.
pub fn address(result: &Value, v4: bool) -> Result<IpAddr> {
    let found = addresses(result)?.into_iter().map(|address| address.addr()).find(|address| address.is_ipv4() == v4);
    found.with_context(|| format!("no address of this family in {result}"))
}

/// The name of the host end in a result.
///
/// **Errors** there is none.
pub fn host_end(result: &Value) -> Result<String> {
    let interfaces = result["interfaces"].as_array().context("a result without interfaces")?;
    let host = interfaces.iter().find(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty());
    Ok(text(&host.with_context(|| format!("no host end in {result}"))?["name"]))
}

/// The gateways of the default routes of a family in a namespace.
///
/// **Errors** `ip` fails.
pub fn default_gateways(place: &Place, v4: bool) -> Result<Vec<String>> {
    let family = if v4 { "-4" } else { "-6" };
    let listed: Vec<Value> = serde_json::from_str(&place.ip(&format!("-json {family} route show default"))?)?;
    Ok(listed.iter().map(|route| text(&route["gateway"])).collect())
}

/// Checks that an answer is an error object with this code whose words name these things, and returns the words.
///
/// **Errors** it is not, with what it is.
pub fn refusal(answer: &Answer, code: u64, named: &[&str]) -> Result<String> {
    let message = answer.message();
    let in_form = answer.status.is_some_and(|status| status != 0) && answer.body["cniVersion"].is_string();
    if !in_form || answer.code() != Some(code) || message.is_empty() {
        bail!("expected the code {code}, found {answer:?}");
    }
    match named.iter().find(|name| !message.contains(**name)) {
        Some(missing) => bail!("{missing:?} is not named in {message:?}"),
        None => Ok(message),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_has_its_code_and_names_its_objects() {
        let body = json!({"cniVersion": "1.0.0", "code": 7, "msg": "no way for eth0", "details": "of pod x"});
        let answer = Answer { status: Some(1), body };
        assert_eq!(refusal(&answer, 7, &["eth0", "pod x"]).unwrap(), "no way for eth0 of pod x");
        assert!(refusal(&answer, 7, &["eth1"]).unwrap_err().to_string().contains("\"eth1\" is not named"));
        assert!(refusal(&answer, 6, &[]).is_err());
        assert!(refusal(&Answer { status: Some(0), body: answer.body }, 7, &[]).is_err());
    }

    #[test]
    fn addresses_are_counted_from_the_begin_of_a_block() {
        let block = "10.244.7.0/24".parse().unwrap();
        assert_eq!(address_in(&block, 77).unwrap().to_string(), "10.244.7.77");
        assert!(address_in(&block, 256).is_err());
        assert_eq!(address_in(&"fd00::/64".parse().unwrap(), 16).unwrap().to_string(), "fd00::10");
    }

    #[test]
    fn the_host_end_is_the_interface_without_a_sandbox() {
        let result = json!({"interfaces": [{"name": "eth0", "sandbox": "/n"}, {"name": "cv0"}], "ips": []});
        assert_eq!(host_end(&result).unwrap(), "cv0");
        assert!(host_end(&json!({"interfaces": []})).is_err());
    }
}
