//! The head of a network configuration: its name, its version, and whether that version has the verb.
//!
//! The shim checks it with its own scanner and the daemon with serde; the rules and their order live
//! here once.

use std::fmt;

use crate::code::Code;
use crate::version::{SpecVersion, Verb};

/// What is wrong with the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// `name` is missing or empty.
    NameMissing,
    /// `name` has a character it must not have.
    NameInvalid(String),
    /// `cniVersion` is none of ours.
    UnknownVersion(String),
    /// The version does not have the verb.
    VerbTooNew {
        /// The verb asked for.
        verb: Verb,
        /// The configuration's version.
        version: SpecVersion,
    },
}

impl HeadError {
    /// The code it is answered with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NameMissing | Self::NameInvalid(_) => Code::InvalidConfig,
            Self::UnknownVersion(_) | Self::VerbTooNew { .. } => Code::IncompatibleVersion,
        }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameMissing => formatter.write_str("network configuration has no \"name\"; give it one"),
            Self::NameInvalid(name) => write!(
                formatter,
                "network name {name:?} must start with a letter or digit and go on with letters, digits, '_', '.' or '-'"
            ),
            Self::UnknownVersion(version) => {
                write!(formatter, "cniVersion {version:?} is not supported; use one of {}", SpecVersion::list())
            }
            Self::VerbTooNew { verb, version } => write!(
                formatter,
                "cniVersion {version} does not have {verb}; set cniVersion to {} or newer",
                verb.since()
            ),
        }
    }
}

impl std::error::Error for HeadError {}

/// Checks the name, which comes first: before the version is even looked at.
///
/// **Errors** it is missing or empty, or has a character it must not have.
pub fn check_name(name: Option<&str>) -> Result<&str, HeadError> {
    let name = name.unwrap_or_default();
    if name.is_empty() {
        return Err(HeadError::NameMissing);
    }
    if !is_identifier(name) {
        return Err(HeadError::NameInvalid(name.to_owned()));
    }
    Ok(name)
}

/// Checks version and verb, in this order, and returns the version to answer in.
///
/// **Errors** the version is none of ours, or does not have the verb.
pub fn check_version(cni_version: Option<&str>, verb: Verb) -> Result<SpecVersion, HeadError> {
    let text = cni_version.unwrap_or_default();
    let version = SpecVersion::parse(text).ok_or_else(|| HeadError::UnknownVersion(text.to_owned()))?;
    if version < verb.since() {
        return Err(HeadError::VerbTooNew { verb, version });
    }
    Ok(version)
}

/// Whether `text` is `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, the form of network names and container ids.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::{HeadError, check_name, check_version, is_identifier};
    use crate::version::{SpecVersion, Verb};

    #[test]
    fn a_name_is_there_and_keeps_to_its_form() {
        assert_eq!(check_name(Some("net-1.a_b")), Ok("net-1.a_b"));
        assert_eq!(check_name(None), Err(HeadError::NameMissing));
        assert_eq!(check_name(Some("")), Err(HeadError::NameMissing));
        for name in ["../x", "a\0b", "-a", ".a", "a b", "ä"] {
            assert_eq!(check_name(Some(name)), Err(HeadError::NameInvalid(name.to_owned())));
        }
    }

    #[test]
    fn the_version_is_checked_before_the_verb() {
        for version in ["9.9.9", "1.0", "abc"] {
            let expected = Err(HeadError::UnknownVersion(version.to_owned()));
            assert_eq!(check_version(Some(version), Verb::Gc), expected);
        }
        assert_eq!(check_version(None, Verb::Add), Ok(SpecVersion::V0_1_0));
    }

    #[test]
    fn every_verb_is_allowed_from_its_first_version_on() {
        for version in SpecVersion::ALL {
            for verb in Verb::ALL {
                let expected =
                    if version < verb.since() { Err(HeadError::VerbTooNew { verb, version }) } else { Ok(version) };
                assert_eq!(check_version(Some(version.as_str()), verb), expected);
            }
        }
    }

    #[test]
    fn identifiers_have_no_limit_of_length() {
        assert!(is_identifier(&"a".repeat(250)));
        assert!(is_identifier("0_.-Z"));
        assert!(!is_identifier(""));
    }
}
