//! A million packets through the tunnel, and what the daemon holds meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use culvert_lab::pod::Family;
use culvert_lab::three_sites::{EDGE_1, EDGE_3};
use culvert_lab::{Node, ThreeSites};

use crate::bench::Figure;
use crate::screen;

/// Packets to send.
const PACKETS: u64 = 1_000_000;
/// Packets a second: below what the slowest path carries, so that loss means something.
const RATE: u64 = 10_000;
/// Between two samples of the daemon.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// The port of the receiver.
const PORT: u16 = 5202;

/// One look at a daemon.
#[derive(Clone, Copy, Debug)]
struct Sample {
    resident: u64,
    descriptors: u64,
}

/// Sends and samples.
pub(super) fn measure() -> Result<Vec<Figure>> {
    screen::step("soak the tunnel with a million packets", |_| {
        let sites = ThreeSites::running()?;
        let (from, to) = (sites.pod(EDGE_1, "from")?, sites.pod(EDGE_3, "to")?);
        let address = to.address(Family::V4)?;
        from.vantage().wait_reachable(address)?;
        let receiving = to.vantage().receive_datagrams(PORT)?;
        let over = AtomicBool::new(false);
        let (sent, samples) = std::thread::scope(|scope| {
            let sampler = scope.spawn(|| watch(sites.node(EDGE_1)?, &over));
            let sent = from.vantage().send_datagrams(address, PORT, PACKETS, RATE);
            over.store(true, Ordering::Relaxed);
            let samples = sampler.join().map_err(|_| anyhow!("the sampler panicked"))?;
            Ok::<_, anyhow::Error>((sent?, samples?))
        })?;
        figures(sent.datagrams, receiving.finish()?.datagrams, &samples)
    })
}

fn watch(node: &Node, over: &AtomicBool) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    while !over.load(Ordering::Relaxed) {
        samples.push(Sample { resident: node.resident_bytes()?, descriptors: node.open_descriptors()? });
        std::thread::sleep(SAMPLE_EVERY);
    }
    Ok(samples)
}

fn figures(sent: u64, received: u64, samples: &[Sample]) -> Result<Vec<Figure>> {
    let first = samples.first().context("no sample was taken")?;
    let half = samples.get(samples.len() / 2).context("no sample was taken")?;
    let last = samples.last().context("no sample was taken")?;
    let most = |value: fn(&Sample) -> u64| samples.iter().map(value).max().unwrap_or(0);
    Ok(vec![
        Figure::count("soak, packets sent", sent, "packets"),
        Figure::count("soak, packets received", received, "packets"),
        Figure::mebibytes("soak, resident at the start", first.resident),
        Figure::mebibytes("soak, resident half-way", half.resident),
        Figure::mebibytes("soak, resident at the end", last.resident),
        Figure::mebibytes("soak, resident at most", most(|sample| sample.resident)),
        Figure::count("soak, descriptors at the start", first.descriptors, "fds"),
        Figure::count("soak, descriptors at the end", last.descriptors, "fds"),
        Figure::count("soak, descriptors at most", most(|sample| sample.descriptors), "fds"),
    ])
}
