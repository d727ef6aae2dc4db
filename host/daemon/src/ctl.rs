//! `culvertctl`: asks the daemon over its admin socket and prints the answer for people or programs.
//!
//! ```text
//! arguments ─> client (HTTP over the socket) ─> JSON as it came      (--output json)
//!                                            └> one view ─> text     (one file a command)
//! ```
//!
//! `migrate` works on files alone and asks nobody.
//!
//! Text is made without colours by pure functions; [`paint`] adds them where a terminal wants them.
//! The exit code tells a script how it went; see [`Exit`].

mod client;
#[cfg(test)]
mod end_to_end;
mod explain;
mod ipam;
mod layout;
mod migrate;
mod paint;
mod peers;
mod plugins;
mod quantity;
mod release_name;
mod routes;
mod status;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::printable::{printable, printable_json};
use crate::view::{self, SCHEMA};
use client::{Ask, ClientError};
use migrate::MigrateError;

/// Shows what the Culvert daemon of this node does, and why.
#[derive(Clone, Debug, Parser)]
#[command(name = "culvertctl", version, about)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 the node is degraded (status), 4 the daemon cannot be reached."
)]
pub struct Arguments {
    /// The daemon's admin socket.
    #[arg(long, global = true, env = "CULVERT_ADMIN_SOCKET", default_value = "/run/culvert/admin.sock")]
    pub socket: PathBuf,
    /// Text for people, or JSON as the daemon gives it.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// What to show or do.
    #[command(subcommand)]
    pub command: Command,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables and sentences.
    Text,
    /// The daemon's JSON.
    Json,
}

/// What to show or do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// How this node is; the exit code is 3 when something is wrong.
    Status,
    /// The other nodes, and how packets reach them.
    Peers,
    /// The cluster's routes, who decided them, and whether the kernel has them.
    Routes,
    /// Pools, blocks, and the addresses of this node's pods.
    Ipam,
    /// The policies in force, and those that were refused.
    Plugins,
    /// Why packets between two pods take the way they take.
    Explain {
        /// A pod: address, namespace/name, or container id.
        from: String,
        /// The other pod: address, namespace/name, or container id.
        to: String,
    },
    /// All metrics, as OpenMetrics text.
    Metrics,
    /// Free a node name at the keeper, so that the next identity that asks for it gets it.
    ReleaseName {
        /// The node name.
        name: String,
    },
    /// Turn the configuration of another tool into Culvert's. Needs no daemon.
    Migrate {
        /// Which configuration.
        #[command(subcommand)]
        what: Migrate,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Which configuration is migrated.
#[derive(Clone, Debug, Subcommand)]
pub enum Migrate {
    /// Put the one plugin culvert in place of bridge, host-local, portmap and bandwidth; other plugins stay.
    Conflist {
        /// The conflist, as in /etc/cni/net.d.
        file: PathBuf,
        /// Write it back, and keep what it was beside it; else it is printed.
        #[arg(long)]
        in_place: bool,
    },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Ok,
    /// The daemon refused, or its answer makes no sense.
    Failed,
    /// The arguments do not go together.
    Usage,
    /// The node is not ready, or has problems.
    Degraded,
    /// The daemon cannot be reached.
    Unreachable,
}

impl Exit {
    /// The process' exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Degraded => 3,
            Self::Unreachable => 4,
        }
    }
}

/// Why a command did not work.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Refused(String),
    #[error(
        "the answer of {socket} is not one of a culvert daemon ({reason}); name the daemon's admin socket with --socket"
    )]
    Nonsense { socket: PathBuf, reason: String },
    #[error(
        "the daemon speaks schema {daemon} and this culvertctl {SCHEMA}; use the culvertctl that came with the daemon, or --output json"
    )]
    Schema { daemon: u32 },
    #[error("metrics are OpenMetrics text and have no JSON form; leave --output json away")]
    NoJson,
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error("cannot write the answer: {0}")]
    Write(#[from] io::Error),
}

impl CtlError {
    fn exit(&self) -> Exit {
        match self {
            Self::Client(error) => error.exit(),
            Self::Refused(_) | Self::Nonsense { .. } | Self::Schema { .. } | Self::Migrate(_) | Self::Write(_) => {
                Exit::Failed
            }
            Self::NoJson => Exit::Usage,
        }
    }
}

/// Where a run prints.
pub struct Terminal<'a> {
    /// Answers.
    pub out: &'a mut (dyn Write + Send),
    /// What went wrong.
    pub err: &'a mut (dyn Write + Send),
    /// Whether answers are painted.
    pub colour: bool,
}

/// Runs one command.
pub async fn run(arguments: &Arguments, terminal: Terminal<'_>) -> Exit {
    let Terminal { out, err, colour } = terminal;
    match answer(arguments, colour).await.and_then(|printed| {
        out.write_all(printed.text.as_bytes())?;
        out.flush()?;
        err.write_all(printed.aside.as_bytes())?;
        Ok(printed.exit)
    }) {
        Ok(exit) => exit,
        // Whoever reads has read enough (`culvertctl peers | head`).
        Err(CtlError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            // Nobody is left to tell when standard error is closed; the exit code still says it.
            let _closed = writeln!(err, "culvertctl: {}", printable(&error.to_string()));
            error.exit()
        }
    }
}

