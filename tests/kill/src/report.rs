//! What a campaign found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::point::{Place, Point, Spot};
use crate::scene::Aftermath;

/// The steps of a plan that ADD, DEL and GC carry out. Those of routes belong to no pod.
pub const STEPS: [&str; 13] = [
    "create-veth",
    "delete-link",
    "exempt",
    "pod-address",
    "pod-link-up",
    "pod-route",
    "remove-port",
    "set-port",
    "shape-egress",
    "shape-ingress",
    "unexempt",
    "unshape-egress",
    "unshape-ingress",
];

/// Something that was left, lost or given twice.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Where the process died.
    pub point: String,
    /// What followed.
    pub aftermath: Aftermath,
    /// What was found.
    pub what: String,
}

/// The outcome of a campaign.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// By which the order of points is chosen.
    pub seed: u64,
    /// Points at which the process died.
    pub reached: u64,
    /// Trials in which it did not come by; they are not among the former.
    pub missed: u64,
    /// Different points that were reached.
    pub distinct_points: usize,
    /// System calls at which the shim or the daemon died, each once a process.
    pub distinct_system_calls: usize,
    /// The same by scene.
    pub distinct_system_calls_by_scene: usize,
    /// Steps of plans at which the daemon died.
    pub steps: BTreeSet<String>,
    /// Named places at which the daemon died, by scene.
    pub distinct_places_by_scene: usize,
    /// What must be covered and was not.
    pub uncovered: Vec<String>,
    /// What went wrong.
    pub findings: Vec<Finding>,
    /// Addresses that were given.
    pub addresses_given: u64,
    /// Starts of daemons.
    pub starts: u64,
    /// How often each aftermath followed.
    pub aftermaths: BTreeMap<Aftermath, u64>,
    /// **Units** seconds.
    pub seconds: f64,
}

impl Report {
    /// Whether as many points as wanted were reached, everything was covered, and nothing was wrong.
    #[must_use]
    pub fn is_well(&self, wanted: u64) -> bool {
        self.reached >= wanted && self.uncovered.is_empty() && self.findings.is_empty()
    }

    /// Takes in the points that were reached, against the spots that must be covered.
    pub fn cover(&mut self, reached: &BTreeSet<Point>, wanted: &BTreeSet<Spot>) {
        let spots: BTreeSet<&Spot> = reached.iter().map(|point| &point.spot).collect();
        let calls = || spots.iter().filter(|spot| matches!(spot.place, Place::SystemCall(_)));
        self.distinct_points = reached.len();
        self.distinct_system_calls = calls().map(|spot| (spot.victim, &spot.place)).collect::<BTreeSet<_>>().len();
        self.distinct_system_calls_by_scene = calls().count();
        self.distinct_places_by_scene = spots.len() - self.distinct_system_calls_by_scene;
        // A start sets the node's routes too, which belong to no pod.
        let of_a_call = spots.iter().filter(|spot| spot.scene.verb().is_some());
        self.steps = of_a_call.filter_map(|spot| step_of(spot)).map(str::to_owned).collect();
        let missing = wanted.iter().filter(|spot| !spots.contains(spot));
        self.uncovered = missing.map(|spot| Point { spot: spot.clone(), ordinal: 1 }.to_string()).collect();
        let steps = STEPS.iter().filter(|step| !self.steps.contains(**step));
        self.uncovered.extend(steps.map(|step| format!("step {step}")));
        let unknown = self.steps.iter().filter(|step| !STEPS.contains(&step.as_str()));
        self.uncovered
            .extend(unknown.map(|step| format!("step {step} is not on the list of those that must be covered")));
    }

    /// The counts in words, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "kill points: {} reached ({} different), {} not reached and not counted, seed {}, {:.0} s",
                self.reached, self.distinct_points, self.missed, self.seed, self.seconds
            ),
            format!(
                "system calls: {} distinct, {} counted by scene; steps of a plan: {} of {}; named places by scene: {}",
                self.distinct_system_calls,
                self.distinct_system_calls_by_scene,
                self.steps.len(),
                STEPS.len(),
                self.distinct_places_by_scene
            ),
            format!(
                "afterwards: {}; {} addresses given, none twice unless said below; {} starts of a daemon",
                self.aftermaths.iter().map(|(what, count)| format!("{what:?} {count}")).collect::<Vec<_>>().join(", "),
                self.addresses_given,
                self.starts
            ),
        ];
        lines.extend(self.uncovered.iter().map(|what| format!("not covered: {what}")));
        let findings = self.findings.iter();
        lines.extend(
            findings.map(|found| format!("found: {}, then {:?}: {}", found.point, found.aftermath, found.what)),
        );
        lines
    }

    /// Takes the time.
    pub fn took(&mut self, time: Duration) {
        self.seconds = time.as_secs_f64();
    }
}

fn step_of(spot: &Spot) -> Option<&str> {
    match &spot.place {
        Place::Named(name) => name.strip_prefix("step "),
        Place::SystemCall(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::Victim;
    use crate::scene::Scene;

    fn named(name: &str) -> Point {
        let place = Place::Named(name.to_owned());
        Point { spot: Spot { scene: Scene::Add, victim: Victim::Daemon, place }, ordinal: 1 }
    }

    #[test]
    fn what_was_not_reached_is_named_and_is_not_well() {
        let mut report = Report { reached: 500, ..Report::default() };
        let points: BTreeSet<Point> = STEPS.iter().map(|step| named(&format!("step {step}"))).collect();
        let spots: BTreeSet<Spot> = points.iter().map(|point| point.spot.clone()).collect();
        report.cover(&points, &spots);
        assert!(report.is_well(500) && !report.is_well(501), "{:?}", report.uncovered);
        let fewer: BTreeSet<Point> = points.iter().skip(1).cloned().collect();
        report.cover(&fewer, &spots);
        assert!(!report.is_well(500));
        assert_eq!(report.uncovered.len(), 2);
        let more = points.iter().cloned().chain([named("step set-route")]).collect();
        report.cover(&more, &spots);
        assert!(report.uncovered[0].contains("set-route"), "{:?}", report.uncovered);
    }
}
