//! The error codes a runtime may see, for the shim and the daemon alike.

/// An error code of the specification, or one of ours from 100 on.
///
/// **Source** SPEC.md, section "Error".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The CNI version is unknown, or does not have the verb.
    IncompatibleVersion,
    /// A field of the configuration is known and not supported.
    UnsupportedField,
    /// The container is unknown; the runtime need not clean up.
    UnknownContainer,
    /// An environment variable is missing or wrong.
    InvalidEnvironment,
    /// Reading or writing failed.
    Io,
    /// The configuration, or a previous result in it, cannot be read.
    Decode,
    /// The configuration can be read and makes no sense.
    InvalidConfig,
    /// CNI_NETNS is missing, no network namespace, or the node's own.
    InvalidNamespace,
    /// It may work later: the daemon is away, or the pool is exhausted.
    TryAgainLater,
    /// STATUS: no ADD can be served.
    Unavailable,
    /// STATUS: no ADD can be served, and pods that are there may have lost connectivity.
    LimitedConnectivity,
    /// The container already has an attachment with this interface name.
    AlreadyAttached,
    /// The pod already has an interface of this name, and it is not ours.
    InterfaceExists,
    /// CHECK found a difference.
    CheckFailed,
    /// The kernel refused a change; everything done before it was undone.
    Kernel,
    /// The daemon's own store failed.
    Store,
}

impl Code {
    /// Every code, ascending by number.
    pub const ALL: [Self; 16] = [
        Self::IncompatibleVersion,
        Self::UnsupportedField,
        Self::UnknownContainer,
        Self::InvalidEnvironment,
        Self::Io,
        Self::Decode,
        Self::InvalidConfig,
        Self::InvalidNamespace,
        Self::TryAgainLater,
        Self::Unavailable,
        Self::LimitedConnectivity,
        Self::AlreadyAttached,
        Self::InterfaceExists,
        Self::CheckFailed,
        Self::Kernel,
        Self::Store,
    ];

    /// The number that the runtime sees. This is the one table.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::InvalidNamespace => 8,
            Self::TryAgainLater => 11,
            Self::Unavailable => 50,
            Self::LimitedConnectivity => 51,
            Self::AlreadyAttached => 100,
            Self::InterfaceExists => 101,
            Self::CheckFailed => 102,
            Self::Kernel => 103,
            Self::Store => 104,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn numbers_are_those_of_the_specification_and_ours_start_at_one_hundred() {
        let numbers: Vec<u32> = Code::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 100, 101, 102, 103, 104]);
    }
}
