//! A wrong configuration: everything wrong in it is said at once, with where and what to do.

use culvert_lab::SingleNode;
use serde_json::json;

#[test]
fn all_faults_are_told_at_once_with_their_key_paths_and_nothing_is_made() {
    let mut single = SingleNode::build().unwrap();
    let links = single.node().namespace().ip("link show").unwrap();
    let configuration = single.node_mut().configuration_mut();
    configuration["node"]["siteKind"] = json!("moon");
    configuration["mesh"]["port"] = json!(99_999);
    configuration["mesh"]["colour"] = json!("blue");
    configuration["mesh"]["relayNodes"][0]["advertiseAddress"] = json!([]);
    configuration["cluster"]["static"]["pools"][1]["blockLength"] = json!(4);
    configuration["ipam"]["policy"] = json!("ipam-magic");
    let told = format!("{:#}", single.node().culvertd("run").unwrap_err());
    for path in [
        "node.siteKind",
        "mesh.port",
        "mesh.colour",
        "mesh.relayNodes[0].advertiseAddress",
        "cluster.static.pools[1]",
        "ipam.policy",
    ] {
        assert!(told.contains(path), "{path} is missing in:\n{told}");
    }
    assert_eq!(single.node().namespace().ip("link show").unwrap(), links);
}

#[test]
fn a_file_that_is_no_yaml_or_not_there_is_named() {
    let single = SingleNode::build().unwrap();
    let check = |name: &str| {
        let path = single.node().folder().join(name);
        let mut command = std::process::Command::new(single.node().binaries().program("culvertd"));
        command.arg("check-config").arg(&path);
        let error = culvert_lab::command::finish(command, "check-config").unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    };
    check("not-there.yaml");
    std::fs::write(single.node().folder().join("broken.yaml"), "node: [").unwrap();
    check("broken.yaml");
}

#[test]
fn a_good_file_is_said_to_be_good() {
    let mut single = SingleNode::build().unwrap();
    // Writes the file; a daemon that starts with it accepted it.
    single.node_mut().start().unwrap();
    single.node_mut().wait_ready().unwrap();
    let mut command = std::process::Command::new(single.node().binaries().program("culvertd"));
    command.arg("check-config").arg(single.node().folder().join("culvert.yaml"));
    let said = culvert_lab::command::finish(command, "check-config").unwrap();
    assert!(said.contains("ok"), "{said}");
}
