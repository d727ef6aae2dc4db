//! TCP transfers by iperf3.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_lab::{Namespace, command, wait};
use serde_json::Value;

const PROGRAM: &str = "iperf3";
/// How long the server may take to listen.
const START_BOUND: Duration = Duration::from_secs(10);

/// A server that ends when it is dropped.
#[derive(Debug)]
pub(super) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves transfers in a namespace.
///
/// **Errors** it cannot be started, or does not listen.
pub(super) fn serve(namespace: &Namespace) -> Result<Server> {
    let mut command = namespace.command(Path::new(PROGRAM));
    command.args(["--server"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(command.spawn().context("cannot start iperf3")?);
    wait::until("iperf3 to listen", START_BOUND, || {
        let listening = namespace.run("ss --listening --tcp --numeric --no-header sport = :5201")?;
        if listening.trim().is_empty() { bail!("nobody listens") } else { Ok(()) }
    })?;
    Ok(server)
}

/// What a transfer moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    /// **Units** bytes that arrived.
    pub(super) bytes: f64,
    seconds: f64,
}

impl Transfer {
    /// The mean rate.
    pub(super) fn gigabits_per_second(self) -> f64 {
        self.bytes * 8.0 / self.seconds / 1e9
    }
}

/// Sends to a server for a while by so many connections.
///
/// **Errors** the transfer broke off.
pub(super) fn transfer(from: &Namespace, to: IpAddr, streams: u8, time: Duration) -> Result<Transfer> {
    let mut client = from.command(Path::new(PROGRAM));
    client.args(["--json", "--client"]).arg(to.to_string());
    // Linux's own default, whatever this machine prefers: others guess at the rate, and guess badly on a busy machine.
    client.args(["--congestion", "cubic"]);
    client.args(["--parallel", &streams.to_string(), "--time", &time.as_secs().to_string()]);
    let label = format!("iperf3 by {streams} streams");
    let answer: Value = serde_json::from_str(&command::finish(client, &label)?)?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{label}: {error}");
    }
    let received = &answer["end"]["sum_received"];
    let number = |field: &str| received[field].as_f64().filter(|value| *value > 0.0);
    let (bytes, seconds) = (number("bytes"), number("seconds"));
    bytes
        .zip(seconds)
        .map(|(bytes, seconds)| Transfer { bytes, seconds })
        .with_context(|| format!("{label} moved nothing: {}", answer["end"]["sum_received"]))
}
