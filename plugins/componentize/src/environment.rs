//! Which environment variables a cargo started by a build script may see.
//!
//! The outer cargo describes *its* build to a build script: flags, wrappers, target, output folders. Handed on, they
//! would compile the guest with clippy, with the host's flags, or into the folder that the outer cargo has locked.

/// Set by cargo for build scripts and by users for the host's build: never for a guest.
const KEPT_BACK: [&str; 14] = [
    "CLIPPY_ARGS",
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "TARGET",
];

/// The few words of cargo's own that say where it lives, how it reaches its registry, and with how many jobs.
const CARGO_PASSED_ON: [&str; 6] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];

/// Whether a nested cargo may see the variable `name`.
pub(crate) fn passes_to_a_nested_build(name: &str) -> bool {
    if name.starts_with("CARGO_") {
        return CARGO_PASSED_ON.iter().any(|kept| name.starts_with(kept));
    }
    !(name.starts_with("DEP_") || KEPT_BACK.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_the_outer_build_stays_outside() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_FEATURE_STD",
            "CARGO_MANIFEST_DIR",
            "CLIPPY_ARGS",
            "DEP_Z_ROOT",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "TARGET",
        ] {
            assert!(!passes_to_a_nested_build(name), "{name}");
        }
    }

    #[test]
    fn where_cargo_lives_and_whose_jobs_it_shares_goes_on() {
        for name in ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE", "HOME", "PATH", "RUSTC", "RUSTUP_TOOLCHAIN"]
        {
            assert!(passes_to_a_nested_build(name), "{name}");
        }
    }
}
