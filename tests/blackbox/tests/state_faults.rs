//! A state that is full, read-only, failing, damaged or gone: no ADD leaves anything, DEL works, the daemon starts, pods
//! keep their network, and no address is given twice.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::path::{Path, PathBuf};

use culvert_blackbox::attachments::{address, leases, refusal};
use culvert_blackbox::small_disk::SmallDisk;
use culvert_lab::cni::Answer;
use culvert_lab::strace::{Attached, Injection};
use culvert_lab::{Sandbox, SingleNode, Snapshot};
use serde_json::{Value, json};

/// The code for a state that cannot be written, ours.
const STORE: u64 = 104;
/// Room for a node's state with its compiled plugins.
const DISK_MEBIBYTES: u32 = 64;

fn silent() -> Answer {
    Answer { status: Some(0), body: Value::Null }
}

fn state_folder(single: &SingleNode) -> PathBuf {
    single.node().folder().join("state")
}

/// A node whose state lies on a small disk, and which lets addresses be given again at once.
fn node_on_small_disk() -> (SingleNode, SmallDisk) {
    let mut single = SingleNode::build().unwrap();
    single.node_mut().configuration_mut()["ipam"]["quarantineSeconds"] = json!(0);
    let disk = SmallDisk::mount(&state_folder(&single), DISK_MEBIBYTES).unwrap();
    single.node_mut().ensure_running().unwrap();
    (single, disk)
}

fn demanding(single: &SingleNode, name: &str, port: u16) -> Sandbox {
    Sandbox::new(single, name)
        .unwrap()
        .asking("bandwidth", json!({"ingressRate": 8_000_000, "egressRate": 8_000_000}))
        .asking("portMappings", json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]))
}

fn snapshot(single: &SingleNode) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.add_namespace(single.node().namespace().name()).unwrap();
    snapshot
}

/// Checks that an ADD says that the state is at fault and what to do, and that nothing of it is left.
fn expect_refused_and_nothing_left(single: &SingleNode, sandbox: &Sandbox, what: &str) {
    let before = snapshot(single);
    refusal(&sandbox.add().unwrap(), STORE, &["state", "check free space"])
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(before.difference(&snapshot(single)), Vec::<String>::new(), "{what}");
    assert_eq!(leases(single.node(), sandbox.id()).unwrap(), Vec::<String>::new(), "{what}");
    assert!(!sandbox.namespace().ip("-o link show").unwrap().contains("eth0"), "{what}");
}

#[test]
fn a_full_disk_refuses_pods_lets_others_go_and_gives_no_address_twice() {
    let (mut single, disk) = node_on_small_disk();
    let [till, scale] = [demanding(&single, "till", 8080), demanding(&single, "scale", 8081)];
    let result = till.attach().unwrap();
    let held = address(&result, true).unwrap().to_string();
    disk.fill().unwrap();
    expect_refused_and_nothing_left(&single, &scale, "full");
    assert_eq!(till.del().unwrap(), silent());
    assert!(!till.namespace().ip("-o link show").unwrap().contains("eth0"));
    disk.make_room().unwrap();
    // Whatever of the deleted pod could not be taken from the disk must not be held against the next pod.
    let third = demanding(&single, "camera", 8082).asking("ips", json!([held]));
    let mut got = third.add().unwrap();
    if got.status != Some(0) {
        // Its record is still there: a DEL, now that there is room, frees the address.
        assert_eq!(till.del().unwrap(), silent());
        got = third.add().unwrap();
    }
    let got = got.success().unwrap();
    assert_eq!(address(&got, true).unwrap().to_string(), held);
    // By the time a CHECK is answered the daemon knows that the runtime has the answer to the ADD.
    third.check(&got).unwrap().success().unwrap();
    single.node_mut().kill().unwrap();
    single.node_mut().ensure_running().unwrap();
    third.check(&got).unwrap().success().unwrap();
    let fourth = demanding(&single, "printer", 8083).asking("ips", json!([held]));
    refusal(&fourth.add().unwrap(), 11, &[&held]).unwrap();
    assert_eq!(leases(single.node(), till.id()).unwrap(), Vec::<String>::new());
}

