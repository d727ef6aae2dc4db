//! What the shim carries to the daemon, and what it makes of the answers.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use culvert_cni::frame::{ACKNOWLEDGED, Reply};
use rustix::net::{RecvFlags, SendFlags};
use serde_json::json;

use crate::harness::{Call, Ended, FakeDaemon, Namespace, config, ip, silent_success};

fn reply(exit_code: u8, stdout: &str) -> Vec<u8> {
    Reply { exit_code, stdout: stdout.as_bytes().to_vec() }.encode().unwrap()
}

#[test]
fn the_daemon_gets_the_call_verbatim_and_the_variables_that_concern_it() {
    let daemon = FakeDaemon::new();
    let served = daemon.answer_once(reply(0, ""));
    let stdin = format!(" {}\n", config("1.1.0"));
    let ended = Call::of("DEL", "")
        .env("CNI_ARGS", "K8S_POD_NAME=web;IgnoreUnknown=1")
        .env("TRACEPARENT", "00-1-2-01")
        .env("PATH", "/usr/bin")
        .env("SECRET", "x")
        .socket(&daemon.socket())
        .stdin(stdin.clone())
        .run();
    assert_eq!(ended, silent_success());
    let mut request = served.join().unwrap().request;
    request.env.sort();
    let expected = [
        ("CNI_ARGS", "K8S_POD_NAME=web;IgnoreUnknown=1"),
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "pod-1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", ""),
        ("CNI_PATH", "/opt/cni/bin"),
        ("PATH", "/usr/bin"),
        ("TRACEPARENT", "00-1-2-01"),
    ];
    assert_eq!(request.env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(request.stdin, stdin.into_bytes());
}

#[test]
fn the_configurations_socket_beats_the_environments() {
    let daemon = FakeDaemon::new();
    let served = daemon.answer_once(reply(0, ""));
    let mut config = config("1.1.0");
    config["socket"] = json!(daemon.socket());
    let call = Call::of("STATUS", "").env("CULVERT_SOCKET", "/nowhere").stdin(config.to_string());
    assert_eq!(call.run(), silent_success());
    served.join().unwrap();
}

#[test]
fn the_answer_is_printed_exactly_and_its_exit_code_kept() {
    let answers = [(0, "{\"a\": \"ü\"}\n"), (1, "{\"code\":100}"), (7, ""), (0, "")];
    for (exit_code, stdout) in answers {
        let daemon = FakeDaemon::new();
        let served = daemon.answer_once(reply(exit_code, stdout));
        let ended = Call::of("DEL", "").socket(&daemon.socket()).run();
        assert_eq!(ended, Ended { exit_code: i32::from(exit_code), stdout: stdout.to_owned() });
        served.join().unwrap();
    }
}

#[test]
fn a_large_call_and_a_large_answer_arrive_whole() {
    let mut config = config("1.1.0");
    config["x"] = json!("x".repeat(1_000_000));
    let daemon = FakeDaemon::new();
    let served = daemon.answer_once(reply(0, &"y".repeat(1_000_000)));
    let ended = Call::of("DEL", "").socket(&daemon.socket()).stdin(config.to_string()).run();
    assert_eq!((ended.exit_code, ended.stdout.len()), (0, 1_000_000));
    assert_eq!(served.join().unwrap().request.stdin, config.to_string().into_bytes());
}

#[test]
fn only_a_successful_add_that_reached_the_runtime_is_acknowledged() {
    let namespace = Namespace::new();
    let table: [(&str, u8, &[u8]); 4] =
        [("ADD", 0, &[ACKNOWLEDGED]), ("ADD", 1, &[]), ("CHECK", 0, &[]), ("DEL", 0, &[])];
    for (verb, exit_code, after) in table {
        let daemon = FakeDaemon::new();
        let served = daemon.answer_once(reply(exit_code, "{}"));
        let ended = Call::of(verb, &namespace.path()).socket(&daemon.socket()).run();
        assert_eq!(ended, Ended { exit_code: i32::from(exit_code), stdout: "{}".to_owned() });
        assert_eq!(served.join().unwrap().after, after, "{verb}");
    }
}

#[test]
fn an_add_whose_answer_cannot_be_written_fails_and_is_not_acknowledged() {
    let namespace = Namespace::new();
    let daemon = FakeDaemon::new();
    let served = daemon.answer_once(reply(0, "{}"));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = Call::of("ADD", &namespace.path()).socket(&daemon.socket()).run_into(Stdio::from(full));
    assert_eq!(ended, Ended { exit_code: 1, stdout: String::new() });
    assert_eq!(served.join().unwrap().after, Vec::<u8>::new());
}

#[test]
fn add_brings_the_pods_namespace_and_a_socket_that_lives_in_it() {
    let namespace = Namespace::new();
    ip(&["-n", &namespace.name, "link", "add", "shimmark0", "type", "bridge"]);
    let daemon = FakeDaemon::new();
    let served = daemon.answer_once(reply(0, "{}"));
    assert_eq!(Call::of("ADD", &namespace.path()).socket(&daemon.socket()).run().exit_code, 0);
    let served = served.join().unwrap();
    let [netns, rtnetlink] = <[OwnedFd; 2]>::try_from(served.descriptors).unwrap();
    let seen = std::fs::metadata(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&netns))).unwrap();
    let expected = std::fs::metadata(namespace.path()).unwrap();
    assert_eq!((seen.dev(), seen.ino()), (expected.dev(), expected.ino()));
    assert!(link_exists(&rtnetlink, "shimmark0"));
    assert!(!link_exists(&rtnetlink, "shimmark1"));
    assert_eq!(served.shim_namespace, std::fs::read_link("/proc/self/ns/net").unwrap());
}