/// What to print, and the exit code that goes with it.
#[derive(Debug)]
struct Printed {
    /// The answer.
    text: String,
    /// What is said beside it, to people.
    aside: String,
    exit: Exit,
}

impl Printed {
    fn plainly(text: String) -> Self {
        Self { text, aside: String::new(), exit: Exit::Ok }
    }
}

async fn answer(arguments: &Arguments, colour: bool) -> Result<Printed, CtlError> {
    let show = Show { socket: &arguments.socket, output: arguments.output, colour };
    let text = match &arguments.command {
        Command::Status => return show.status().await,
        Command::Migrate { what: Migrate::Conflist { file, in_place } } => {
            return Ok(migrate::migrate(file, *in_place, arguments.output)?);
        }
        Command::Peers => show.view(Ask::get("/v1/peers"), peers::text).await,
        Command::Routes => show.view(Ask::get("/v1/routes"), routes::text).await,
        Command::Ipam => show.view(Ask::get("/v1/ipam"), ipam::text).await,
        Command::Plugins => show.view(Ask::get("/v1/plugins"), plugins::text).await,
        Command::Explain { from, to } => show.view(Ask::explain(from, to), explain::text).await,
        Command::ReleaseName { name } => show.view(Ask::release_name(name), release_name::text).await,
        Command::Metrics => show.metrics().await,
        Command::Completions { shell } => Ok(completions(*shell)),
    };
    text.map(Printed::plainly)
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "culvertctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Asks the daemon and prints in the way that was asked for.
#[derive(Clone, Copy)]
struct Show<'a> {
    socket: &'a Path,
    output: Output,
    colour: bool,
}

/// The one field that every answer has.
#[derive(Deserialize)]
struct Marked {
    schema: u32,
}

/// The fields of a status that decide the exit code, in every schema.
#[derive(Deserialize)]
struct Health {
    ready: bool,
    problems: Vec<String>,
}

impl Show<'_> {
    async fn view<T: DeserializeOwned>(self, ask: Ask, text: fn(&T) -> String) -> Result<String, CtlError> {
        let body = self.fetch(ask).await?;
        self.print(&body, text)
    }

    async fn status(self) -> Result<Printed, CtlError> {
        let body = self.fetch(Ask::get("/v1/status")).await?;
        let health: Health = self.read(&body)?;
        let exit = if health.ready && health.problems.is_empty() { Exit::Ok } else { Exit::Degraded };
        Ok(Printed { exit, ..Printed::plainly(self.print(&body, status::text)?) })
    }

    async fn metrics(self) -> Result<String, CtlError> {
        if self.output == Output::Json {
            return Err(CtlError::NoJson);
        }
        let body = self.fetch(Ask::get("/metrics")).await?;
        let text = std::str::from_utf8(&body).map_err(|error| self.nonsense(&error))?;
        if !text.ends_with("# EOF\n") {
            return Err(self.nonsense(&"it does not end as OpenMetrics text"));
        }
        Ok(text.lines().map(|line| format!("{}\n", printable(line))).collect())
    }

    /// The body of a good answer.
    async fn fetch(self, ask: Ask) -> Result<Vec<u8>, CtlError> {
        let answer = client::ask(self.socket, &ask).await?;
        if answer.good {
            return Ok(answer.body);
        }
        match serde_json::from_slice::<view::Problem>(&answer.body) {
            Ok(problem) => Err(CtlError::Refused(problem.error)),
            Err(error) => Err(self.nonsense(&error)),
        }
    }

    fn print<T: DeserializeOwned>(self, body: &[u8], text: fn(&T) -> String) -> Result<String, CtlError> {
        if self.output == Output::Json {
            return self.json(body);
        }
        let Marked { schema } = self.read(body)?;
        if schema != SCHEMA {
            return Err(CtlError::Schema { daemon: schema });
        }
        let text = text(&self.read(body)?);
        Ok(if self.colour { paint::paint(&text) } else { text })
    }

    fn read<T: DeserializeOwned>(self, body: &[u8]) -> Result<T, CtlError> {
        serde_json::from_slice(body).map_err(|error| self.nonsense(&error))
    }

    /// The same values, indented, whatever the schema.
    fn json(self, body: &[u8]) -> Result<String, CtlError> {
        let value: Value = self.read(body)?;
        let text = serde_json::to_string_pretty(&value).map_err(|error| self.nonsense(&error))?;
        Ok(format!("{}\n", printable_json(&text)))
    }

    fn nonsense(self, reason: &dyn std::fmt::Display) -> CtlError {
        CtlError::Nonsense { socket: self.socket.to_owned(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn completions_are_made_for_each_shell() {
        for shell in Shell::value_variants() {
            let script = completions(*shell);
            assert!(script.contains("release-name"), "{shell}");
        }
    }

    #[test]
    fn exit_codes_are_a_promise() {
        let codes = [Exit::Ok, Exit::Failed, Exit::Usage, Exit::Degraded, Exit::Unreachable].map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 3, 4]);
    }
}
