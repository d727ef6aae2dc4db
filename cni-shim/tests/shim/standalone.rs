//! What the shim answers by itself: VERSION, faults of the call, and that the daemon is away.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use culvert_cni::frame::Request;
use serde_json::{Value, json};

use crate::harness::{Call, Namespace, config, silent_success};

#[test]
fn version_needs_nothing_but_the_command_and_repeats_the_version_asked_in() {
    let supported = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let asked = [
        (r#"{"cniVersion":"0.3.1"}"#, "0.3.1"),
        (r#"{"cniVersion":"1.0.0","x":1}"#, "1.0.0"),
        ("{}", "0.1.0"),
        ("", "1.1.0"),
        ("garbage", "1.1.0"),
        (r#"{"cniVersion":"9.9.9"}"#, "1.1.0"),
    ];
    for (stdin, version) in asked {
        let ended = Call::bare().env("CNI_COMMAND", "VERSION").stdin(stdin).run();
        assert_eq!(ended.json(), json!({"cniVersion": version, "supportedVersions": supported}));
    }
}

#[test]
fn faults_of_the_environment_are_answered_four_and_name_all_that_is_missing() {
    let message = |call: Call| {
        let ended = call.run();
        assert_eq!(ended.error_code(), 4);
        let object: Value = serde_json::from_str(&ended.stdout).unwrap();
        object["msg"].as_str().unwrap().to_owned()
    };
    assert_eq!(message(Call::bare()), "required environment variables are missing: CNI_COMMAND");
    let add = Call::bare().env("CNI_COMMAND", "ADD").stdin(config("1.0.0").to_string());
    assert_eq!(message(add), "required environment variables are missing: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME");
    assert!(message(Call::of("add", "/x")).contains("\"add\""));
    assert!(message(Call::of("ADD", "/x").env("CNI_CONTAINERID", "../x")).contains("CNI_CONTAINERID \"../x\""));
    assert!(message(Call::of("DEL", "/x").env("CNI_IFNAME", "sixteen_bytes_xx")).contains("CNI_IFNAME"));
}

#[test]
fn faults_of_the_environment_are_answered_in_the_configurations_version() {
    let ended = Call::of("ADD", "").stdin(config("0.4.0").to_string()).run();
    let object: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&object["cniVersion"], ended.error_code()), (&json!("0.4.0"), 4));
}

#[test]
fn a_variable_that_is_not_text_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    let name = std::ffi::OsStr::from_bytes(b"/run/netns/\xff");
    let output = command.env_clear().env("CNI_COMMAND", "VERSION").env("CNI_NETNS", name).output().unwrap();
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object, json!({"cniVersion": "1.1.0", "code": 4, "msg": "CNI_NETNS is not UTF-8"}));
}

#[test]
fn faults_of_the_configuration_are_answered_before_anything_is_touched() {
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let large = format!("{{\"name\":\"net\",\"x\":\"{}\"}}", "x".repeat(1 << 20));
    let table: [(&str, Vec<u8>, u64); 19] = [
        ("ADD", b"".to_vec(), 6),
        ("ADD", b"{\"name\":\"net\"".to_vec(), 6),
        ("ADD", b"name: net".to_vec(), 6),
        ("ADD", b"[]".to_vec(), 6),
        ("ADD", b"\xef\xbb\xbf{}".to_vec(), 6),
        ("ADD", b"{\"name\":\"\xff\"}".to_vec(), 6),
        ("ADD", nested.into_bytes(), 6),
        ("ADD", large.into_bytes(), 6),
        ("ADD", json!({"name": 7}).to_string().into_bytes(), 6),
        ("ADD", json!({"name": "net", "cniVersion": 1.0}).to_string().into_bytes(), 6),
        ("ADD", json!({"name": "net", "prevResult": "x"}).to_string().into_bytes(), 6),
        ("ADD", b"{}".to_vec(), 7),
        ("ADD", json!({"cniVersion": 1}).to_string().into_bytes(), 7),
        ("DEL", json!({"name": "../x"}).to_string().into_bytes(), 7),
        ("ADD", json!({"name": "a\0b"}).to_string().into_bytes(), 7),
        ("ADD", config("9.9.9").to_string().into_bytes(), 1),
        ("CHECK", config("0.3.1").to_string().into_bytes(), 1),
        ("STATUS", config("1.0.0").to_string().into_bytes(), 1),
        ("GC", config("1.0.0").to_string().into_bytes(), 1),
    ];
    for (verb, stdin, code) in table {
        let shown = String::from_utf8_lossy(&stdin[..stdin.len().min(60)]).into_owned();
        let ended = Call::of(verb, "/run/netns/none").stdin(stdin).run();
        assert_eq!(ended.error_code(), code, "{verb} {shown}: {ended:?}");
    }
}

