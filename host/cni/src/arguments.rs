//! CNI_ARGS: `KEY=VALUE;KEY=VALUE`, in any order, with keys that are none of ours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which pod an attachment belongs to, as the runtime said; empty texts when it did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodIdentity {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID.
    pub uid: String,
}

/// A part of CNI_ARGS that is no `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI_ARGS has {0:?}; write KEY=VALUE pairs with ';' between them")]
pub struct ArgumentError(pub String);

/// The pairs of CNI_ARGS; of a repeated key the last counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    /// Reads all pairs. Unknown keys are accepted whether or not `IgnoreUnknown` is there.
    ///
    /// **Errors** the first part without exactly one `=`.
    pub fn parse(text: &str) -> Result<Self, ArgumentError> {
        let parts = text.split(';').filter(|part| !part.is_empty());
        let pair = |part: &str| pair(part).ok_or_else(|| ArgumentError(part.to_owned()));
        parts.map(pair).collect::<Result<_, _>>().map(Self)
    }

    /// Reads the pairs that can be read and drops the rest: DEL must work whatever comes.
    #[must_use]
    pub fn parse_leniently(text: &str) -> Self {
        Self(text.split(';').filter_map(pair).collect())
    }

    /// The value of a key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The pod's names.
    #[must_use]
    pub fn pod(&self) -> PodIdentity {
        let owned = |key| self.value(key).unwrap_or_default().to_owned();
        PodIdentity { namespace: owned("K8S_POD_NAMESPACE"), name: owned("K8S_POD_NAME"), uid: owned("K8S_POD_UID") }
    }
}

fn pair(part: &str) -> Option<(String, String)> {
    let (key, value) = part.split_once('=')?;
    (!key.is_empty() && !value.contains('=')).then(|| (key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{ArgumentError, Arguments, PodIdentity};

    #[test]
    fn the_pod_is_found_in_any_order_among_unknown_keys() {
        let text = "K8S_POD_UID=u-1;IgnoreUnknown=1;K8S_POD_NAME=web-0;OTHER=x;K8S_POD_NAMESPACE=shop;";
        let pod = PodIdentity { namespace: "shop".into(), name: "web-0".into(), uid: "u-1".into() };
        assert_eq!(Arguments::parse(text).unwrap().pod(), pod);
        assert_eq!(Arguments::parse("").unwrap().pod(), PodIdentity::default());
        assert_eq!(Arguments::parse("K8S_POD_NAME=").unwrap().pod(), PodIdentity::default());
    }

    #[test]
    fn malformed_pairs_are_refused_and_skipped_when_lenient() {
        for wrong in ["FOO", "A=B=C", "=B"] {
            assert_eq!(Arguments::parse(&format!("X=1;{wrong}")), Err(ArgumentError(wrong.to_owned())));
            assert_eq!(Arguments::parse_leniently(&format!("X=1;{wrong}")).value("X"), Some("1"));
        }
    }
}
