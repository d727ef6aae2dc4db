//! What must be on the machine: root, Debian's network tools, Rust's targets. What is missing is installed, or named.

use std::process::Command;

use anyhow::{Context, Result, bail};
use culvert_lab::binaries::workspace;
use culvert_lab::command;

use crate::screen;

/// The targets of `rust-toolchain.toml`, needed for plugins and for the shim.
pub(crate) const RUST_TARGETS: [&str; 2] = ["wasm32-unknown-unknown", "x86_64-unknown-linux-musl"];

/// A program and the Debian package that brings it.
type Needed = (&'static str, &'static str);

/// What everything needs.
const PROGRAMS: [Needed; 6] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("iptables", "iptables"),
    ("ip6tables-save", "iptables"),
    ("nft", "nftables"),
    ("cc", "build-essential"),
];

/// What the tests need besides.
const PROGRAMS_OF_TESTS: [Needed; 5] = [
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("strace", "strace"),
];

/// Makes sure of what everything needs.
///
/// # Errors
/// Something is missing and cannot be installed; the text says what to do.
pub(crate) fn ensure() -> Result<()> {
    ensure_with(&[])
}

/// Makes sure of what the tests need.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_for_tests() -> Result<()> {
    ensure_with(&PROGRAMS_OF_TESTS)
}

fn ensure_with(more: &[Needed]) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("network namespaces need root: run it as root, for example `sudo -E env PATH=\"$PATH\" cargo xtask …`");
    }
    ensure_packages(&[&PROGRAMS, more].concat())?;
    ensure_targets()
}

fn ensure_packages(needed: &[Needed]) -> Result<()> {
    let packages = missing_packages(needed, command::is_installed);
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if !command::is_installed("apt-get") {
        bail!("missing programs; install the packages {names} (names as in Debian)");
    }
    screen::step(&format!("install the Debian packages {names}"), |step| {
        screen::run_in_step(step, Command::new("apt-get").args(["update", "--quiet"]))?;
        let mut install = Command::new("apt-get");
        install.args(["install", "--quiet", "--yes", "--no-install-recommends"]).args(&packages);
        screen::run_in_step(step, install.env("DEBIAN_FRONTEND", "noninteractive"))
    })
}

/// The packages to install, each once.
fn missing_packages(needed: &[Needed], is_installed: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for (program, package) in needed {
        if !is_installed(program) && !packages.contains(package) {
            packages.push(*package);
        }
    }
    packages
}

fn ensure_targets() -> Result<()> {
    let missing: Vec<&str> = RUST_TARGETS.into_iter().filter(|target| !has_target(target)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !command::is_installed("rustup") {
        bail!("rustc has no standard library for {}: install it, or rustup", missing.join(" and "));
    }
    screen::step(&format!("add the Rust targets {}", missing.join(" ")), |step| {
        screen::run_in_step(
            step,
            Command::new("rustup").args(["target", "add"]).args(&missing).current_dir(workspace()),
        )
    })
    .context("cannot add the Rust targets")
}

/// Whether the compiler in use has this target's standard library.
fn has_target(target: &str) -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", target]).current_dir(workspace());
    let folder = command::finish(rustc, "rustc --print target-libdir");
    folder.is_ok_and(|folder| std::path::Path::new(folder.trim()).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_once_for_all_its_programs() {
        assert_eq!(missing_packages(&PROGRAMS, |program| program != "ip" && program != "tc"), ["iproute2"]);
        assert_eq!(missing_packages(&PROGRAMS, |_| true), Vec::<&str>::new());
        let all = ["iproute2", "iptables", "nftables", "build-essential"];
        assert_eq!(missing_packages(&PROGRAMS, |_| false), all);
    }
}
