//! Logs: where they go, in which shape, and which of them.
//!
//! Text is for people and the journal, JSON for collectors. Field values come from other nodes,
//! guests and containers, so control characters in them are escaped in both shapes.

mod filter;
mod json;
mod line;

use std::io::IsTerminal;
use std::os::linux::fs::MetadataExt;

use clap::{Args, ValueEnum};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use filter::filter_of;
use json::JsonSafe;
use line::{Fields, Line};

/// What the command line says about logs; a program flattens it into its own arguments.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LogArguments {
    /// The shape of a log line.
    #[arg(long, value_enum, global = true, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: off, error, warn, info, debug, trace, or directives such as
    /// `info,culvert_mesh=trace`. A level alone is for Culvert; its libraries stay at warn.
    #[arg(long, global = true, env = "CULVERT_LOG", default_value = "info")]
    pub log_level: String,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error(
        "log level {given:?} is not understood ({reason}); write off, error, warn, info, debug, trace, or directives such as info,culvert_mesh=trace"
    )]
    Filter {
        /// What was given.
        given: String,
        /// What the parser says.
        reason: String,
    },
    /// Another subscriber is there.
    #[error("logging was set up before: {0}")]
    SetUpTwice(#[from] TryInitError),
}

/// Where the lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// A terminal that wants colours.
    pub colour: bool,
    /// The system's journal, which keeps time and priority itself.
    pub journal: bool,
}

impl Surroundings {
    /// Looks at standard error and the environment.
    #[must_use]
    pub fn of_standard_error() -> Self {
        // https://no-color.org: any value but the empty one.
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let stream = std::env::var("JOURNAL_STREAM").ok();
        let journal = match std::fs::metadata("/proc/self/fd/2") {
            Ok(file) => is_journal(stream.as_deref(), (file.st_dev(), file.st_ino())),
            Err(_) => false,
        };
        Self { colour: std::io::stderr().is_terminal() && !no_colour, journal }
    }
}

/// Whether a file is the journal's end that `JOURNAL_STREAM` names as `device:inode`. The variable
/// alone proves nothing: children inherit it with other standard errors.
///
/// **Source** systemd.exec(5), `$JOURNAL_STREAM`.
fn is_journal(stream: Option<&str>, file: (u64, u64)) -> bool {
    let Some((device, inode)) = stream.and_then(|text| text.split_once(':')) else { return false };
    (device.parse(), inode.parse()) == (Ok(file.0), Ok(file.1))
}

/// Starts logging to standard error, for the whole process.
///
/// **Errors** when the level is not understood, or logging was started before.
pub fn start(arguments: &LogArguments) -> Result<(), TelemetryError> {
    subscriber(arguments, Surroundings::of_standard_error(), std::io::stderr)?.try_init()?;
    Ok(())
}

/// Makes the subscriber that [`start`] starts, over any writer.
///
/// **Errors** when the level is not understood.
pub fn subscriber<W>(
    arguments: &LogArguments,
    surroundings: Surroundings,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter_of(&arguments.log_level)?;
    let layer = match arguments.log_format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .event_format(Line { journal: surroundings.journal })
            .fmt_fields(Fields)
            .with_ansi(surroundings.colour)
            .with_writer(writer)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer().json().with_writer(JsonSafe(writer)).boxed(),
    };
    Ok(Box::new(tracing_subscriber::registry().with(filter).with(layer)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn captured(format: LogFormat, level: &str, surroundings: Surroundings, log: impl FnOnce()) -> String {
        let arguments = LogArguments { log_format: format, log_level: level.to_owned() };
        let sink = Captured::default();
        let writer = sink.clone();
        let subscriber = subscriber(&arguments, surroundings, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const JOURNAL: Surroundings = Surroundings { colour: false, journal: true };

    #[test]
    fn the_journal_gets_a_priority_and_no_time() {
        let text = captured(LogFormat::Text, "info", JOURNAL, || {
            let span = tracing::info_span!("add", container = "c1");
            let _inside = span.enter();
            tracing::warn!(peer = %"edge-1", tries = 3, reason = "no route", "cannot dial");
            tracing::info!("done");
        });
        let target = module_path!();
        assert_eq!(
            text,
            format!(
                "<4>WARN {target}: add{{container=\"c1\"}}: cannot dial peer=edge-1 tries=3 reason=\"no route\"\n\
                 <6>INFO {target}: add{{container=\"c1\"}}: done\n"
            )
        );
    }

    #[test]
    fn a_file_gets_the_time_and_no_colours() {
        let text = captured(LogFormat::Text, "info", Surroundings::default(), || tracing::error!("gone"));
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{text}");
        assert_eq!(rest, format!("ERROR {}: gone\n", module_path!()));
    }

    #[test]
    fn a_terminal_gets_a_coloured_level() {
        let surroundings = Surroundings { colour: true, journal: false };
        let text = captured(LogFormat::Text, "info", surroundings, || tracing::error!("gone"));
        assert!(text.contains("\u{1b}[31mERROR\u{1b}[0m"), "{text:?}");
    }

    #[test]
    fn control_characters_of_fields_never_reach_the_log() {
        let hostile = "edge\n<3>ERROR forged\u{1b}[2J\u{9b}31m";
        let log = || {
            let span = tracing::info_span!("from", node = %hostile);
            let _inside = span.enter();
            tracing::info!(shown = %hostile, debugged = ?hostile, texted = hostile, "message {hostile}");
        };
        let text = captured(LogFormat::Text, "info", JOURNAL, log);
        assert!(text.ends_with('\n'));
        assert_eq!(text.trim_end_matches('\n').chars().filter(|c| c.is_control()).count(), 0, "{text:?}");
        assert!(text.contains("shown=edge\\n<3>ERROR forged\\u{1b}[2J\\u{9b}31m"), "{text}");
        let json = captured(LogFormat::Json, "info", JOURNAL, log);
        assert_eq!(json.trim_end_matches('\n').chars().filter(|c| c.is_control()).count(), 0, "{json:?}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["fields"]["shown"], hostile);
        assert_eq!(value["span"]["node"], hostile);
    }

    #[test]
    fn an_endless_field_is_cut() {
        let text = captured(LogFormat::Text, "info", JOURNAL, || tracing::info!(note = %"x".repeat(100_000), "got"));
        assert!(text.len() < 5_000, "{} bytes", text.len());
        assert!(text.ends_with("x…\n"));
    }

    #[test]
    fn what_is_below_the_level_is_not_written() {
        let text = captured(LogFormat::Text, "warn", JOURNAL, || tracing::info!("quiet"));
        assert_eq!(text, "");
    }

    #[test]
    fn a_wrong_level_names_itself_and_the_right_ones() {
        let arguments = LogArguments { log_format: LogFormat::Text, log_level: "a=b=c".to_owned() };
        let error = subscriber(&arguments, JOURNAL, std::io::sink).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("log level \"a=b=c\" is not understood"), "{text}");
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_journal(Some("9:42"), (9, 42)));
        assert!(!is_journal(Some("9:42"), (9, 43)));
        assert!(!is_journal(Some("9"), (9, 42)));
        assert!(!is_journal(Some("x:y"), (9, 42)));
        assert!(!is_journal(None, (9, 42)));
    }
}
