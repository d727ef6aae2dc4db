//! The shim as a black box: the built program, a fake daemon on a real socket, real namespaces.

#![expect(clippy::unwrap_used, reason = "a test's helper fails the test by it")]

mod forwarding;
mod harness;
mod loopback;
mod standalone;
