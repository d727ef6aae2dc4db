//! ICMP echo at a fixed interval, with exact counts of what was lost, doubled and late.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use culvert_lab::report::{Event, PingReport};
use socket2::{Domain, Protocol, Socket, Type};

use crate::icmp::Echo;
use crate::stop::Stop;

/// How long a receive waits before it looks whether the probe is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Requests in one run at most, so that the marks of answers stay below a MiB. It then stops as if it was told to.
const MOST_REQUESTS: u64 = 1 << 20;

#[derive(Args)]
pub(crate) struct PingArguments {
    /// The destination.
    address: IpAddr,
    /// The source address; without it, the kernel's choice.
    #[arg(long)]
    source: Option<IpAddr>,
    /// Between two requests.
    #[arg(long, default_value_t = 20)]
    interval_ms: u64,
    /// How many; without it, until standard input closes.
    #[arg(long)]
    count: Option<u64>,
    /// How long answers are waited for after the last request.
    #[arg(long, default_value_t = 2000)]
    linger_ms: u64,
}

/// What the sender tells the receiver.
#[derive(Default)]
struct Sent {
    /// Requests so far.
    requests: AtomicU64,
    /// Requests the kernel did not take.
    refused: AtomicU64,
}

/// Pings and reports.
pub(crate) fn run(arguments: &PingArguments) -> Result<PingReport> {
    let socket = open(arguments.address, arguments.source)?;
    let begun = Instant::now();
    let magic = u64::from(std::process::id()) << 32 | u64::from(begun_salt());
    let sent = Sent::default();
    let over = Stop::never();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&socket, arguments, begun, magic, (&sent, &over)));
        send(&socket, arguments, begun, magic, &sent);
        over.set();
        receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?
    })
}

fn open(address: IpAddr, source: Option<IpAddr>) -> Result<Socket> {
    let (domain, protocol) =
        if address.is_ipv6() { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("cannot open a raw socket: run as root")?;
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    socket.set_recv_buffer_size(1 << 20)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into()).with_context(|| format!("cannot send from {source}"))?;
    }
    Ok(socket)
}

fn begun_salt() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())
}

/// Sends at fixed times, whether or not answers come.
fn send(socket: &Socket, arguments: &PingArguments, begun: Instant, magic: u64, sent: &Sent) {
    let stop = if arguments.count.is_some() { Stop::never() } else { Stop::when_input_closes() };
    let is_v6 = arguments.address.is_ipv6();
    let to = SocketAddr::new(arguments.address, 0).into();
    for sequence in 0..arguments.count.unwrap_or(MOST_REQUESTS).min(MOST_REQUESTS) {
        let due = begun + Duration::from_millis(arguments.interval_ms.saturating_mul(sequence));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.is_set() {
            return;
        }
        let echo = Echo { magic, sequence, sent_at_nanos: nanos(begun.elapsed()) };
        sent.requests.fetch_add(1, Ordering::Relaxed);
        if socket.send_to(&echo.encode(is_v6), &to).is_err() {
            sent.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The answers so far.
#[derive(Default)]
struct Answers {
    seen: Vec<bool>,
    received: u64,
    duplicates: u64,
    rtts_nanos: Vec<u64>,
    last_at: Option<Duration>,
    max_gap: Duration,
}

impl Answers {
    fn note(&mut self, echo: Echo, now: Duration) {
        let index =
            usize::try_from(echo.sequence).unwrap_or(usize::MAX).min(usize::try_from(MOST_REQUESTS).unwrap_or(0));
        if self.seen.len() <= index {
            self.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.seen[index], true) {
            self.duplicates += 1;
            return;
        }
        self.received += 1;
        self.rtts_nanos.push(nanos(now).saturating_sub(echo.sent_at_nanos));
        self.end_gap(now);
        self.last_at = Some(now);
    }

    fn end_gap(&mut self, now: Duration) {
        if let Some(last) = self.last_at {
            self.max_gap = self.max_gap.max(now.saturating_sub(last));
        }
    }

    fn report(mut self, sent: &Sent, sending_ended: Duration) -> PingReport {
        self.end_gap(sending_ended);
        self.rtts_nanos.sort_unstable();
        let requests = sent.requests.load(Ordering::Relaxed);
        PingReport {
            sent: requests,
            received: self.received,
            lost: requests.saturating_sub(self.received),
            duplicates: self.duplicates,
            unsent: sent.refused.load(Ordering::Relaxed),
            max_gap_ms: self.max_gap.as_secs_f64() * 1e3,
            rtt_p50_ms: milliseconds_at(&self.rtts_nanos, 50),
            rtt_p99_ms: milliseconds_at(&self.rtts_nanos, 99),
        }
    }
}

/// Takes answers until all are there, or the linger time after the last request passed.
fn receive(
    socket: &Socket,
    arguments: &PingArguments,
    begun: Instant,
    magic: u64,
    (sent, over): (&Sent, &Stop),
) -> Result<PingReport> {
    let mut answers = Answers::default();
    let mut ended: Option<Duration> = None;
    let mut packet = [0_u8; 2048];
    loop {
        // A time-out, and an ICMP error that the kernel reports here, are both no answer.
        let length = (&mut &*socket).read(&mut packet).unwrap_or(0);
        let now = begun.elapsed();
        if let Some(echo) =
            Echo::decode(&packet[..length], arguments.address.is_ipv6()).filter(|echo| echo.magic == magic)
        {
            answers.note(echo, now);
            if answers.received == 1 && answers.duplicates == 0 {
                crate::print(&Event::Running)?;
            }
        }
        if over.is_set() {
            let since = *ended.get_or_insert(now);
            let all = answers.received >= sent.requests.load(Ordering::Relaxed);
            if all || now.saturating_sub(since) >= Duration::from_millis(arguments.linger_ms) {
                return Ok(answers.report(sent, since));
            }
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A percentile of sorted nanoseconds. **Units** milliseconds.
fn milliseconds_at(sorted: &[u64], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |value| Duration::from_nanos(*value).as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(sequence: u64, sent_at_ms: u64) -> Echo {
        Echo { magic: 1, sequence, sent_at_nanos: sent_at_ms * 1_000_000 }
    }

    #[test]
    fn lost_doubled_and_late_answers_are_told_apart() {
        let mut answers = Answers::default();
        answers.note(echo(0, 0), Duration::from_millis(1));
        answers.note(echo(2, 20), Duration::from_millis(23));
        answers.note(echo(2, 20), Duration::from_millis(24));
        let sent = Sent { requests: 4.into(), refused: 1.into() };
        let expected = PingReport {
            sent: 4,
            received: 2,
            lost: 2,
            duplicates: 1,
            unsent: 1,
            max_gap_ms: 27.0,
            rtt_p50_ms: 3.0,
            rtt_p99_ms: 3.0,
        };
        assert_eq!(answers.report(&sent, Duration::from_millis(50)), expected);
    }
}
