//! `cargo xtask`: the one tool of this repository. It builds, demonstrates, tests and measures, and installs what
//! is missing for that.

mod bench;
mod build;
mod component;
mod demo;
mod kill;
mod prerequisites;
mod screen;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, demonstrates, tests and measures Culvert.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds everything into target/culvert: daemon, CLI, compiler, shim, probes, test plugins.
    Build,
    /// Shows three sites behind NAT become one pod network, on this machine.
    Demo {
        /// Leave it up to play with.
        #[arg(long)]
        keep: bool,
        /// Remove what `--keep` left up.
        #[arg(long, conflicts_with = "keep")]
        down: bool,
    },
    /// Runs the checks and all tests.
    Test {
        /// Only this tier.
        #[arg(long)]
        tier: Option<test::Tier>,
    },
    /// Prints figures.
    Bench {
        /// Only this one.
        name: Option<bench::Bench>,
        /// How they are printed.
        #[arg(long, default_value = "table")]
        output: bench::Output,
        #[command(flatten)]
        cni: bench::CniOptions,
    },
    /// Kills shim and daemon at system calls and at steps of plans, and looks for what is left.
    Kill(kill::KillOptions),
    /// Builds a plugin crate to a component.
    Component {
        /// The crate.
        package: String,
        /// Where the component is written.
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Not by `Debug`, which shows a backtrace: what failed is said in words.
            screen::line(&format!("✗ {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Does a task, and returns whether all is well.
fn run(task: Task) -> Result<bool> {
    let all_well = match task {
        Task::Build => {
            prerequisites::ensure()?;
            build::everything()?;
            true
        }
        Task::Demo { down: true, .. } => {
            demo::take_down()?;
            true
        }
        Task::Demo { keep, .. } => demo::run(keep)?,
        Task::Test { tier } => test::run(tier)?,
        Task::Kill(options) => kill::run(options)?,
        Task::Bench { name, output, cni } => {
            bench::run(name, output, cni)?;
            true
        }
        Task::Component { package, out } => {
            component::build(&package, &out)?;
            true
        }
    };
    Ok(all_well)
}
