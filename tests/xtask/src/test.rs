//! `cargo xtask test`: every check and every test, tier by tier, counted, with nothing skipped silently.

mod outcome;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;
use culvert_lab::command;

use crate::kill::{self, KillOptions};
use crate::{build, prerequisites, screen};
use outcome::Outcome;

/// A group of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Formatting, lints, licences and sources of dependencies.
    Style,
    /// Unit, property, layer and plugin-vector tests, and adapters against a kernel of their own.
    Unit,
    /// The real programs in a lab of namespaces.
    Blackbox,
    /// The real programs, killed at system calls and at steps of plans.
    Kill,
}

impl Tier {
    const ALL: [Self; 4] = [Self::Style, Self::Unit, Self::Blackbox, Self::Kill];

    fn run(self) -> Result<Outcome> {
        match self {
            Self::Style => style(),
            Self::Unit => unit(),
            Self::Blackbox => blackbox(),
            Self::Kill => killed(),
        }
    }
}

/// Runs the tiers, prints what each took and the sum, and returns whether all is well.
///
/// # Errors
/// A prerequisite is missing, or cargo cannot be run.
pub(crate) fn run(only: Option<Tier>) -> Result<bool> {
    prerequisites::ensure_for_tests()?;
    build::everything()?;
    let mut total = Outcome::default();
    let mut times = Vec::new();
    for tier in Tier::ALL.into_iter().filter(|tier| only.is_none_or(|only| only == *tier)) {
        let begun = Instant::now();
        let outcome = tier.run()?;
        times.push(format!("tier {tier:?}: {:.0} s, {outcome}", begun.elapsed().as_secs_f64()));
        total.add(outcome);
    }
    screen::line("");
    for remark in total.remarks() {
        screen::line(&remark);
    }
    for time in times {
        screen::line(&time);
    }
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    if in_ci && total.skipped() > 0 {
        screen::line("what was not run is a failure here, because CI=true (what a kernel or a podman may lack apart)");
    }
    screen::line(&total.to_string());
    Ok(total.is_well(in_ci))
}

fn style() -> Result<Outcome> {
    let mut outcome = Outcome::default();
    // The compiler's crate apart, as everywhere: its features must not reach the others.
    let lints = ["--all-targets", "--release", "--", "--deny", "warnings"];
    let clippy = |what: &[&'static str]| -> Vec<&'static str> { [&["clippy"], what, &lints].concat() };
    let checks = [
        ("formatting", vec!["fmt", "--all", "--check"]),
        ("lints", clippy(&["--workspace", "--exclude", "culvert-compile"])),
        ("lints of the compiler", clippy(&["--package", "culvert-compile"])),
    ];
    for (what, arguments) in checks {
        outcome.count_check(what, passes(what, &mut build::cargo(&arguments)));
    }
    if command::is_installed("cargo-deny") {
        let arguments = ["deny", "--offline", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
        outcome.count_check("dependencies", passes("dependencies", &mut build::cargo(&arguments)));
    } else {
        outcome.not_run("dependencies: no cargo-deny here; `cargo install --locked cargo-deny` brings it");
    }
    Ok(outcome)
}

/// Whether a check passes; what it printed is shown when it does not.
fn passes(what: &str, check: &mut Command) -> bool {
    let passed = screen::step(what, |step| screen::run_in_step(step, check));
    passed.inspect_err(|error| screen::line(&format!("{error:#}"))).is_ok()
}

fn unit() -> Result<Outcome> {
    let apart = ["--exclude", "culvert-compile", "--exclude", "culvert-blackbox"];
    let mut outcome = cargo_test(&[&["--workspace"], &apart[..]].concat(), &[])?;
    outcome.add(cargo_test(&["--package", "culvert-compile"], &[])?);
    Ok(outcome)
}

fn blackbox() -> Result<Outcome> {
    // Labs do not disturb each other, but one of them is four daemons and their traffic: two at a time would measure
    // the machine, not the programs.
    cargo_test(&["--package", "culvert-blackbox"], &["--test-threads", "1"])
}

fn killed() -> Result<Outcome> {
    let report = kill::campaign(KillOptions::default())?;
    report.lines().iter().for_each(|line| screen::line(line));
    let mut outcome = Outcome::default();
    outcome.count_check("kill points: as many as wanted are reached", report.reached >= kill::POINTS);
    outcome.count_check("kill points: every system call and every step is covered", report.uncovered.is_empty());
    outcome.count_check("kill points: nothing is left, lost or given twice", report.findings.is_empty());
    Ok(outcome)
}

/// Runs `cargo test`, shows its output and counts its results.
fn cargo_test(selection: &[&str], harness: &[&str]) -> Result<Outcome> {
    let arguments = [&["test", "--release", "--no-fail-fast"], selection, &["--"], harness].concat();
    let mut command = build::cargo(&arguments);
    for (name, program) in [("CULVERT_COMPILE", "culvert-compile"), ("CULVERT_SHIM", "culvert"), ("CULVERT_BIN", "")] {
        command.env(name, build::folder().join(Path::new(program)));
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let mut outcome = Outcome::default();
    for text in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let text = text?;
        screen::line(&text);
        outcome.take_line(&text);
    }
    outcome.end(&arguments.join(" "), child.wait()?.success());
    Ok(outcome)
}