#[test]
fn writes_that_fail_refuse_pods_and_let_others_go() {
    let mut single = SingleNode::build().unwrap();
    single.node_mut().ensure_running().unwrap();
    let log = single.node().folder().join("strace");
    for (number, error) in ["EIO", "ENOSPC", "EROFS"].into_iter().enumerate() {
        let [till, scale] = ["till", "scale"].map(|name| demanding(&single, &format!("{name}-{number}"), 8080));
        till.attach().unwrap();
        let process = single.node().process_id().unwrap();
        let failing = Attached::to(process, &log, Some(&Injection::error("pwrite64", error))).unwrap();
        expect_refused_and_nothing_left(&single, &scale, error);
        assert_eq!(till.del().unwrap(), silent(), "{error}");
        assert!(!till.namespace().ip("-o link show").unwrap().contains("eth0"), "{error}");
        failing.finish().unwrap();
        let result = scale.attach().unwrap();
        scale.check(&result).unwrap().success().unwrap();
    }
}

#[test]
fn a_read_only_disk_refuses_pods_and_lets_others_go_while_the_node_goes_on() {
    let (mut single, disk) = node_on_small_disk();
    let [till, scale] = [demanding(&single, "till", 8080), demanding(&single, "scale", 8081)];
    till.attach().unwrap();
    single.node_mut().stop().unwrap();
    disk.set_writable(false).unwrap();
    single.node_mut().ensure_running().unwrap();
    expect_refused_and_nothing_left(&single, &scale, "read-only");
    assert_eq!(till.del().unwrap(), silent());
    assert!(!till.namespace().ip("-o link show").unwrap().contains("eth0"));
    disk.set_writable(true).unwrap();
    single.node_mut().stop().unwrap();
    single.node_mut().ensure_running().unwrap();
    scale.attach().unwrap();
    assert_eq!(till.del().unwrap(), silent());
    assert_eq!(leases(single.node(), till.id()).unwrap(), Vec::<String>::new());
}

/// Stops the daemon, lets something happen to its state's file, and starts it.
fn with_changed_state(single: &mut SingleNode, change: impl FnOnce(&Path)) {
    single.node_mut().stop().unwrap();
    change(&state_folder(single).join("state.db"));
    single.node_mut().ensure_running().unwrap();
}

#[test]
fn a_damaged_row_is_named_and_the_other_pods_are_as_they_were() {
    let mut single = SingleNode::running().unwrap();
    let [till, scale] = [demanding(&single, "till", 8080), demanding(&single, "scale", 8081)];
    let results = [&till, &scale].map(|sandbox| sandbox.attach().unwrap());
    with_changed_state(&mut single, |file| {
        let mut bytes = std::fs::read(file).unwrap();
        let key = format!("culvert/{}/eth0", till.id());
        let place = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap();
        bytes[place + key.len() + 20] ^= 1;
        std::fs::write(file, bytes).unwrap();
    });
    assert!(single.node().log().contains("the state is damaged"), "{}", single.node().log_tail());
    assert!(state_folder(&single).join("state.db.damaged").exists());
    scale.check(&results[1]).unwrap().success().unwrap();
    for sandbox in [&till, &scale] {
        assert_eq!(sandbox.del().unwrap(), silent());
        sandbox.attach().unwrap();
    }
}

#[test]
fn a_state_that_is_no_database_or_gone_does_not_keep_the_daemon_from_starting() {
    let mut single = SingleNode::running().unwrap();
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 3] = [
        ("garbage", |file| std::fs::write(file, vec![0x55; 8192]).unwrap()),
        ("cut", |file| std::fs::write(file, &std::fs::read(file).unwrap()[..5000]).unwrap()),
        ("gone", |file| std::fs::remove_file(file).unwrap()),
    ];
    for (what, change) in changes {
        let sandbox = demanding(&single, &format!("pod-{what}"), 8080);
        sandbox.attach().unwrap();
        with_changed_state(&mut single, change);
        assert_eq!(sandbox.del().unwrap(), silent(), "{what}");
        let result = sandbox.attach().unwrap();
        sandbox.check(&result).unwrap().success().unwrap();
        assert_eq!(sandbox.del().unwrap(), silent(), "{what}");
    }
}
