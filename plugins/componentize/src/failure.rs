//! Reads cargo's words when a guest did not build, and says what to do where that is known.

use crate::{ComponentizeError, GUEST_TARGET};

/// The error for a cargo that failed with `stderr`.
pub(crate) fn explain(package: &str, stderr: &str) -> ComponentizeError {
    let package = package.to_owned();
    if stderr.contains(&format!("`{GUEST_TARGET}` target may not be installed")) {
        return ComponentizeError::TargetMissing { package };
    }
    ComponentizeError::CargoFailed { package, stderr: stderr.trim_end().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_target_is_answered_with_the_command_that_adds_it() {
        let stderr = "error[E0463]: can't find crate for `core`\n  |\n  = note: the `wasm32-unknown-unknown` target may \
                      not be installed\n";
        assert_eq!(
            explain("route-sites", stderr).to_string(),
            "cannot build the policy `route-sites`: the Rust target wasm32-unknown-unknown is not installed; \
             run `rustup target add wasm32-unknown-unknown`"
        );
    }

    #[test]
    fn any_other_failure_shows_what_cargo_wrote() {
        assert_eq!(
            explain("route-sites", "error: expected `;`\n").to_string(),
            "cannot build the policy `route-sites`; cargo says:\nerror: expected `;`"
        );
    }
}
