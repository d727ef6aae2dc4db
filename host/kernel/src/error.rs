//! What can go wrong outside of a plan, in words an operator can act on.

use std::io;

use crate::firewall::FirewallError;
use crate::nat_table::NatTableError;
use crate::sysctl::SysctlError;
use crate::tun::TunError;

/// A failure to ask or change the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: the daemon needs CAP_NET_ADMIN")]
    Open(#[source] io::Error),
    /// The kernel refused a request.
    #[error("the kernel refused to {action}")]
    Refused {
        /// What was asked.
        action: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The netlink connection is gone, or its answer cannot be read.
    #[error("no usable answer from the kernel when asked to {action}: {detail}; restart the daemon")]
    NoAnswer {
        /// What was asked.
        action: String,
        /// Why there is no answer.
        detail: String,
    },
    /// A link of that name is somebody else's.
    #[error("link {name} exists but {found}: remove it (ip link delete {name}) or configure another name")]
    ForeignLink {
        /// The name.
        name: String,
        /// What it is.
        found: String,
    },
    /// A link that must be there is not.
    #[error("link {name} is gone: set the node up again")]
    MissingLink {
        /// The name.
        name: String,
    },
    /// Not a possible link name.
    #[error("{name:?} cannot name a link: use 1 to 15 bytes without '/', ':', '*', '\"', '\\' or white space")]
    BadName {
        /// The name.
        name: String,
    },
    /// The configuration has IPv6 prefixes, the kernel has no IPv6.
    #[error(
        "IPv6 prefix {prefix} is configured but this kernel has no IPv6: enable it (ipv6.disable=0) or remove the prefix"
    )]
    NoIpv6 {
        /// The first such prefix.
        prefix: ipnet::IpNet,
    },
    /// A sysctl.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The firewall.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The NAT table.
    #[error(transparent)]
    NatTable(#[from] NatTableError),
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A worker thread of the runtime died.
    #[error("a blocking kernel task was lost: {0}")]
    Lost(#[from] tokio::task::JoinError),
}
