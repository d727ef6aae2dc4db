//! What happens when a process dies, and what may follow.

use serde::Serialize;

/// A request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scene {
    /// An ADD with everything there is: both families, host ports, rates, no masquerade.
    Add,
    /// An ADD after another plugin made the interface: host ports and rates.
    AddAfterAnother,
    /// An ADD that the kernel refuses at its last step in the pod, so that all before is undone.
    AddRefused,
    /// A DEL of the first.
    Del,
    /// A DEL of the second.
    DelAfterAnother,
    /// A DEL while the daemon is away.
    DelAway,
    /// A GC that the attachment is not on the list of.
    Gc,
    /// A CHECK.
    Check,
    /// A start of the daemon that finds an attachment half deleted.
    Recovery,
}

/// Who is traced, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The shim's system calls.
    ShimCalls,
    /// The daemon's system calls.
    DaemonCalls,
    /// The places that the test build of the daemon names.
    DaemonPlaces,
}

/// What follows when the daemon is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aftermath {
    /// The runtime calls ADD (again).
    Add,
    /// The runtime calls DEL (again).
    Del,
    /// No DEL ever comes; the runtime calls GC.
    Gc,
    /// No DEL ever comes; the daemon looks by itself.
    OwnLook,
}

impl Scene {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Add,
        Self::AddAfterAnother,
        Self::AddRefused,
        Self::Del,
        Self::DelAfterAnother,
        Self::DelAway,
        Self::Gc,
        Self::Check,
        Self::Recovery,
    ];

    /// Who dies in it.
    #[must_use]
    pub fn sights(self) -> &'static [Sight] {
        match self {
            Self::Add | Self::AddAfterAnother | Self::Del | Self::DelAfterAnother | Self::Gc => {
                &[Sight::ShimCalls, Sight::DaemonCalls, Sight::DaemonPlaces]
            }
            Self::AddRefused => &[Sight::DaemonCalls, Sight::DaemonPlaces],
            Self::DelAway | Self::Check => &[Sight::ShimCalls],
            Self::Recovery => &[Sight::DaemonPlaces],
        }
    }

    /// Whether another plugin made the interface.
    #[must_use]
    pub fn is_after_another(self) -> bool {
        matches!(self, Self::AddAfterAnother | Self::DelAfterAnother)
    }

    /// Whether it begins without an attachment.
    #[must_use]
    pub fn adds(self) -> bool {
        matches!(self, Self::Add | Self::AddAfterAnother | Self::AddRefused)
    }

    /// The verb that the runtime calls; `None` when no runtime calls.
    #[must_use]
    pub fn verb(self) -> Option<&'static str> {
        match self {
            Self::Add | Self::AddAfterAnother | Self::AddRefused => Some("ADD"),
            Self::Del | Self::DelAfterAnother | Self::DelAway => Some("DEL"),
            Self::Gc => Some("GC"),
            Self::Check => Some("CHECK"),
            Self::Recovery => None,
        }
    }
}

impl Aftermath {
    /// All of them, in the order of turns.
    pub const ALL: [Self; 4] = [Self::Del, Self::Add, Self::Gc, Self::OwnLook];

    /// The one whose turn it is.
    #[must_use]
    pub fn of_turn(turn: usize) -> Self {
        Self::ALL[turn % Self::ALL.len()]
    }
}
