//! The shim as a container runtime meets it: results, refusals, repetition, and a daemon that is not there.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use culvert_blackbox::rates::rates_in_force;
use culvert_blackbox::ways::INTERVAL;
use culvert_lab::cni::{Answer, Call};
use culvert_lab::pod::Family;
use culvert_lab::{Node, Pod, PodSetup, SingleNode};
use serde_json::{Value, json};

fn call(node: &Node, command: &'static str, environment: Vec<(&'static str, String)>, input: &[u8]) -> Answer {
    let program = node.binaries().program("culvert");
    Call { program, command, environment, input: input.to_vec() }.run(node.namespace()).unwrap()
}

fn configuration(node: &Node) -> Value {
    json!({"cniVersion": "1.1.0", "name": "culvert", "type": "culvert", "socket": node.cni_socket()})
}

fn environment(id: &str, namespace: &str) -> Vec<(&'static str, String)> {
    vec![("CNI_CONTAINERID", id.to_owned()), ("CNI_NETNS", namespace.to_owned()), ("CNI_IFNAME", "eth0".to_owned())]
}

/// Links of the node that belong to pods.
fn host_ends(node: &Node) -> usize {
    node.namespace().ip("-o link show master cni0").unwrap().lines().count()
}

#[test]
fn a_result_names_the_interface_inside_the_pod_and_an_address_of_each_family() {
    let single = SingleNode::running().unwrap();
    let mut pod = Pod::detached(single.lab(), single.node(), PodSetup::named("till")).unwrap();
    let result = pod.add().unwrap().success().unwrap();
    assert_eq!(result["cniVersion"], "1.1.0");
    let position = usize::try_from(result["ips"][0]["interface"].as_u64().unwrap()).unwrap();
    let interface = &result["interfaces"][position];
    assert_eq!(interface["name"], "eth0");
    assert_eq!(interface["sandbox"], pod.namespace().path().display().to_string());
    let links = pod.namespace().ip("-o link show eth0").unwrap();
    assert!(links.contains(interface["mac"].as_str().unwrap()) && links.contains("UP"), "{links}");
    for family in Family::BOTH {
        let address = pod.address(family).unwrap();
        assert!(pod.namespace().ip("address show eth0").unwrap().contains(&address.to_string()));
        single.node().vantage().wait_reachable(address).unwrap();
    }
    pod.check(result).unwrap().success().unwrap();
    pod.remove().unwrap();
}

#[test]
fn a_second_add_is_refused_and_leaves_the_first_alone() {
    let single = SingleNode::running().unwrap();
    let mut pod = single.pod("till").unwrap();
    let addresses = pod.addresses().to_vec();
    let ends = host_ends(single.node());
    single.node().vantage().wait_reachable(addresses[0].addr()).unwrap();
    let answer = pod.add().unwrap();
    assert!(answer.code().is_some_and(|code| code >= 100), "{answer:?}");
    assert!(answer.message().contains(pod.container_id()) && answer.message().contains("eth0"), "{answer:?}");
    assert_eq!((pod.addresses(), host_ends(single.node())), (addresses.as_slice(), ends));
    assert_eq!(single.node().vantage().ping(addresses[0].addr(), 3, INTERVAL).unwrap().lost, 0);
}

#[test]
fn del_succeeds_any_number_of_times_and_without_anything_to_delete() {
    let single = SingleNode::running().unwrap();
    let node = single.node();
    let mut pod = single.pod("till").unwrap();
    for _ in 0..3 {
        assert_eq!(pod.del().unwrap(), Answer { status: Some(0), body: Value::Null });
    }
    assert_eq!(host_ends(node), 0);
    let input = serde_json::to_vec(&configuration(node)).unwrap();
    for namespace in ["", "/var/run/netns/never-was"] {
        assert_eq!(call(node, "DEL", environment("never-seen", namespace), &input).status, Some(0), "{namespace:?}");
    }
}

#[test]
fn a_pod_whose_namespace_is_gone_is_deleted_from_the_records() {
    let single = SingleNode::running().unwrap();
    let node = single.node();
    let namespace = single.lab().namespace("short-lived").unwrap();
    let input = serde_json::to_vec(&configuration(node)).unwrap();
    let path = namespace.path().display().to_string();
    call(node, "ADD", environment("short-lived", &path), &input).success().unwrap();
    let leases = |node: &Node| node.ctl(&["ipam"]).unwrap()["leases"].as_array().unwrap().len();
    assert_eq!(leases(node), 2, "one of each family");
    drop(namespace);
    assert_eq!(call(node, "DEL", environment("short-lived", ""), &input).status, Some(0));
    assert_eq!((leases(node), host_ends(node)), (0, 0));
}

