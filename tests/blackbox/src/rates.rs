//! The rates that the kernel holds pods to.

use anyhow::{Context, Result};
use culvert_lab::Node;
use serde_json::Value;

/// A bucket at this rate or above holds nobody back: it stands there so that a limit can come without a lost packet.
/// **Units** bytes a second.
const NO_LIMIT: u64 = 100_000_000_000;

/// The rates of all token buckets of a node that are a limit, ascending. **Units** bytes a second, as `tc` has it.
///
/// **Errors** `tc` fails, or shows a bucket without a rate.
pub fn rates_in_force(node: &Node) -> Result<Vec<u64>> {
    let listed: Vec<Value> = serde_json::from_str(&node.namespace().run("tc -json qdisc show")?)?;
    let buckets = listed.iter().filter(|qdisc| qdisc["kind"] == "tbf");
    let rates =
        buckets.map(|bucket| bucket["options"]["rate"].as_u64().with_context(|| format!("no rate in {bucket}")));
    let mut rates: Vec<u64> = rates.collect::<Result<_>>()?;
    rates.retain(|rate| *rate < NO_LIMIT);
    rates.sort_unstable();
    Ok(rates)
}
