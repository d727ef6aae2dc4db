//! Why a policy has no answer.

/// Why a policy has no answer. The host keeps the last good answer in force, counts the failure under its case and
/// logs the text.
///
/// **Bounds** the host reads the first 512 bytes of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyError {
    /// The settings are wrong: the deployment is refused and not retried.
    InvalidSettings(String),
    /// Input this policy does not handle (IPv6, say).
    Unsupported(String),
    /// No address space is left under the constraints given.
    Exhausted(String),
    /// A defect in the policy.
    Internal(String),
}

impl PolicyError {
    /// The settings are wrong.
    #[must_use]
    pub fn invalid_settings(text: impl Into<String>) -> Self {
        Self::InvalidSettings(text.into())
    }

    /// Input this policy does not handle.
    #[must_use]
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::Unsupported(text.into())
    }

    /// No address space is left.
    #[must_use]
    pub fn exhausted(text: impl Into<String>) -> Self {
        Self::Exhausted(text.into())
    }

    /// A defect in the policy.
    #[must_use]
    pub fn internal(text: impl Into<String>) -> Self {
        Self::Internal(text.into())
    }
}

impl std::fmt::Display for PolicyError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (case, text) = match self {
            Self::InvalidSettings(text) => ("invalid settings: ", text),
            Self::Unsupported(text) => ("unsupported: ", text),
            Self::Exhausted(text) => ("exhausted: ", text),
            Self::Internal(text) => ("internal: ", text),
        };
        formatter.write_str(case)?;
        formatter.write_str(text)
    }
}

impl std::error::Error for PolicyError {}
