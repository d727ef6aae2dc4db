//! Runs `lab-probe` at a place of the lab and takes its reports.

use std::io::{BufRead as _, BufReader};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::namespace::Place;
use crate::report::{ConnectReport, Event, FetchReport, PingReport, StreamReport, UdpReport, megabits_per_second};
use crate::wait;

/// The port on which pods serve transfers.
pub const SERVE_PORT: u16 = 5201;

/// How long a probe may take to have its first answer.
const RUNNING_BOUND: Duration = Duration::from_secs(20);
/// How long a probe may take to end once it was told to; above its own bound on silence.
const END_BOUND: Duration = Duration::from_secs(90);
/// How long a new way may take to carry its first packet.
const REACHABLE_BOUND: Duration = Duration::from_secs(30);

/// A place from which to measure.
#[derive(Debug)]
pub struct Vantage<'a> {
    /// Inside this namespace.
    pub namespace: &'a Place,
    /// The `lab-probe` program.
    pub program: PathBuf,
}

impl Vantage<'_> {
    /// Sends `count` echo requests and waits for the answers.
    ///
    /// **Errors** the probe cannot run; lost packets are in the report.
    pub fn ping(&self, address: IpAddr, count: u32, interval: Duration) -> Result<PingReport> {
        let milliseconds = interval.as_millis();
        let line = format!("ping {address} --count {count} --interval-ms {milliseconds}");
        self.start::<PingReport>(&line)?.finish()
    }

    /// Sends `count` echo requests from a source address that this place has, and waits for the answers.
    ///
    /// **Errors** as [`Vantage::ping`].
    pub fn ping_from(&self, source: IpAddr, address: IpAddr, count: u32, interval: Duration) -> Result<PingReport> {
        let milliseconds = interval.as_millis();
        let line = format!("ping {address} --source {source} --count {count} --interval-ms {milliseconds}");
        self.start::<PingReport>(&line)?.finish()
    }

    /// Waits until an address answers its first echo request.
    ///
    /// **Errors** it does not within 30 s.
    pub fn wait_reachable(&self, address: IpAddr) -> Result<()> {
        wait::until(&format!("{address} to answer {}", self.namespace.name()), REACHABLE_BOUND, || {
            let report = self.start::<PingReport>(&format!("ping {address} --count 1 --linger-ms 500"))?.finish()?;
            if report.received == 1 { Ok(()) } else { bail!("no answer") }
        })
    }

    /// Pings until finished, and returns once the first answer came.
    ///
    /// **Errors** there is no answer within 20 s.
    pub fn pinging(&self, address: IpAddr, interval: Duration) -> Result<Running<PingReport>> {
        let mut running = self.start(&format!("ping {address} --interval-ms {}", interval.as_millis()))?;
        running.wait_running()?;
        Ok(running)
    }

    /// Serves transfers and streams on [`SERVE_PORT`] until dropped.
    ///
    /// **Errors** the port is taken.
    pub fn serve(&self) -> Result<Running<()>> {
        self.serve_on(SERVE_PORT)
    }

    /// Serves on another port until dropped.
    ///
    /// **Errors** the port is taken.
    pub fn serve_on(&self, port: u16) -> Result<Running<()>> {
        let mut running = self.start(&format!("serve --port {port}"))?;
        running.wait_running()?;
        Ok(running)
    }

    /// Downloads `bytes` and checks the SHA-256.
    ///
    /// **Errors** the probe cannot run; a broken transfer is in the report.
    pub fn fetch(&self, address: IpAddr, bytes: u64) -> Result<FetchReport> {
        self.start::<FetchReport>(&format!("fetch {address} --port {SERVE_PORT} --bytes {bytes}"))?.finish()
    }

    /// Downloads until finished, and returns once the first bytes came.
    ///
    /// **Errors** nothing comes within 20 s.
    pub fn fetching(&self, address: IpAddr) -> Result<Running<FetchReport>> {
        let mut running = self.start(&format!("fetch {address} --port {SERVE_PORT}"))?;
        running.wait_running()?;
        Ok(running)
    }

    /// Keeps a TCP connection busy until finished, and returns once the first echo came.
    ///
    /// **Errors** there is no echo within 20 s.
    pub fn streaming(&self, address: IpAddr) -> Result<Running<StreamReport>> {
        let mut running = self.start(&format!("stream {address} --port {SERVE_PORT}"))?;
        running.wait_running()?;
        Ok(running)
    }

    /// Accepts associations of SCTP on [`SERVE_PORT`] until dropped.
    ///
    /// **Errors** the kernel has no such sockets, or the port is taken.
    pub fn serve_sctp(&self) -> Result<Running<()>> {
        let mut running = self.start(&format!("serve --port {SERVE_PORT} --transport sctp"))?;
        running.wait_running()?;
        Ok(running)
    }

    /// Tries one association of SCTP for a second.
    ///
    /// **Errors** the probe cannot run; a refusal is in the report.
    pub fn connect_sctp(&self, address: IpAddr, port: u16) -> Result<ConnectReport> {
        self.start::<ConnectReport>(&format!("connect {address} --port {port} --transport sctp"))?.finish()
    }

    /// Tries one TCP connection for a second.
    ///
    /// **Errors** the probe cannot run; a refusal is in the report.
    pub fn connect(&self, address: IpAddr, port: u16) -> Result<ConnectReport> {
        self.start::<ConnectReport>(&format!("connect {address} --port {port}"))?.finish()
    }

    /// Sends datagrams to a port.
    ///
    /// **Errors** the probe cannot run.
    pub fn send_datagrams(&self, address: IpAddr, port: u16, count: u64, rate: u64) -> Result<UdpReport> {
        let line = format!("udp-send {address} --port {port} --count {count} --rate {rate}");
        self.start::<UdpReport>(&line)?.finish_within(Duration::from_secs(60 + count / rate.max(1)))
    }

    /// Counts datagrams to a port until finished.
    ///
    /// **Errors** the port is taken.
    pub fn receive_datagrams(&self, port: u16) -> Result<Running<UdpReport>> {
        let mut running = self.start(&format!("udp-receive --port {port}"))?;
        running.wait_running()?;
        Ok(running)
    }

    fn start<R>(&self, line: &str) -> Result<Running<R>> {
        let mut command = self.namespace.command(&self.program);
        command.args(line.split_whitespace()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `lab-probe {line}`"))?;
        let output = child.stdout.take().context("a probe without output")?;
        let label = format!("`lab-probe {line}` in {}", self.namespace.name());
        Ok(Running { child, events: read_events(output), seen: Vec::new(), label, report: PhantomData })
    }
}

