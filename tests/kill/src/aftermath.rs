//! One trial: the process dies at its point, the daemon comes back, the runtime goes on, and nothing may be left.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_lab::cni::Answer;
use culvert_lab::strace::{self, Attached, Injection};

use crate::choice::Trial;
use crate::lane::{Build, Lane, Subject};
use crate::point::{Place, Point, Victim};
use crate::scene::{Aftermath, Scene};

/// How long after the answer the daemon may still die of what it was doing.
const DEATH_BOUND: Duration = Duration::from_millis(300);
/// How long a start may take to come to its point.
const RECOVERY_BOUND: Duration = Duration::from_secs(3);

/// Whether the runtime has the attachment, as far as anybody can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Its ADD was answered and acknowledged.
    Attached,
    /// It may be attached, or in the middle of going.
    Either,
    /// Its ADD was never acknowledged.
    Unacknowledged,
}

/// Whether a trial counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The process died at the point, and all was well afterwards.
    Reached,
    /// It did not come by there.
    Missed,
}

/// The build that a point needs; `None` when either will do.
#[must_use]
pub fn build_for(point: &Point) -> Option<Build> {
    match (&point.spot.victim, &point.spot.place) {
        (Victim::Shim, _) => None,
        (Victim::Daemon, Place::SystemCall(_)) => Some(Build::Shipped),
        (Victim::Daemon, Place::Named(_)) => Some(Build::Test),
    }
}

/// Tries a point.
///
/// **Errors** something was left, lost or given twice: the finding.
pub fn attempt(lane: &mut Lane, trial: &Trial) -> Result<Outcome> {
    let point = &trial.point;
    lane.use_build(build_for(point).unwrap_or(lane.build())).context("the daemon before")?;
    let mut subject = lane.subject(point.spot.scene);
    let struck = strike(lane, &mut subject, point)?;
    let died = match point.spot.victim {
        Victim::Shim => struck.shim_killed,
        Victim::Daemon => struck.daemon_died,
    };
    let known = take_in(lane, &mut subject, point, &struck, trial.turn)?;
    let restarted = !lane.single.node().is_started();
    if restarted {
        lane.start().context("the daemon does not come back")?;
    }
    if !died {
        lane.detach(&subject).context("after a point that was not reached")?;
        return Ok(Outcome::Missed);
    }
    let aftermath = Aftermath::of_turn(trial.turn);
    if point.spot.scene == Scene::AddRefused {
        // Asked for again, it would be refused again.
        subject.config["ipam"].take();
    }
    match aftermath {
        Aftermath::Add => add_again(lane, &mut subject, known)?,
        Aftermath::Del => {}
        Aftermath::Gc => {
            lane.run(&subject, &lane.call(&subject, "GC"))?.success().context("GC")?;
            return lane.expect_nothing_left(&subject).context("after GC").map(|()| Outcome::Reached);
        }
        Aftermath::OwnLook => {
            if !restarted {
                lane.restart()?;
            }
            if own_look(lane, &subject, known)? {
                return Ok(Outcome::Reached);
            }
        }
    }
    lane.detach(&subject).context("after DEL").map(|()| Outcome::Reached)
}

/// What the kill did.
struct Struck {
    answer: Option<Answer>,
    shim_killed: bool,
    /// Whether the shim told the daemon that the runtime has the answer.
    acknowledged: bool,
    daemon_died: bool,
}

/// Prepares the scene, aims, and lets it happen.
fn strike(lane: &mut Lane, subject: &mut Subject, point: &Point) -> Result<Struck> {
    let scene = point.spot.scene;
    if scene.adds() {
        lane.prepare(subject)?;
    } else {
        lane.attach(subject)?;
    }
    if scene == Scene::DelAway {
        lane.single.node_mut().kill()?;
    }
    match (&point.spot.victim, &point.spot.place) {
        (Victim::Shim, Place::SystemCall(name)) => {
            strike_shim(lane, subject, scene, &Injection::kill(name, point.ordinal))
        }
        (Victim::Daemon, Place::SystemCall(name)) => {
            lane.wait_quiet()?;
            let process = lane.single.node().process_id()?;
            let tracer = Attached::to(process, &lane.trace_file(), Some(&Injection::kill(name, point.ordinal)))?;
            if lane.single.node_mut().ends_within(Duration::ZERO)? {
                // An idle daemon came by there too: that is no point of this scene.
                return Ok(Struck { answer: None, shim_killed: false, acknowledged: false, daemon_died: false });
            }
            let struck = strike_daemon(lane, subject, scene)?;
            tracer.finish()?;
            // One that comes by only now dies too, and is started again; the scene was over.
            lane.single.node_mut().ends_within(Duration::ZERO)?;
            Ok(struck)
        }
        (Victim::Daemon, Place::Named(name)) => {
            let target = lane.points().join("target");
            if scene == Scene::Recovery {
                leave_half_deleted(lane, subject)?;
            }
            aim(lane, name, point.ordinal)?;
            let struck =
                if scene == Scene::Recovery { strike_start(lane) } else { strike_daemon(lane, subject, scene) };
            std::fs::remove_file(&target)?;
            struck
        }
        (Victim::Shim, Place::Named(name)) => bail!("the shim has no place {name:?}"),
    }
}

