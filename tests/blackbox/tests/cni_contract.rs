//! The contract between runtime and plugin: process, environment, the order of checks, versions and their schemas.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::collections::BTreeSet;

use culvert_blackbox::attachments::{addresses, default_gateways, host_end, leases, refusal};
use culvert_blackbox::rates::rates_in_force;
use culvert_lab::cni::{Answer, RawCall};
use culvert_lab::{Sandbox, SharedNode, SingleNode};
use serde_json::{Value, json};

static NODE: SharedNode = SharedNode::new();

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn silent() -> Answer {
    Answer { status: Some(0), body: Value::Null }
}

/// A call of the shim without anything, where the runtime lives.
fn bare(single: &SingleNode, pairs: &[(&str, &str)], input: &str) -> Answer {
    let call = RawCall::bare(&single.node().binaries().program("culvert")).input(input);
    let call = pairs.iter().fold(call, |call, (name, value)| call.env(name, value));
    call.run(single.node().namespace()).unwrap()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_success_prints_one_object_or_nothing() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    // An answer that is neither nothing nor one JSON value is an error of the call itself.
    let result = sandbox.attach().unwrap();
    assert!(result.is_object());
    assert_eq!(sandbox.check(&result).unwrap(), silent());
    assert_eq!(sandbox.run(&sandbox.call("STATUS")).unwrap(), silent());
    assert_eq!(sandbox.run(&sandbox.call("GC")).unwrap(), silent());
    assert_eq!(sandbox.del().unwrap(), silent());
}

#[test]
fn an_error_is_one_object_on_standard_output_in_the_version_of_the_configuration() {
    let single = NODE.running().unwrap();
    for version in VERSIONS {
        let sandbox = Sandbox::new(&single, "till").unwrap().with("cniVersion", version);
        let by_the_shim = sandbox.run(&sandbox.call("ADD").without("CNI_IFNAME")).unwrap();
        let sandbox = sandbox.with("mtu", "large");
        let by_the_daemon = sandbox.add().unwrap();
        for (answer, code) in [(by_the_shim, 4), (by_the_daemon, 6)] {
            refusal(&answer, code, &[]).unwrap();
            assert_eq!(answer.body["cniVersion"], version);
            assert!(
                keys(&answer.body).is_subset(&BTreeSet::from(["cniVersion", "code", "msg", "details"])),
                "{answer:?}"
            );
        }
    }
}

#[test]
fn each_verb_names_every_variable_it_misses() {
    let single = NODE.running().unwrap();
    let config = single.netconf().to_string();
    let table: [(&str, &[&str]); 4] = [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", &["CNI_PATH"]),
    ];
    for (command, missing) in table {
        for empty in [false, true] {
            let mut pairs = vec![("CNI_COMMAND", command)];
            pairs.extend(missing.iter().filter(|_| empty).map(|name| (*name, "")));
            refusal(&bare(&single, &pairs, &config), 4, missing).unwrap();
        }
    }
}

