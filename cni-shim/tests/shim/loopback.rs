//! The loopback plugin, which needs no daemon.

use serde_json::{Value, json};

use crate::harness::{Call, Namespace, config, silent_success};

#[test]
fn add_sets_the_interface_up_and_answers_in_every_version() {
    let interfaces = |path: &str| json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": path}]);
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let namespace = Namespace::new();
        assert!(!namespace.loopback_is_up());
        let path = namespace.path();
        let result = Call::loopback("ADD", &path).stdin(config(version).to_string()).run().json();
        let expected = match version {
            "0.1.0" | "0.2.0" => {
                json!({"cniVersion": version, "ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}, "dns": {}})
            }
            "0.3.0" | "0.3.1" | "0.4.0" => json!({
                "cniVersion": version, "interfaces": interfaces(&path), "dns": {}, "ips": [
                    {"version": "4", "interface": 0, "address": "127.0.0.1/8"},
                    {"version": "6", "interface": 0, "address": "::1/128"},
                ],
            }),
            _ => json!({
                "cniVersion": version, "interfaces": interfaces(&path),
                "ips": [{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}],
            }),
        };
        assert_eq!(result, expected);
        assert!(namespace.loopback_is_up());
    }
}

#[test]
fn without_ipv6_only_the_address_that_is_there_is_reported() {
    let namespace = Namespace::new();
    namespace.shell("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
    let result = Call::loopback("ADD", &namespace.path()).run().json();
    assert_eq!(result["ips"], json!([{"interface": 0, "address": "127.0.0.1/8"}]));
}

#[test]
fn add_check_and_del_may_come_any_number_of_times() {
    let namespace = Namespace::new();
    let path = namespace.path();
    assert_eq!(Call::loopback("CHECK", &path).run().error_code(), 102);
    let first = Call::loopback("ADD", &path).run();
    assert_eq!(Call::loopback("ADD", &path).run(), first);
    assert_eq!(Call::loopback("CHECK", &path).run(), silent_success());
    for _ in 0..2 {
        assert_eq!(Call::loopback("DEL", &path).run(), silent_success());
        assert!(!namespace.loopback_is_up());
    }
    assert_eq!(Call::loopback("CHECK", &path).run().error_code(), 102);
}

#[test]
fn del_is_done_when_there_is_no_namespace() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for netns in ["", "/run/netns/none", file.to_str().unwrap()] {
        assert_eq!(Call::loopback("DEL", netns).run(), silent_success(), "{netns}");
    }
    assert_eq!(Call::loopback("DEL", "").without("CNI_NETNS").run(), silent_success());
}

#[test]
fn the_namespace_it_runs_in_is_left_alone() {
    let namespace = Namespace::new();
    assert_eq!(Call::loopback_inside("ADD", &namespace).run().error_code(), 8);
    assert!(!namespace.loopback_is_up());
    assert!(Call::loopback("ADD", &namespace.path()).run().json().is_object());
    assert_eq!(Call::loopback_inside("DEL", &namespace).run(), silent_success());
    assert!(namespace.loopback_is_up());
}

#[test]
fn a_previous_result_passes_through_in_the_configurations_version() {
    let namespace = Namespace::new();
    let add = |previous: Value| {
        let mut config = config("1.0.0");
        config["prevResult"] = previous;
        Call::loopback("ADD", &namespace.path()).stdin(config.to_string()).run()
    };
    let previous = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}], "other": [1, {"x": "\u{e9}"}]});
    assert_eq!(add(previous.clone()).json(), previous);
    assert!(namespace.loopback_is_up());
    assert_eq!(add(json!({"ips": []})).json(), json!({"ips": [], "cniVersion": "1.0.0"}));
    assert_eq!(add(json!({"cniVersion": ""})).json(), json!({"cniVersion": "1.0.0"}));
    for garbage in [json!([]), json!("x"), json!({"cniVersion": "0.4.0"}), json!({"cniVersion": 1})] {
        assert_eq!(add(garbage).error_code(), 6);
    }
}

#[test]
fn faults_of_the_call_are_answered_as_by_the_main_plugin() {
    assert_eq!(Call::loopback("ADD", "").run().error_code(), 4);
    assert_eq!(Call::loopback("ADD", "/run/netns/none").run().error_code(), 8);
    assert_eq!(Call::loopback("ADD", "/run/netns/none").stdin("x").run().error_code(), 6);
    assert_eq!(Call::loopback("ADD", "/run/netns/none").stdin("{}").run().error_code(), 7);
    assert_eq!(Call::loopback("CHECK", "/run/netns/none").stdin(config("0.3.1").to_string()).run().error_code(), 1);
}

#[test]
fn status_and_gc_have_nothing_to_do() {
    for verb in ["STATUS", "GC"] {
        assert_eq!(Call::loopback(verb, "").run(), silent_success());
    }
    let version = Call::loopback("VERSION", "").run().json();
    assert_eq!(version["cniVersion"], json!("1.1.0"));
}
