//! One try of a connection, for what must, or must not, be reachable.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::ValueEnum;
use culvert_lab::report::ConnectReport;
use socket2::{Domain, Protocol, Socket, Type};

/// What a connection is made of.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// SCTP, one stream. Not every kernel has it.
    Sctp,
}

impl Transport {
    /// The protocol's number. **Source** IANA, "Assigned Internet Protocol Numbers".
    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::TCP,
            Self::Sctp => Protocol::from(132),
        }
    }
}

/// Tries and reports.
pub(crate) fn run(address: IpAddr, port: u16, transport: Transport, within_ms: u64) -> ConnectReport {
    match connect(SocketAddr::new(address, port), transport, Duration::from_millis(within_ms)) {
        Ok(()) => ConnectReport { connected: true, error: None },
        Err(error) => ConnectReport { connected: false, error: Some(error.to_string()) },
    }
}

fn connect(to: SocketAddr, transport: Transport, within: Duration) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(transport.protocol()))?;
    socket.connect_timeout(&to.into(), within)
}
