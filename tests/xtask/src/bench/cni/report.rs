//! The tables, and the same as figures.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::comparison::{self, Comparison, Goal};
use super::outcome::Outcome;
use super::rounds::{Parallel, Serial};
use super::samples::Samples;
use super::way::Who;
use crate::bench::Figure;

/// The percentiles shown.
const PERCENTILES: [usize; 3] = [50, 95, 99];

/// What was measured, and how busy the machine was.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// The set-ups.
    pub(super) outcomes: Vec<Outcome>,
    /// Pods of the crowd.
    pub(super) crowd: u16,
    /// Callers at the same time.
    pub(super) width: u16,
    /// `/proc/loadavg` at the begin and at the end.
    pub(super) load: [String; 2],
}

impl Report {
    /// Text for people.
    pub(super) fn text(&self) -> String {
        let mut parts: Vec<String> = self.outcomes.iter().map(|outcome| self.section(outcome)).collect();
        let [before, after] = &self.load;
        parts.push(format!("load of the machine: {before} at the begin, {after} at the end (its own calls among it)"));
        parts.join("\n\n")
    }

    fn section(&self, outcome: &Outcome) -> String {
        let mut lines =
            vec![format!("{}: milliseconds", outcome.set_up.name()), self.times(outcome), self.comparisons(outcome)];
        lines.extend(outcome.missing.iter().map(|what| format!("✗ ours has {what}: it does less than the others")));
        if comparison::floor_counts(outcome) == Some(false) {
            lines.push("✗ the floor is too slow beside the reference: the ratios with it do not count".to_owned());
        }
        lines.extend(Who::ALL.iter().filter_map(|who| left(outcome, *who)));
        lines.join("\n")
    }

    fn times(&self, outcome: &Outcome) -> String {
        let mut table = table(&[
            "who",
            "when",
            "ADD p50",
            "p95",
            "p99",
            "DEL p50",
            "p95",
            "p99",
            "CPU a pair",
            "ADD/s",
            "DEL/s",
            "pairs",
        ]);
        for who in Who::ALL {
            let stages = [("no pods there".to_owned(), &outcome.empty), (self.crowd_name(), &outcome.crowded)];
            for (when, times) in stages {
                if let Some(serial) = times.get(&who) {
                    table.add_row(serial_row(who, &when, serial));
                }
            }
            if let Some(parallel) = outcome.parallel.get(&who) {
                table.add_row(parallel_row(who, &format!("{} at once", self.width), parallel));
            }
        }
        aligned(table)
    }

    fn comparisons(&self, outcome: &Outcome) -> String {
        let mut table = table(&["compared", "value", "", "goal", ""]);
        for one in comparison::all(outcome).iter().filter(|one| !one.value.is_nan()) {
            let mark = one.is_met().map_or("", |met| if met { "✓" } else { "✗" });
            table.add_row([one.what, &number(one.value), one.unit, &goal(one), mark]);
        }
        aligned(table)
    }

    fn crowd_name(&self) -> String {
        format!("{} pods there", self.crowd)
    }

    /// Figures for programs.
    pub(super) fn figures(&self) -> Vec<Figure> {
        self.outcomes.iter().flat_map(|outcome| self.figures_of(outcome)).collect()
    }

    fn figures_of(&self, outcome: &Outcome) -> Vec<Figure> {
        let set_up = outcome.set_up.name();
        let mut figures = Vec::new();
        for (when, times) in [("no pods there".to_owned(), &outcome.empty), (self.crowd_name(), &outcome.crowded)] {
            for (who, serial) in times {
                let name = format!("{set_up}: {}, {when}", who.name());
                figures.extend(times_of(&name, [&serial.add, &serial.del]));
                figures.push(Figure::new(&format!("{name}, CPU a pair"), serial.cpu_ms(), "ms"));
            }
        }
        for (who, parallel) in &outcome.parallel {
            let name = format!("{set_up}: {}, {} at once", who.name(), self.width);
            figures.extend(times_of(&name, [&parallel.add, &parallel.del]));
            figures.push(Figure::new(&format!("{name}, ADD"), parallel.adds_per_second(), "/s"));
            figures.push(Figure::new(&format!("{name}, DEL"), parallel.dels_per_second(), "/s"));
        }
        let compared = comparison::all(outcome).into_iter().filter(|one| !one.value.is_nan());
        figures.extend(compared.map(|one| Figure::new(&format!("{set_up}: {}", one.what), one.value, one.unit)));
        for (who, holdings) in &outcome.left {
            let name = format!("{set_up}: {}, left behind", who.name());
            figures.extend(holdings.named().map(|(what, count)| Figure::count(&name, count as u64, what)));
        }
        let lacking = format!("{set_up}: ours, parts of the set-up that it lacks");
        figures.push(Figure::count(&lacking, outcome.missing.len() as u64, "parts"));
        figures
    }
}