#[test]
fn variables_that_a_verb_does_not_need_may_be_absent_or_senseless() {
    let single = NODE.running().unwrap();
    let config = single.netconf().to_string();
    assert_eq!(bare(&single, &[("CNI_COMMAND", "STATUS")], &config), silent());
    assert_eq!(bare(&single, &[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")], &config), silent());
    let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "never-seen"), ("CNI_IFNAME", "eth0")];
    assert_eq!(bare(&single, &del, &config), silent());
    // The runtime library fills in what VERSION does not need.
    let dummies = [("CNI_COMMAND", "VERSION"), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy"), ("CNI_PATH", "dummy")];
    for pairs in [&dummies[..], &dummies[..1]] {
        assert_eq!(bare(&single, pairs, r#"{"cniVersion": "1.0.0"}"#).success().unwrap()["cniVersion"], "1.0.0");
    }
}

#[test]
fn the_search_path_may_be_unset_and_traces_may_be_passed_on() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let add = sandbox
        .call("ADD")
        .without("PATH")
        .env("TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .env("TRACESTATE", "vendor=value")
        .env("BAGGAGE", "key=value");
    sandbox.run(&add).unwrap().success().unwrap();
}

#[test]
fn long_container_ids_and_interface_names_are_attached_and_detached() {
    let single = NODE.running().unwrap();
    for length in [128, 250] {
        let id = "c".repeat(length);
        let sandbox =
            Sandbox::new(&single, "till").unwrap().env("CNI_CONTAINERID", &id).env("CNI_IFNAME", "exactly15bytes_");
        let result = sandbox.attach().unwrap();
        assert_eq!(leases(single.node(), &id).unwrap().len(), 2, "one of each family");
        assert!(sandbox.namespace().ip("link show exactly15bytes_").unwrap().contains("UP"));
        sandbox.check(&result).unwrap().success().unwrap();
        assert_eq!(sandbox.del().unwrap(), silent());
        assert_eq!(leases(single.node(), &id).unwrap(), Vec::<String>::new());
    }
}

/// Each call breaks one rule and all the later ones.
#[test]
fn the_checks_come_in_the_order_of_the_reference() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let missing = sandbox.call("CHECK").without("CNI_IFNAME").input("{");
    refusal(&sandbox.run(&missing).unwrap(), 4, &["CNI_IFNAME"]).unwrap();
    let table = [
        ("{", 6, ""),
        (r#"{"cniVersion": 1}"#, 7, "name"),
        (r#"{"name": "../x", "cniVersion": 1}"#, 7, "../x"),
        (r#"{"name": "net", "cniVersion": 1}"#, 6, "cniVersion"),
        (r#"{"name": "net", "cniVersion": "9.9.9", "mtu": "x"}"#, 1, "9.9.9"),
        (r#"{"name": "net", "cniVersion": "0.3.1", "mtu": "x"}"#, 1, "CHECK"),
    ];
    for (input, code, named) in table {
        let answer = sandbox.run(&sandbox.call("CHECK").input(input)).unwrap();
        refusal(&answer, code, &[named]).unwrap_or_else(|error| panic!("{input}: {error}"));
    }
}

#[test]
fn a_missing_and_an_empty_version_mean_the_oldest() {
    let single = NODE.running().unwrap();
    for version in [Value::Null, json!("")] {
        let sandbox = Sandbox::new(&single, "till").unwrap().with("cniVersion", version);
        let result = sandbox.attach().unwrap();
        assert_eq!(result["cniVersion"], "0.1.0");
        assert!(result["ip4"]["ip"].is_string(), "{result}");
    }
}

#[test]
fn unknown_keys_of_every_kind_are_accepted() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till")
        .unwrap()
        .with("someoneElses", json!({"a": [1]}))
        .with("args", json!({"labels": [{"key": "app"}], "cni": {"unknown": 1}}))
        // The library leaves it in, against the specification.
        .with("capabilities", json!({"portMappings": true, "bandwidth": true}))
        .asking("aliases", json!(["db"]))
        .asking("deviceID", "0000:04:00.5")
        .asking("infinibandGUID", "c2:11:22:33:44:55:66:77")
        .asking("cgroupPath", "/kubepods/pod1")
        .asking("unknown", json!({"x": 1}));
    let result = sandbox.attach().unwrap();
    sandbox.check(&result).unwrap().success().unwrap();
}

#[test]
fn keys_of_what_the_runtime_asks_are_read_in_any_case() {
    let single = NODE.running().unwrap();
    let limits = json!({"IngressRate": 8_000_000, "IngressBurst": 4_294_967_295_u64});
    let sandbox = Sandbox::new(&single, "till").unwrap().asking("bandwidth", limits);
    sandbox.attach().unwrap();
    // tc speaks of bytes a second.
    assert_eq!(rates_in_force(single.node()).unwrap(), [1_000_000]);
}

#[test]
fn arguments_come_in_any_order_and_name_the_pod() {
    let single = NODE.running().unwrap();
    let pairs = ["K8S_POD_NAME=web-0", "IgnoreUnknown=1", "K8S_POD_UID=u", "K8S_POD_NAMESPACE=shop", "K8S_OTHER=x"];
    for turn in 0..pairs.len() {
        let mut turned = pairs;
        turned.rotate_left(turn);
        let sandbox = Sandbox::new(&single, "till").unwrap().env("CNI_ARGS", &turned.join(";"));
        sandbox.attach().unwrap();
        let shown = single.node().ctl(&["ipam"]).unwrap();
        let pods = shown["leases"].as_array().unwrap().iter();
        let pods: Vec<&Value> =
            pods.filter(|lease| lease["container_id"] == sandbox.id()).map(|lease| &lease["pod"]).collect();
        assert_eq!(pods, ["shop/web-0", "shop/web-0"]);
    }
}

#[test]
fn version_lists_all_and_repeats_the_one_asked_in() {
    let single = NODE.running().unwrap();
    for version in VERSIONS {
        let answer = bare(&single, &[("CNI_COMMAND", "VERSION")], &json!({"cniVersion": version}).to_string());
        assert_eq!(answer.success().unwrap(), json!({"cniVersion": version, "supportedVersions": VERSIONS}));
    }
}

#[test]
fn add_answers_in_the_schema_of_every_version() {
    let single = NODE.running().unwrap();
    for version in VERSIONS {
        let sandbox = Sandbox::new(&single, "till").unwrap().with("cniVersion", version);
        let result = sandbox.attach().unwrap();
        assert_eq!(result["cniVersion"], version);
        match version {
            "0.1.0" | "0.2.0" => expect_families(&sandbox, &result),
            _ => expect_lists(&sandbox, &result, version),
        }
    }
}

/// The schema before 0.3.0: one address of each family and its routes.
fn expect_families(sandbox: &Sandbox, result: &Value) {
    assert!(keys(result).is_subset(&BTreeSet::from(["cniVersion", "ip4", "ip6", "dns"])), "{result}");
    let shown = sandbox.namespace().ip("address show eth0").unwrap();
    for (key, default) in [("ip4", "0.0.0.0/0"), ("ip6", "::/0")] {
        let family = &result[key];
        assert!(shown.contains(family["ip"].as_str().unwrap()), "{family} is not in {shown}");
        let gateways = default_gateways(sandbox.namespace(), key == "ip4").unwrap();
        assert_eq!(gateways, [family["gateway"].as_str().unwrap()]);
        assert_eq!(family["routes"], json!([{"dst": default, "gw": family["gateway"]}]));
    }
}

/// The schema from 0.3.0 on: interfaces, and addresses that point at one of them.
fn expect_lists(sandbox: &Sandbox, result: &Value, version: &str) {
    let (before_1_0_0, is_latest) = (version < "1.0.0", version == "1.1.0");
    let interfaces = result["interfaces"].as_array().unwrap();
    let position = interfaces.iter().position(|interface| interface["name"] == "eth0").unwrap();
    let pod_end = &interfaces[position];
    // As it was given, whatever else the path may be called.
    assert_eq!(pod_end["sandbox"], sandbox.namespace().path().display().to_string());
    let link = sandbox.namespace().ip("-o link show eth0").unwrap();
    assert!(link.contains(pod_end["mac"].as_str().unwrap()), "{pod_end} is not {link}");
    assert!(!host_end(result).unwrap().is_empty());
    for interface in interfaces {
        assert_eq!(interface["mtu"].is_u64(), is_latest, "{interface}");
    }
    assert_eq!(addresses(result).unwrap().len(), 2);
    let shown = sandbox.namespace().ip("address show eth0").unwrap();
    for config in result["ips"].as_array().unwrap() {
        assert_eq!(config["interface"], position);
        assert!(shown.contains(config["address"].as_str().unwrap()), "{config} is not in {shown}");
        let v4 = config["address"].as_str().unwrap().contains('.');
        let family = if v4 { json!("4") } else { json!("6") };
        assert_eq!(config.get("version"), before_1_0_0.then_some(&family), "{config}");
        assert_eq!(default_gateways(sandbox.namespace(), v4).unwrap(), [config["gateway"].as_str().unwrap()]);
    }
    let destinations: Vec<&Value> = result["routes"].as_array().unwrap().iter().map(|route| &route["dst"]).collect();
    assert_eq!(destinations, ["0.0.0.0/0", "::/0"]);
    assert_eq!(result.get("dns"), before_1_0_0.then_some(&json!({})));
}
