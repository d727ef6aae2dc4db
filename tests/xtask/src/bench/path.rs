//! What each path between two nodes carries: no tunnel at all, sealed datagrams, and the stream that is left when UDP is blocked.
//!
//! The ways take turns in one run on the same two nodes and pods, because the machine's mood changes. Figures are
//! medians; the ratio is to the bare way of the same round. A way counts only when the router saw its packets.

mod iperf;
mod way;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use culvert_lab::pod::Family;
use culvert_lab::{Pod, PodSetup, TwoSides, command};

use self::way::Way;
use crate::bench::{Figure, Measured, cpu};
use crate::screen;

/// How often each way is measured.
const ROUNDS: usize = 3;
/// How long each transfer runs.
const TRANSFER: Duration = Duration::from_secs(4);
/// Pings on an idle path, far enough apart that processors go to sleep between them.
const IDLE_PINGS: u32 = 15;
const IDLE_INTERVAL: Duration = Duration::from_millis(200);

/// What is measured of a way in one round.
const WHATS: [(&str, &str); 4] = [
    ("TCP, 1 stream", "Gbit/s"),
    ("TCP, 4 streams", "Gbit/s"),
    ("idle RTT p50", "µs"),
    ("CPU of both daemons", "s/GB"),
];

/// One round of one way, in the order of [`WHATS`].
type Round = [f64; 4];

/// Measures all ways in turns.
pub(super) fn measure() -> Result<Measured> {
    ensure!(command::is_installed("iperf3"), "this bench needs iperf3; install the package iperf3");
    let rounds = screen::step("measure the paths between two nodes", |_| {
        let sides = TwoSides::running()?;
        let here = Pod::attach(sides.lab(), sides.near(), PodSetup::named("here"))?;
        let there = Pod::attach(sides.lab(), sides.far(), PodSetup::named("there"))?;
        let _server = iperf::serve(there.namespace())?;
        let mut rounds: [Vec<Round>; Way::ALL.len()] = Default::default();
        for _ in 0..ROUNDS {
            for (way, measured) in Way::ALL.into_iter().zip(&mut rounds) {
                let named = || format!("the way is {}", way.name());
                let taken = way.take(&sides, &here, &there).with_context(named)?;
                measured.push(round(&sides, &here, &there).with_context(named)?);
                taken.prove()?;
            }
        }
        Ok(rounds)
    })?;
    Ok(Measured { text: table(&rounds), figures: figures(&rounds) })
}

/// One round on the way that is taken now.
fn round(sides: &TwoSides, here: &Pod, there: &Pod) -> Result<Round> {
    let address = there.address(Family::V4)?;
    let idle = here.vantage().ping(address, IDLE_PINGS, IDLE_INTERVAL)?;
    ensure!(idle.lost == 0, "{} of {} pings were lost on an idle path", idle.lost, idle.sent);
    let daemons = [sides.near().process_id()?, sides.far().process_id()?];
    let spent = || daemons.iter().map(|id| cpu::of_process(*id)).sum::<Result<Duration>>();
    let before = spent()?;
    let one = iperf::transfer(here.namespace(), address, 1, TRANSFER)?;
    let four = iperf::transfer(here.namespace(), address, 4, TRANSFER)?;
    let seconds = (spent()? - before).as_secs_f64();
    let gigabytes = (one.bytes + four.bytes) / 1e9;
    Ok([one.gigabits_per_second(), four.gigabits_per_second(), idle.rtt_p50_ms * 1e3, seconds / gigabytes])
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The median of one figure over the rounds of a way.
fn of_rounds(rounds: &[Round], what: usize) -> Option<f64> {
    median(rounds.iter().filter_map(|round| round.get(what).copied()).collect())
}

/// The median of its ratios to the bare way, round by round.
fn ratio(rounds: &[Round], bare: &[Round], what: usize) -> Option<f64> {
    let of_round = |(round, bare): (&Round, &Round)| Some(round.get(what)? / bare.get(what)?);
    median(rounds.iter().zip(bare).filter_map(of_round).collect())
}

fn figures(rounds: &[Vec<Round>; Way::ALL.len()]) -> Vec<Figure> {
    let of_way = |(way, rounds): (Way, &Vec<Round>)| {
        let named = |(what, (name, unit)): (usize, (&str, &'static str))| {
            Some(Figure::new(&format!("path, {}, {name}", way.name()), of_rounds(rounds, what)?, unit))
        };
        WHATS.into_iter().enumerate().filter_map(named).collect::<Vec<_>>()
    };
    Way::ALL.into_iter().zip(rounds).flat_map(of_way).collect()
}

fn table(rounds: &[Vec<Round>; Way::ALL.len()]) -> String {
    let mut table = Table::new();
    let heads = WHATS.map(|(name, unit)| format!("{name} ({unit})"));
    table.load_style(UTF8_FULL_CONDENSED).set_header(std::iter::once("way".to_owned()).chain(heads));
    let [bare, ..] = rounds;
    for (way, rounds) in Way::ALL.into_iter().zip(rounds) {
        let cell = |what: usize| match (of_rounds(rounds, what), ratio(rounds, bare, what)) {
            (Some(value), Some(ratio)) if way != Way::Bare && ratio.is_finite() => format!("{value:.2} ({ratio:.2}×)"),
            (Some(value), _) => format!("{value:.2}"),
            (None, _) => "not measured".to_owned(),
        };
        table.add_row(std::iter::once(way.name().to_owned()).chain((0..WHATS.len()).map(cell)));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_shown_with_their_ratio_to_the_bare_way_of_the_same_round() {
        let bare = vec![[10.0, 20.0, 100.0, 0.0], [20.0, 40.0, 50.0, 0.0], [10.0, 20.0, 100.0, 0.0]];
        let datagrams = vec![[5.0, 10.0, 200.0, 1.0], [16.0, 20.0, 100.0, 1.5], [5.0, 10.0, 200.0, 1.0]];
        let table = table(&[bare, datagrams, Vec::new()]);
        assert!(table.contains("5.00 (0.50×) ┆ 10.00 (0.50×)"), "{table}");
        assert!(table.contains("200.00 (2.00×) ┆ 1.00"), "{table}");
        assert!(table.contains("not measured"), "{table}");
    }

    #[test]
    fn each_figure_is_named_after_its_way() {
        let figures = figures(&[vec![[1.0, 2.0, 3.0, 4.0]], Vec::new(), Vec::new()]);
        let names: Vec<&str> = figures.iter().map(|figure| figure.what.as_str()).collect();
        assert_eq!(names.first(), Some(&"path, bare, TCP, 1 stream"));
        assert_eq!(names.len(), 4);
    }
}