/// The percentiles of ADD and DEL.
fn times_of(name: &str, add_and_del: [&Samples; 2]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (call, samples) in ["ADD", "DEL"].iter().zip(add_and_del) {
        figures.extend(
            PERCENTILES.map(|percent| {
                Figure::new(&format!("{name}, {call} p{percent}"), samples.percentile_ms(percent), "ms")
            }),
        );
    }
    figures
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header.iter().copied());
    table
}

/// Numbers to the right.
fn aligned(mut table: Table) -> String {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if index == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    table.to_string()
}

fn serial_row(who: Who, when: &str, serial: &Serial) -> Vec<String> {
    let mut row = vec![who.name().to_owned(), when.to_owned()];
    row.extend([&serial.add, &serial.del].into_iter().flat_map(percentiles));
    row.extend([number(serial.cpu_ms()), String::new(), String::new(), serial.add.count().to_string()]);
    row
}

fn parallel_row(who: Who, when: &str, parallel: &Parallel) -> Vec<String> {
    let mut row = vec![who.name().to_owned(), when.to_owned()];
    row.extend([&parallel.add, &parallel.del].into_iter().flat_map(percentiles));
    row.extend([String::new(), number(parallel.adds_per_second()), number(parallel.dels_per_second())]);
    row.push(parallel.add.count().to_string());
    row
}

fn percentiles(samples: &Samples) -> [String; 3] {
    PERCENTILES.map(|percent| number(samples.percentile_ms(percent)))
}

/// Three digits that say something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn goal(comparison: &Comparison) -> String {
    match comparison.goal {
        Goal::AtLeast(bound) => format!("≥ {bound}"),
        Goal::AtMost(bound) => format!("≤ {bound}"),
        Goal::None => String::new(),
    }
}

/// What a way left behind, in a line.
fn left(outcome: &Outcome, who: Who) -> Option<String> {
    let holdings = outcome.left.get(&who)?;
    let parts: Vec<String> = holdings
        .named()
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    Some(match parts.as_slice() {
        [] => format!("✓ {} left nothing behind", who.name()),
        some => format!("✗ {} left behind {}", who.name(), some.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::holdings::Holdings;
    use super::super::way::SetUp;
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([0.123, 1.234, 12.34, 123.4].map(number), ["0.12", "1.23", "12.3", "123"]);
    }

    #[test]
    fn what_was_left_behind_is_said_in_both_forms() {
        let left = [
            (Who::Reference, Holdings { links: 2, rules: 1, ..Holdings::default() }),
            (Who::Ours, Holdings::default()),
        ];
        let outcome = Outcome {
            set_up: SetUp::Network,
            empty: BTreeMap::new(),
            crowded: BTreeMap::new(),
            parallel: BTreeMap::new(),
            left: left.into(),
            missing: vec!["no wings".to_owned()],
        };
        let report = Report { outcomes: vec![outcome], crowd: 200, width: 16, load: ["0".into(), "1".into()] };
        let text = report.text();
        assert!(text.contains("✗ reference left behind 2 links, 1 rules\n✓ ours left nothing behind"), "{text}");
        assert!(text.contains("✗ ours has no wings"), "{text}");
        let figures = report.figures();
        let of =
            |what: &str, unit: &str| figures.iter().find(|one| one.what == what && one.unit == unit).unwrap().value;
        assert_eq!(of("network + masquerade: reference, left behind", "links").round(), 2.0);
        assert_eq!(of("network + masquerade: ours, left behind", "map elements").round(), 0.0);
    }
}
