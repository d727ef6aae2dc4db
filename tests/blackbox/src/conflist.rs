//! What the runtime library makes of a conflist: one configuration for each plugin of its list.

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// The configuration of the plugin at a place of the list, as the library passes it: name and version of the list,
/// and of what the runtime has to say the capabilities that the plugin declares. Its `capabilities` stay in it.
///
/// **Errors** there is no such plugin.
pub fn netconf(list: &Value, place: usize, version: &str, runtime: &Value) -> Result<Value> {
    let mut config = list["plugins"].get(place).with_context(|| format!("no plugin {place} in {list}"))?.clone();
    let declared = config["capabilities"].as_object().cloned().unwrap_or_default();
    let asked = runtime.as_object().cloned().unwrap_or_default();
    let passed: Map<String, Value> =
        asked.into_iter().filter(|(key, _)| declared.get(key) == Some(&Value::Bool(true))).collect();
    config["name"] = list["name"].clone();
    config["cniVersion"] = version.into();
    if !passed.is_empty() {
        config["runtimeConfig"] = passed.into();
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plugin_gets_the_capabilities_that_it_declares() {
        let list = json!({"name": "net", "plugins": [{"type": "a"}, {"type": "b", "capabilities": {"ips": true, "mac": false}}]});
        let runtime = json!({"ips": ["10.0.0.1"], "mac": "x", "dns": {}});
        assert_eq!(
            netconf(&list, 0, "1.0.0", &runtime).unwrap(),
            json!({"type": "a", "name": "net", "cniVersion": "1.0.0"})
        );
        let second = netconf(&list, 1, "1.0.0", &runtime).unwrap();
        assert_eq!(second["runtimeConfig"], json!({"ips": ["10.0.0.1"]}));
        assert!(netconf(&list, 2, "1.0.0", &runtime).is_err());
    }
}
