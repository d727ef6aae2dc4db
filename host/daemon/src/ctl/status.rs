//! Prints `culvertctl status`.

use super::layout::{BAD, joined, line, mark, pairs, points};
use super::quantity::{count, duration, milliseconds};
use crate::view::Status;

/// The node's condition in one line, its figures, and what is wrong.
pub(super) fn text(status: &Status) -> String {
    let condition = match (status.ready, status.problems.is_empty()) {
        (true, true) => "is ready",
        (true, false) => "is ready, but degraded",
        (false, _) => "is not ready: pods cannot be attached now",
    };
    let good = status.ready && status.problems.is_empty();
    let started = match status.start_to_ready_ms {
        Some(took) => format!(", ready {} after its start", milliseconds(took)),
        None => ", not ready since its start".to_owned(),
    };
    let members = u64::try_from(status.members).unwrap_or(u64::MAX);
    let figures = [
        ("identity", status.peer_id.clone()),
        ("version", status.version.clone()),
        ("running", format!("{}{started}", duration(status.uptime_seconds))),
        ("blocks", if status.blocks.is_empty() { "none yet".to_owned() } else { joined(&status.blocks) }),
        ("attachments", status.attachments.to_string()),
        ("cluster", format!("{}, this one included; {} connected", count(members, "node", "nodes"), status.connected)),
        ("routes", format!("planned for topology generation {}", status.generation)),
    ];
    [
        line(&format!("{} {} {condition}", mark(good), status.node)),
        pairs(2, figures),
        points("Problems:", BAD, &status.problems),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Status {
        Status {
            schema: 1,
            node: "edge-1".into(),
            peer_id: "12D3KooWEdge1".into(),
            version: "0.1.0".into(),
            ready: true,
            problems: vec![],
            blocks: vec!["10.244.248.0/24".parse().unwrap(), "fd00:10:244:f8::/64".parse().unwrap()],
            attachments: 12,
            members: 3,
            connected: 2,
            generation: 17,
            uptime_seconds: 97_500,
            start_to_ready_ms: Some(420),
        }
    }

    #[test]
    fn a_healthy_node_says_so_first() {
        assert_eq!(
            text(&healthy()),
            "✓ edge-1 is ready
  identity     12D3KooWEdge1
  version      0.1.0
  running      1 d 3 h, ready 420 ms after its start
  blocks       10.244.248.0/24, fd00:10:244:f8::/64
  attachments  12
  cluster      3 nodes, this one included; 2 connected
  routes       planned for topology generation 17
"
        );
    }

    #[test]
    fn a_node_that_is_not_ready_lists_its_problems() {
        let status = Status {
            ready: false,
            problems: vec![
                "no block is held: the keeper cloud-1 cannot be reached".into(),
                "no peer is connected".into(),
            ],
            blocks: vec![],
            attachments: 0,
            members: 1,
            connected: 0,
            generation: 0,
            uptime_seconds: 5,
            start_to_ready_ms: None,
            ..healthy()
        };
        assert_eq!(
            text(&status),
            "✗ edge-1 is not ready: pods cannot be attached now
  identity     12D3KooWEdge1
  version      0.1.0
  running      5 s, not ready since its start
  blocks       none yet
  attachments  0
  cluster      1 node, this one included; 0 connected
  routes       planned for topology generation 0

Problems:
  ✗ no block is held: the keeper cloud-1 cannot be reached
  ✗ no peer is connected
"
        );
    }

    #[test]
    fn a_ready_node_with_problems_is_degraded() {
        let status = Status { problems: vec!["the relay is away".into()], ..healthy() };
        assert!(text(&status).starts_with("✗ edge-1 is ready, but degraded\n"));
    }
}
