//! Where packets were lost, as far as the daemons know: for the message of a test that lost some.

use culvert_lab::Node;

/// The counters of dropped packets that are not zero, a line a node.
#[must_use]
pub fn losses(nodes: &[Node]) -> String {
    nodes.iter().map(losses_of).collect::<Vec<_>>().join("\n")
}

fn losses_of(node: &Node) -> String {
    let counters = ["culvert_tunnel_drops_total", "culvert_mesh_events_total"];
    match node.metrics() {
        Ok(text) => {
            let lines = text.lines().filter(|line| counters.iter().any(|counter| line.starts_with(counter)));
            let lines: Vec<&str> = lines.filter(|line| !line.ends_with(" 0")).collect();
            format!("{}: {}", node.name(), lines.join(", "))
        }
        Err(error) => format!("{}: {error:#}", node.name()),
    }
}
