//! What may go wrong with an attachment, and the one table from it to CNI codes.

use culvert_cni::code::Code;
use culvert_core::address::Family;
use culvert_core::attachment::AttachmentKey;
use culvert_core::hardware_address::MacRefusal;
use culvert_core::host_port::HostPortError;
use culvert_core::lease::LeaseRefusal;
use culvert_kernel::{ApplyError, KernelError};

use crate::store::StoreError;

/// Why a request about an attachment failed. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentError {
    /// The runtime has it already.
    #[error("container {} already has {} on network {} (host end {host_name}); delete it first", key.container_id, key.ifname, key.network)]
    Exists {
        /// The attachment.
        key: AttachmentKey,
        /// Its host end.
        host_name: String,
    },
    /// Something else gave the container an interface of that name.
    #[error("container {} has an interface {} already, which Culvert did not make: remove it, or ask for another name", key.container_id, key.ifname)]
    InterfaceThere {
        /// The attachment.
        key: AttachmentKey,
    },
    /// No block of a family is held yet.
    #[error("this node holds no {family:?} block yet: {reason}; try again")]
    NoBlock {
        /// The family.
        family: Family,
        /// What it waits for.
        reason: &'static str,
    },
    /// All addresses are in use.
    #[error(
        "no free {family:?} address is left in the {blocks} block(s) of this node; another block is being claimed, try again"
    )]
    Exhausted {
        /// The family.
        family: Family,
        /// How many blocks are full.
        blocks: usize,
    },
    /// The ranges that the configuration allows are full.
    #[error("no free address is left in {ranges}: pods must end, or the ranges be widened")]
    RangesFull {
        /// The ranges.
        ranges: String,
    },
    /// An address that the pod asks for cannot be had.
    #[error(transparent)]
    Lease(#[from] LeaseRefusal),
    /// The hardware address it asks for cannot be had.
    #[error(transparent)]
    Mac(#[from] MacRefusal),
    /// The host ports it asks for cannot be given.
    #[error(transparent)]
    HostPort(#[from] HostPortError),
    /// Later in a chain: the plugins before named no interface to add something to.
    #[error("container {} was given no {what} by the plugins before this one: put a main plugin first in the list", key.container_id)]
    NothingToChain {
        /// The attachment.
        key: AttachmentKey,
        /// What is missing.
        what: &'static str,
    },
    /// The bridge is not there yet.
    #[error("the node's bridge is not set up yet; try again, and see the daemon's log if it stays so")]
    NoBridge,
    /// The journal refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel refuses; everything was undone.
    #[error("the kernel refused: {0}")]
    Apply(#[from] ApplyError),
    /// The kernel cannot be asked.
    #[error("the kernel cannot be asked: {0}")]
    Kernel(#[from] KernelError),
    /// Its links are still there.
    #[error("container {} could not be detached from network {}: {reason}; try again", key.container_id, key.network)]
    NotRemoved {
        /// The attachment.
        key: AttachmentKey,
        /// What the kernel said.
        reason: String,
    },
    /// CHECK: there is no such attachment.
    #[error("container {} has no {} on network {}", key.container_id, key.ifname, key.network)]
    Unknown {
        /// The attachment.
        key: AttachmentKey,
    },
    /// CHECK: something is not as it was made.
    #[error("container {} is not as it was made: {found}", key.container_id)]
    Differs {
        /// The attachment.
        key: AttachmentKey,
        /// All that differs.
        found: String,
    },
    /// The daemon ends.
    #[error("the daemon is stopping; try again")]
    Stopping,
}

impl AttachmentError {
    /// The code that the runtime gets.
    ///
    /// **Source** CNI specification 1.1.0, section 5, "Well-known error codes".
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoBlock { .. }
            | Self::Exhausted { .. }
            | Self::RangesFull { .. }
            | Self::Lease(_)
            | Self::NoBridge
            | Self::Stopping => Code::TryAgainLater,
            Self::HostPort(_) | Self::Mac(_) | Self::NothingToChain { .. } => Code::InvalidConfig,
            Self::Store(_) => Code::Store,
            Self::Kernel(_) | Self::Apply(_) | Self::NotRemoved { .. } => Code::Kernel,
            Self::Unknown { .. } => Code::UnknownContainer,
            Self::Exists { .. } | Self::InterfaceThere { .. } => Code::AlreadyAttached,
            Self::Differs { .. } => Code::CheckFailed,
        }
    }
}