/// Asks the kernel through a socket for a link by name.
fn link_exists(rtnetlink: &OwnedFd, name: &str) -> bool {
    const RTM_GETLINK: u16 = 18;
    const IFLA_IFNAME: u16 = 3;
    let mut message = vec![0; 32];
    message[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&1_u16.to_ne_bytes());
    message.extend_from_slice(&u16::try_from(4 + name.len() + 1).unwrap().to_ne_bytes());
    message.extend_from_slice(&IFLA_IFNAME.to_ne_bytes());
    message.extend_from_slice(name.as_bytes());
    message.push(0);
    message.resize(message.len().next_multiple_of(4), 0);
    let length = u32::try_from(message.len()).unwrap();
    message[..4].copy_from_slice(&length.to_ne_bytes());
    rustix::net::send(rtnetlink, &message, SendFlags::empty()).unwrap();
    let mut answer = vec![0; 65_536];
    let (length, _) = rustix::net::recv(rtnetlink, &mut *answer, RecvFlags::empty()).unwrap();
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    kind == 16 && answer[..length].windows(name.len()).any(|window| window == name.as_bytes())
}

#[test]
fn add_writes_the_pods_sysctls_and_check_and_del_write_none() {
    const CONF: &str = "/proc/sys/net/ipv6/conf";
    let unwanted = format!(
        "cd {CONF}; echo 1 | tee default/accept_ra all/accept_ra default/accept_dad all/accept_dad all/disable_ipv6 default/disable_ipv6"
    );
    let read = format!(
        "cd {CONF}; cat default/accept_ra all/accept_ra default/accept_dad all/accept_dad all/disable_ipv6 default/disable_ipv6 lo/disable_ipv6"
    );
    let namespace = Namespace::new();
    namespace.shell(&unwanted);
    let host_before = std::fs::read_to_string(format!("{CONF}/default/accept_ra")).unwrap();
    let table =
        [("CHECK", "1\n1\n1\n1\n1\n1\n1\n"), ("DEL", "1\n1\n1\n1\n1\n1\n1\n"), ("ADD", "0\n0\n0\n0\n0\n0\n0\n")];
    for (verb, expected) in table {
        let daemon = FakeDaemon::new();
        let served = daemon.answer_once(reply(0, ""));
        assert_eq!(Call::of(verb, &namespace.path()).socket(&daemon.socket()).run(), silent_success());
        assert_eq!(served.join().unwrap().descriptors.len(), 2, "{verb}");
        assert_eq!(namespace.shell(&read), expected, "{verb}");
    }
    assert_eq!(std::fs::read_to_string(format!("{CONF}/default/accept_ra")).unwrap(), host_before);
}

#[test]
fn del_reaches_the_daemon_whatever_became_of_the_namespace() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let ours = format!("/proc/{}/ns/net", std::process::id());
    for netns in ["", "/run/netns/none", file.to_str().unwrap(), &ours] {
        let daemon = FakeDaemon::new();
        let served = daemon.answer_once(reply(0, ""));
        let stdin = json!({"cniVersion": "1.0.0", "name": "net", "prevResult": "garbage", "runtimeConfig": 7});
        let call = Call::of("DEL", netns).socket(&daemon.socket()).stdin(stdin.to_string());
        assert_eq!(call.run(), silent_success(), "{netns}");
        assert!(served.join().unwrap().descriptors.is_empty(), "{netns}");
    }
    let daemon = FakeDaemon::new();
    let served = daemon.answer_once(reply(0, ""));
    assert_eq!(Call::of("DEL", "").without("CNI_NETNS").socket(&daemon.socket()).run(), silent_success());
    assert!(served.join().unwrap().descriptors.is_empty());
}

#[test]
fn status_and_gc_bring_no_descriptors() {
    let namespace = Namespace::new();
    for verb in ["STATUS", "GC"] {
        let daemon = FakeDaemon::new();
        let served = daemon.answer_once(reply(0, ""));
        assert_eq!(Call::of(verb, &namespace.path()).socket(&daemon.socket()).run(), silent_success());
        assert!(served.join().unwrap().descriptors.is_empty());
    }
}

#[test]
fn an_answer_that_is_none_is_an_error_and_never_printed() {
    let good = reply(0, "{}");
    let mut foreign_version = good.clone();
    foreign_version[4] = 99;
    let mut too_long = good.clone();
    too_long[6] = 0xff;
    let answers = [
        Vec::new(),
        good[..5].to_vec(),
        good[..good.len() - 1].to_vec(),
        b"HTTP/1.1 200 OK\r\n".to_vec(),
        foreign_version,
        too_long,
    ];
    for answer in answers {
        for (verb, code) in [("DEL", 11), ("STATUS", 50)] {
            let daemon = FakeDaemon::new();
            let served = daemon.answer_once(answer.clone());
            let ended = Call::of(verb, "").socket(&daemon.socket()).run();
            assert_eq!(ended.error_code(), code, "{answer:?}");
            assert_eq!(served.join().unwrap().after, Vec::<u8>::new());
        }
    }
}

#[test]
fn a_daemon_that_hangs_does_not_hold_status_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cni.sock");
    let _never_accepts = UnixListener::bind(&socket).unwrap();
    let ended = Call::of("STATUS", "").socket(&socket).run();
    assert_eq!(ended.error_code(), 50);
    assert!(ended.stdout.contains("no answer in time"), "{ended:?}");
}

#[test]
fn too_many_variables_are_refused_without_the_daemon() {
    let mut call = Call::of("DEL", "");
    for number in 0..70 {
        call = call.env(&format!("CNI_EXTRA_{number}"), "x");
    }
    assert_eq!(call.run().error_code(), 4);
}
