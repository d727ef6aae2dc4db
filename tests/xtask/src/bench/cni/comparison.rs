//! The ratios, which hold on any machine, and the goals of this project.

use super::outcome::{Call, Outcome};
use super::way::{SetUp, Who};

/// With ports and bandwidth the reference has to take this many times as long as the floor. Where it does not, the floor is
/// not the least work or the machine was disturbed, and no ratio with it says anything.
const FLOOR_AT_LEAST: f64 = 80.0;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Shown for comparison alone.
    None,
}

/// One compared figure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Comparison {
    /// What is compared.
    pub(super) what: &'static str,
    /// The figure. Not a number where a part of it was not measured.
    pub(super) value: f64,
    /// **Units** of the figure.
    pub(super) unit: &'static str,
    /// What it should be.
    pub(super) goal: Goal,
}

impl Comparison {
    /// Whether the goal is met; `None` without goal or figure.
    pub(super) fn is_met(&self) -> Option<bool> {
        match self.goal {
            _ if self.value.is_nan() => None,
            Goal::AtLeast(bound) => Some(self.value >= bound),
            Goal::AtMost(bound) => Some(self.value <= bound),
            Goal::None => None,
        }
    }
}

/// Whether the floor is fast enough for ratios with it to count; `None` where there is no such check.
pub(super) fn floor_counts(outcome: &Outcome) -> Option<bool> {
    match outcome.set_up {
        SetUp::Network => None,
        SetUp::PortsAndBandwidth => Some(reference_over_floor(outcome) >= FLOOR_AT_LEAST),
    }
}

fn reference_over_floor(outcome: &Outcome) -> f64 {
    outcome.empty_ms(Who::Reference, Call::Add) / outcome.empty_ms(Who::Floor, Call::Add)
}

/// The goals of one set-up that the other has differently.
struct Goals {
    add_ms: Goal,
    add_times: Goal,
    add_times_crowded: Goal,
    add_over_floor: Goal,
    del_ms: Goal,
    del_times: Goal,
    del_over_floor: Goal,
}

fn goals(set_up: SetUp) -> Goals {
    match set_up {
        SetUp::Network => Goals {
            add_ms: Goal::AtMost(2.0),
            add_times: Goal::AtLeast(20.0),
            add_times_crowded: Goal::None,
            add_over_floor: Goal::AtMost(1.5),
            del_ms: Goal::None,
            del_times: Goal::None,
            del_over_floor: Goal::None,
        },
        SetUp::PortsAndBandwidth => Goals {
            add_ms: Goal::AtMost(2.5),
            add_times: Goal::AtLeast(45.0),
            add_times_crowded: Goal::AtLeast(80.0),
            add_over_floor: Goal::AtMost(1.4),
            del_ms: Goal::AtMost(3.0),
            del_times: Goal::AtLeast(70.0),
            del_over_floor: Goal::AtMost(1.4),
        },
    }
}

/// All compared figures of a set-up.
pub(super) fn all(outcome: &Outcome) -> Vec<Comparison> {
    let mut all = serial(outcome);
    all.extend(growth(outcome));
    all.extend(parallel(outcome));
    all.extend(cpu(outcome));
    all
}

fn serial(outcome: &Outcome) -> Vec<Comparison> {
    let goals = goals(outcome.set_up);
    let times = |call| outcome.empty_ms(Who::Reference, call) / outcome.empty_ms(Who::Ours, call);
    let crowded = |call| outcome.crowded_ms(Who::Reference, call) / outcome.crowded_ms(Who::Ours, call);
    let over_floor = |call| {
        outcome.empty_ms(Who::Ours, call) / (outcome.empty_ms(Who::Floor, call) + outcome.empty_ms(Who::Shim, call))
    };
    let floor_goal = match outcome.set_up {
        SetUp::Network => Goal::None,
        SetUp::PortsAndBandwidth => Goal::AtLeast(FLOOR_AT_LEAST),
    };
    vec![
        comparison("ADD, ours", outcome.empty_ms(Who::Ours, Call::Add), "ms", goals.add_ms),
        comparison("ADD, reference ÷ ours", times(Call::Add), "×", goals.add_times),
        comparison("ADD beside the crowd, reference ÷ ours", crowded(Call::Add), "×", goals.add_times_crowded),
        comparison("ADD, ours ÷ (floor + shim)", over_floor(Call::Add), "×", goals.add_over_floor),
        comparison("ADD, reference ÷ floor", reference_over_floor(outcome), "×", floor_goal),
        comparison("DEL, ours", outcome.empty_ms(Who::Ours, Call::Del), "ms", goals.del_ms),
        comparison("DEL, reference ÷ ours", times(Call::Del), "×", goals.del_times),
        comparison("DEL beside the crowd, reference ÷ ours", crowded(Call::Del), "×", Goal::None),
        comparison("DEL, ours ÷ (floor + shim)", over_floor(Call::Del), "×", goals.del_over_floor),
    ]
}

