//! DEL while the daemon is away: the pod's interface goes now, the rest when the daemon is back.
//!
//! A runtime that is told to try again keeps the pod until it is told otherwise, for ever if the daemon never
//! comes back. So the shim removes the interface itself, which takes its host end along, and leaves a file from
//! which the daemon frees the address, the host ports and the limits.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use culvert_cni::frame::Request;
use culvert_cni::tombstone::{file_name, folder};
use rustix::io::Errno;

use crate::call::Call;
use crate::rtnetlink;

/// Leaves the file, then removes the interface, if the pod's namespace is still there.
///
/// **Errors** either failed: the runtime must try again.
pub fn leave(call: &Call, request: &Request, rtnetlink: Option<&OwnedFd>) -> io::Result<()> {
    write(call, request)?;
    match rtnetlink.map(|socket| rtnetlink::delete_link(socket, &call.environment.ifname)) {
        None | Some(Ok(()) | Err(Errno::NODEV)) => Ok(()),
        Some(Err(reason)) => Err(reason.into()),
    }
}

/// Written whole, then renamed: the daemon never reads half of it.
fn write(call: &Call, request: &Request) -> io::Result<()> {
    let bytes = request.encode().map_err(io::Error::other)?;
    let folder = folder(&call.socket);
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let name = file_name(&call.network, &call.environment.container_id, &call.environment.ifname);
    let unfinished = folder.join(format!("{name}.{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&unfinished, folder.join(name)));
    if written.is_err() {
        // What is left of it is not read by anybody.
        let _ = fs::remove_file(&unfinished);
    }
    written
}
