//! Why a call of a plugin gave no answer, for the slot that counts it and the operator who reads it.

use culvert_core::policy::PolicyError;
use wasmtime::Trap;

/// Why a call gave no answer. After anything but [`Fault::Refused`] the instance is thrown away; the
/// next call gets a fresh one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The guest trapped; the text says how.
    #[error("trapped: {0}")]
    Trap(String),
    /// The guest was stopped at its deadline.
    #[error("stopped: no answer within {0} ms")]
    Timeout(u64),
    /// The guest trapped after it was refused more memory, or needs more than it may have to start.
    #[error("ran out of memory: {0} bytes are granted")]
    Memory(u64),
    /// The policy itself says that it has no answer.
    #[error("answered with an error: {0}")]
    Refused(PolicyError),
    /// The answer is not one the host can read: too large, a prefix with host bits, an index past the end.
    #[error("gave an invalid answer: {0}")]
    Invalid(String),
}

/// The kinds of [`Fault`], for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// [`Fault::Trap`].
    Trap,
    /// [`Fault::Timeout`].
    Timeout,
    /// [`Fault::Memory`].
    Memory,
    /// [`Fault::Refused`].
    Refused,
    /// [`Fault::Invalid`].
    Invalid,
}

impl FaultKind {
    /// All kinds, in the order of their labels here.
    pub const ALL: [Self; 5] = [Self::Trap, Self::Timeout, Self::Memory, Self::Refused, Self::Invalid];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
        }
    }
}

impl Fault {
    /// The kind, for counters.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Trap(_) => FaultKind::Trap,
            Self::Timeout(_) => FaultKind::Timeout,
            Self::Memory(_) => FaultKind::Memory,
            Self::Refused(_) => FaultKind::Refused,
            Self::Invalid(_) => FaultKind::Invalid,
        }
    }

    /// Whether the instance that gave this may answer again. A trap leaves an instance in the middle of
    /// something, and the runtime does not let it be entered again.
    #[must_use]
    pub fn spares_instance(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// What was granted to a call that failed, for the text of its fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granted {
    pub budget_ms: u64,
    pub memory_bytes: u64,
    /// Whether the guest asked for more memory than it may have.
    pub memory_refused: bool,
}

/// The fault behind an error of the runtime. Everything that is not a trap is an answer that broke the
/// canonical ABI: a pointer past the end of memory, a discriminant that does not exist, text that is not
/// UTF-8, or more data than a call may hand over.
pub(crate) fn classify(error: &wasmtime::Error, granted: Granted) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Fault::Timeout(granted.budget_ms),
        Some(_) if granted.memory_refused => Fault::Memory(granted.memory_bytes),
        Some(trap) => Fault::Trap(trap.to_string()),
        None if granted.memory_refused => Fault::Memory(granted.memory_bytes),
        None => Fault::Invalid(crate::text::cut(&error.root_cause().to_string())),
    }
}
