//! How soon a node serves after a start, when it is alone.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use culvert_lab::three_sites::EDGE_1;
use culvert_lab::{Pod, PodSetup, ThreeSites, wait};

use crate::bench::Figure;
use crate::screen;

/// Starts measured.
const ROUNDS: u32 = 5;
/// The longest wait for an ADD.
const ADD_BOUND: Duration = Duration::from_secs(60);

/// Measures from the start of a daemon to its first ADD, with relay and peers stopped.
pub(super) fn measure() -> Result<Vec<Figure>> {
    screen::step("measure the start without relay and peers", |_| {
        let mut sites = ThreeSites::running()?;
        for node in sites.nodes_mut() {
            node.stop()?;
        }
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            times.push(first_add(&mut sites, round)?);
        }
        times.sort_unstable();
        let seconds = |index: usize| times.get(index).map_or(f64::NAN, Duration::as_secs_f64);
        Ok(vec![
            Figure::new("start to first ADD, relay and peers away, p50", seconds(times.len() / 2), "s"),
            Figure::new("start to first ADD, relay and peers away, worst", seconds(times.len() - 1), "s"),
        ])
    })
}

fn first_add(sites: &mut ThreeSites, round: u32) -> Result<Duration> {
    let begun = Instant::now();
    sites.node_mut(EDGE_1)?.start()?;
    let mut pod = Pod::detached(sites.lab(), sites.node(EDGE_1)?, PodSetup::named(&format!("first-{round}")))?;
    wait::until("the first ADD", ADD_BOUND, || {
        let answer = pod.add()?;
        if answer.status == Some(0) { Ok(()) } else { bail!("{}", answer.message()) }
    })?;
    let took = begun.elapsed();
    pod.remove()?;
    sites.node_mut(EDGE_1)?.stop()?;
    Ok(took)
}
