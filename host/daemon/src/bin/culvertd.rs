//! `culvertd`: the host daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use culvert_daemon::config::Config;
use culvert_daemon::{cleanup, run, telemetry};

/// Exit code of a usage or configuration error.
const USAGE: u8 = 2;

/// The Culvert host daemon: carries pod traffic between nodes that cannot reach each other.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(flatten)]
    log: telemetry::LogArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    Run(ConfigArgument),
    /// Check a configuration file and report all of its faults.
    CheckConfig {
        /// The configuration file.
        file: PathBuf,
    },
    /// Remove everything of Culvert's from the kernel: interfaces, routes, rules. The state stays.
    Cleanup(ConfigArgument),
}

#[derive(Args)]
struct ConfigArgument {
    /// The configuration file.
    #[arg(long, default_value = "/etc/culvert/culvert.yaml")]
    config: PathBuf,
}

/// TLS libraries write every session's keys into the file that this variable names.
const KEY_LOG: &str = "SSLKEYLOGFILE";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if std::env::var_os(KEY_LOG).is_some() {
        return start_again_without(KEY_LOG);
    }
    match arguments.command {
        Command::CheckConfig { file } => check(&file),
        Command::Run(argument) => with_config(&argument.config, &arguments.log, run::run),
        Command::Cleanup(argument) => with_config(&argument.config, &arguments.log, cleanup::cleanup),
    }
}

/// Replaces this process by one whose environment lacks `variable`: it cannot be taken out of a running one
/// safely.
fn start_again_without(variable: &str) -> ExitCode {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("culvertd"));
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).env_remove(variable).exec();
    fail(&format!("cannot start again without {variable}: {error}; unset it"), 1)
}

fn check(file: &Path) -> ExitCode {
    match Config::load(file) {
        Ok(config) => {
            say(&format!("{}: ok, node {}", file.display(), config.node.name));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, USAGE),
    }
}

fn with_config(
    file: &Path,
    log: &telemetry::LogArguments,
    command: impl FnOnce(Config) -> anyhow::Result<()>,
) -> ExitCode {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => return fail(&error, USAGE),
    };
    if let Err(error) = telemetry::start(log) {
        return fail(&error, USAGE);
    }
    match command(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}"), 1),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    use std::io::Write;
    // Nobody is left to tell when standard error is closed.
    let _closed = writeln!(std::io::stderr(), "culvertd: {error}");
    ExitCode::from(code)
}

fn say(text: &str) {
    use std::io::Write;
    let _closed = writeln!(std::io::stdout(), "{text}");
}
