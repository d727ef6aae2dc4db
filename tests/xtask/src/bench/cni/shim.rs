//! What the exec of our shim costs by itself: the same program with the same input, called for STATUS, against a
//! listener that does nothing but answer.
//!
//! STATUS, because the shim then does what every verb needs (read environment and configuration, connect, send, print)
//! and does not touch the pod. The answer has the size of an ADD's.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_cni::frame::{HEADER_BYTES, Reply, Request};
use culvert_lab::namespace::Place;
use serde_json::{Value, json};

use super::plugin::{Identity, Program};
use super::pod_namespace::PodNamespace;
use super::way::{Pod, SetUp, Way, Who};
use crate::bench::cpu;

/// About as long as the result of an ADD. **Units** bytes.
const ANSWER_BYTES: usize = 600;

/// The shim and the listener it talks to.
#[derive(Debug)]
pub(super) struct Shim<'a> {
    place: &'a Place,
    program: Program,
    socket: PathBuf,
    set_up: SetUp,
}

impl<'a> Shim<'a> {
    /// Listens in a folder; the shim is executed in a namespace that has no other part in this.
    ///
    /// **Errors** the socket cannot be made.
    pub(super) fn listening(folder: &Path, place: &'a Place, shim: PathBuf, set_up: SetUp) -> Result<Self> {
        let socket = folder.join("answers.sock");
        let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
        // It ends with this process, as the folder ends with the lab.
        std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
        Ok(Self { place, program: Program { path: shim }, socket, set_up })
    }
}

/// Answers one call. A shim that goes away has its own message.
fn serve(mut stream: UnixStream) {
    let _ = answer(&mut stream);
}

fn answer(stream: &mut UnixStream) -> Result<()> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; Request::body_bytes(&header)?];
    stream.read_exact(&mut body)?;
    let text = json!({"padding": "x".repeat(ANSWER_BYTES)}).to_string();
    stream.write_all(&Reply { exit_code: 0, stdout: text.into_bytes() }.encode()?)?;
    Ok(())
}

impl Way for Shim<'_> {
    fn who(&self) -> Who {
        Who::Shim
    }

    fn place(&self) -> &Place {
        self.place
    }

    fn pod<'a>(&'a self, number: u16, namespace: &'a PodNamespace) -> Box<dyn Pod + 'a> {
        let identity = Identity::new(number, namespace.path());
        let configuration = json!({
            "cniVersion": "1.1.0", "name": "bench", "type": "culvert", "socket": self.socket,
            "runtimeConfig": identity.runtime_config(self.set_up),
        });
        Box::new(Called { program: &self.program, identity, configuration })
    }

    fn cpu_time(&self) -> Result<Duration> {
        cpu::children()
    }

    fn leases(&self) -> Result<usize> {
        Ok(0)
    }
}

struct Called<'a> {
    program: &'a Program,
    identity: Identity,
    configuration: Value,
}

impl Pod for Called<'_> {
    fn attach(&mut self) -> Result<()> {
        self.program.call("STATUS", &self.identity, &self.configuration).map(drop)
    }

    fn detach(&mut self) -> Result<()> {
        self.attach()
    }

    fn address(&self) -> Option<IpAddr> {
        None
    }
}
