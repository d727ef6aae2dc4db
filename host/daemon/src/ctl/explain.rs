//! Prints `culvertctl explain`.

use super::layout::{line, or_none, pairs};
use crate::printable::printable;
use crate::view::Explanation;

/// The decision, what it was made from, and the way of a packet step by step.
pub(super) fn text(explanation: &Explanation) -> String {
    let facts = [
        ("held by", format!("{} ({})", or_none(&explanation.node), or_none(&explanation.block))),
        ("decision", or_none(&explanation.decision).to_owned()),
        ("decided by", or_none(&explanation.decided_by).to_owned()),
        ("kernel", or_none(&explanation.kernel).to_owned()),
        ("tunnel path", or_none(&explanation.path).to_owned()),
    ];
    let inputs = match explanation.inputs.is_empty() {
        true => String::new(),
        false => {
            let inputs = explanation.inputs.iter().map(|(name, value)| (name.as_str(), value.clone()));
            format!("\nWhat it was decided from:\n{}", pairs(2, inputs))
        }
    };
    let headline = line(&format!("{} -> {}", explanation.from, explanation.to));
    [headline, pairs(2, facts), inputs, steps(&explanation.steps)].concat()
}

fn steps(steps: &[String]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let numbered = steps.iter().enumerate().map(|(index, step)| format!("  {}. {}\n", index + 1, printable(step)));
    format!("\nStep by step:\n{}", numbered.collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn explanation() -> Explanation {
        Explanation {
            schema: 1,
            from: "10.244.1.5".into(),
            to: "10.244.2.7".into(),
            node: "edge-2".into(),
            block: "10.244.2.0/24".into(),
            decided_by: "route-sites 0.1.0 (323456789abc, generation 3)".into(),
            decision: "tunnel".into(),
            kernel: "10.244.2.0/24 dev culvert0 src 10.244.1.1".into(),
            path: "relayed by cloud-1".into(),
            inputs: BTreeMap::from([
                ("reach".into(), "tunnel-only".into()),
                ("zone of edge-2".into(), "hall-b".into()),
            ]),
            steps: vec![
                "edge-2 holds 10.244.2.0/24".into(),
                "it is on another link, so packets go through the tunnel".into(),
            ],
        }
    }

    #[test]
    fn the_decision_comes_first_and_the_steps_last() {
        assert_eq!(
            text(&explanation()),
            "10.244.1.5 -> 10.244.2.7
  held by      edge-2 (10.244.2.0/24)
  decision     tunnel
  decided by   route-sites 0.1.0 (323456789abc, generation 3)
  kernel       10.244.2.0/24 dev culvert0 src 10.244.1.1
  tunnel path  relayed by cloud-1

What it was decided from:
  reach           tunnel-only
  zone of edge-2  hall-b

Step by step:
  1. edge-2 holds 10.244.2.0/24
  2. it is on another link, so packets go through the tunnel
"
        );
    }

    #[test]
    fn what_does_not_apply_is_left_out() {
        let local = Explanation { path: String::new(), inputs: BTreeMap::new(), steps: vec![], ..explanation() };
        assert_eq!(
            text(&local),
            "10.244.1.5 -> 10.244.2.7
  held by      edge-2 (10.244.2.0/24)
  decision     tunnel
  decided by   route-sites 0.1.0 (323456789abc, generation 3)
  kernel       10.244.2.0/24 dev culvert0 src 10.244.1.1
  tunnel path  -
"
        );
    }
}
