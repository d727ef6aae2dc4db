//! One TCP connection that is kept busy over a disturbance: did every byte come back, and how long did it stall?

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use culvert_lab::report::{Event, StreamReport};

use crate::stop::Stop;
use crate::wire::{self, CONNECT_BOUND, Request};

/// Bytes of one message: a small request, as an interactive program would send.
const MESSAGE_BYTES: usize = 64;

#[derive(Args)]
pub(crate) struct StreamArguments {
    /// The server.
    address: IpAddr,
    /// Its port.
    #[arg(long)]
    port: u16,
    /// Between two messages.
    #[arg(long, default_value_t = 10)]
    interval_ms: u64,
}

/// Streams until standard input closes and reports; a failure is part of the report.
pub(crate) fn run(arguments: &StreamArguments) -> StreamReport {
    let sent = AtomicU64::new(0);
    let mut report = StreamReport::default();
    if let Err(error) = exchange(arguments, &sent, &mut report) {
        report.broken = true;
        report.error = Some(format!("{error:#}"));
    }
    report.sent = sent.load(Ordering::Relaxed);
    report
}

fn exchange(arguments: &StreamArguments, sent: &AtomicU64, report: &mut StreamReport) -> Result<()> {
    let server = SocketAddr::new(arguments.address, arguments.port);
    let mut stream =
        TcpStream::connect_timeout(&server, CONNECT_BOUND).with_context(|| format!("cannot connect to {server}"))?;
    wire::prepare(&stream)?;
    Request::Echo.write(&mut stream)?;
    let mut writing = stream.try_clone()?;
    let interval = Duration::from_millis(arguments.interval_ms);
    let stop = Stop::when_input_closes();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&mut writing, interval, sent, &stop));
        let read = read(&mut stream, report, &stop);
        if read.is_err() {
            // Wakes a writer that waits for room in the send buffer. The connection may be gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        read.and(written)
    })?;
    let sent = sent.load(Ordering::Relaxed);
    ensure!(report.echoed == sent, "{} of {sent} bytes came back", report.echoed);
    Ok(())
}

fn write(stream: &mut TcpStream, interval: Duration, sent: &AtomicU64, stop: &Stop) -> Result<()> {
    let mut message = [0_u8; MESSAGE_BYTES];
    while !stop.is_set() {
        wire::pattern(sent.load(Ordering::Relaxed), &mut message);
        stream.write_all(&message).context("while sending")?;
        sent.fetch_add(MESSAGE_BYTES as u64, Ordering::Relaxed);
        std::thread::sleep(interval);
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn read(stream: &mut TcpStream, report: &mut StreamReport, stop: &Stop) -> Result<()> {
    let (mut buffer, mut expected) = (vec![0_u8; 4096], vec![0_u8; 4096]);
    let mut last = Instant::now();
    loop {
        let count = stream.read(&mut buffer).context("while waiting for the echo")?;
        report.longest_stall_ms = report.longest_stall_ms.max(last.elapsed().as_secs_f64() * 1e3);
        last = Instant::now();
        if count == 0 {
            ensure!(stop.is_set(), "the server closed the connection");
            return Ok(());
        }
        wire::pattern(report.echoed, &mut expected[..count]);
        ensure!(buffer[..count] == expected[..count], "the echo differs after {} bytes", report.echoed);
        if report.echoed == 0 {
            crate::print(&Event::Running)?;
        }
        report.echoed += count as u64;
    }
}
