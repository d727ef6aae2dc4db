//! How long a plugin swap takes to be in force, and what it costs the traffic.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_lab::ThreeSites;
use culvert_lab::pod::Family;
use culvert_lab::three_sites::{EDGE_1, EDGE_2};
use serde_json::{Value, json};

use crate::bench::Figure;
use crate::screen;

/// Swaps there and back.
const ROUNDS: usize = 10;

/// Swaps the route plugin of a node under a ping at 1 ms and a TCP transfer to its neighbour.
pub(super) fn measure() -> Result<Vec<Figure>> {
    screen::step("measure plugin swaps", |_| {
        let mut sites = ThreeSites::running()?;
        let (from, to) = (sites.pod(EDGE_1, "from")?, sites.pod(EDGE_2, "to")?);
        let address = to.address(Family::V4)?;
        let _serving = to.vantage().serve()?;
        from.vantage().wait_reachable(address)?;
        let pinging = from.vantage().pinging(address, Duration::from_millis(1))?;
        let fetching = from.vantage().fetching(address)?;
        let latencies = swap_rounds(&mut sites)?;
        let (ping, fetch) = (pinging.finish()?, fetching.finish()?);
        Ok(vec![
            Figure::new("swap in force, p50", milliseconds(&latencies, latencies.len() / 2), "ms"),
            Figure::new("swap in force, worst", milliseconds(&latencies, latencies.len() - 1), "ms"),
            Figure::count("swaps", latencies.len() as u64, "swaps"),
            Figure::count("echo requests at 1 ms meanwhile", ping.sent, "packets"),
            Figure::count("of them lost", ping.lost, "packets"),
            Figure::new("TCP meanwhile", fetch.megabits_per_second(), "Mbit/s"),
            Figure::count("TCP connections broken", u64::from(!fetch.ok), "connections"),
        ])
    })
}

/// Each swap's time from the rename in the folder to the new generation in `culvertctl plugins`, ascending.
fn swap_rounds(sites: &mut ThreeSites) -> Result<Vec<Duration>> {
    let node = sites.node_mut(EDGE_1)?;
    let component = std::fs::read(node.binaries().guest("route-tunnel-all")?)?;
    let mut latencies = Vec::new();
    for _ in 0..ROUNDS {
        for install in [true, false] {
            let before = generation(&node.ctl(&["plugins"])?)?;
            let begun = Instant::now();
            if install {
                node.install_plugin("measured", &component, &json!({}))?;
            } else {
                node.remove_plugin("measured")?;
            }
            node.wait_answer("the next generation", &["plugins"], |plugins| {
                generation(plugins).is_ok_and(|generation| generation > before)
            })?;
            latencies.push(begun.elapsed());
        }
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// The generation of the route policy in force.
fn generation(plugins: &Value) -> Result<u64> {
    let listed = plugins["plugins"].as_array().context("an answer without plugins")?;
    let route = listed.iter().find(|plugin| plugin["kind"] == "route").context("no route policy")?;
    route["active"]["generation"].as_u64().with_context(|| format!("a policy without generation: {route}"))
}

fn milliseconds(sorted: &[Duration], index: usize) -> f64 {
    sorted.get(index).map_or(f64::NAN, |value| value.as_secs_f64() * 1e3)
}
