//! What a policy says of itself when it is configured.

/// A key whose value the policy would like to see. Asking is not having: the deployment must grant the same key, or
/// the host refuses the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// A label of nodes.
    NodeLabel(String),
    /// A label of pods.
    PodLabel(String),
    /// An annotation of pods.
    PodAnnotation(String),
    /// [`crate::bandwidth::Pod::minute_of_week`].
    Clock,
}

/// What a policy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name, "acme-rack-router" say.
    pub name: String,
    /// Its own version, semver.
    pub version: String,
    /// What it would like to see. **Bounds** the host refuses more than 256.
    pub wants: Vec<Want>,
}

impl Description {
    /// A policy that wants nothing. `env!("CARGO_PKG_NAME")` and `env!("CARGO_PKG_VERSION")` are good arguments.
    #[must_use]
    pub fn new(name: &str, version: &str) -> Self {
        Self { name: name.to_owned(), version: version.to_owned(), wants: Vec::new() }
    }

    /// The same policy with one more want.
    #[must_use]
    pub fn wanting(mut self, want: Want) -> Self {
        self.wants.push(want);
        self
    }
}
