//! Builds what runs and lays it into `target/culvert`, so that later cargo calls with other features do not
//! change it under a test's hands.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use culvert_lab::binaries::workspace;

use crate::screen;

/// The shim's target: static, so that it runs on any node.
const SHIM_TARGET: &str = "x86_64-unknown-linux-musl";

/// Where everything is laid.
pub(crate) fn folder() -> PathBuf {
    workspace().join("target/culvert")
}

/// A cargo command in the workspace, without what the outer cargo set for xtask itself.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.args(arguments).current_dir(workspace());
    command
}

/// Builds all programs and test plugins.
///
/// # Errors
/// cargo fails; its output is in the text.
pub(crate) fn everything() -> Result<()> {
    let release = workspace().join("target/release");
    let shim = workspace().join("target").join(SHIM_TARGET).join("shim");
    std::fs::create_dir_all(folder().join("guests"))?;
    build("the daemon and its CLI", &["build", "--release", "--package", "culvert-daemon"])?;
    lay(&release, &["culvertd", "culvertctl"])?;
    // Apart from the daemon, because features unify within one call: the daemon must not get the compiler.
    build("the plugin compiler", &["build", "--release", "--package", "culvert-compile"])?;
    lay(&release, &["culvert-compile"])?;
    build("the CNI shim", &["build", "--profile", "shim", "--target", SHIM_TARGET, "--package", "culvert-shim"])?;
    lay(&shim, &["culvert"])?;
    link_loopback()?;
    build("the probes", &["build", "--release", "--package", "culvert-lab"])?;
    lay(&release, &["lab-probe"])?;
    screen::step("build the test plugins", |step| guests(&|name| step.show(name)))
}

/// Builds the daemon of the kill test, with its own name for a folder: it must never be taken for the shipped one.
///
/// # Errors
/// As [`everything`].
pub(crate) fn kill_points() -> Result<()> {
    let place = folder().join(culvert_kill::lane::TEST_BUILD);
    std::fs::create_dir_all(&place)?;
    let features = ["--features", "kill-points", "--bin", "culvertd"];
    let arguments = [&["build", "--release", "--package", "culvert-daemon"], &features[..]].concat();
    build("the daemon of the kill test", &arguments)?;
    lay_into(&place, &workspace().join("target/release"), &["culvertd"])
}

fn build(what: &str, arguments: &[&str]) -> Result<()> {
    screen::step(&format!("build {what}"), |step| screen::run_in_step(step, &mut cargo(arguments)))
}

/// Copies programs into the folder. By rename, because the old ones may be running.
fn lay(from: &Path, names: &[&str]) -> Result<()> {
    lay_into(&folder(), from, names)
}

fn lay_into(folder: &Path, from: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let (place, fresh) = (folder.join(name), folder.join(format!(".{name}.new")));
        std::fs::copy(from.join(name), &fresh)
            .and_then(|_| std::fs::rename(&fresh, &place))
            .with_context(|| format!("cannot lay {name} into {}", folder.display()))?;
    }
    Ok(())
}

/// The shim answers as `loopback` by the name it is called.
fn link_loopback() -> Result<()> {
    let place = folder().join("loopback");
    if !place.is_symlink() {
        symlink("culvert", &place).with_context(|| format!("cannot link {}", place.display()))?;
    }
    Ok(())
}

/// Builds every test plugin, telling each name.
fn guests(tell: &dyn Fn(&str)) -> Result<()> {
    let target = workspace().join("target/guests");
    for package in guest_packages()? {
        tell(&package);
        let component = culvert_componentize::build_component(workspace(), &package, &target)?;
        let place = folder().join("guests").join(format!("{package}.wasm"));
        std::fs::write(&place, component.bytes).with_context(|| format!("cannot write {}", place.display()))?;
    }
    Ok(())
}

/// The crates below `tests/guests` that are plugins, by their manifests.
fn guest_packages() -> Result<Vec<String>> {
    let mut metadata = cargo(&["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    metadata.stderr(std::process::Stdio::null());
    let printed = culvert_lab::command::finish(metadata, "cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_str(&printed)?;
    let folder = workspace().join("tests/guests/").display().to_string();
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    let guests = packages
        .iter()
        .filter(|package| package["manifest_path"].as_str().is_some_and(|path| path.starts_with(&folder)));
    Ok(guests.filter_map(|package| package["name"].as_str()).map(str::to_owned).collect())
}
