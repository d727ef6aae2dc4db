//! The TUN device: super-packets with a virtio header, kept while no daemon runs.

#![expect(unsafe_code, reason = "the TUN device is configured by ioctl, for which there is no safe wrapper")]

use std::io;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};

use crate::LINK_NAME_MAX_BYTES;

/// Where the kernel gives out TUN devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// What the kernel does for us on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// TCP super-packets of both families.
    pub tso: bool,
    /// UDP super-packets of both families.
    pub uso: bool,
}

/// An open TUN device. Each read and write carries one packet behind a 10-byte `virtio_net_hdr`.
///
/// The link outlives the descriptors: it stays, with its addresses and routes, while no daemon runs.
#[derive(Debug)]
pub struct Tun {
    /// A blocking descriptor for each queue. The kernel keeps a flow on one queue.
    pub queues: Vec<OwnedFd>,
    /// What was agreed with the kernel.
    pub offloads: Offloads,
}

/// The TUN device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The clone device.
    #[error("cannot open {CLONE_DEVICE}: give the daemon that device (and, in a container, permission to use it)")]
    Open(#[source] io::Error),
    /// Not a possible name.
    #[error("{name:?} cannot name a TUN device: use 1 to 15 bytes")]
    BadName {
        /// The name.
        name: String,
    },
    /// Another process has it open.
    #[error("TUN device {name} is in use: stop the other daemon on this node")]
    InUse {
        /// Its name.
        name: String,
    },
    /// A link of that name is no TUN device, or one made in another way, such as with another kind of queues.
    #[error(
        "link {name} exists but is not a TUN device of ours: remove it (ip link delete {name}) or configure another name"
    )]
    Foreign {
        /// Its name.
        name: String,
    },
    /// Another refusal.
    #[error("cannot {action} TUN device {name}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Its name.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Open the TUN device of that name with so many queues, making it if there is none, and keep it for good.
///
/// A device that was made with one queue cannot be opened with several, nor the other way round. UDP
/// super-packets are asked for, and done without when the kernel has none (both families or neither: the
/// kernel refuses one alone). A device that this made is completed (group, MTU,
/// up) by [`Kernel::ensure_node`](crate::Kernel::ensure_node), in whichever order the two are called.
///
/// The link carries packets a moment after this returns, when the kernel has noticed its carrier.
///
/// **Errors** [`TunError`].
pub fn open_tun(name: &str, queues: u8) -> Result<Tun, TunError> {
    let refused = |action| move |source| TunError::Refused { action, name: name.to_owned(), source };
    let mut open = Vec::new();
    for _ in 0..queues.max(1) {
        open.push(attach(name, queues > 1)?);
    }
    let mut offloads = Offloads { tso: true, uso: true };
    for fd in &open {
        control(fd, libc::TUNSETPERSIST, 1).map_err(refused("keep"))?;
        let basic = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        if control(fd, libc::TUNSETOFFLOAD, basic | libc::TUN_F_USO4 | libc::TUN_F_USO6).is_err() {
            control(fd, libc::TUNSETOFFLOAD, basic).map_err(refused("set the offloads of"))?;
            offloads.uso = false;
        }
    }
    Ok(Tun { queues: open, offloads })
}

/// The kernel's `struct ifreq`, as `TUNSETIFF` uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; LINK_NAME_MAX_BYTES + 1],
    flags: libc::c_short,
    unused: [u8; 22],
}

/// Open the clone device and tie the descriptor to the named device.
fn attach(name: &str, one_of_several: bool) -> Result<OwnedFd, TunError> {
    if name.is_empty() || name.len() > LINK_NAME_MAX_BYTES || name.contains(['\0', '%']) {
        return Err(TunError::BadName { name: name.to_owned() });
    }
    let fd = rustix::fs::open(CLONE_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| TunError::Open(errno.into()))?;
    // Without this flag the device has one owner, and a second daemon is refused.
    let several = if one_of_several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let mut request = InterfaceRequest {
        name: [0; LINK_NAME_MAX_BYTES + 1],
        flags: libc::c_short::try_from(flags).unwrap_or_default(),
        unused: [0; 22],
    };
    for (slot, byte) in request.name.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    // SAFETY: `request` is a live, zero-filled `struct ifreq` (40 bytes) that the kernel reads and writes
    // only during the call; the descriptor is open.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if answer == 0 {
        return Ok(fd);
    }
    let source = io::Error::last_os_error();
    let name = name.to_owned();
    Err(match source.raw_os_error() {
        Some(libc::EBUSY) => TunError::InUse { name },
        Some(libc::EINVAL | libc::EEXIST) => TunError::Foreign { name },
        _ => TunError::Refused { action: "make or open", name, source },
    })
}

/// An ioctl that takes a plain number.
fn control(fd: &OwnedFd, request: libc::Ioctl, value: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST and TUNSETOFFLOAD take their argument by value and touch no memory of ours;
    // the descriptor is open.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, libc::c_ulong::from(value)) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_kernels_size() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    #[test]
    fn names_the_kernel_would_cut_or_fill_in_are_refused() {
        for name in ["", "sixteen-bytes-xx", "tun%d"] {
            assert!(matches!(open_tun(name, 1), Err(TunError::BadName { .. })), "{name}");
        }
    }
}
