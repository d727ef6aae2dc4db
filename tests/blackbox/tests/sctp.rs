//! Host ports of SCTP, with traffic. What the kernel's table must hold for them is tested with the other host ports.
//!
//! A kernel without SCTP sockets cannot run this, and the test says so.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use culvert_lab::probe::{SERVE_PORT, Vantage};
use culvert_lab::{Sandbox, SingleNode};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use serde_json::json;

/// The node's port that leads to the pod.
const HOST_PORT: u16 = 8080;

fn main() -> ExitCode {
    let test =
        Trial::ignorable_test("an_sctp_port_is_reached_from_outside_and_by_the_loopback_address_until_del", || {
            if let Err(error) = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)) {
                return Ok(Completion::ignored_with(format!("this kernel has no sockets of SCTP: {error}")));
            }
            reached().map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:?}")))
        });
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit_code()
}

fn reached() -> Result<()> {
    let single = SingleNode::running()?;
    let machine = single.lab().public_host("client", 20)?;
    let outside = Vantage { namespace: &machine.namespace, program: single.node().binaries().program("lab-probe") };
    let address = single.node().host().addresses[0];
    let mapping = json!([{"hostPort": HOST_PORT, "containerPort": SERVE_PORT, "protocol": "sctp"}]);
    let sandbox = Sandbox::new(&single, "till")?.asking("portMappings", mapping);
    sandbox.attach()?;
    let serving = sandbox.vantage().serve_sctp()?;
    ensure!(outside.connect_sctp(address, HOST_PORT)?.connected, "from outside");
    ensure!(
        single.node().vantage().connect_sctp("127.0.0.1".parse()?, HOST_PORT)?.connected,
        "by the loopback address"
    );
    drop(serving);
    sandbox.del()?.success()?;
    ensure!(!outside.connect_sctp(address, HOST_PORT)?.connected, "after DEL");
    Ok(())
}
