//! The kernel adapter against a real kernel, in network namespaces that each test makes and removes.
//!
//! They need root. Nothing outside the namespaces is touched, and no traffic leaves them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attachment;
mod firewall;
mod host_ports;
mod namespace;
mod nat_table;
mod node;
mod packet;
mod probe;
mod routes;
mod shaping;
