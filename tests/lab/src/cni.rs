//! Calls a CNI plugin as a container runtime does: environment, configuration on standard input, JSON back.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
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

/// One call of which every part is a test's to choose: nothing is added to it.
#[derive(Clone, Debug)]
pub struct RawCall {
    program: PathBuf,
    /// Another program and its arguments, which runs the plugin.
    through: Vec<String>,
    environment: BTreeMap<String, String>,
    input: Vec<u8>,
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
        let call = RawCall::of(&self.program, self.command).input(self.input.clone());
        self.environment.iter().fold(call, |call, (name, value)| call.env(name, value)).run(runtime)
    }
}

impl RawCall {
    /// A call without any variable and without input.
    #[must_use]
    pub fn bare(program: &Path) -> Self {
        Self { program: program.to_owned(), through: Vec::new(), environment: BTreeMap::new(), input: Vec::new() }
    }

    /// A call with what a runtime always passes: the command, and where programs and plugins are.
    #[must_use]
    pub fn of(program: &Path, command: &str) -> Self {
        let plugins = program.parent().unwrap_or(program).display().to_string();
        Self::bare(program)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", &plugins)
    }

    /// The same call with a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same call without a variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// The same call with other input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// The same call, made by another program such as a tracer: its name and arguments.
    #[must_use]
    pub fn through(mut self, words: Vec<String>) -> Self {
        self.through = words;
        self
    }

    /// The same call with a configuration as its input.
    #[must_use]
    pub fn config(self, config: &Value) -> Self {
        self.input(config.to_string())
    }

    /// Runs the plugin in the namespace where the runtime lives.
    ///
    /// **Errors** as [`Call::run`].
    pub fn run(&self, runtime: &Place) -> Result<Answer> {
        // By `env`, because `ip` itself may need variables that the plugin must not get.
        let mut command = runtime.command(Path::new("env"));
        command.arg("-i").args(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        let mut child = command
            .args(&self.through)
            .arg(&self.program)
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
