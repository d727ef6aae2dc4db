//! Datagrams by number: what was sent, what came.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use culvert_lab::report::{Event, UdpReport};
use socket2::{Domain, Protocol, Socket, Type};

use crate::stop::Stop;

/// How long a receive waits before it looks whether the probe is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The receive buffer: it must hold what arrives while the reader is not scheduled. **Units** bytes.
const RECEIVE_BUFFER: usize = 8 << 20;

#[derive(Args)]
pub(crate) struct SendArguments {
    /// The receiver.
    address: IpAddr,
    /// Its port.
    #[arg(long)]
    port: u16,
    /// How many datagrams.
    #[arg(long)]
    count: u64,
    /// The payload of each.
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Datagrams a second.
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
}

/// Sends at an even rate and counts what the kernel took.
pub(crate) fn send(arguments: &SendArguments) -> Result<UdpReport> {
    let any: SocketAddr = if arguments.address.is_ipv6() { "[::]:0".parse()? } else { "0.0.0.0:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.connect((arguments.address, arguments.port))?;
    let payload = vec![0x5a_u8; arguments.bytes];
    let begun = Instant::now();
    let mut datagrams = 0;
    for index in 0..arguments.count {
        let due = begun + Duration::from_nanos(index.saturating_mul(1_000_000_000) / arguments.rate.max(1));
        if let Some(early) =
            due.checked_duration_since(Instant::now()).filter(|early| *early > Duration::from_millis(1))
        {
            std::thread::sleep(early);
        }
        // A refused datagram is one that was not sent; the counts tell.
        datagrams += u64::from(socket.send(&payload).is_ok());
    }
    Ok(UdpReport { datagrams })
}

/// Counts until standard input closes and nothing more arrives.
pub(crate) fn receive(port: u16) -> Result<UdpReport> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).with_context(|| format!("port {port}"))?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    crate::print(&Event::Running)?;
    let stop = Stop::when_input_closes();
    let mut buffer = [0_u8; 2048];
    let mut datagrams = 0;
    loop {
        if socket.recv(&mut buffer).is_ok() {
            datagrams += 1;
        } else if stop.is_set() {
            return Ok(UdpReport { datagrams });
        }
    }
}