/// Tells the test build where to die.
fn aim(lane: &Lane, name: &str, ordinal: u64) -> Result<()> {
    let (target, fresh) = (lane.points().join("target"), lane.points().join("target.new"));
    std::fs::write(&fresh, format!("{name} {ordinal}"))?;
    std::fs::rename(&fresh, &target).context("cannot aim")
}

fn strike_shim(lane: &mut Lane, subject: &Subject, scene: Scene, injection: &Injection) -> Result<Struck> {
    let log = lane.trace_file();
    let verb = scene.verb().context("no runtime calls in this scene")?;
    let call = lane.call(subject, verb).through(strace::words(&log, Some(injection)));
    let answer = lane.run(subject, &call)?;
    let log = std::fs::read_to_string(&log)?;
    Ok(Struck {
        answer: Some(answer),
        shim_killed: strace::was_killed(&log),
        // The one byte that it sends last.
        acknowledged: log.lines().any(|line| line.contains("\"\\6\", 1") && line.ends_with(" = 1")),
        daemon_died: false,
    })
}

fn strike_daemon(lane: &mut Lane, subject: &Subject, scene: Scene) -> Result<Struck> {
    let verb = scene.verb().context("no runtime calls in this scene")?;
    let answer = lane.run(subject, &lane.call(subject, verb))?;
    let daemon_died = lane.single.node_mut().ends_within(DEATH_BOUND)?;
    Ok(Struck { answer: Some(answer), shim_killed: false, acknowledged: false, daemon_died })
}

/// A daemon that dies in the middle of a DEL.
pub(crate) fn leave_half_deleted(lane: &mut Lane, subject: &Subject) -> Result<()> {
    aim(lane, "step delete-link", 2)?;
    let struck = strike_daemon(lane, subject, Scene::Del)?;
    std::fs::remove_file(lane.points().join("target"))?;
    ensure!(struck.daemon_died, "the daemon did not die in the middle of a DEL");
    Ok(())
}

fn strike_start(lane: &mut Lane) -> Result<Struck> {
    lane.begin_start()?;
    let daemon_died = lane.single.node_mut().ends_within(RECOVERY_BOUND)?;
    Ok(Struck { answer: None, shim_killed: false, acknowledged: false, daemon_died })
}

/// What the runtime knows after the kill, and what it writes down of it.
fn take_in(lane: &mut Lane, subject: &mut Subject, point: &Point, struck: &Struck, turn: usize) -> Result<Known> {
    let scene = point.spot.scene;
    if !scene.adds() {
        if scene != Scene::Check {
            lane.ledger.free(&subject.id, Instant::now());
        }
        return Ok(if scene == Scene::Check { Known::Attached } else { Known::Either });
    }
    let Some(answer) = &struck.answer else { return Ok(Known::Unacknowledged) };
    let printed = answer.body["interfaces"].is_array();
    if printed {
        subject.result = Some(answer.body.clone());
    }
    if struck.acknowledged {
        return Ok(Known::Attached);
    }
    if answer.status != Some(0) {
        return Ok(Known::Unacknowledged);
    }
    // The runtime has its answer. It may have come to write that down, or not.
    if turn % 8 < 4 {
        lane.remember(subject)?;
        return Ok(Known::Attached);
    }
    Ok(Known::Either)
}

fn add_again(lane: &mut Lane, subject: &mut Subject, known: Known) -> Result<()> {
    // A DEL that found no daemon has taken the interface away, whoever made it.
    lane.prepare(subject)?;
    let before = lane.remains()?;
    let answer = lane.run(subject, &lane.call(subject, "ADD"))?;
    if answer.status == Some(0) {
        ensure!(known != Known::Attached, "an ADD of an attachment that was acknowledged succeeded");
        subject.result = Some(answer.body);
        lane.remember(subject)?;
        lane.check(subject)?.success().context("the attachment of the second ADD")?;
        return lane.expect_second_add_refused(subject);
    }
    ensure!(known != Known::Unacknowledged, "an ADD that was never acknowledged is refused when retried: {answer:?}");
    ensure!(answer.code() == Some(100), "the second ADD was answered {answer:?}");
    let left = before.difference(&lane.remains()?);
    ensure!(left.is_empty(), "the refused ADD changed something:\n{}", left.join("\n"));
    lane.check(subject)?.success().context("the attachment that was refused a second time").map(drop)
}

/// What the daemon's own look at its start leaves; whether nothing is left.
fn own_look(lane: &mut Lane, subject: &Subject, known: Known) -> Result<bool> {
    match known {
        Known::Attached => {
            lane.check(subject)?.success().context("the attachment that the runtime has, after a restart")?;
            Ok(false)
        }
        Known::Unacknowledged => {
            lane.expect_nothing_left(subject).context("after the daemon's own look").map(|()| true)
        }
        Known::Either => {
            if subject.result.is_some() && lane.check(subject)?.status == Some(0) {
                return Ok(false);
            }
            lane.expect_nothing_left(subject)
                .context("neither whole nor gone after the daemon's own look")
                .map(|()| true)
        }
    }
}
