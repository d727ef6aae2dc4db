//! Turns a policy crate into a component: for the build scripts that ship policies, for `cargo xtask component`
//! and for the author's tools.
//!
//! ```text
//! crate --cargo rustc, wasm32--> core module --wit-component--> component --strip--> bytes that a node loads
//! ```
//!
//! Nothing but the Rust target `wasm32-unknown-unknown` has to be installed. That target has no WASI, so a component
//! built here imports nothing except `culvert:policy`.

mod build;
mod build_script;
mod environment;
mod failure;
mod sections;
mod strip;

use std::path::PathBuf;

pub use build::build_component;
pub use build_script::embed_guests;
pub use strip::{StripError, strip};

/// The target that guests are compiled for.
pub const GUEST_TARGET: &str = "wasm32-unknown-unknown";

/// A policy, ready to be loaded by a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The component, validated and without names or tool records.
    pub bytes: Vec<u8>,
    /// **Units** bytes of the core module as the linker wrote it.
    pub core_size: usize,
    /// The interfaces it exports, say `culvert:policy/router@0.1.0`, in the order of its world.
    pub exports: Vec<String>,
    /// The files of the workspace that it was built from; empty for a module that was handed over as bytes.
    pub sources: Vec<PathBuf>,
}

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum ComponentizeError {
    /// The compiler has no standard library for guests.
    #[error(
        "cannot build the policy `{package}`: the Rust target {GUEST_TARGET} is not installed; \
         run `rustup target add {GUEST_TARGET}`"
    )]
    TargetMissing {
        /// The crate that was to be built.
        package: String,
    },
    /// cargo could not be started.
    #[error("cannot build the policy `{package}`: cannot run `{cargo}`; is cargo on the PATH?")]
    CargoNotRun {
        /// The crate that was to be built.
        package: String,
        /// The program that was tried.
        cargo: String,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// cargo ran and failed.
    #[error("cannot build the policy `{package}`; cargo says:\n{stderr}")]
    CargoFailed {
        /// The crate that was to be built.
        package: String,
        /// Everything cargo wrote to its standard error.
        stderr: String,
    },
    /// cargo succeeded, but what it built is not where it should be.
    #[error(
        "cannot read what cargo built for the policy `{package}`: {path}; \
         the crate needs a library that is named like the crate"
    )]
    ArtifactUnreadable {
        /// The crate that was built.
        package: String,
        /// The file that was looked for.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// The module carries no policy.
    #[error(
        "`{package}` exports no policy; call `culvert_policy_sdk::export_route!`, `export_ipam!` or \
         `export_bandwidth!` once in its lib.rs"
    )]
    NothingExported {
        /// The crate or file at fault.
        package: String,
    },
    /// The module cannot be made a component.
    #[error("cannot make a component of `{package}`: {reason}")]
    EncodeFailed {
        /// The crate or file at fault.
        package: String,
        /// What wit-component says.
        reason: String,
    },
    /// The component that came out cannot be stripped.
    #[error("cannot strip the component of `{package}`")]
    StripFailed {
        /// The crate or file at fault.
        package: String,
        /// Where its bytes make no sense.
        #[source]
        source: StripError,
    },
}

/// Makes a component of a core module that carries its world in `component-type` sections, as wit-bindgen writes them.
///
/// `package` names the module in messages.
///
/// # Errors
/// [`ComponentizeError::NothingExported`] when the module exports no interface, [`ComponentizeError::EncodeFailed`]
/// when it is no valid module or does not fit its own world.
pub fn encode(package: &str, core_module: &[u8]) -> Result<Component, ComponentizeError> {
    let exports = exported_interfaces(package, core_module)?;
    if exports.is_empty() {
        return Err(ComponentizeError::NothingExported { package: package.to_owned() });
    }
    let failed = |reason: String| ComponentizeError::EncodeFailed { package: package.to_owned(), reason };
    let component = wit_component::ComponentEncoder::default()
        .validate(true)
        .module(core_module)
        .and_then(|encoder| encoder.encode())
        .map_err(|error| failed(format!("{error:#}")))?;
    let bytes =
        strip(&component).map_err(|source| ComponentizeError::StripFailed { package: package.to_owned(), source })?;
    Ok(Component { bytes, core_size: core_module.len(), exports, sources: Vec::new() })
}

fn exported_interfaces(package: &str, core_module: &[u8]) -> Result<Vec<String>, ComponentizeError> {
    let (_, bound) = wit_component::metadata::decode(core_module).map_err(|error| ComponentizeError::EncodeFailed {
        package: package.to_owned(),
        reason: format!("{error:#}"),
    })?;
    let Some(world) = bound.resolve.worlds.get(bound.world) else {
        return Ok(Vec::new());
    };
    Ok(world.exports.keys().map(|key| bound.resolve.name_world_key(key)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shortest core module: magic and version.
    const EMPTY_MODULE: &[u8] = b"\0asm\x01\0\0\0";

    #[test]
    fn a_module_without_a_world_is_refused_with_the_macro_to_call() {
        let error = encode("my-policy", EMPTY_MODULE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`my-policy` exports no policy; call `culvert_policy_sdk::export_route!`, `export_ipam!` or \
             `export_bandwidth!` once in its lib.rs"
        );
    }

    #[test]
    fn bytes_that_are_no_module_are_refused_by_name() {
        let error = encode("my-policy", b"#!/bin/sh").unwrap_err();
        assert!(matches!(&error, ComponentizeError::EncodeFailed { package, .. } if package == "my-policy"), "{error}");
    }

    #[test]
    fn a_component_is_not_taken_for_a_core_module() {
        let error = encode("my-policy", b"\0asm\x0d\0\x01\0").unwrap_err();
        assert_eq!(error.to_string(), "cannot make a component of `my-policy`: decoding a component is not supported");
    }
}
