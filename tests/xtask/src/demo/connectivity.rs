//! Who reaches whom, and by which way: proved by the counters of the tunnel's interface.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use culvert_lab::namespace::Place;
use culvert_lab::pod::Family;
use culvert_lab::probe::Vantage;
use culvert_lab::three_sites::{CLOUD_1, EDGE_1};
use culvert_lab::wait;

use crate::demo::rows::{Finding, Rows};
use crate::demo::stage::Stage;

/// The tunnel's interface on every node.
pub(crate) const TUNNEL: &str = "culvert0";
/// One transfer. **Units** bytes.
const TRANSFER_BYTES: u64 = 10_000_000;
/// More than neighbour discovery and keep-alives, far less than a transfer. **Units** bytes.
const NOISE_BYTES: u64 = 20_000;
/// How long the daemons may take to find out that two nodes share a link.
const SETTLE_BOUND: Duration = Duration::from_secs(30);

/// Which way packets are expected to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Bridge or LAN: nothing through the tunnel.
    Kernel,
    /// Through the tunnel.
    Tunnel,
}

/// One row's ends: from a pod, or from a node, to a pod.
struct Pair {
    what: &'static str,
    from: &'static str,
    node: &'static str,
    to: &'static str,
    way: Way,
}

const PAIRS: [Pair; 5] = [
    Pair { what: "same node", from: "till", node: EDGE_1, to: "camera", way: Way::Kernel },
    Pair { what: "same LAN, direct", from: "till", node: EDGE_1, to: "printer", way: Way::Kernel },
    Pair { what: "cloud ↔ edge", from: "shop", node: CLOUD_1, to: "till", way: Way::Tunnel },
    Pair { what: "edge ↔ edge, both behind NAT", from: "till", node: EDGE_1, to: "scale", way: Way::Tunnel },
    Pair { what: "node → remote pod", from: "", node: EDGE_1, to: "scale", way: Way::Tunnel },
];

/// Shows every pair in both families.
pub(crate) fn show(stage: &Stage, rows: &mut Rows) {
    for pair in PAIRS {
        for family in Family::BOTH {
            rows.measure(&format!("{}, IP{family:?}", pair.what).replace("IPV", "IPv"), || {
                measure(stage, &pair, family)
            });
        }
    }
}

fn measure(stage: &Stage, pair: &Pair, family: Family) -> Result<Finding> {
    let node = stage.node(pair.node)?;
    let from = if pair.from.is_empty() { node.vantage() } else { stage.pod(pair.from)?.vantage() };
    let to = stage.pod(pair.to)?.address(family)?;
    from.wait_reachable(to)?;
    wait_settled(&from, node.namespace(), to, pair.way)?;
    let before = tunnelled(node.namespace())?;
    let ping = from.ping(to, 20, Duration::from_millis(20))?;
    let fetch = from.fetch(to, TRANSFER_BYTES)?;
    let through = tunnelled(node.namespace())? - before;
    let right_way = match pair.way {
        Way::Kernel => through < NOISE_BYTES,
        Way::Tunnel => through > TRANSFER_BYTES,
    };
    let way = if right_way { "" } else { ", the wrong way" };
    let figures = format!(
        "{} lost of {}, {:.2} ms; 10 MB at {:.0} Mbit/s, SHA-256 {}; {:.1} MB through the tunnel{way}",
        ping.lost,
        ping.sent,
        ping.rtt_p50_ms,
        fetch.megabits_per_second(),
        fetch.error.as_deref().unwrap_or("equal"),
        megabytes(through),
    );
    Ok(Finding { holds: ping.lost == 0 && fetch.ok && right_way, figures })
}

/// Waits until a packet goes the expected way: a new neighbour is reached through the tunnel until it has
/// proved that it is on the same link.
pub(crate) fn wait_settled(from: &Vantage<'_>, node: &Place, to: IpAddr, way: Way) -> Result<()> {
    wait::until(&format!("packets to {to} to go by {way:?}"), SETTLE_BOUND, || {
        let before = node.counter(TUNNEL, "tx_packets")?;
        let ping = from.ping(to, 5, Duration::from_millis(5))?;
        let through = node.counter(TUNNEL, "tx_packets")? - before;
        let by = if through >= 5 { Way::Tunnel } else { Way::Kernel };
        if ping.lost == 0 && by == way { Ok(()) } else { bail!("{} lost, by {by:?}", ping.lost) }
    })
}

/// Bytes through the tunnel's interface, both directions.
pub(crate) fn tunnelled(node: &Place) -> Result<u64> {
    Ok(node.counter(TUNNEL, "tx_bytes")? + node.counter(TUNNEL, "rx_bytes")?)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
