//! For build scripts: compiles policies of the same workspace and leaves them where `include_bytes!` finds them.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Component, ComponentizeError, build_component};

/// Why the policies cannot be embedded.
#[derive(Debug, thiserror::Error)]
enum EmbedError {
    #[error("`{0}` is not set: this function is for build scripts that cargo runs")]
    NotABuildScript(&'static str),
    #[error(transparent)]
    Componentize(#[from] ComponentizeError),
    #[error("cannot write the component {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Builds each of `packages` and writes `$OUT_DIR/<package>.wasm`.
///
/// The guests get a target folder of their own, `guests` in the target folder of the running cargo, so the two never
/// wait for each other's lock, and all build scripts share what is compiled there. cargo is told which files the
/// guests were made of, so it runs the script again when one of them changes, and only then.
///
/// Ends the build script with status 1 and the reason as a cargo error when a guest cannot be built.
pub fn embed_guests(packages: &[&str]) {
    let done = embed(packages);
    if let Err(error) = done {
        report(&error);
        std::process::exit(1);
    }
}

fn embed(packages: &[&str]) -> Result<(), EmbedError> {
    let manifest_folder = folder_from("CARGO_MANIFEST_DIR")?;
    let out_folder = folder_from("OUT_DIR")?;
    let target_folder = guests_folder(&out_folder);
    let mut inputs = BTreeSet::new();
    for package in packages {
        let component = build_component(&manifest_folder, package, &target_folder)?;
        inputs.extend(inputs_of(&component));
        let path = out_folder.join(format!("{package}.wasm"));
        std::fs::write(&path, &component.bytes).map_err(|source| EmbedError::Write { path, source })?;
    }
    inputs.extend(lock_file_above(&manifest_folder));
    for input in inputs {
        tell_cargo(&format!("rerun-if-changed={}", input.display()));
    }
    Ok(())
}

fn folder_from(variable: &'static str) -> Result<PathBuf, EmbedError> {
    std::env::var_os(variable).map(PathBuf::from).ok_or(EmbedError::NotABuildScript(variable))
}

/// cargo marks the root of its target folder with `CACHEDIR.TAG`. Without the mark the guests go below `OUT_DIR`,
/// where they are built apart but correctly.
fn guests_folder(out_folder: &Path) -> PathBuf {
    let root = out_folder.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    root.unwrap_or(out_folder).join("guests")
}

/// The sources, and the manifest of the crate that each lies in.
fn inputs_of(component: &Component) -> BTreeSet<PathBuf> {
    let manifests = component.sources.iter().filter_map(|source| {
        source.ancestors().skip(1).map(|folder| folder.join("Cargo.toml")).find(|manifest| manifest.is_file())
    });
    manifests.chain(component.sources.iter().cloned()).collect()
}

/// The lock file of the workspace: other versions of the dependencies make another component.
fn lock_file_above(manifest_folder: &Path) -> Option<PathBuf> {
    manifest_folder.ancestors().map(|folder| folder.join("Cargo.lock")).find(|lock| lock.is_file())
}

fn report(error: &EmbedError) {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    for line in text.lines() {
        tell_cargo(&format!("error={line}"));
    }
}

/// A cargo that no longer listens has ended the build, so there is nobody left to tell of a failed write.
fn tell_cargo(message: &str) {
    let _ = writeln!(std::io::stdout(), "cargo::{message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_built_beside_the_profiles_of_the_target_folder() {
        let target = tempfile::tempdir().unwrap();
        std::fs::write(target.path().join("CACHEDIR.TAG"), "").unwrap();
        let out = target.path().join("release/build/shipped-0123/out");
        assert_eq!(guests_folder(&out), target.path().join("guests"));
    }

    #[test]
    fn guests_are_built_below_out_dir_when_the_target_folder_is_not_marked() {
        let out = tempfile::tempdir().unwrap();
        assert_eq!(guests_folder(out.path()), out.path().join("guests"));
    }

    #[test]
    fn the_manifest_of_each_source_is_an_input_too() {
        let workspace = tempfile::tempdir().unwrap();
        let source = workspace.path().join("sdk/src/lib.rs");
        std::fs::create_dir_all(workspace.path().join("sdk/src")).unwrap();
        std::fs::write(&source, "").unwrap();
        let manifest = workspace.path().join("sdk/Cargo.toml");
        std::fs::write(&manifest, "").unwrap();
        let component =
            Component { bytes: Vec::new(), core_size: 0, exports: Vec::new(), sources: vec![source.clone()] };
        assert_eq!(inputs_of(&component), BTreeSet::from([manifest, source]));
    }
}
