//! Measures from inside a namespace: echo requests, transfers with a checksum, streams that must survive.
//!
//! It prints one JSON object a line ([`culvert_lab::report::Event`]); the last one is the report. Probes that
//! run until they are told to stop do so when their standard input closes, so none outlives its test.

mod connect;
mod fetch;
mod icmp;
mod ping;
mod serve;
mod stop;
mod stream;
mod udp;
mod wire;

use std::io::Write as _;
use std::net::IpAddr;

use anyhow::Result;
use clap::{Parser, Subcommand};
use culvert_lab::report::Event;

use connect::Transport;

/// Measures from inside a namespace and prints JSON.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    probe: Probe,
}

#[derive(Subcommand)]
enum Probe {
    /// ICMP echo at a fixed interval.
    Ping(ping::PingArguments),
    /// Serves `fetch` and `stream` until standard input closes.
    Serve {
        /// The port, on every address.
        #[arg(long)]
        port: u16,
        /// Of which transport. Only TCP is spoken; of another one connections are accepted.
        #[arg(long, value_enum, default_value_t)]
        transport: Transport,
    },
    /// Downloads from `serve` and checks the SHA-256.
    Fetch(fetch::FetchArguments),
    /// Keeps one connection to `serve` busy until standard input closes, and checks every byte echoed.
    Stream(stream::StreamArguments),
    /// Tries one connection.
    Connect {
        /// To this address.
        address: IpAddr,
        /// And port.
        #[arg(long)]
        port: u16,
        /// Of which transport.
        #[arg(long, value_enum, default_value_t)]
        transport: Transport,
        /// The longest wait.
        #[arg(long, default_value_t = 1000)]
        within_ms: u64,
    },
    /// Sends datagrams.
    UdpSend(udp::SendArguments),
    /// Removes a lab once standard input closes.
    RemoveLab {
        /// What the names of the lab begin with.
        prefix: String,
    },
    /// Counts datagrams until standard input closes.
    UdpReceive {
        /// The UDP port, on every address.
        #[arg(long)]
        port: u16,
    },
}

fn main() -> Result<()> {
    let report = match Arguments::parse().probe {
        Probe::Ping(arguments) => Event::Ping(ping::run(&arguments)?),
        Probe::Serve { port, transport } => return serve::run(port, transport),
        Probe::RemoveLab { prefix } => return remove_lab(&prefix),
        Probe::Fetch(arguments) => Event::Fetch(fetch::run(&arguments)),
        Probe::Stream(arguments) => Event::Stream(stream::run(&arguments)),
        Probe::Connect { address, port, transport, within_ms } => {
            Event::Connect(connect::run(address, port, transport, within_ms))
        }
        Probe::UdpSend(arguments) => Event::Udp(udp::send(&arguments)?),
        Probe::UdpReceive { port } => Event::Udp(udp::receive(port)?),
    };
    print(&report)
}

/// Waits for whoever made the lab to end, then removes what it left.
fn remove_lab(prefix: &str) -> Result<()> {
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    culvert_lab::lab::remove(prefix)
}

/// Prints an event as one line.
fn print(event: &Event) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(event)?)?;
    Ok(output.flush()?)
}
