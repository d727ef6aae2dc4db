//! `cargo xtask kill`: shim and daemon die at as many points as asked for, and nothing may be left.

use anyhow::Result;
use clap::Args;
use culvert_kill::Report;

use crate::bench::Output;
use crate::{build, prerequisites, screen};

/// Points of a run of all tests.
pub(crate) const POINTS: u64 = 500;
/// The seed unless another is asked for: what failed once can be seen again.
const SEED: u64 = 1;
/// Nodes side by side for each core: most of a trial is waiting.
const LANES_PER_CORE: usize = 2;

/// What can be chosen.
#[derive(Args, Clone, Copy)]
pub(crate) struct KillOptions {
    /// How many points must be reached.
    #[arg(long, default_value_t = POINTS)]
    points: u64,
    /// By which their order is chosen.
    #[arg(long, default_value_t = SEED)]
    seed: u64,
    /// Nodes side by side; two for each core unless said.
    #[arg(long)]
    lanes: Option<usize>,
    /// How the outcome is printed.
    #[arg(long, default_value = "table")]
    output: Output,
}

impl Default for KillOptions {
    fn default() -> Self {
        Self { points: POINTS, seed: SEED, lanes: None, output: Output::Table }
    }
}

/// Builds what is needed, runs, prints, and returns whether all is well.
///
/// # Errors
/// A prerequisite is missing, or the run cannot be set up.
pub(crate) fn run(options: KillOptions) -> Result<bool> {
    prerequisites::ensure()?;
    build::everything()?;
    let report = campaign(options)?;
    match options.output {
        Output::Table => report.lines().iter().for_each(|line| screen::line(line)),
        Output::Json => screen::line(&serde_json::to_string_pretty(&report)?),
    }
    Ok(report.is_well(options.points))
}

/// Runs with the programs that are there, besides the test build.
///
/// # Errors
/// The test build fails, or the run cannot be set up.
pub(crate) fn campaign(options: KillOptions) -> Result<Report> {
    build::kill_points()?;
    let lanes =
        options.lanes.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from) * LANES_PER_CORE);
    let options = culvert_kill::Options { points: options.points, seed: options.seed, lanes };
    // Standard output is the report's alone.
    culvert_kill::run(options, &|text| screen::remark(&format!("kill test: {text}")))
}
