//! Removed, it leaves no trace in the kernel: not of pods, not of a daemon that crashed, not of what was shaped.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::collections::BTreeMap;

use culvert_lab::three_sites::{EDGE_1, EDGE_3};
use culvert_lab::{Namespace, Node, Pod, PodSetup, SingleNode, Snapshot, ThreeSites};

fn snapshot<'a>(namespaces: impl Iterator<Item = &'a Namespace>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for namespace in namespaces {
        snapshot.add_namespace(namespace.name()).unwrap();
    }
    snapshot
}

#[test]
fn after_del_and_cleanup_every_node_is_as_it_was() {
    let mut sites = ThreeSites::build().unwrap();
    let nodes = |sites: &ThreeSites| snapshot(sites.nodes().iter().map(Node::namespace));
    let before = nodes(&sites);
    sites.start_all().unwrap();
    let (from, to) = (sites.pod(EDGE_1, "from").unwrap(), sites.pod(EDGE_3, "to").unwrap());
    from.vantage().wait_reachable(to.addresses()[0].addr()).unwrap();
    assert_ne!(before.difference(&nodes(&sites)), Vec::<String>::new(), "a snapshot that sees nothing proves nothing");
    from.remove().unwrap();
    to.remove().unwrap();
    for node in sites.nodes_mut() {
        node.stop().unwrap();
        node.culvertd("cleanup").unwrap();
    }
    assert_eq!(before.difference(&nodes(&sites)), Vec::<String>::new());
}

#[test]
fn cleanup_after_a_crash_takes_pods_and_shapes_with_it_and_can_be_repeated() {
    let mut single = SingleNode::build().unwrap();
    let before = snapshot(std::iter::once(single.node().namespace()));
    single.node_mut().start().unwrap();
    single.node_mut().wait_ready().unwrap();
    let annotations: BTreeMap<String, String> = [("ingress", "20M"), ("egress", "10M")]
        .map(|(way, rate)| (format!("kubernetes.io/{way}-bandwidth"), rate.to_owned()))
        .into();
    let setup = PodSetup { annotations, ..PodSetup::named("till") };
    let pod = Pod::attach(single.lab(), single.node(), setup).unwrap();
    single.node_mut().kill().unwrap();
    for _ in 0..2 {
        single.node().culvertd("cleanup").unwrap();
        assert_eq!(before.difference(&snapshot(std::iter::once(single.node().namespace()))), Vec::<String>::new());
    }
    // The pod's own end went with its host end.
    assert!(!pod.namespace().ip("link show").unwrap().contains("eth0"));
    pod.forget();
}
