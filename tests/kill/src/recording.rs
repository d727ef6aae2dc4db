//! Which points there are: every scene once without a kill, seen by strace and by the test build's own notes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use culvert_lab::strace::{self, Attached};

use crate::aftermath::leave_half_deleted;
use crate::lane::{Build, Lane, Subject};
use crate::point::{Place, Point, Spot, Victim};
use crate::scene::{Scene, Sight};

/// How often each scene is recorded: what the daemon does by the way is not in every recording.
const RECORDINGS: usize = 2;

/// The most passings of a place that are points: beyond them are threads that do the same all day.
const MOST_PASSINGS: u64 = 40;

/// What was recorded.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Every point that was seen.
    pub points: BTreeSet<Point>,
    /// The spots that were seen every time: those that must be covered.
    pub spots: BTreeSet<Spot>,
}

/// Records all scenes.
///
/// **Errors** one does not run as it should.
pub fn record(lane: &mut Lane) -> Result<Recording> {
    let mut recording = Recording::default();
    for (build, sight) in
        [(Build::Shipped, Sight::ShimCalls), (Build::Shipped, Sight::DaemonCalls), (Build::Test, Sight::DaemonPlaces)]
    {
        lane.use_build(build)?;
        for scene in Scene::ALL.into_iter().filter(|scene| scene.sights().contains(&sight)) {
            let seen = (0..RECORDINGS).map(|_| record_scene(lane, scene, sight));
            let seen = seen.collect::<Result<Vec<_>>>().with_context(|| format!("recording {scene:?} by {sight:?}"))?;
            recording.take_in(scene, sight, &seen);
        }
    }
    Ok(recording)
}

impl Recording {
    fn take_in(&mut self, scene: Scene, sight: Sight, seen: &[BTreeMap<String, u64>]) {
        let names: BTreeSet<&String> = seen.iter().flat_map(BTreeMap::keys).collect();
        for name in names {
            let (victim, place) = match sight {
                Sight::ShimCalls => (Victim::Shim, Place::SystemCall(name.clone())),
                Sight::DaemonCalls => (Victim::Daemon, Place::SystemCall(name.clone())),
                Sight::DaemonPlaces => (Victim::Daemon, Place::Named(name.clone())),
            };
            let spot = Spot { scene, victim, place };
            let most = seen.iter().filter_map(|counts| counts.get(name)).max().copied().unwrap_or_default();
            self.points.extend((1..=most.min(MOST_PASSINGS)).map(|ordinal| Point { spot: spot.clone(), ordinal }));
            if seen.iter().all(|counts| counts.contains_key(name)) {
                self.spots.insert(spot);
            }
        }
    }
}

/// The names that one run of a scene passes, and how often.
fn record_scene(lane: &mut Lane, scene: Scene, sight: Sight) -> Result<BTreeMap<String, u64>> {
    let mut subject = lane.subject(scene);
    if scene.adds() {
        lane.prepare(&subject)?;
    } else {
        lane.attach(&mut subject)?;
    }
    if scene == Scene::DelAway {
        lane.single.node_mut().kill()?;
    }
    let counts = match sight {
        Sight::ShimCalls => shim_calls(lane, &subject, scene)?,
        Sight::DaemonCalls => daemon_calls(lane, &subject, scene)?,
        Sight::DaemonPlaces => daemon_places(lane, &subject, scene)?,
    };
    if !lane.single.node().is_started() {
        lane.start()?;
    }
    lane.detach(&subject)?;
    Ok(counts)
}

fn shim_calls(lane: &mut Lane, subject: &Subject, scene: Scene) -> Result<BTreeMap<String, u64>> {
    let log = lane.trace_file();
    let verb = scene.verb().context("no runtime calls")?;
    let call = lane.call(subject, verb).through(strace::words(&log, None));
    lane.run(subject, &call)?.success()?;
    let calls = strace::calls(&std::fs::read_to_string(&log)?);
    // Before it executes the shim, the process is still strace.
    let own = calls.into_iter().filter(|((_, name), _)| name != "execve");
    Ok(own.map(|((_, name), count)| (name, count)).collect())
}

/// The most that any thread of the daemon does; programs that it executes do not count.
fn daemon_calls(lane: &mut Lane, subject: &Subject, scene: Scene) -> Result<BTreeMap<String, u64>> {
    lane.wait_quiet()?;
    let process = lane.single.node().process_id()?;
    let mut threads = threads(process)?;
    let tracer = Attached::to(process, &lane.trace_file(), None)?;
    let verb = scene.verb().context("no runtime calls")?;
    let answer = lane.run(subject, &lane.call(subject, verb))?;
    if scene != Scene::AddRefused {
        answer.success()?;
    }
    threads.extend(self::threads(process)?);
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    for ((thread, name), count) in strace::calls(&tracer.finish()?) {
        if threads.contains(&thread) {
            let seen = most.entry(name).or_default();
            *seen = count.max(*seen);
        }
    }
    Ok(most)
}

fn threads(process: u32) -> Result<BTreeSet<u32>> {
    let entries = std::fs::read_dir(format!("/proc/{process}/task"))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse().ok()).collect())
}

fn daemon_places(lane: &mut Lane, subject: &Subject, scene: Scene) -> Result<BTreeMap<String, u64>> {
    let passed = lane.points().join("passed");
    if scene == Scene::Recovery {
        leave_half_deleted(lane, subject)?;
    }
    std::fs::write(&passed, "")?;
    match scene.verb() {
        None => lane.start()?,
        Some(verb) => {
            let answer = lane.run(subject, &lane.call(subject, verb))?;
            if scene == Scene::Add || scene == Scene::AddAfterAnother {
                answer.success()?;
                // The acknowledgement has no answer of its own: what is asked next is answered after it.
                lane.remains()?;
            }
        }
    }
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(&passed)?.lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    Ok(counts)
}
