//! `culvertctl`: the operator's program.

use std::io::Write;
use std::process::ExitCode;

use anstream::{AutoStream, ColorChoice};
use clap::Parser;
use culvert_daemon::ctl::{self, Arguments, Terminal};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _closed = writeln!(err, "culvertctl: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let colour = AutoStream::choice(&out) != ColorChoice::Never;
    let terminal = Terminal { out: &mut out, err: &mut err, colour };
    ExitCode::from(runtime.block_on(ctl::run(&arguments, terminal)).code())
}
