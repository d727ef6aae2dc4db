//! The pod's network namespace: opened, told apart from the node's own, entered for a moment.
//!
//! Entering needs a right that the daemon shall not have, so the shim does here all that must be done
//! inside: it writes the pod's sysctls and opens the socket through which the daemon works on.

use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use culvert_cni::code::Code;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The file system of namespaces. **Source** `NSFS_MAGIC`, `linux/magic.h`.
const NSFS_MAGIC: i128 = 0x6e73_6673;

/// The namespace this process lives in.
const OWN: &str = "/proc/self/ns/net";

/// What is written inside the pod before it gets an interface.
///
/// No router advertisement has an effect, IPv6 is on, and an address can be used at once without
/// waiting for duplicate address detection: the host gives every address once. The kernel takes the
/// larger of `all` and the interface's own value for `accept_dad`, so both are written.
const SYSCTLS: [(&str, &str); 6] = [
    ("/proc/sys/net/ipv6/conf/default/accept_ra", "0"),
    ("/proc/sys/net/ipv6/conf/all/accept_ra", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_dad", "0"),
    ("/proc/sys/net/ipv6/conf/all/accept_dad", "0"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0"),
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0"),
];

/// A network namespace that is not this process's own.
#[derive(Debug)]
pub struct PodNamespace {
    path: String,
    file: OwnedFd,
    own: OwnedFd,
}

/// Why a namespace cannot be used.
#[derive(Debug)]
pub enum NamespaceError {
    /// It cannot be opened.
    Open {
        /// CNI_NETNS.
        path: String,
        /// The kernel's reason.
        reason: Errno,
    },
    /// It is something else.
    NotANamespace {
        /// CNI_NETNS.
        path: String,
    },
    /// It is the node's.
    Own {
        /// CNI_NETNS.
        path: String,
    },
    /// The kernel refused to enter it.
    Enter {
        /// CNI_NETNS.
        path: String,
        /// The kernel's reason.
        reason: Errno,
    },
    /// Something failed inside, or on the way back.
    Inside {
        /// CNI_NETNS.
        path: String,
        /// What was done.
        action: String,
        /// The kernel's reason.
        reason: std::io::Error,
    },
}

impl NamespaceError {
    /// The code it is answered with.
    pub fn code(&self) -> Code {
        match self {
            Self::Open { .. } | Self::NotANamespace { .. } | Self::Own { .. } => Code::InvalidNamespace,
            Self::Enter { .. } | Self::Inside { .. } => Code::Io,
        }
    }
}

impl fmt::Display for NamespaceError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { path, reason } => write!(formatter, "network namespace {path} cannot be opened: {reason}"),
            Self::NotANamespace { path } => write!(formatter, "{path} is no network namespace"),
            Self::Own { path } => {
                write!(formatter, "{path} is the node's own network namespace; a pod with hostNetwork needs no CNI")
            }
            Self::Enter { path, reason } => write!(
                formatter,
                "network namespace {path} cannot be entered: {reason}; the runtime must run the plugin with CAP_SYS_ADMIN"
            ),
            Self::Inside { path, action, reason } => {
                write!(formatter, "{action} for network namespace {path} failed: {reason}")
            }
        }
    }
}

impl PodNamespace {
    /// Opens a namespace.
    ///
    /// **Errors** it is missing, something else, or the node's own.
    pub fn open(path: &str) -> Result<Self, NamespaceError> {
        let failed = |reason| NamespaceError::Open { path: path.to_owned(), reason };
        // Without NONBLOCK a pipe in its place would hold the call for ever.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let own = rustix::fs::open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        if i128::from(rustix::fs::fstatfs(&file).map_err(failed)?.f_type) != NSFS_MAGIC {
            return Err(NamespaceError::NotANamespace { path: path.to_owned() });
        }
        let (theirs, ours) = (rustix::fs::fstat(&file).map_err(failed)?, rustix::fs::fstat(&own).map_err(failed)?);
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) {
            return Err(NamespaceError::Own { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file, own })
    }

    /// The open namespace.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Opens an rtnetlink socket inside, and writes the pod's sysctls first if asked to.
    ///
    /// **Errors** the namespace is not one of networks, cannot be entered or left, or refuses a write.
    pub fn open_rtnetlink(&self, write_sysctls: bool) -> Result<OwnedFd, NamespaceError> {
        self.enter()?;
        let inside = self.work_inside(write_sysctls);
        let back = move_into_link_name_space(self.own.as_fd(), Some(LinkNameSpaceType::Network));
        back.map_err(|reason| self.inside("the way back", reason.into()))?;
        inside
    }

    fn enter(&self) -> Result<(), NamespaceError> {
        let path = || self.path.clone();
        match move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)) {
            Ok(()) => Ok(()),
            // A namespace, but of another kind.
            Err(Errno::INVAL) => Err(NamespaceError::NotANamespace { path: path() }),
            Err(reason) => Err(NamespaceError::Enter { path: path(), reason }),
        }
    }

    fn work_inside(&self, write_sysctls: bool) -> Result<OwnedFd, NamespaceError> {
        for (file, value) in SYSCTLS.iter().filter(|_| write_sysctls) {
            set_sysctl(file, value).map_err(|reason| self.inside(&format!("writing {value} to {file}"), reason))?;
        }
        crate::rtnetlink::open().map_err(|reason| self.inside("opening an rtnetlink socket", reason.into()))
    }

    fn inside(&self, action: &str, reason: std::io::Error) -> NamespaceError {
        NamespaceError::Inside { path: self.path.clone(), action: action.to_owned(), reason }
    }
}

/// Writes a sysctl unless it has this value already: some writes take the kernel's lock of all
/// interfaces. A missing one is fine, the kernel has no IPv6 then.
fn set_sysctl(file: &str, value: &str) -> std::io::Result<()> {
    let open = match OpenOptions::new().read(true).write(true).open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut now = [0; 16];
    let length = open.read_at(&mut now, 0)?;
    if now.get(..length).unwrap_or_default().trim_ascii() == value.as_bytes() {
        return Ok(());
    }
    open.write_all_at(value.as_bytes(), 0)
}