/// A line of a probe, or why there is none.
type Line = std::result::Result<Event, String>;

fn read_events(output: ChildStdout) -> Receiver<Line> {
    // A probe prints ten lines a second at most, so what waits here is bounded by its run time.
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            let event = line
                .map_err(|error| error.to_string())
                .and_then(|line| serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}")));
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A probe that runs until it is finished or dropped.
#[derive(Debug)]
pub struct Running<R> {
    child: Child,
    events: Receiver<Line>,
    seen: Vec<Event>,
    label: String,
    report: PhantomData<R>,
}

impl<R> Running<R> {
    /// Waits for the probe's first success.
    fn wait_running(&mut self) -> Result<()> {
        let first = self.next(RUNNING_BOUND)?;
        ensure!(first == Event::Running, "{} ended before it began: {first:?}", self.label);
        Ok(())
    }

    fn next(&mut self, bound: Duration) -> Result<Event> {
        let event = self.events.recv_timeout(bound).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                anyhow!("{} said nothing for {} s", self.label, bound.as_secs())
            }
            RecvTimeoutError::Disconnected => anyhow!("{} ended without a report", self.label),
        })?;
        let event = event.map_err(|reason| anyhow!("{}: {reason}", self.label))?;
        self.seen.push(event.clone());
        Ok(event)
    }

    /// Tells the probe to end and returns its last event.
    fn last_event(&mut self, bound: Duration) -> Result<Event> {
        drop(self.child.stdin.take());
        loop {
            match self.next(bound)? {
                Event::Running | Event::Progress { .. } => {}
                report @ (Event::Ping(_) | Event::Fetch(_) | Event::Stream(_) | Event::Connect(_) | Event::Udp(_)) => {
                    self.child.wait()?;
                    return Ok(report);
                }
            }
        }
    }
}

impl<R: FromEvent> Running<R> {
    /// Ends the probe and returns what it measured.
    ///
    /// **Errors** it does not end, or ended without a report.
    pub fn finish(self) -> Result<R> {
        self.finish_within(END_BOUND)
    }

    fn finish_within(mut self, bound: Duration) -> Result<R> {
        let event = self.last_event(bound)?;
        R::from_event(event).with_context(|| format!("{} made another report", self.label))
    }
}

impl Running<FetchReport> {
    /// The rate from now on over `window`, as the receiver sees it. **Units** Mbit/s.
    ///
    /// **Errors** the transfer ends or stalls.
    pub fn rate_over(&mut self, window: Duration) -> Result<f64> {
        while self.events.try_recv().is_ok() {}
        let (first_bytes, first_seconds) = self.next_progress()?;
        let begun = Instant::now();
        loop {
            let (bytes, seconds) = self.next_progress()?;
            if begun.elapsed() >= window {
                return Ok(megabits_per_second(bytes - first_bytes, seconds - first_seconds));
            }
        }
    }

    fn next_progress(&mut self) -> Result<(u64, f64)> {
        loop {
            match self.next(RUNNING_BOUND)? {
                Event::Progress { bytes, seconds } => return Ok((bytes, seconds)),
                Event::Running => {}
                report @ (Event::Ping(_) | Event::Fetch(_) | Event::Stream(_) | Event::Connect(_) | Event::Udp(_)) => {
                    bail!("{} ended: {report:?}", self.label)
                }
            }
        }
    }
}

impl<R> Drop for Running<R> {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Both fail only for a process that ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A report that one kind of probe makes.
pub trait FromEvent: Sized {
    /// Takes the report out of the event, if it is of this kind.
    fn from_event(event: Event) -> Option<Self>;
}

macro_rules! from_event {
    ($($report:ty => $event:ident),*) => {$(
        impl FromEvent for $report {
            fn from_event(event: Event) -> Option<Self> {
                if let Event::$event(report) = event { Some(report) } else { None }
            }
        }
    )*};
}

from_event!(PingReport => Ping, FetchReport => Fetch, StreamReport => Stream, ConnectReport => Connect, UdpReport => Udp);
