//! What the shim prints by itself: error objects and the list of versions.

use std::io::Write as _;
use std::process::ExitCode;

use culvert_cni::code::Code;
use culvert_cni::version::SpecVersion;

use crate::json;

/// Why a call failed, in the words the runtime shall see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub code: Code,
    /// What failed, on which object, what to do.
    pub message: String,
    /// The version to answer in.
    pub version: SpecVersion,
}

impl Failure {
    /// A failure, answered in the latest version unless [`Self::in_version`] says otherwise.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), version: SpecVersion::LATEST }
    }

    /// The same failure, answered in another version.
    #[must_use]
    pub fn in_version(self, version: SpecVersion) -> Self {
        Self { version, ..self }
    }

    /// The error object of the specification.
    pub fn object(&self) -> String {
        let mut text = String::from("{\"cniVersion\":");
        json::push_string(&mut text, self.version.as_str());
        text.push_str(",\"code\":");
        text.push_str(&self.code.number().to_string());
        text.push_str(",\"msg\":");
        json::push_string(&mut text, &self.message);
        text.push('}');
        text
    }
}

/// The answer to VERSION.
pub fn version_list(version: SpecVersion) -> String {
    let mut text = String::from("{\"cniVersion\":");
    json::push_string(&mut text, version.as_str());
    text.push_str(",\"supportedVersions\":[");
    for (position, supported) in SpecVersion::ALL.into_iter().enumerate() {
        if position > 0 {
            text.push(',');
        }
        json::push_string(&mut text, supported.as_str());
    }
    text.push_str("]}");
    text
}

/// Prints an answer; the exit status says whether all of it was written.
pub fn print(text: &str) -> ExitCode {
    match write(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes bytes to the runtime and makes sure that they left the process.
///
/// **Errors** the runtime closed its end, or its file system is full.
pub fn write(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use culvert_cni::code::Code;
    use culvert_cni::version::SpecVersion;
    use serde_json::{Value, json};

    use super::{Failure, version_list};

    #[test]
    fn the_error_object_is_json_whatever_the_message_holds() {
        let message = "a \"quoted\" \\ name\nwith \u{1} and ü";
        let failure = Failure::new(Code::InvalidNamespace, message).in_version(SpecVersion::V0_4_0);
        let read: Value = serde_json::from_str(&failure.object()).unwrap();
        assert_eq!(read, json!({"cniVersion": "0.4.0", "code": 8, "msg": message}));
    }

    #[test]
    fn the_version_list_names_all_and_repeats_the_version_asked_in() {
        let read: Value = serde_json::from_str(&version_list(SpecVersion::V0_3_1)).unwrap();
        let supported = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(read, json!({"cniVersion": "0.3.1", "supportedVersions": supported}));
    }
}
