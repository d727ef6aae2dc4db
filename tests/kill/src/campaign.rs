//! The whole run: record, choose, and try on several nodes side by side until enough points were reached.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use culvert_lab::binaries::Binaries;

use crate::aftermath::{Outcome, attempt, build_for};
use crate::choice::{Trial, trials};
use crate::lane::{Lane, expect_places_only_in_the_test_build};
use crate::point::{Point, Spot};
use crate::recording::{Recording, record};
use crate::report::{Finding, Report};
use crate::scene::Aftermath;

/// Trials of which a lane may take the one that suits the daemon it runs: a change of daemons costs a start.
const CHOICE: usize = 48;
/// Trials for each point that is wanted, after which a run gives up.
const PATIENCE: u64 = 3;
/// Trials at the end for each spot that chance left out.
const TRIALS_OF_A_SPOT: usize = 8;
/// Findings after which a run ends: more of them say nothing new.
const ENOUGH_FINDINGS: usize = 20;

/// How much to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many points must be reached.
    pub points: u64,
    /// By which their order is chosen.
    pub seed: u64,
    /// Nodes side by side.
    pub lanes: usize,
}

/// What all lanes share.
struct Shared {
    queue: VecDeque<Trial>,
    source: Box<dyn Iterator<Item = Trial> + Send>,
    reached: BTreeSet<Point>,
    report: Report,
    left: u64,
    /// What must be covered, each with the trials that it got at the end.
    wanted: BTreeMap<Spot, usize>,
}

/// Runs a campaign; `tell` hears how many points were reached, now and then.
///
/// **Errors** a lane cannot be set up, or a scene cannot be recorded. What goes wrong after a kill is in the report.
pub fn run(options: Options, tell: &(dyn Fn(&str) + Sync)) -> Result<Report> {
    let begun = Instant::now();
    expect_places_only_in_the_test_build(&Binaries::find()?)?;
    tell("recording what there is to kill");
    let mut first = Lane::new().context("the first node")?;
    let recording = record(&mut first)?;
    ensure!(!recording.points.is_empty(), "nothing was recorded");
    tell(&format!("{} points on {} spots", recording.points.len(), recording.spots.len()));
    let report = Report { seed: options.seed, ..Report::default() };
    let source = Box::new(trials(&recording.points, options.seed));
    let left = options.points.saturating_mul(PATIENCE);
    let wanted = recording.spots.iter().map(|spot| (spot.clone(), 0)).collect();
    let (queue, reached) = (VecDeque::new(), BTreeSet::new());
    let shared = Mutex::new(Shared { queue, source, reached, report, left, wanted });
    let lanes = std::thread::scope(|scope| {
        let mut first = Some(first);
        let lanes = (0..options.lanes.max(1)).map(|_| {
            let lane = first.take();
            scope.spawn(|| work(lane, &shared, options, tell))
        });
        let lanes: Vec<_> = lanes.collect();
        lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a lane panicked")))).collect()
    });
    let lanes: Result<Vec<()>> = lanes;
    lanes?;
    let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(conclude(shared, &recording, begun))
}

fn conclude(shared: Shared, recording: &Recording, begun: Instant) -> Report {
    let mut report = shared.report;
    report.cover(&shared.reached, &recording.spots);
    report.took(begun.elapsed());
    report
}

/// One lane: trial after trial, on a new node after each finding.
fn work(lane: Option<Lane>, shared: &Mutex<Shared>, options: Options, tell: &(dyn Fn(&str) + Sync)) -> Result<()> {
    let mut lane = match lane {
        Some(lane) => lane,
        None => Lane::new().context("a further node")?,
    };
    while let Some(trial) = next(shared, &lane, options) {
        let outcome = attempt(&mut lane, &trial);
        let found = outcome.is_err();
        let what = outcome.as_ref().err().map(|error| format!("{error:#}\n{}", lane.single.node().log_tail()));
        let mut held = lock(shared);
        held.note(&trial, outcome.as_ref().ok().copied(), what);
        let (reached, findings) = (held.report.reached, held.report.findings.len());
        drop(held);
        if found || reached.is_multiple_of(25) {
            tell(&format!("{reached} of {} points, {findings} findings", options.points));
        }
        if found {
            lock(shared).take_counts(&lane);
            drop(lane);
            lane = Lane::new().context("a node after a finding")?;
        }
    }
    let well = lane.expect_residents_well();
    let mut held = lock(shared);
    held.take_counts(&lane);
    if let Err(error) = well {
        let what = format!("{error:#}\n{}", lane.single.node().log_tail());
        let point = "the pods that stay".to_owned();
        held.report.findings.push(Finding { point, aftermath: Aftermath::OwnLook, what });
    }
    Ok(())
}

/// The next trial for a lane; `None` when it is over.
fn next(shared: &Mutex<Shared>, lane: &Lane, options: Options) -> Option<Trial> {
    let mut held = lock(shared);
    if held.report.findings.len() >= ENOUGH_FINDINGS || held.left == 0 {
        return None;
    }
    if held.report.reached >= options.points {
        return held.left_out();
    }
    held.left -= 1;
    while held.queue.len() < CHOICE {
        let trial = held.source.next()?;
        held.queue.push_back(trial);
    }
    let suits = |trial: &Trial| build_for(&trial.point).is_none_or(|build| build == lane.build());
    let place = held.queue.iter().position(suits).unwrap_or_default();
    held.queue.remove(place)
}

impl Shared {
    /// A trial of a spot that no trial has hit yet, as long as there is hope.
    fn left_out(&mut self) -> Option<Trial> {
        let hit: BTreeSet<&Spot> = self.reached.iter().map(|point| &point.spot).collect();
        let mut missing = self.wanted.iter_mut().filter(|(spot, _)| !hit.contains(spot));
        let (spot, tries) = missing.find(|(_, tries)| **tries < TRIALS_OF_A_SPOT)?;
        *tries += 1;
        Some(Trial { point: Point { spot: spot.clone(), ordinal: 1 }, turn: *tries })
    }

    fn note(&mut self, trial: &Trial, outcome: Option<Outcome>, what: Option<String>) {
        let aftermath = Aftermath::of_turn(trial.turn);
        match outcome {
            Some(Outcome::Reached) => {
                self.report.reached += 1;
                self.reached.insert(trial.point.clone());
                *self.report.aftermaths.entry(aftermath).or_default() += 1;
            }
            Some(Outcome::Missed) => self.report.missed += 1,
            None => {}
        }
        if let Some(what) = what {
            self.report.findings.push(Finding { point: trial.point.to_string(), aftermath, what });
        }
    }

    fn take_counts(&mut self, lane: &Lane) {
        self.report.addresses_given += lane.ledger.answers();
        self.report.starts += lane.starts();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
