//! Calls a CNI plugin as a container runtime does: environment, configuration on standard input, JSON back.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::namespace::Place;

/// One call of a plugin.
#[derive(Clone, Debug)]
pub struct Call {
    /// The program: `culvert`, or `loopback`.
    pub program: PathBuf,
    /// `ADD`, `DEL`, `CHECK`, `VERSION`, `STATUS` or `GC`.
    pub command: &'static str,
    /// The other variables, `CNI_…`.
    pub environment: Vec<(&'static str, String)>,
    /// What the plugin reads on standard input.
    pub input: Vec<u8>,
}

/// What a plugin answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its exit status; `None` when it was killed.
    pub status: Option<i32>,
    /// The JSON it printed; `Null` for nothing.
    pub body: Value,
}

impl Answer {
    /// The body of a success.
    ///
    /// **Errors** the plugin reported one.
    pub fn success(self) -> Result<Value> {
        if self.status == Some(0) {
            return Ok(self.body);
        }
        bail!("status {:?}: {}", self.status, self.body)
    }

    /// The `code` of an error; `None` for a success.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        if self.status == Some(0) { None } else { self.body["code"].as_u64() }
    }

    /// The `msg` of an error and its `details`; empty for a success.
    #[must_use]
    pub fn message(&self) -> String {
        let words = |key: &str| self.body[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", words("msg"), words("details")).trim().to_owned()
    }
}

impl Call {
    /// Runs the plugin in the namespace where the runtime lives.
    ///
    /// **Errors** it cannot be run, or prints something that is neither nothing nor one JSON value.
    pub fn run(&self, runtime: &Place) -> Result<Answer> {
        let mut command = runtime.command(&self.program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_COMMAND", self.command);
        command.env("CNI_PATH", self.program.parent().unwrap_or(&self.program));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut input = child.stdin.take().context("a plugin without standard input")?;
        // A plugin that answers without reading closes its end; its answer counts.
        let _ = input.write_all(&self.input);
        drop(input);
        let output = child.wait_with_output()?;
        Ok(Answer { status: output.status.code(), body: parse(&output.stdout)? })
    }
}

fn parse(printed: &[u8]) -> Result<Value> {
    if printed.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(printed)
        .with_context(|| format!("the plugin printed {:?}", String::from_utf8_lossy(printed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_printed_is_null_and_two_values_are_an_error() {
        assert_eq!(parse(b" \n").unwrap(), Value::Null);
        assert_eq!(parse(b"{\"a\":1}\n").unwrap(), serde_json::json!({"a": 1}));
        assert!(parse(b"{} {}").is_err());
    }
}