#[test]
fn errors_have_the_codes_of_the_specification_and_name_the_object() {
    let single = SingleNode::running().unwrap();
    let node = single.node();
    let own = format!("/var/run/netns/{}", node.namespace().name());
    let with = |key: &str, value: Value| {
        let mut input = configuration(node);
        input[key] = value;
        serde_json::to_vec(&input).unwrap()
    };
    let plain = serde_json::to_vec(&configuration(node)).unwrap();
    let cases = [
        ("no variables", "ADD", vec![], plain.clone(), 4, "CNI_CONTAINERID"),
        ("bad container id", "ADD", environment("../x", &own), plain.clone(), 4, "../x"),
        ("no JSON", "ADD", environment("c", &own), b"\xef\xbb\xbf{".to_vec(), 6, ""),
        ("an array", "ADD", environment("c", &own), b"[]".to_vec(), 6, ""),
        ("name outside the rules", "ADD", environment("c", &own), with("name", json!("../x")), 7, "../x"),
        ("unknown version", "ADD", environment("c", &own), with("cniVersion", json!("9.9.9")), 1, "9.9.9"),
        ("no such namespace", "ADD", environment("c", "/var/run/netns/none"), plain.clone(), 8, "/var/run/netns/none"),
        ("the node's own namespace", "ADD", environment("c", &own), plain.clone(), 8, &own),
        ("unknown verb", "add", environment("c", &own), plain, 4, "add"),
    ];
    for (what, command, environment, input, code, named) in cases {
        let answer = call(node, command, environment, &input);
        assert_eq!(answer.code(), Some(code), "{what}: {answer:?}");
        assert!(answer.message().contains(named) && !answer.message().is_empty(), "{what}: {answer:?}");
    }
    assert_eq!(host_ends(node), 0);
}

#[test]
fn an_interface_that_is_there_already_is_left_alone() {
    let single = SingleNode::running().unwrap();
    let mut pod = Pod::detached(single.lab(), single.node(), PodSetup::named("till")).unwrap();
    pod.namespace().ip("link add eth0 type bridge").unwrap();
    let answer = pod.add().unwrap();
    assert!(answer.code().is_some_and(|code| code >= 100) && answer.message().contains("eth0"), "{answer:?}");
    assert!(pod.namespace().ip("-d link show eth0").unwrap().contains("bridge"));
    assert_eq!(host_ends(single.node()), 0);
}

#[test]
fn without_the_daemon_the_shim_answers_by_itself() {
    let mut single = SingleNode::running().unwrap();
    single.node_mut().stop().unwrap();
    let node = single.node();
    let namespace = single.lab().namespace("waiting").unwrap();
    let input = serde_json::to_vec(&configuration(node)).unwrap();
    let path = namespace.path().display().to_string();
    let add = call(node, "ADD", environment("waiting", &path), &input);
    assert_eq!(add.code(), Some(11), "{add:?}");
    assert!(add.message().contains(&node.cni_socket().display().to_string()), "{add:?}");
    assert_eq!(call(node, "STATUS", vec![], &input).code(), Some(50));
    let version = call(node, "VERSION", vec![], &input).success().unwrap();
    assert_eq!(version["supportedVersions"].as_array().unwrap().last().unwrap(), "1.1.0");
    let loopback = Call {
        program: node.binaries().program("loopback"),
        command: "ADD",
        environment: vec![
            ("CNI_CONTAINERID", "waiting".to_owned()),
            ("CNI_NETNS", path),
            ("CNI_IFNAME", "lo".to_owned()),
        ],
        input: br#"{"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}"#.to_vec(),
    };
    loopback.run(node.namespace()).unwrap().success().unwrap();
    assert!(namespace.ip("-o link show lo").unwrap().contains("UP"));
}

#[test]
fn garbage_on_the_socket_disturbs_nobody_and_is_counted() {
    let single = SingleNode::running().unwrap();
    let node = single.node();
    // A series that never counted is not there.
    let refused = || node.metric(r#"culvert_cni_requests_total{verb="garbage""#).unwrap_or(0.0);
    let before = refused();
    let garbage: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], &[0; 64], b"\x7f\xff\xff\xff", br#"{"cniVersion": "1.1.0"}"#];
    let mut half_open = Vec::new();
    for bytes in garbage {
        let mut stream = UnixStream::connect(node.cni_socket()).unwrap();
        // The daemon may hang up before it has read all of it.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        half_open.push(UnixStream::connect(node.cni_socket()).unwrap());
        half_open.push(stream);
    }
    let pod = single.pod("till").unwrap();
    node.vantage().wait_reachable(pod.address(Family::V4).unwrap()).unwrap();
    culvert_lab::wait::until_true("the garbage to be counted", std::time::Duration::from_secs(20), || {
        Ok(refused() >= before + 5.0)
    })
    .unwrap();
}

#[test]
fn rates_of_annotations_are_put_on_both_directions() {
    let single = SingleNode::running().unwrap();
    let mut setup = PodSetup::named("till");
    setup.annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "20M".to_owned());
    setup.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned());
    let pod = Pod::attach(single.lab(), single.node(), setup).unwrap();
    let rates = rates_in_force(single.node()).unwrap();
    // tc speaks of bytes a second.
    assert_eq!(rates, [1_250_000, 2_500_000]);
    pod.remove().unwrap();
    assert_eq!(rates_in_force(single.node()).unwrap(), Vec::<u64>::new());
}
