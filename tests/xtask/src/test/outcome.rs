//! Counts what ran: read from the lines that Rust's test harness prints, and from checks.

use std::fmt;

/// Tests that a machine may be unable to run although it has every package: they are counted, and are no failure even
/// where everything has to run. Podman has given up CNI in its later versions, and not every kernel has SCTP sockets.
const MAY_BE_IMPOSSIBLE: [&str; 2] = ["_podman_", "_sctp_"];

/// The sum of some tests and checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    passed: u64,
    /// What failed.
    failed: Vec<String>,
    /// Why each test that did not run did not.
    not_run: Vec<String>,
}

impl Outcome {
    /// Adds another's counts.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.not_run.extend(other.not_run);
    }

    /// Counts one check.
    pub(crate) fn count_check(&mut self, what: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed.push(what.to_owned());
        }
    }

    /// Counts something that cannot run here.
    pub(crate) fn not_run(&mut self, reason: &str) {
        self.not_run.push(reason.to_owned());
    }

    /// Reads a line of the harness: `test NAME ... ok|FAILED|ignored, REASON`; others say nothing. A harness whose tests
    /// find out for themselves says `ignored (REASON)`.
    pub(crate) fn take_line(&mut self, line: &str) {
        let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else {
            return;
        };
        let name = name.trim_end();
        if result == "ok" {
            self.passed += 1;
        } else if result.starts_with("FAILED") {
            self.failed.push(name.to_owned());
        } else if let Some(reason) = result.strip_prefix("ignored") {
            let reason = reason.trim_start_matches([',', ' ']);
            let reason = reason.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(reason);
            let reason = if reason.is_empty() { "its author gave no reason" } else { reason };
            self.not_run.push(format!("{name}: {reason}"));
        }
    }

    /// Takes the exit status of the harness: a failure without a failed test is one of its own, as when it does not build.
    pub(crate) fn end(&mut self, label: &str, succeeded: bool) {
        if !succeeded && self.failed.is_empty() {
            self.failed.push(format!("cargo {label}"));
        }
    }

    /// Whether nothing failed; where everything has to run, also that everything ran, and that something did.
    pub(crate) fn is_well(&self, everything_has_to_run: bool) -> bool {
        let excused = |reason: &String| MAY_BE_IMPOSSIBLE.iter().any(|part| reason.contains(part));
        self.failed.is_empty() && self.passed > 0 && (!everything_has_to_run || self.not_run.iter().all(excused))
    }

    /// How many did not run.
    pub(crate) fn skipped(&self) -> usize {
        self.not_run.len()
    }

    /// One line for everything that failed or was not run.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let failed = self.failed.iter().map(|name| format!("failed: {name}"));
        failed.chain(self.not_run.iter().map(|reason| format!("not run: {reason}"))).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.not_run.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        lines.iter().for_each(|line| outcome.take_line(line));
        outcome
    }

    #[test]
    fn the_harness_s_lines_are_counted() {
        let outcome = of(&[
            "running 4 tests",
            "test a ... ok",
            "test b::c ... FAILED",
            "test d ... ignored, no SCTP sockets here",
            "test src/lib.rs - x (line 3) ... ok",
            "test e ... ignored",
            "test f        ... ignored (no containerd (1.6) here)",
            "test result: FAILED. 2 passed; 1 failed; 2 ignored",
        ]);
        assert_eq!(outcome.to_string(), "2 passed, 1 failed, 3 skipped");
        let expected = [
            "failed: b::c",
            "not run: d: no SCTP sockets here",
            "not run: e: its author gave no reason",
            "not run: f: no containerd (1.6) here",
        ];
        assert_eq!(outcome.remarks(), expected);
    }

    #[test]
    fn a_harness_that_does_not_build_is_one_failure() {
        let mut outcome = of(&[]);
        outcome.end("test", false);
        assert_eq!(outcome.to_string(), "0 passed, 1 failed, 0 skipped");
        let mut counted = of(&["test a ... FAILED"]);
        counted.end("test", false);
        assert_eq!(counted.to_string(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn what_was_not_run_matters_only_where_everything_has_to_run() {
        let outcome = of(&["test a ... ok", "test b ... ignored, why"]);
        assert_eq!((outcome.is_well(false), outcome.is_well(true)), (true, false));
        let without_podman = of(&["test a ... ok", "test a_container_of_podman_is_attached ... ignored (no CNI)"]);
        assert!(without_podman.is_well(true));
        assert!(!of(&[]).is_well(false));
        assert!(!of(&["test a ... ok", "test b ... FAILED"]).is_well(false));
    }
}
