//! DEL while the daemon is away: the pod's interface goes now, the rest when the daemon is back.
//!
//! A runtime that is told to try again keeps the pod until it is told otherwise, for ever if the daemon never
//! comes back. So the shim removes the interface itself, which takes its host end along, and leaves a file from
//! which the daemon frees the address, the host ports and the limits.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;

use culvert_cni::frame::Request;
use culvert_cni::tombstone::{file_name, folder};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
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

/// Written without a name, then named: it is there whole or not at all, also when this process dies on the way.
fn write(call: &Call, request: &Request) -> io::Result<()> {
    let bytes = request.encode().map_err(io::Error::other)?;
    let folder = folder(&call.socket);
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = fs::File::from(rustix::fs::open(&folder, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(&bytes)?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    let place = folder.join(file_name(&call.network, &call.environment.container_id, &call.environment.ifname));
    match rustix::fs::linkat(CWD, unnamed, CWD, place, AtFlags::SYMLINK_FOLLOW) {
        // That of an earlier DEL of the same says the same.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(reason) => Err(reason.into()),
    }
}
