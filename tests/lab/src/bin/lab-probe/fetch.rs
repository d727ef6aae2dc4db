//! Downloads from `serve`, checks the SHA-256 and tells how far it is.

use std::io::Read as _;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use culvert_lab::report::{Event, FetchReport};
use sha2::{Digest, Sha256};

use crate::stop::Stop;
use crate::wire::{self, CONNECT_BOUND, FRAME_BYTES, Request};

/// Between two progress lines.
const TELL_EVERY: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(crate) struct FetchArguments {
    /// The server.
    address: IpAddr,
    /// Its port.
    #[arg(long)]
    port: u16,
    /// How many; without it, until standard input closes.
    #[arg(long)]
    bytes: Option<u64>,
}

/// Downloads and reports; a failure is part of the report.
pub(crate) fn run(arguments: &FetchArguments) -> FetchReport {
    let begun = Instant::now();
    let mut report = FetchReport::default();
    match download(arguments, begun, &mut report.bytes) {
        Ok(()) => report.ok = true,
        Err(error) => report.error = Some(format!("{error:#}")),
    }
    report.seconds = begun.elapsed().as_secs_f64();
    report
}

fn download(arguments: &FetchArguments, begun: Instant, received: &mut u64) -> Result<()> {
    let server = SocketAddr::new(arguments.address, arguments.port);
    let mut stream =
        TcpStream::connect_timeout(&server, CONNECT_BOUND).with_context(|| format!("cannot connect to {server}"))?;
    wire::prepare(&stream)?;
    Request::Fetch(arguments.bytes).write(&mut stream)?;
    let stop = if arguments.bytes.is_some() { Stop::never() } else { Stop::when_input_closes() };
    let (mut digest, mut frame, mut told, mut closed) = (Sha256::new(), vec![0_u8; FRAME_BYTES], None, false);
    loop {
        let length = read_length(&mut stream)?;
        if length == 0 {
            break;
        }
        stream.read_exact(&mut frame[..length]).context("inside a frame")?;
        digest.update(&frame[..length]);
        *received += length as u64;
        tell(&mut told, begun, *received)?;
        if stop.is_set() && !std::mem::replace(&mut closed, true) {
            stream.shutdown(Shutdown::Write)?;
        }
    }
    check(&mut stream, digest, arguments.bytes, *received)
}

fn read_length(stream: &mut TcpStream) -> Result<usize> {
    let mut length = [0_u8; 4];
    stream.read_exact(&mut length).context("between two frames")?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    ensure!(length <= FRAME_BYTES, "a frame of {length} bytes");
    Ok(length)
}

fn check(stream: &mut TcpStream, digest: Sha256, wanted: Option<u64>, received: u64) -> Result<()> {
    let mut theirs = [0_u8; 32];
    stream.read_exact(&mut theirs).context("before the checksum")?;
    ensure!(theirs[..] == digest.finalize()[..], "the SHA-256 of {received} bytes differs");
    ensure!(wanted.is_none_or(|wanted| wanted == received), "{received} bytes came");
    Ok(())
}

fn tell(told: &mut Option<Instant>, begun: Instant, bytes: u64) -> Result<()> {
    if told.is_none() {
        crate::print(&Event::Running)?;
    }
    if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
        *told = Some(Instant::now());
        crate::print(&Event::Progress { bytes, seconds: begun.elapsed().as_secs_f64() })?;
    }
    Ok(())
}