fn growth(outcome: &Outcome) -> Vec<Comparison> {
    let growth = |who| (outcome.crowded_ms(who, Call::Add) / outcome.empty_ms(who, Call::Add) - 1.0) * 100.0;
    vec![
        comparison("ADD, growth beside the crowd, ours", growth(Who::Ours), "%", Goal::AtMost(10.0)),
        comparison("ADD, growth beside the crowd, reference", growth(Who::Reference), "%", Goal::None),
        comparison("ADD, growth beside the crowd, floor", growth(Who::Floor), "%", Goal::None),
    ]
}

fn parallel(outcome: &Outcome) -> Vec<Comparison> {
    let rate = outcome.parallel.get(&Who::Ours).map_or(f64::NAN, super::rounds::Parallel::adds_per_second);
    let times = |call| outcome.parallel_ms(Who::Reference, call) / outcome.parallel_ms(Who::Ours, call);
    let floor = |call| outcome.parallel_ms(Who::Floor, call) + outcome.parallel_ms(Who::Shim, call);
    let over_floor = |call| outcome.parallel_ms(Who::Ours, call) / floor(call);
    let (rate_goal, times_goal, over_floor_goal) = match outcome.set_up {
        SetUp::Network => (Goal::None, Goal::None, Goal::None),
        SetUp::PortsAndBandwidth => (Goal::AtLeast(300.0), Goal::AtLeast(30.0), Goal::AtMost(1.5)),
    };
    vec![
        comparison("ADD in parallel, ours", rate, "/s", rate_goal),
        comparison("ADD in parallel, reference ÷ ours", times(Call::Add), "×", times_goal),
        comparison("ADD in parallel, ours ÷ (floor + shim)", over_floor(Call::Add), "×", over_floor_goal),
        comparison("DEL in parallel, reference ÷ ours", times(Call::Del), "×", Goal::None),
        comparison("DEL in parallel, ours ÷ (floor + shim)", over_floor(Call::Del), "×", Goal::None),
    ]
}

fn cpu(outcome: &Outcome) -> Vec<Comparison> {
    let ours = outcome.cpu_ms(Who::Ours);
    // The shim is executed once for ADD and once for DEL, in a pair of the shim's own row as well.
    let floor = outcome.cpu_ms(Who::Floor) + outcome.cpu_ms(Who::Shim);
    let (bound, times, over_floor) = match outcome.set_up {
        SetUp::Network => (Goal::AtMost(5.0), Goal::None, Goal::None),
        SetUp::PortsAndBandwidth => (Goal::AtMost(5.0), Goal::AtLeast(24.0), Goal::AtMost(1.4)),
    };
    vec![
        comparison("CPU of a pair, ours", ours, "ms", bound),
        comparison("CPU of a pair, reference ÷ ours", outcome.cpu_ms(Who::Reference) / ours, "×", times),
        comparison("CPU of a pair, ours ÷ (floor + shim)", ours / floor, "×", over_floor),
    ]
}

fn comparison(what: &'static str, value: f64, unit: &'static str, goal: Goal) -> Comparison {
    Comparison { what, value, unit, goal }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::rounds::Serial;
    use super::*;

    fn outcome(milliseconds: [(Who, u64); 4]) -> Outcome {
        let serial = |value| {
            let mut serial = Serial::default();
            serial.add.add(Duration::from_millis(value));
            serial
        };
        Outcome {
            set_up: SetUp::PortsAndBandwidth,
            empty: milliseconds.map(|(who, value)| (who, serial(value))).into(),
            crowded: BTreeMap::new(),
            parallel: BTreeMap::new(),
            left: BTreeMap::new(),
            missing: Vec::new(),
        }
    }

    fn value(outcome: &Outcome, what: &str) -> f64 {
        all(outcome).into_iter().find(|one| one.what == what).unwrap().value
    }

    #[test]
    fn ratios_are_those_of_the_medians_and_what_was_not_measured_is_no_number() {
        let outcome = outcome([(Who::Reference, 100), (Who::Ours, 4), (Who::Floor, 1), (Who::Shim, 1)]);
        assert_eq!(value(&outcome, "ADD, reference ÷ ours").round(), 25.0);
        assert_eq!(value(&outcome, "ADD, ours ÷ (floor + shim)").round(), 2.0);
        assert!(value(&outcome, "ADD in parallel, ours").is_nan());
    }

    #[test]
    fn a_slow_floor_is_seen() {
        let with_floor = |floor| outcome([(Who::Reference, 160), (Who::Ours, 4), (Who::Floor, floor), (Who::Shim, 1)]);
        assert_eq!(floor_counts(&with_floor(2)), Some(true));
        assert_eq!(floor_counts(&with_floor(3)), Some(false));
    }

    #[test]
    fn a_goal_is_met_at_its_bound_and_unknown_without_a_figure() {
        let met = |value, goal| comparison("", value, "", goal).is_met();
        assert_eq!(met(1.4, Goal::AtMost(1.4)), Some(true));
        assert_eq!(met(44.9, Goal::AtLeast(45.0)), Some(false));
        assert_eq!(met(f64::NAN, Goal::AtLeast(45.0)), None);
        assert_eq!(met(1.0, Goal::None), None);
    }
}
