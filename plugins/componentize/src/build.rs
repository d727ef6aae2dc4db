//! Compiles a policy crate to a core module with cargo and makes it a component.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::passes_to_a_nested_build;
use crate::failure::explain;
use crate::{Component, ComponentizeError, GUEST_TARGET, encode};

/// Guests travel in ConfigMaps, so bytes count. Given on the command line, so that a crate of any workspace is built
/// the same way, whatever profiles its manifest has.
const GUEST_PROFILE: [&str; 9] = [
    r#"profile.guest.inherits="release""#,
    r#"profile.guest.opt-level="s""#,
    r#"profile.guest.lto="fat""#,
    r#"profile.guest.codegen-units=1"#,
    r#"profile.guest.panic="abort""#,
    r#"profile.guest.strip=true"#,
    r#"profile.guest.debug=false"#,
    r#"profile.guest.incremental=false"#,
    r#"profile.guest.overflow-checks=false"#,
];

/// **Units** bytes of the guest's own stack. Rust reserves 1 MiB, which makes 17 pages of memory before the first
/// allocation; policies are shallow, and the host gives a call 256 KiB of machine stack anyway.
const GUEST_STACK_BYTES: u32 = 65_536;

/// Builds the library `package` of the workspace at `manifest_folder` and makes a component of it.
///
/// `target_folder` must not be the one that a running cargo holds: a build script that shares it with the cargo that
/// runs it waits for ever.
///
/// # Errors
/// The compiler's own words in [`ComponentizeError::CargoFailed`], or the remedy when the target is missing; see
/// [`encode`] for the rest.
pub fn build_component(
    manifest_folder: &Path,
    package: &str,
    target_folder: &Path,
) -> Result<Component, ComponentizeError> {
    run_cargo(manifest_folder, package, target_folder)?;
    let module = read_module(package, target_folder)?;
    let component = encode(package, &module)?;
    Ok(Component { sources: read_sources(package, target_folder)?, ..component })
}

fn run_cargo(manifest_folder: &Path, package: &str, target_folder: &Path) -> Result<(), ComponentizeError> {
    let mut command = cargo_command(manifest_folder, package, target_folder);
    let output = command.output().map_err(|source| ComponentizeError::CargoNotRun {
        package: package.to_owned(),
        cargo: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(explain(package, &String::from_utf8_lossy(&output.stderr)))
}

/// `cargo rustc`, so that a policy is an ordinary library: the crate type and the stack are said here and for this
/// crate alone, and its dependencies need no flags of their own.
fn cargo_command(manifest_folder: &Path, package: &str, target_folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.env_clear();
    command.envs(std::env::vars_os().filter(|(name, _)| passes_to_a_nested_build(&name.to_string_lossy())));
    command.current_dir(manifest_folder);
    command.args(["rustc", "--quiet", "--lib", "--crate-type", "cdylib", "--profile", "guest"]);
    command.args(["--package", package, "--target", GUEST_TARGET]);
    command.arg("--target-dir").arg(target_folder);
    command.arg("--manifest-path").arg(manifest_folder.join("Cargo.toml"));
    for setting in GUEST_PROFILE {
        command.args(["--config", setting]);
    }
    command.arg("--").args(["-C", &format!("link-arg=-zstack-size={GUEST_STACK_BYTES}")]);
    command
}

/// Where cargo puts what it builds for guests, with the extension still to be added.
fn artifact(package: &str, target_folder: &Path) -> PathBuf {
    target_folder.join(GUEST_TARGET).join("guest").join(package.replace('-', "_"))
}

fn read_module(package: &str, target_folder: &Path) -> Result<Vec<u8>, ComponentizeError> {
    let path = artifact(package, target_folder).with_extension("wasm");
    std::fs::read(&path).map_err(|source| ComponentizeError::ArtifactUnreadable {
        package: package.to_owned(),
        path,
        source,
    })
}

fn read_sources(package: &str, target_folder: &Path) -> Result<Vec<PathBuf>, ComponentizeError> {
    let path = artifact(package, target_folder).with_extension("d");
    let text = std::fs::read_to_string(&path).map_err(|source| ComponentizeError::ArtifactUnreadable {
        package: package.to_owned(),
        path,
        source,
    })?;
    Ok(parse_dependency_file(&text))
}

/// The paths on the right of `target: source source …`; cargo writes a space inside a path as `\ `.
fn parse_dependency_file(text: &str) -> Vec<PathBuf> {
    let Some((_, sources)) = text.split_once(": ") else {
        return Vec::new();
    };
    let sources = sources.lines().next().unwrap_or_default().replace("\\ ", "\0");
    sources.split_whitespace().map(|path| PathBuf::from(path.replace('\0', " "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_from_cargo_s_dependency_file() {
        assert_eq!(
            parse_dependency_file("/t/route_sites.wasm: /w/sdk/src/lib.rs /w/my\\ wit/types.wit\n"),
            [PathBuf::from("/w/sdk/src/lib.rs"), PathBuf::from("/w/my wit/types.wit")]
        );
    }

    #[test]
    fn a_dependency_file_without_sources_names_none() {
        assert_eq!(parse_dependency_file(""), Vec::<PathBuf>::new());
    }

    #[test]
    fn artifacts_are_named_like_the_crate_with_underscores() {
        assert_eq!(artifact("route-sites", Path::new("/t")), Path::new("/t/wasm32-unknown-unknown/guest/route_sites"));
    }

    #[test]
    fn a_crate_that_is_not_in_the_workspace_is_refused_in_cargo_s_words() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            build_component(Path::new(env!("CARGO_MANIFEST_DIR")), "no-such-policy", folder.path()).unwrap_err();
        assert!(
            matches!(&error, ComponentizeError::CargoFailed { package, stderr }
                if package == "no-such-policy" && stderr.contains("no-such-policy")),
            "{error}"
        );
    }
}
