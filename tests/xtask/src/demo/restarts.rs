//! A daemon is stopped, killed and started while traffic flows: what the kernel carries never notices.

use std::time::Duration;

use anyhow::Result;
use culvert_lab::Pod;
use culvert_lab::pod::Family;
use culvert_lab::probe::Running;
use culvert_lab::report::{PingReport, StreamReport};
use culvert_lab::three_sites::EDGE_1;

use crate::demo::connectivity::{Way, wait_settled};
use crate::demo::rows::{Finding, Rows};
use crate::demo::stage::Stage;

/// Between two echo requests while a daemon is away.
const PING_INTERVAL: Duration = Duration::from_millis(5);

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Sigterm,
    Sigkill,
}

/// Traffic from the pod `till` to one other pod.
struct Flow {
    what: &'static str,
    to: &'static str,
    way: Way,
}

const FLOWS: [Flow; 3] = [
    Flow { what: "same node", to: "camera", way: Way::Kernel },
    Flow { what: "same LAN", to: "printer", way: Way::Kernel },
    Flow { what: "tunnel", to: "scale", way: Way::Tunnel },
];

/// A flow while it is disturbed.
struct Measured {
    flow: &'static Flow,
    ping: Running<PingReport>,
    stream: Running<StreamReport>,
}

/// Shows both ends.
pub(crate) fn show(stage: &mut Stage, rows: &mut Rows) {
    for (end, words) in [(End::Sigterm, "stopped (SIGTERM)"), (End::Sigkill, "killed (SIGKILL)")] {
        match disturb(stage, end) {
            Ok(findings) => {
                for (flow, finding) in findings {
                    rows.add(&format!("daemon {words} and started, {}", flow.what), finding);
                }
            }
            Err(error) => {
                let finding = Finding { holds: false, figures: format!("{error:#}") };
                rows.add(&format!("daemon {words} and started"), finding);
            }
        }
    }
}

fn disturb(stage: &mut Stage, end: End) -> Result<Vec<(&'static Flow, Finding)>> {
    let till = stage.pod("till")?;
    let mut measured = Vec::new();
    for flow in &FLOWS {
        measured.push(begin(stage, till, flow)?);
    }
    let node = stage.node_mut(EDGE_1)?;
    match end {
        End::Sigterm => node.stop()?,
        End::Sigkill => node.kill()?,
    }
    node.start()?;
    node.wait_ready()?;
    let till = stage.pod("till")?;
    till.vantage().wait_reachable(stage.pod("scale")?.address(Family::V4)?)?;
    measured.into_iter().map(judge).collect()
}

fn begin(stage: &Stage, till: &Pod, flow: &'static Flow) -> Result<Measured> {
    let to = stage.pod(flow.to)?.address(Family::V4)?;
    let from = till.vantage();
    wait_settled(&from, stage.node(EDGE_1)?.namespace(), to, flow.way)?;
    Ok(Measured { flow, ping: from.pinging(to, PING_INTERVAL)?, stream: from.streaming(to)? })
}

fn judge(measured: Measured) -> Result<(&'static Flow, Finding)> {
    let (ping, stream) = (measured.ping.finish()?, measured.stream.finish()?);
    let connection = stream.error.as_deref().unwrap_or("whole");
    let lost = format!("{} lost of {}", ping.lost, ping.sent);
    let (no_loss_owed, figures) = match measured.flow.way {
        Way::Kernel => (true, format!("{lost}; TCP connection {connection}")),
        Way::Tunnel => (
            false,
            format!("gap {:.0} ms, TCP stalled {:.0} ms and is {connection}", ping.max_gap_ms, stream.longest_stall_ms),
        ),
    };
    let holds = !stream.broken && (!no_loss_owed || ping.lost == 0);
    Ok((measured.flow, Finding { holds, figures }))
}
