//! Attaching a pod by Debian's reference plugins, by us, and by the floor beneath both, in one run on one machine.
//!
//! Milliseconds depend on the machine and its mood, ratios hardly: so the ways take turns, each on a node of its own, and
//! what is held to a goal is mostly a ratio. [`floor`] says what the floor is, [`shim`] what the exec of the shim costs by
//! itself.
//!
//! ```text
//! for each set-up:  prove that each way attaches ─> one after another ─> at the same time
//!                   ─> a crowd comes ─> one after another ─> the crowd goes ─> count what is left
//! ```

mod comparison;
mod floor;
mod holdings;
mod ours;
mod outcome;
mod plugin;
mod pod_namespace;
mod proof;
mod reference;
mod report;
mod rounds;
mod samples;
mod settler;
mod shim;
mod way;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::floor::Floor;
use self::holdings::Holdings;
use self::ours::Ours;
use self::outcome::Outcome;
use self::pod_namespace::PodNamespace;
use self::reference::Reference;
use self::report::Report;
use self::rounds::{Homes, Participant};
use self::settler::Settler;
use self::shim::Shim;
use self::way::{SetUp, Way as _, Who};
use super::Measured;
use crate::screen::{self, Step};

/// How much is measured. The defaults take about five minutes. The bounds keep the pods of a way below 65,536, by which
/// they are numbered.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct CniOptions {
    /// Of cni: pairs of ADD and DEL that the reference makes one after another; ours and the floor make three times as many.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=5000))]
    rounds: u16,
    /// Of cni: pods of the crowd beside which all of it is measured again; 0 for none.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pods: u16,
    /// Of cni: pods that come at the same time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=100))]
    parallel: u16,
    /// Of cni: how many times they come.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=100))]
    waves: u16,
}

/// Measures both set-ups.
///
/// # Errors
/// The reference is not installed, a call fails, or ours left something behind.
pub(super) fn measure(options: CniOptions) -> Result<Measured> {
    reference::ensure_installed()?;
    let before = load()?;
    let outcomes = SetUp::ALL.iter().map(|set_up| measure_set_up(*set_up, options)).collect::<Result<Vec<_>>>()?;
    let leak = outcomes.iter().any(|outcome| outcome.left.get(&Who::Ours) != Some(&Holdings::default()));
    let report = Report { outcomes, crowd: options.pods, width: options.parallel, load: [before, load()?] };
    let (text, figures) = (report.text(), report.figures());
    ensure!(!leak, "{text}\n\nours left something behind");
    Ok(Measured { text, figures })
}

/// The load of the machine over the last minute, five minutes, quarter of an hour.
fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

/// Makes a node for each way and measures.
fn measure_set_up(set_up: SetUp, options: CniOptions) -> Result<Outcome> {
    let name = set_up.name();
    let single = screen::step(&format!("{name}: start our daemon"), |_| ours::start())?;
    let reference = Reference::build(single.lab(), set_up)?;
    let floor = Floor::build(single.lab(), set_up)?;
    let shim_program = single.node().binaries().program("culvert");
    let shim = Shim::listening(single.lab().folder(), reference.place(), shim_program, set_up)?;
    let ours = Ours::on(single.node(), set_up);
    let participants =
        [Participant::new(&reference), Participant::new(&ours), Participant::new(&floor), Participant::new(&shim)];
    let settler = Settler::in_place(reference.place())?;
    let probe = single.node().binaries().program("lab-probe");
    let missing = screen::step(&format!("{name}: see that each of them attaches"), |_| {
        let found = participants.iter().map(|one| proof::prove(one, set_up, &probe)).collect::<Result<Vec<_>>>()?;
        Ok(found.concat())
    })?;
    let before = count(&participants)?;
    let empty = screen::step(&format!("{name}: one after another"), |step| {
        rounds::serial(&participants, options.rounds, &settler, &|what| step.show(what))
    })?;
    let parallel = screen::step(&format!("{name}: {} at once", options.parallel), |step| {
        rounds::parallel(&participants, options.waves, options.parallel, &settler, &|what| step.show(what))
    })?;
    let crowded = match options.pods {
        0 => Vec::new(),
        pods => screen::step(&format!("{name}: one after another, beside {pods} pods"), |step| {
            beside_a_crowd(&participants, options, &settler, step)
        })?,
    };
    let left =
        count(&participants)?.into_iter().zip(before).map(|((who, after), (_, before))| (who, after.beyond(&before)));
    let by_who = |list: Vec<_>| participants.iter().map(|one| one.way.who()).zip(list).collect::<BTreeMap<_, _>>();
    Ok(Outcome {
        set_up,
        empty: by_who(empty),
        crowded: by_who(crowded),
        parallel: participants.iter().map(|one| one.way.who()).zip(parallel).collect(),
        left: left.collect(),
        missing,
    })
}

/// What each way's node holds. The shim's row attaches nothing.
fn count(participants: &[Participant<'_>]) -> Result<Vec<(Who, Holdings)>> {
    let ways = participants.iter().map(|participant| participant.way).filter(|way| way.who() != Who::Shim);
    ways.map(|way| Ok((way.who(), Holdings::of(way)?))).collect()
}

/// The serial calls again, on nodes that are full. The shim has no pods of its own.
fn beside_a_crowd(
    participants: &[Participant<'_>],
    options: CniOptions,
    settler: &Settler,
    step: &Step,
) -> Result<Vec<rounds::Serial>> {
    step.show("the crowd comes");
    let homes = participants.iter().map(|participant| {
        let pods = if participant.way.who() == Who::Shim { 0 } else { options.pods };
        (0..pods).map(|_| PodNamespace::create()).collect()
    });
    let homes = homes.collect::<Result<Vec<Homes>>>()?;
    let crowds = rounds::gather(participants, &homes)?;
    let measured = rounds::serial(participants, options.rounds, settler, &|what| step.show(what))?;
    step.show("the crowd goes");
    rounds::dismiss(participants, crowds)?;
    Ok(measured)
}
