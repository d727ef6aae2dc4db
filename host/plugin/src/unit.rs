//! A plugin as it is delivered: a component and its settings, one identity.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

/// A component with its settings. They are activated and taken back together.
#[derive(Clone, PartialEq, Eq)]
pub struct Unit {
    /// The name operators know it by; the sub-folder's in a watched folder.
    pub name: String,
    /// The bytes of the component.
    pub component: Arc<[u8]>,
    /// JSON text, `{}` when there are none.
    pub settings: String,
    /// Where it came from.
    pub origin: Origin,
}

impl fmt::Debug for Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Unit")
            .field("name", &self.name)
            .field("component_bytes", &self.component.len())
            .field("settings", &self.settings)
            .field("origin", &self.origin)
            .finish()
    }
}

impl Unit {
    /// The identity: same content never needs loading again, changed content always does. The name and
    /// the origin do not count.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        // The length in front keeps a byte that moves between the two from giving the same digest.
        hasher.update((self.component.len() as u64).to_le_bytes());
        hasher.update(&self.component);
        hasher.update(self.settings.as_bytes());
        Digest(hasher.finalize().into())
    }
}

/// Where a unit came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Shipped with the daemon.
    Shipped,
    /// This sub-folder of a watched folder.
    Folder(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shipped => formatter.write_str("shipped"),
            Self::Folder(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The first twelve hexadecimal digits, for tables read by people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

/// What a policy decides. Found from the exports of its component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Routes: world `router-policy`.
    Route,
    /// Blocks and addresses: world `ipam-policy`.
    Ipam,
    /// Rates: world `bandwidth-policy`.
    Bandwidth,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Route, Self::Ipam, Self::Bandwidth];

    /// The word used in configuration, status and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Ipam => "ipam",
            Self::Bandwidth => "bandwidth",
        }
    }

    /// The interface of `culvert:policy` that marks the kind.
    pub(crate) fn interface(self) -> &'static str {
        match self {
            Self::Route => "router",
            Self::Ipam => "ipam",
            Self::Bandwidth => "bandwidth",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.label())
    }
}

/// What a policy says of itself in `configure`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Its own name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// The keys it wants to see. **Bounds** at most [`WANTS`].
    pub wants: Vec<Want>,
}

/// The most keys a policy may want: each one is looked up in each label set of each call.
pub const WANTS: usize = 256;

/// A key whose value a policy wants to see.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// A label of a node.
    NodeLabel(String),
    /// A label of a pod.
    PodLabel(String),
    /// An annotation of a pod.
    PodAnnotation(String),
    /// The time of the week.
    Clock,
}

impl Description {
    /// Whether the policy must be asked again at each change of the minute.
    #[must_use]
    pub fn wants_clock(&self) -> bool {
        self.wants.contains(&Want::Clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(component: &[u8], settings: &str) -> Unit {
        Unit {
            name: "unit".to_owned(),
            component: component.into(),
            settings: settings.to_owned(),
            origin: Origin::Shipped,
        }
    }

    #[test]
    fn identity_is_component_and_settings_and_nothing_else() {
        let one = unit(b"component", "{}");
        let renamed = Unit { name: "other".to_owned(), origin: Origin::Folder("/p/other".into()), ..one.clone() };
        assert_eq!(one.digest(), renamed.digest());
        assert_ne!(one.digest(), unit(b"component", "{ }").digest());
        assert_ne!(one.digest(), unit(b"componenT", "{}").digest());
        assert_ne!(unit(b"ab", "c").digest(), unit(b"a", "bc").digest());
    }

    #[test]
    fn a_digest_reads_as_hexadecimal() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
    }
}
