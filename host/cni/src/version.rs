//! Versions of the specification and the verbs each of them has.

use std::fmt;

/// A version of the specification that Culvert speaks. Ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecVersion {
    /// 0.1.0, also meant by a missing or empty `cniVersion`.
    V0_1_0,
    /// 0.2.0.
    V0_2_0,
    /// 0.3.0.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0, the first with CHECK.
    V0_4_0,
    /// 1.0.0, the first without `version` in `ips`.
    V1_0_0,
    /// 1.1.0, the first with STATUS and GC.
    V1_1_0,
}

impl SpecVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest one.
    pub const LATEST: Self = Self::V1_1_0;

    /// The version written exactly like this; empty means 0.1.0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// As written in a configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// All versions as one text, for messages.
    #[must_use]
    pub fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What the runtime asks for (CNI_COMMAND).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Take an attachment away.
    Del,
    /// Compare an attachment with what ADD made.
    Check,
    /// Remove what belongs to none of the attachments listed.
    Gc,
    /// Say whether an ADD would be served.
    Status,
    /// List the versions.
    Version,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// The verb written exactly like this, in capitals.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text)
    }

    /// As in CNI_COMMAND.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The first version that has this verb.
    #[must_use]
    pub fn since(self) -> SpecVersion {
        match self {
            Self::Add | Self::Del | Self::Version => SpecVersion::V0_1_0,
            Self::Check => SpecVersion::V0_4_0,
            Self::Gc | Self::Status => SpecVersion::V1_1_0,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::{SpecVersion, Verb};

    #[test]
    fn versions_match_exactly_and_empty_means_the_oldest() {
        for version in SpecVersion::ALL {
            assert_eq!(SpecVersion::parse(version.as_str()), Some(version));
        }
        assert_eq!(SpecVersion::parse(""), Some(SpecVersion::V0_1_0));
        for unknown in ["9.9.9", "1.0", "abc", "v1.0.0", " 1.0.0", "1.0.0 ", "1.2.0", "0.3.2"] {
            assert_eq!(SpecVersion::parse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn versions_are_ordered_by_age() {
        assert!(SpecVersion::ALL.is_sorted());
        assert_eq!(SpecVersion::LATEST, SpecVersion::ALL[6]);
        assert_eq!(SpecVersion::list(), "0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0");
    }

    #[test]
    fn verbs_are_written_in_capitals() {
        for verb in Verb::ALL {
            assert_eq!(Verb::parse(verb.as_str()), Some(verb));
            assert_eq!(Verb::parse(&verb.as_str().to_lowercase()), None);
        }
        assert_eq!(Verb::parse(""), None);
        assert_eq!(Verb::parse("ADD "), None);
    }
}
