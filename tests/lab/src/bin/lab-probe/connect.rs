//! One try of a TCP connection, for what must not be reachable.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use culvert_lab::report::ConnectReport;

/// Tries and reports.
pub(crate) fn run(address: IpAddr, port: u16, within_ms: u64) -> ConnectReport {
    match TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_millis(within_ms)) {
        Ok(_) => ConnectReport { connected: true, error: None },
        Err(error) => ConnectReport { connected: false, error: Some(error.to_string()) },
    }
}
