//! What is compared: ways to attach a pod, each with a node of its own.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use culvert_lab::namespace::Place;
use serde::Serialize;

use super::pod_namespace::PodNamespace;

/// Who attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Who {
    /// Debian's reference plugins.
    Reference,
    /// The shim and the daemon.
    Ours,
    /// The least work that the kernel can be asked to do.
    Floor,
    /// The exec of the shim, without the daemon's work.
    Shim,
}

impl Who {
    /// All, in the order of the tables.
    pub(super) const ALL: [Self; 4] = [Self::Reference, Self::Ours, Self::Floor, Self::Shim];

    /// What it is called in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Ours => "ours",
            Self::Floor => "floor",
            Self::Shim => "shim",
        }
    }
}

/// What every pod gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SetUp {
    /// An address, the bridge, masquerade.
    Network,
    /// That, a host port, and a rate in each direction.
    PortsAndBandwidth,
}

impl SetUp {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Network, Self::PortsAndBandwidth];

    /// What it is called in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Network => "network + masquerade",
            Self::PortsAndBandwidth => "ports + bandwidth",
        }
    }
}

/// The rate of each direction. **Units** bits a second.
pub(super) const RATE_BITS: u64 = 100_000_000;
/// The burst of each direction. **Units** bits.
pub(super) const BURST_BITS: u64 = 8_000_000;
/// The port that a host port leads to.
pub(super) const CONTAINER_PORT: u16 = 80;

/// The host port of the pod of this number: no two pods of a way that are there together share one.
pub(super) fn host_port(number: u16) -> u16 {
    const FIRST: u16 = 10_000;
    const SPAN: u16 = 50_000;
    FIRST + number % SPAN
}

/// A way to attach pods, on a node of its own. Calls are made by threads that live in the node's namespace.
pub(super) trait Way: Sync {
    /// Who this is.
    fn who(&self) -> Who;

    /// The node's namespace.
    fn place(&self) -> &Place;

    /// A pod that is not attached yet. Its number is unique on this way.
    fn pod<'a>(&'a self, number: u16, namespace: &'a PodNamespace) -> Box<dyn Pod + 'a>;

    /// The processor time that its work took so far.
    ///
    /// **Errors** the kernel does not tell.
    fn cpu_time(&self) -> Result<Duration>;

    /// Waits until its earlier calls have no work left that was answered before it was over.
    ///
    /// **Errors** that work failed.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Addresses it believes to be in use.
    ///
    /// **Errors** its records cannot be read.
    fn leases(&self) -> Result<usize>;
}

/// One pod of a way.
pub(super) trait Pod: Send {
    /// ADD, as the runtime waits for it.
    ///
    /// **Errors** it is refused.
    fn attach(&mut self) -> Result<()>;

    /// DEL, as the runtime waits for it.
    ///
    /// **Errors** it is refused.
    fn detach(&mut self) -> Result<()>;

    /// Its address once attached; `None` when this way gives none.
    fn address(&self) -> Option<IpAddr>;
}
