//! DEL: best effort, from the daemon's own records, any number of times, whatever is gone already.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::time::Duration;

use culvert_blackbox::attachments::{host_end, host_ends, leases};
use culvert_blackbox::rates::rates_in_force;
use culvert_lab::cni::Answer;
use culvert_lab::{Node, Sandbox, SharedNode, SingleNode, Snapshot, wait};
use serde_json::{Value, json};

static NODE: SharedNode = SharedNode::new();

const BOUND: Duration = Duration::from_secs(20);

fn silent() -> Answer {
    Answer { status: Some(0), body: Value::Null }
}

/// Checks that the node holds nothing for a container.
fn expect_nothing_left(node: &Node, id: &str) {
    assert_eq!(leases(node, id).unwrap(), Vec::<String>::new());
    assert_eq!(host_ends(node).unwrap(), Vec::<String>::new());
    assert_eq!(rates_in_force(node).unwrap(), Vec::<u64>::new());
}

/// A container that uses everything there is.
fn demanding(single: &SingleNode) -> Sandbox {
    Sandbox::new(single, "till")
        .unwrap()
        .asking("bandwidth", json!({"ingressRate": 8_000_000, "egressRate": 8_000_000}))
        .asking("portMappings", json!([{"hostPort": 8080, "containerPort": 5201, "protocol": "tcp"}]))
}

#[test]
fn it_succeeds_any_number_of_times_and_leaves_nothing() {
    let single = NODE.running().unwrap();
    let sandbox = demanding(&single);
    let mut before = Snapshot::default();
    before.add_namespace(single.node().namespace().name()).unwrap();
    sandbox.attach().unwrap();
    for _ in 0..3 {
        assert_eq!(sandbox.del().unwrap(), silent());
        expect_nothing_left(single.node(), sandbox.id());
    }
    let mut after = Snapshot::default();
    after.add_namespace(single.node().namespace().name()).unwrap();
    assert_eq!(before.difference(&after), Vec::<String>::new());
    assert!(!sandbox.namespace().ip("-o link show").unwrap().contains("eth0"));
}

#[test]
fn what_was_never_attached_is_deleted_with_success() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    assert_eq!(sandbox.del().unwrap(), silent());
    let unknown = sandbox.call("DEL").env("CNI_CONTAINERID", "never-seen").without("CNI_NETNS");
    assert_eq!(sandbox.run(&unknown).unwrap(), silent());
    let network = sandbox.call("DEL").config(&json!({"cniVersion": "1.0.0", "name": "never-seen", "type": "culvert",
        "socket": single.node().cni_socket()}));
    assert_eq!(sandbox.run(&network).unwrap(), silent());
}

#[test]
fn the_namespace_may_be_absent_empty_nonexistent_or_something_else() {
    let single = NODE.running().unwrap();
    let file = single.node().folder().join("plain-file");
    std::fs::write(&file, "x").unwrap();
    let own = single.node().namespace().path().display().to_string();
    let sandbox = demanding(&single);
    for place in [None, Some(""), Some("/var/run/netns/never-was"), file.to_str(), Some(own.as_str()), Some("/")] {
        sandbox.attach().unwrap();
        let call = match place {
            None => sandbox.call("DEL").without("CNI_NETNS"),
            Some(place) => sandbox.call("DEL").env("CNI_NETNS", place),
        };
        assert_eq!(sandbox.run(&call).unwrap(), silent(), "{place:?}");
        expect_nothing_left(single.node(), sandbox.id());
    }
}

#[test]
fn a_pod_whose_namespace_was_deleted_is_taken_down_from_the_records() {
    let single = NODE.running().unwrap();
    let caller = Sandbox::new(&single, "caller").unwrap();
    let namespace = single.lab().namespace("short-lived").unwrap();
    let place = namespace.path().display().to_string();
    let call = |command: &str| caller.call(command).env("CNI_CONTAINERID", "short-lived").env("CNI_NETNS", &place);
    caller.run(&call("ADD")).unwrap().success().unwrap();
    drop(namespace);
    // As containerd does it: once with the path, once more without.
    assert_eq!(caller.run(&call("DEL")).unwrap(), silent());
    assert_eq!(caller.run(&call("DEL").env("CNI_NETNS", "")).unwrap(), silent());
    expect_nothing_left(single.node(), "short-lived");
}

#[test]
fn an_interface_that_is_gone_at_either_end_is_no_obstacle() {
    let single = NODE.running().unwrap();
    for from_inside in [true, false] {
        let sandbox = demanding(&single);
        let result = sandbox.attach().unwrap();
        if from_inside {
            sandbox.namespace().ip("link delete eth0").unwrap();
        } else {
            single.node().namespace().ip(&format!("link delete {}", host_end(&result).unwrap())).unwrap();
        }
        assert_eq!(sandbox.del().unwrap(), silent());
        expect_nothing_left(single.node(), sandbox.id());
    }
}

