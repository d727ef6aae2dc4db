//! What the person at the terminal sees: lines, and steps with a spinner while they run.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Prints a line. A closed standard output is the reader's wish and ends nothing.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a line beside what is asked for: on standard error, which nobody parses.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Columns of the terminal; of a wide page when there is none.
pub(crate) fn width() -> u16 {
    const PAGE: u16 = 160;
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.ok().map(|size| size.ws_col).filter(|columns| *columns > 0).unwrap_or(PAGE)
}

/// Runs a step under a spinner and prints how long it took and whether it succeeded.
///
/// # Errors
/// Those of the step.
pub(crate) fn step<T>(what: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    judged_step(what, work, Result::is_ok)
}

/// Runs a step under a spinner and prints how long it took and what `is_well` says of its outcome.
pub(crate) fn judged_step<T>(what: &str, work: impl FnOnce(&Step) -> T, is_well: impl FnOnce(&T) -> bool) -> T {
    let step = Step::begin(what);
    let outcome = work(&step);
    step.end(is_well(&outcome));
    outcome
}

/// A step that runs.
pub(crate) struct Step {
    what: String,
    begun: Instant,
    spinner: ProgressBar,
}

impl Step {
    fn begin(what: &str) -> Self {
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}") {
            spinner.set_style(style);
        }
        spinner.set_prefix(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(120));
        Self { what: what.to_owned(), begun: Instant::now(), spinner }
    }

    /// Shows what is being done inside the step.
    pub(crate) fn show(&self, detail: &str) {
        self.spinner.set_message(detail.to_owned());
    }

    fn end(&self, well: bool) {
        self.spinner.finish_and_clear();
        let mark = if well { "✓" } else { "✗" };
        line(&format!("{mark} {} ({:.1} s)", self.what, self.begun.elapsed().as_secs_f64()));
    }
}

/// Runs a command whose output is shown line by line in the step, and in full when it fails.
///
/// # Errors
/// The command cannot be started, or fails.
pub(crate) fn run_in_step(step: &Step, command: &mut Command) -> Result<()> {
    let label = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {label}"))?;
    let mut printed = Vec::new();
    for text in BufReader::new(child.stderr.take().context("no output")?).lines() {
        let text = text?;
        step.show(text.trim());
        printed.push(text);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{label} ended with {status}:\n{}", printed.join("\n"));
    }
    Ok(())
}
