//! Which way packets go, proved by the counters of the tunnel's interface.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use culvert_lab::namespace::Place;
use culvert_lab::probe::Vantage;
use culvert_lab::wait;

/// Between two echo requests.
pub const INTERVAL: Duration = Duration::from_millis(5);

/// The tunnel's interface on every node.
const TUNNEL: &str = "culvert0";
/// Echo requests of one look.
const LOOK: u32 = 5;
/// How long the daemons may take to find the way.
const SETTLE_BOUND: Duration = Duration::from_secs(30);

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The bridge, or a route of the kernel.
    Kernel,
    /// The tunnel.
    Tunnel,
}

/// Waits until all echo requests of a look are answered, and go this way out of `node`.
///
/// **Errors** they do not within 30 s.
pub fn wait_way(from: &Vantage<'_>, node: &Place, to: IpAddr, way: Way) -> Result<()> {
    wait::until(&format!("packets to {to} to go by {way:?}"), SETTLE_BOUND, || {
        let before = node.counter(TUNNEL, "tx_packets")?;
        let ping = from.ping(to, LOOK, INTERVAL)?;
        let through = node.counter(TUNNEL, "tx_packets")? - before;
        let by = if through >= u64::from(LOOK) { Way::Tunnel } else { Way::Kernel };
        if ping.lost == 0 && by == way { Ok(()) } else { bail!("{} lost, by {by:?}", ping.lost) }
    })
}