#[test]
fn what_was_collected_already_is_deleted_with_success() {
    let single = NODE.running().unwrap();
    let sandbox = demanding(&single);
    sandbox.attach().unwrap();
    sandbox.collect(&[]).unwrap().success().unwrap();
    expect_nothing_left(single.node(), sandbox.id());
    assert_eq!(sandbox.del().unwrap(), silent());
}

#[test]
fn it_works_from_the_records_without_runtime_configuration_previous_result_or_arguments() {
    let single = NODE.running().unwrap();
    let sandbox = demanding(&single).env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=till");
    let mut before = Snapshot::default();
    before.add_namespace(single.node().namespace().name()).unwrap();
    sandbox.attach().unwrap();
    let call = sandbox.call("DEL").config(&single.netconf()).without("CNI_ARGS").without("CNI_NETNS");
    assert_eq!(sandbox.run(&call).unwrap(), silent());
    expect_nothing_left(single.node(), sandbox.id());
    let mut after = Snapshot::default();
    after.add_namespace(single.node().namespace().name()).unwrap();
    assert_eq!(before.difference(&after), Vec::<String>::new(), "not even a rule of the host port");
}

#[test]
fn any_version_deletes_what_another_attached() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    for version in ["0.1.0", "0.3.1", "0.4.0", "1.0.0"] {
        sandbox.attach().unwrap();
        let mut config = sandbox.config();
        config["cniVersion"] = json!(version);
        assert_eq!(sandbox.run(&sandbox.call("DEL").config(&config)).unwrap(), silent());
        expect_nothing_left(single.node(), sandbox.id());
    }
}

#[test]
fn attachments_of_other_networks_interfaces_and_containers_stay() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    let result = sandbox.attach().unwrap();
    let mut elsewhere = sandbox.config();
    elsewhere["name"] = json!("other");
    let others = [
        sandbox.call("DEL").config(&elsewhere),
        sandbox.call("DEL").env("CNI_IFNAME", "net1"),
        sandbox.call("DEL").env("CNI_CONTAINERID", "other"),
    ];
    for call in others {
        assert_eq!(sandbox.run(&call).unwrap(), silent());
    }
    sandbox.check(&result).unwrap().success().unwrap();
}

#[test]
fn a_bridge_and_rules_that_are_gone_are_no_obstacle() {
    let single = SingleNode::running().unwrap();
    let node = single.node();
    let sandbox = demanding(&single);
    sandbox.attach().unwrap();
    node.namespace().ip("link delete cni0").unwrap();
    for flush in ["nft flush ruleset", "iptables -t nat -F", "ip6tables -t nat -F"] {
        node.namespace().run(flush).unwrap();
    }
    assert_eq!(sandbox.del().unwrap(), silent());
    assert_eq!(leases(node, sandbox.id()).unwrap(), Vec::<String>::new());
    assert!(!sandbox.namespace().ip("-o link show").unwrap().contains("eth0"));
}

#[test]
fn without_the_daemon_a_pod_loses_its_interface_at_once_and_the_rest_when_the_daemon_is_back() {
    let mut single = SingleNode::running().unwrap();
    let sandbox = demanding(&single);
    sandbox.attach().unwrap();
    single.node_mut().stop().unwrap();
    for _ in 0..2 {
        assert_eq!(sandbox.del().unwrap(), silent());
    }
    assert!(!sandbox.namespace().ip("-o link show").unwrap().contains("eth0"));
    single.node_mut().ensure_running().unwrap();
    let node = single.node();
    wait::until_true("the rest to be gone", BOUND, || Ok(leases(node, sandbox.id())?.is_empty())).unwrap();
    expect_nothing_left(node, sandbox.id());
}

#[test]
fn without_the_daemon_a_pod_whose_namespace_is_gone_is_deleted_once_the_daemon_is_back() {
    let mut single = SingleNode::running().unwrap();
    let caller = Sandbox::new(&single, "caller").unwrap();
    let namespace = single.lab().namespace("short-lived").unwrap();
    let place = namespace.path().display().to_string();
    let call = |command: &str| caller.call(command).env("CNI_CONTAINERID", "short-lived").env("CNI_NETNS", &place);
    caller.run(&call("ADD")).unwrap().success().unwrap();
    single.node_mut().stop().unwrap();
    drop(namespace);
    // The runtime is not kept from going on, and hears no lie: the daemon does it, without being told again.
    assert_eq!(caller.run(&call("DEL")).unwrap(), silent());
    single.node_mut().ensure_running().unwrap();
    let node = single.node();
    wait::until_true("the pod to be gone", BOUND, || Ok(leases(node, "short-lived")?.is_empty())).unwrap();
    expect_nothing_left(node, "short-lived");
}
