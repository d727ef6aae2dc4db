//! What `culvertctl plugins` says of the policies in force and of the units that were refused.

use anyhow::{Context, Result};
use culvert_lab::Node;
use serde_json::Value;

/// The policy in force of a kind: `route`, `ipam` or `bandwidth`.
///
/// **Errors** the daemon does not answer, or shows no such kind.
pub fn active(node: &Node, kind: &str) -> Result<Value> {
    Ok(policy(&node.ctl(&["plugins"])?, kind)?["active"].clone())
}

/// Waits until a unit of the folder is in force.
///
/// **Errors** it is not within the bound.
pub fn wait_active(node: &mut Node, kind: &str, unit: &str) -> Result<()> {
    node.wait_answer(&format!("unit {unit} to be in force"), &["plugins"], |answer| {
        policy(answer, kind).is_ok_and(|policy| policy["active"]["unit"] == unit)
    })
}

/// Waits until a unit of the folder is refused, and returns the reason.
///
/// **Errors** it is not within the bound.
pub fn wait_refused(node: &mut Node, unit: &str) -> Result<String> {
    node.wait_answer(&format!("unit {unit} to be refused"), &["plugins"], |answer| refusal(answer, unit).is_some())?;
    refusal(&node.ctl(&["plugins"])?, unit).with_context(|| format!("unit {unit} is not refused any more"))
}

/// One kind's part of the answer.
///
/// **Errors** there is none.
pub fn policy<'a>(answer: &'a Value, kind: &str) -> Result<&'a Value> {
    let listed = answer["plugins"].as_array().context("an answer without plugins")?;
    listed.iter().find(|policy| policy["kind"] == kind).with_context(|| format!("no {kind} policy in {answer}"))
}

fn refusal(answer: &Value, unit: &str) -> Option<String> {
    let refused = answer["refused"].as_array()?;
    // A unit is shown by its name or by its path.
    let ours = |refused: &&Value| {
        refused["unit"].as_str().is_some_and(|shown| shown.trim_end_matches('/').rsplit('/').next() == Some(unit))
    };
    refused.iter().find(ours).and_then(|refused| refused["reason"].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_is_found_by_name_or_path_and_no_other_is() {
        let answer = json!({"refused": [{"unit": "/plugins/bad", "reason": "r1"}, {"unit": "worse", "reason": "r2"}]});
        assert_eq!(refusal(&answer, "bad").as_deref(), Some("r1"));
        assert_eq!(refusal(&answer, "worse").as_deref(), Some("r2"));
        assert_eq!(refusal(&answer, "ad"), None);
    }
}