#[test]
fn a_socket_that_is_no_absolute_path_is_refused() {
    let mut config = config("1.1.0");
    config["socket"] = json!("cni.sock");
    assert_eq!(Call::of("STATUS", "").stdin(config.to_string()).run().error_code(), 7);
}

#[test]
fn without_a_daemon_no_verb_but_del_claims_success() {
    let directory = tempfile::tempdir().unwrap();
    let nobody_listens = directory.path().join("left-behind.sock");
    drop(std::os::unix::net::UnixListener::bind(&nobody_listens).unwrap());
    let namespace = Namespace::new();
    let table = [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)].map(|(verb, code)| (verb, code as u64));
    for socket in [directory.path().join("missing.sock"), nobody_listens] {
        for (verb, code) in table {
            let ended = Call::of(verb, &namespace.path()).socket(&socket).run();
            assert_eq!(ended.error_code(), code, "{verb}");
            assert!(ended.stdout.contains(socket.to_str().unwrap()), "{ended:?}");
        }
    }
}

/// The files that wait for the daemon.
fn tombstones(socket: &Path) -> Vec<PathBuf> {
    let folder = culvert_cni::tombstone::folder(socket);
    let entries = std::fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect());
    entries.unwrap_or_default()
}

#[test]
fn del_without_a_daemon_removes_the_interface_and_leaves_the_rest_in_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cni.sock");
    let namespace = Namespace::new();
    namespace.shell("ip link add eth0 type veth peer name first && ip link add eth1 type veth peer name second");
    for _ in 0..2 {
        assert_eq!(Call::of("DEL", &namespace.path()).socket(&socket).run(), silent_success());
    }
    let links = namespace.shell("ip -o link");
    assert!(!links.contains("eth0") && !links.contains("first") && links.contains("eth1"), "{links}");
    let [tombstone] = tombstones(&socket).try_into().unwrap();
    assert!(culvert_cni::tombstone::is_tombstone(tombstone.file_name().unwrap()));
    let request = Request::decode(&std::fs::read(&tombstone).unwrap()).unwrap();
    assert!(request.env.contains(&("CNI_COMMAND".to_owned(), "DEL".to_owned())), "{request:?}");
    for netns in ["", "/run/netns/none"] {
        assert_eq!(Call::of("DEL", netns).socket(&socket).run(), silent_success(), "{netns}");
    }
    assert_eq!(tombstones(&socket).len(), 1);
}

#[test]
fn del_that_can_leave_no_file_changes_nothing_and_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cni.sock");
    std::fs::write(culvert_cni::tombstone::folder(&socket), "a file in its place").unwrap();
    let namespace = Namespace::new();
    namespace.shell("ip link add eth0 type veth peer name other");
    let ended = Call::of("DEL", &namespace.path()).socket(&socket).run();
    assert_eq!(ended.error_code(), 11);
    assert!(ended.stdout.contains(socket.to_str().unwrap()), "{ended:?}");
    assert!(namespace.shell("ip -o link").contains("eth0"));
}

#[test]
fn a_socket_path_too_long_for_the_kernel_is_a_daemon_that_cannot_be_reached() {
    let long = format!("/run/{}", "x".repeat(200));
    assert_eq!(Call::of("STATUS", "").env("CULVERT_SOCKET", &long).run().error_code(), 50);
}

#[test]
fn what_is_no_pod_namespace_is_refused_on_add_and_check() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // The shim is a child of this test, so its own namespace is ours.
    let ours = format!("/proc/{}/ns/net", std::process::id());
    let other_kind = format!("/proc/{}/ns/uts", std::process::id());
    let paths = ["/run/netns/none", file.to_str().unwrap(), pipe.to_str().unwrap(), &ours, &other_kind, "/"];
    for path in paths {
        for verb in ["ADD", "CHECK"] {
            let ended = Call::of(verb, path).run();
            assert_eq!(ended.error_code(), 8, "{verb} {path}: {ended:?}");
            assert!(ended.stdout.contains(path), "{ended:?}");
        }
    }
}
