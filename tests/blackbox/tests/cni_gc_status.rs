//! GC removes what the runtime does not list and nothing else; STATUS says whether an ADD would be served.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use culvert_blackbox::attachments::{host_end, host_ends, leases, refusal};
use culvert_lab::cni::Answer;
use culvert_lab::{Sandbox, SharedNode, SingleNode};
use serde_json::{Value, json};

static NODE: SharedNode = SharedNode::new();

fn silent() -> Answer {
    Answer { status: Some(0), body: Value::Null }
}

/// Attached containers of these names.
fn attached<const N: usize>(single: &SingleNode, names: [&str; N]) -> [Sandbox; N] {
    names.map(|name| {
        let sandbox = Sandbox::new(single, name).unwrap();
        sandbox.attach().unwrap();
        sandbox
    })
}

fn is_attached(single: &SingleNode, sandbox: &Sandbox) -> bool {
    !leases(single.node(), sandbox.id()).unwrap().is_empty()
}

fn status(sandbox: &Sandbox) -> Answer {
    sandbox.run(&sandbox.call("STATUS")).unwrap()
}

#[test]
fn what_is_listed_stays_and_the_rest_is_removed() {
    let single = NODE.running().unwrap();
    let [till, scale, camera] = attached(&single, ["till", "scale", "camera"]);
    let second = till.call("ADD").env("CNI_IFNAME", "net1");
    till.run(&second).unwrap().success().unwrap();
    assert_eq!(till.collect(&[(till.id(), "net1"), (camera.id(), "eth0")]).unwrap(), silent());
    assert_eq!(leases(single.node(), till.id()).unwrap().len(), 2, "of net1");
    assert!(!is_attached(&single, &scale) && is_attached(&single, &camera));
    assert_eq!(host_ends(single.node()).unwrap().len(), 2);
    till.run(&till.call("DEL").env("CNI_IFNAME", "net1")).unwrap().success().unwrap();
}

#[test]
fn an_empty_list_removes_all_and_no_list_removes_nothing() {
    let single = NODE.running().unwrap();
    let [till, scale] = attached(&single, ["till", "scale"]);
    assert_eq!(till.run(&till.call("GC")).unwrap(), silent());
    let mut config = till.config();
    // What the library sends in addition says the same in older words, and does not count alone.
    config["cni.dev/attachments"] = json!([]);
    assert_eq!(till.run(&till.call("GC").config(&config)).unwrap(), silent());
    assert!(is_attached(&single, &till) && is_attached(&single, &scale));
    assert_eq!(till.collect(&[]).unwrap(), silent());
    assert!(!is_attached(&single, &till) && !is_attached(&single, &scale));
    assert_eq!(host_ends(single.node()).unwrap(), Vec::<String>::new());
}

#[test]
fn other_networks_are_left_alone() {
    let single = NODE.running().unwrap();
    let [till] = attached(&single, ["till"]);
    let other = Sandbox::new(&single, "scale").unwrap().with("name", "other");
    other.attach().unwrap();
    assert_eq!(other.collect(&[]).unwrap(), silent());
    assert!(is_attached(&single, &till) && !is_attached(&single, &other));
}

#[test]
fn what_is_gone_already_does_not_keep_the_rest() {
    let single = NODE.running().unwrap();
    let names = ["till", "scale", "camera"];
    let sandboxes = names.map(|name| Sandbox::new(&single, name).unwrap());
    for (place, sandbox) in sandboxes.iter().enumerate() {
        let result = sandbox.attach().unwrap();
        match place {
            0 => sandbox.namespace().ip("link delete eth0").map(drop).unwrap(),
            1 => {
                single.node().namespace().ip(&format!("link delete {}", host_end(&result).unwrap())).map(drop).unwrap()
            }
            _ => {}
        }
    }
    assert_eq!(sandboxes[0].collect(&[]).unwrap(), silent());
    assert!(sandboxes.iter().all(|sandbox| !is_attached(&single, sandbox)));
}

#[test]
fn an_attachment_may_be_made_again_after_it_was_collected() {
    let single = NODE.running().unwrap();
    let [till] = attached(&single, ["till"]);
    till.collect(&[]).unwrap().success().unwrap();
    let result = till.attach().unwrap();
    till.check(&result).unwrap().success().unwrap();
}

#[test]
fn a_list_that_cannot_be_read_removes_nothing() {
    let single = NODE.running().unwrap();
    let [till] = attached(&single, ["till"]);
    for broken in
        [json!("all"), json!({}), json!([7]), json!([{"containerID": till.id()}]), json!([{"ifname": "eth0"}])]
    {
        let mut config = till.config();
        config["cni.dev/valid-attachments"] = broken.clone();
        refusal(&till.run(&till.call("GC").config(&config)).unwrap(), 6, &["valid-attachments"])
            .unwrap_or_else(|error| panic!("{broken}: {error}"));
    }
    assert!(is_attached(&single, &till));
}

#[test]
fn a_node_that_can_serve_prints_nothing() {
    let single = NODE.running().unwrap();
    let sandbox = Sandbox::new(&single, "till").unwrap();
    assert_eq!(status(&sandbox), silent());
    // As it is asked every few seconds, with nothing but the command.
    let bare = sandbox.call("STATUS").without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME");
    assert_eq!(sandbox.run(&bare.without("CNI_PATH")).unwrap(), silent());
}

#[test]
fn a_configuration_that_serves_no_pod_is_unavailable() {
    let single = NODE.running().unwrap();
    let faults = [
        ("ipam", json!({"type": "dhcp"})),
        ("ipam", json!({"type": "host-local"})),
        ("ipam", json!({"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/33"}]]})),
        ("vlan", json!(100)),
        ("mtu", json!("x")),
        ("ingressRate", json!(-1)),
    ];
    for (key, value) in faults {
        let sandbox = Sandbox::new(&single, "till").unwrap().with(key, value);
        refusal(&status(&sandbox), 50, &[key]).unwrap();
    }
}

#[test]
fn a_range_outside_the_pools_is_unavailable() {
    let single = NODE.running().unwrap();
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "192.0.2.0/24"}]]});
    let sandbox = Sandbox::new(&single, "till").unwrap().with("ipam", ipam);
    refusal(&status(&sandbox), 50, &["192.0.2"]).unwrap();
}

#[test]
fn an_exhausted_pool_is_unavailable_until_an_address_is_free_and_add_is_to_be_tried_again() {
    let mut single = SingleNode::build().unwrap();
    let config = single.node_mut().configuration_mut();
    // Two blocks of one address each.
    config["cluster"]["static"]["pools"] = json!([{"range": "10.244.0.0/29", "blockLength": 30}]);
    config["ipam"]["quarantineSeconds"] = json!(0);
    single.node_mut().ensure_running().unwrap();
    let sandboxes = ["till", "scale", "camera"].map(|name| Sandbox::new(&single, name).unwrap());
    let [till, scale, camera] = &sandboxes;
    till.attach().unwrap();
    culvert_lab::wait::until("the second block", std::time::Duration::from_secs(20), || scale.attach()).unwrap();
    refusal(&status(camera), 50, &[]).unwrap();
    refusal(&camera.add().unwrap(), 11, &[]).unwrap();
    assert_eq!(host_ends(single.node()).unwrap().len(), 2);
    till.del().unwrap().success().unwrap();
    assert_eq!(status(camera), silent());
    camera.attach().unwrap();
}
