//! `cargo xtask bench`: figures, as a table or as JSON. Nothing is asserted here; a figure that cannot be had is an error.

mod cni;
mod cpu;
mod memory;
mod path;
mod soak;
mod start;
mod swap;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde::Serialize;

use crate::{build, demo, prerequisites, screen};

pub(crate) use self::cni::CniOptions;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Wall time of the demo.
    Demo,
    /// Latency and loss of plugin swaps, under ping at 1 ms and TCP.
    Swap,
    /// Resident memory of a daemon, idle and with 100 pods.
    Memory,
    /// From start to the first ADD served, with relay and peers away.
    Start,
    /// A million packets through the tunnel: descriptors and memory over time.
    Soak,
    /// What datagrams and the stream carry between two nodes, beside bare routing.
    Path,
    /// ADD and DEL beside Debian's reference plugins and beside the least the kernel can be asked to do.
    Cni,
}

impl Bench {
    const ALL: [Self; 7] = [Self::Demo, Self::Swap, Self::Memory, Self::Start, Self::Soak, Self::Path, Self::Cni];

    fn run(self, cni: CniOptions) -> Result<Measured> {
        match self {
            Self::Demo => demo_time().map(Measured::of),
            Self::Swap => swap::measure().map(Measured::of),
            Self::Memory => memory::measure().map(Measured::of),
            Self::Start => start::measure().map(Measured::of),
            Self::Soak => soak::measure().map(Measured::of),
            Self::Path => path::measure(),
            Self::Cni => cni::measure(cni),
        }
    }
}

/// What a bench found, in both forms.
struct Measured {
    text: String,
    figures: Vec<Figure>,
}

impl Measured {
    /// Figures that are shown as a table of one line each.
    fn of(figures: Vec<Figure>) -> Self {
        Self { text: table(&figures), figures }
    }
}

/// How figures are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs: one array.
    Json,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) what: String,
    /// How much.
    pub(crate) value: f64,
    /// Of what.
    pub(crate) unit: &'static str,
}

impl Figure {
    /// A figure.
    pub(crate) fn new(what: &str, value: f64, unit: &'static str) -> Self {
        Self { what: what.to_owned(), value, unit }
    }

    /// A count.
    #[expect(clippy::cast_precision_loss, reason = "a count below 2^52")]
    pub(crate) fn count(what: &str, value: u64, unit: &'static str) -> Self {
        Self::new(what, value as f64, unit)
    }

    /// Bytes, shown in MiB.
    #[expect(clippy::cast_precision_loss, reason = "bytes below 2^52")]
    pub(crate) fn mebibytes(what: &str, bytes: u64) -> Self {
        Self::new(what, bytes as f64 / f64::from(1 << 20), "MiB")
    }
}

/// Measures and prints.
///
/// # Errors
/// Something cannot be measured.
pub(crate) fn run(only: Option<Bench>, output: Output, cni: CniOptions) -> Result<()> {
    prerequisites::ensure()?;
    build::everything()?;
    let mut all = Vec::new();
    for bench in Bench::ALL.into_iter().filter(|bench| only.is_none_or(|only| only == *bench)) {
        all.push(bench.run(cni)?);
    }
    match output {
        Output::Table => all.iter().for_each(|measured| screen::line(&measured.text)),
        Output::Json => {
            let figures: Vec<&Figure> = all.iter().flat_map(|measured| &measured.figures).collect();
            screen::line(&serde_json::to_string_pretty(&figures)?);
        }
    }
    Ok(())
}

fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["what", "value", "unit"]);
    for figure in figures {
        let value =
            if figure.value.fract() == 0.0 { format!("{}", figure.value) } else { format!("{:.1}", figure.value) };
        table.add_row([figure.what.as_str(), &value, figure.unit]);
    }
    table.to_string()
}

fn demo_time() -> Result<Vec<Figure>> {
    let begun = Instant::now();
    let rows = demo::play_and_tear_down()?;
    ensure!(rows.all_well(), "the demo does not hold:\n{}", rows.table());
    Ok(vec![Figure::new("demo, wall time after the build", begun.elapsed().as_secs_f64(), "s")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_shown_whole_and_others_with_one_digit() {
        let table = table(&[Figure::count("lost", 0, "packets"), Figure::mebibytes("memory", 3 << 19)]);
        assert!(table.contains("┆ 0     ┆ packets"), "{table}");
        assert!(table.contains("┆ 1.5   ┆ MiB"), "{table}");
    }
}
