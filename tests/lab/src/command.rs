//! Runs the system's own tools (`ip`, `iptables`, `tc`, …) and says which command failed and what it printed.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command line and returns its standard output. Words are split at whitespace; there is no quoting.
///
/// **Errors** the command cannot be started, or ends with a status other than 0; what it printed is in the text.
pub fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command line")?;
    let mut command = Command::new(program);
    command.args(words);
    finish(command, line)
}

/// Runs a prepared command and returns its standard output, under the name `label` in errors.
///
/// **Errors** as [`run`].
pub fn finish(command: Command, label: &str) -> Result<String> {
    let output = output(command, label)?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    bail!("`{label}` ended with {}: {}{}", output.status, complaint.trim(), printed.trim())
}

/// Runs a prepared command without standard input and returns what it printed, whatever its status.
///
/// **Errors** the command cannot be started.
pub fn output(mut command: Command, label: &str) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{label}`"))
}

/// Whether a program is on the PATH.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_named_with_what_it_printed() {
        let error = run("ls /nowhere/at/all").unwrap_err().to_string();
        assert!(error.starts_with("`ls /nowhere/at/all` ended with exit status: 2"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run("no-such-program-here x").unwrap_err().to_string();
        assert_eq!(error, "cannot start `no-such-program-here x`");
        assert!(!is_installed("no-such-program-here"));
        assert!(is_installed("ls"));
    }
}
