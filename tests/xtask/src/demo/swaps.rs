//! Plugins are swapped while a transfer and a ping run: nothing is lost, and the traffic follows the new policy.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_lab::pod::Family;
use culvert_lab::three_sites::{EDGE_1, EDGE_2};
use culvert_lab::{Node, wait};
use serde_json::json;

use crate::demo::connectivity::{TUNNEL, Way, wait_settled};
use crate::demo::rows::{Finding, Rows};
use crate::demo::stage::{ARCHIVE, Stage};

/// How long a swap may take to be seen in the traffic.
const SWAP_BOUND: Duration = Duration::from_secs(30);
/// Between two echo requests while a swap happens.
const PING_INTERVAL: Duration = Duration::from_millis(5);
/// Packets between two looks that are no transfer: the kernel's own, such as router solicitations.
const NOISE_PACKETS: u64 = 1;
/// Looks that must agree, so that a stall of the transfer is not taken for a change.
const SURE_LOOKS: u32 = 4;
/// The rate that the swapped bandwidth plugin answers. **Units** Mbit/s.
const NEW_RATE: u32 = 20;
/// The name of the unit in the watched folder.
const UNIT: &str = "swapped";

/// Shows both swaps.
pub(crate) fn show(stage: &Stage, rows: &mut Rows) {
    rows.measure("route plugin swapped under traffic, and back", || route(stage));
    rows.measure("bandwidth plugin swapped under traffic", || bandwidth(stage));
}

fn route(stage: &Stage) -> Result<Finding> {
    let (till, printer) = (stage.pod("till")?, stage.pod("printer")?.address(Family::V4)?);
    let nodes = [stage.node(EDGE_1)?, stage.node(EDGE_2)?];
    wait_settled(&till.vantage(), nodes[0].namespace(), printer, Way::Kernel)?;
    let pinging = till.vantage().pinging(printer, PING_INTERVAL)?;
    let fetching = till.vantage().fetching(stage.pod(ARCHIVE)?.address(Family::V4)?)?;
    let component = component(nodes[0], "route-tunnel-all")?;
    let begun = Instant::now();
    for node in nodes {
        node.install_plugin(UNIT, &component, &json!({}))?;
    }
    let there = wait_way(nodes[0], Way::Tunnel, begun)?.max(wait_way(nodes[1], Way::Tunnel, begun)?);
    let begun = Instant::now();
    for node in nodes {
        node.remove_plugin(UNIT)?;
    }
    let back = wait_way(nodes[0], Way::Kernel, begun)?.max(wait_way(nodes[1], Way::Kernel, begun)?);
    let (ping, fetch) = (pinging.finish()?, fetching.finish()?);
    let figures = format!(
        "into the tunnel after {} ms, back after {} ms; {} lost of {}; transfer {}",
        there.as_millis(),
        back.as_millis(),
        ping.lost,
        ping.sent,
        fetch.error.as_deref().unwrap_or("whole"),
    );
    Ok(Finding { holds: ping.lost == 0 && fetch.ok, figures })
}

/// Waits until what a node sends goes this way, and returns how long after `begun` that began.
fn wait_way(node: &Node, way: Way, begun: Instant) -> Result<Duration> {
    let count = || node.namespace().counter(TUNNEL, "tx_packets");
    let (mut last, mut since, mut looks) = (count()?, begun.elapsed(), 0);
    wait::until(&format!("{} to send by {way:?}", node.name()), SWAP_BOUND, || {
        let now = count()?;
        let passed = now - std::mem::replace(&mut last, now);
        let by = if passed > NOISE_PACKETS { Way::Tunnel } else { Way::Kernel };
        if by != way {
            (since, looks) = (begun.elapsed(), 0);
        }
        looks += 1;
        if looks > SURE_LOOKS { Ok(since) } else { bail!("{passed} packets since the last look") }
    })
}

fn bandwidth(stage: &Stage) -> Result<Finding> {
    let node = stage.node(EDGE_1)?;
    let printer = stage.pod("printer")?.address(Family::V4)?;
    // The ping has its own pod: a queue that is filled by a transfer loses packets by design.
    let pinging = stage.pod("till")?.vantage().pinging(printer, PING_INTERVAL)?;
    let mut fetching = stage.pod("camera")?.vantage().fetching(printer)?;
    let before = fetching.rate_over(Duration::from_millis(700))?;
    let rate = u64::from(NEW_RATE) * 1_000_000;
    node.install_plugin(UNIT, &component(node, "bandwidth-fixed")?, &json!({"ingress": rate, "egress": rate}))?;
    let wanted = f64::from(NEW_RATE);
    let mut after = before;
    wait::until_true("the new rate", SWAP_BOUND, || {
        after = fetching.rate_over(Duration::from_millis(700))?;
        Ok((wanted * 0.7..wanted * 1.15).contains(&after))
    })
    .with_context(|| format!("the rate is {after:.1} Mbit/s"))?;
    node.remove_plugin(UNIT)?;
    wait::until_true(
        "the old rate",
        SWAP_BOUND,
        || Ok(fetching.rate_over(Duration::from_millis(700))? > wanted * 2.0),
    )?;
    let (ping, fetch) = (pinging.finish()?, fetching.finish()?);
    ensure!(before > wanted * 2.0, "the transfer ran at {before:.1} Mbit/s before the swap");
    let figures = format!(
        "{before:.0} Mbit/s became {after:.1} (policy: {NEW_RATE}), and free again; {} lost of {}; transfer {}",
        ping.lost,
        ping.sent,
        fetch.error.as_deref().unwrap_or("whole"),
    );
    Ok(Finding { holds: ping.lost == 0 && fetch.ok, figures })
}

fn component(node: &Node, name: &str) -> Result<Vec<u8>> {
    let path = node.binaries().guest(name)?;
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}
