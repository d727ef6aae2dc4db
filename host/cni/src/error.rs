//! The error that a runtime sees, as a JSON object on stdout.

use serde_json::{Value, json};

use crate::arguments::ArgumentError;
use crate::code::Code;
use crate::environment::EnvironmentError;
use crate::frame::Reply;
use crate::netconf::ConfigError;
use crate::result::ResultError;
use crate::version::SpecVersion;

/// The exit status of every failed call; the code inside the object says what failed.
pub const FAILED: u8 = 1;

/// A failure in the specification's terms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// What kind of failure.
    pub code: Code,
    /// What failed, on which object, what to do.
    pub message: String,
    /// More, for whoever looks closer; may be empty.
    pub details: String,
}

impl CniError {
    /// A failure without details.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The same failure with details.
    #[must_use]
    pub fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The object of the specification; `details` is left out when empty.
    ///
    /// **Source** SPEC.md, section "Error".
    #[must_use]
    pub fn to_json(&self, version: SpecVersion) -> Value {
        let mut object = json!({"cniVersion": version.as_str(), "code": self.code.number(), "msg": self.message});
        if let Some(map) = object.as_object_mut().filter(|_| !self.details.is_empty()) {
            map.insert("details".to_owned(), Value::String(self.details.clone()));
        }
        object
    }

    /// What the shim prints and exits with.
    #[must_use]
    pub fn to_reply(&self, version: SpecVersion) -> Reply {
        Reply { exit_code: FAILED, stdout: self.to_json(version).to_string().into_bytes() }
    }
}

impl From<EnvironmentError> for CniError {
    fn from(error: EnvironmentError) -> Self {
        Self::new(Code::InvalidEnvironment, error.to_string())
    }
}

impl From<ArgumentError> for CniError {
    fn from(error: ArgumentError) -> Self {
        Self::new(Code::InvalidEnvironment, error.to_string())
    }
}

impl From<ConfigError> for CniError {
    fn from(error: ConfigError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<ResultError> for CniError {
    fn from(error: ResultError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::CniError;
    use crate::code::Code;
    use crate::frame::Reply;
    use crate::version::SpecVersion;

    #[test]
    fn the_object_has_version_code_message_and_details_if_any() {
        let error = CniError::new(Code::TryAgainLater, "pool \"10.0.0.0/8\" is exhausted");
        let object = json!({"cniVersion": "1.0.0", "code": 11, "msg": "pool \"10.0.0.0/8\" is exhausted"});
        assert_eq!(error.to_json(SpecVersion::V1_0_0), object);
        let detailed = error.with_details("254 of 254 in use").to_json(SpecVersion::V0_4_0);
        assert_eq!(detailed["details"], json!("254 of 254 in use"));
    }

    #[test]
    fn the_reply_is_the_object_and_a_failed_exit() {
        let reply = CniError::new(Code::Io, "x").to_reply(SpecVersion::V0_3_1);
        let expected = Reply { exit_code: 1, stdout: br#"{"cniVersion":"0.3.1","code":5,"msg":"x"}"#.to_vec() };
        assert_eq!(reply, expected);
    }
}
