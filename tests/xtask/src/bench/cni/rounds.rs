//! The order of calls: rounds in which the ways take turns, waves in which many pods come at the same time, and the crowd
//! that stands by.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::pod_namespace::{self, PodNamespace};
use super::samples::Samples;
use super::settler::Settler;
use super::way::{Pod, Way, Who};

/// Pairs of our ways in a round, beside one of the reference: they take a hundredth of its time, and what is held to a goal
/// shall not rest on a few samples.
const OWN_PER_ROUND: usize = 3;
/// Pods of the crowd that come or go at the same time: enough to fill the waits of the kernel.
const CROWD_WORKERS: usize = 4;

/// What serial calls of one way took.
#[derive(Clone, Debug, Default)]
pub(super) struct Serial {
    /// Of each ADD.
    pub(super) add: Samples,
    /// Of each DEL.
    pub(super) del: Samples,
    /// Processor time of all pairs.
    pub(super) cpu: Duration,
}

impl Serial {
    /// **Units** milliseconds of processor time a pair.
    pub(super) fn cpu_ms(&self) -> f64 {
        let pairs = u32::try_from(self.add.count()).unwrap_or(u32::MAX);
        self.cpu.as_secs_f64() * 1e3 / f64::from(pairs)
    }
}

/// What simultaneous calls of one way took.
#[derive(Clone, Debug, Default)]
pub(super) struct Parallel {
    /// Of each ADD.
    pub(super) add: Samples,
    /// Of each DEL.
    pub(super) del: Samples,
    add_wall: Duration,
    del_wall: Duration,
}

impl Parallel {
    /// **Units** ADDs a second.
    pub(super) fn adds_per_second(&self) -> f64 {
        per_second(self.add.count(), self.add_wall)
    }

    /// **Units** DELs a second.
    pub(super) fn dels_per_second(&self) -> f64 {
        per_second(self.del.count(), self.del_wall)
    }
}

fn per_second(count: usize, wall: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / wall.as_secs_f64()
}

/// A way that takes part, and the numbers its pods had so far.
pub(super) struct Participant<'a> {
    /// The way.
    pub(super) way: &'a dyn Way,
    numbers: AtomicU16,
}

impl<'a> Participant<'a> {
    /// A way without pods.
    pub(super) fn new(way: &'a dyn Way) -> Self {
        Self { way, numbers: AtomicU16::new(0) }
    }

    /// A pod that never was before.
    pub(super) fn pod<'b>(&'b self, namespace: &'b PodNamespace) -> Box<dyn Pod + 'b> {
        self.way.pod(self.numbers.fetch_add(1, Ordering::Relaxed), namespace)
    }

    /// Does something on a thread that lives on the way's node.
    ///
    /// **Errors** those of the work.
    pub(super) fn on_node<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        pod_namespace::inside(&self.way.place().path(), work)
    }
}

/// One after another: in each round every way once, or thrice, and each round begins with another way.
///
/// **Errors** a call fails.
pub(super) fn serial(
    participants: &[Participant<'_>],
    rounds: u16,
    settler: &Settler,
    tell: &dyn Fn(&str),
) -> Result<Vec<Serial>> {
    let namespaces = participants.iter().map(|_| PodNamespace::create()).collect::<Result<Vec<_>>>()?;
    let mut all = vec![Serial::default(); participants.len()];
    for round in 0..rounds {
        tell(&format!("round {} of {rounds}", round + 1));
        for turn in 0..participants.len() {
            let index = (usize::from(round) + turn) % participants.len();
            let (Some(participant), Some(namespace), Some(serial)) =
                (participants.get(index), namespaces.get(index), all.get_mut(index))
            else {
                continue;
            };
            let pairs = if participant.way.who() == Who::Reference { 1 } else { OWN_PER_ROUND };
            for _ in 0..pairs {
                participant.on_node(|| pair(participant, namespace, settler, serial))?;
            }
        }
    }
    Ok(all)
}

/// One ADD and one DEL, each on a quiet kernel.
fn pair(participant: &Participant<'_>, namespace: &PodNamespace, settler: &Settler, serial: &mut Serial) -> Result<()> {
    let way = participant.way;
    let mut pod = participant.pod(namespace);
    let settle = || way.settle().and_then(|()| settler.settle());
    settle()?;
    let cpu_before = way.cpu_time()?;
    let begun = Instant::now();
    pod.attach()?;
    serial.add.add(begun.elapsed());
    settle()?;
    let begun = Instant::now();
    pod.detach()?;
    serial.del.add(begun.elapsed());
    settle()?;
    serial.cpu += way.cpu_time()?.saturating_sub(cpu_before);
    Ok(())
}

/// Many at the same time: in each wave every way once.
///
/// **Errors** a call fails.
pub(super) fn parallel(
    participants: &[Participant<'_>],
    waves: u16,
    width: u16,
    settler: &Settler,
    tell: &dyn Fn(&str),
) -> Result<Vec<Parallel>> {
    let namespaces = (0..width).map(|_| PodNamespace::create()).collect::<Result<Vec<_>>>()?;
    let mut all = vec![Parallel::default(); participants.len()];
    for round in 0..waves {
        tell(&format!("wave {} of {waves}", round + 1));
        for (participant, parallel) in participants.iter().zip(&mut all) {
            wave(participant, &namespaces, settler, parallel)?;
        }
    }
    Ok(all)
}

/// When one call began and ended.
type Span = (Instant, Instant);

fn wave(
    participant: &Participant<'_>,
    namespaces: &[PodNamespace],
    settler: &Settler,
    parallel: &mut Parallel,
) -> Result<()> {
    let way = participant.way;
    way.settle()?;
    settler.settle()?;
    let start = Barrier::new(namespaces.len());
    let timed = std::thread::scope(|scope| {
        let threads: Vec<_> = namespaces
            .iter()
            .map(|namespace| scope.spawn(|| one_of_wave(participant, namespace, settler, &start)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a caller panicked"))?);
        joined.collect::<Result<Vec<(Span, Span)>>>()
    })?;
    let (adds, dels): (Vec<Span>, Vec<Span>) = timed.into_iter().unzip();
    parallel.add_wall += note(&adds, &mut parallel.add);
    parallel.del_wall += note(&dels, &mut parallel.del);
    Ok(())
}

/// Notes calls that were asked for at the same time, and returns how long all of them took. Each counts from the moment
/// the first began: that a processor was not free for it yet is part of its time.
fn note(spans: &[Span], samples: &mut Samples) -> Duration {
    let Some(first) = spans.iter().map(|span| span.0).min() else { return Duration::ZERO };
    let took = spans.iter().map(|span| span.1 - first);
    took.clone().for_each(|took| samples.add(took));
    took.max().unwrap_or_default()
}

/// One caller of a wave. It goes to every meeting point whatever fails before, so that nobody waits for it in vain.
fn one_of_wave(
    participant: &Participant<'_>,
    namespace: &PodNamespace,
    settler: &Settler,
    start: &Barrier,
) -> Result<(Span, Span)> {
    let entered = pod_namespace::open(&participant.way.place().path()).and_then(pod_namespace::enter);
    let mut pod = participant.pod(namespace);
    start.wait();
    let added = entered.and_then(|()| timed(|| pod.attach()));
    start.wait();
    let settled = participant.way.settle().and_then(|()| settler.settle());
    start.wait();
    let (added, ()) = (added?, settled?);
    Ok((added, timed(|| pod.detach())?))
}

fn timed(call: impl FnOnce() -> Result<()>) -> Result<Span> {
    let begun = Instant::now();
    call()?;
    Ok((begun, Instant::now()))
}

/// What a crowd lives in.
pub(super) type Homes = Vec<PodNamespace>;

/// Attaches this many pods of every way, all ways at the same time. Nothing is measured.
///
/// **Errors** a call fails.
pub(super) fn gather<'a>(
    participants: &'a [Participant<'_>],
    homes: &'a [Homes],
) -> Result<Vec<Vec<Box<dyn Pod + 'a>>>> {
    let crowds = participants.iter().zip(homes);
    let crowds = crowds.map(|(participant, homes)| homes.iter().map(|home| participant.pod(home)).collect());
    let mut crowds: Vec<Vec<Box<dyn Pod + 'a>>> = crowds.collect();
    for_everyone(participants, &mut crowds, |pod| pod.attach())?;
    Ok(crowds)
}

/// Detaches a crowd.
///
/// **Errors** a call fails.
pub(super) fn dismiss(participants: &[Participant<'_>], mut crowds: Vec<Vec<Box<dyn Pod + '_>>>) -> Result<()> {
    for_everyone(participants, &mut crowds, |pod| pod.detach())
}

/// Calls something for each pod, by several threads a way that live on its node.
fn for_everyone<'a>(
    participants: &[Participant<'_>],
    crowds: &mut [Vec<Box<dyn Pod + 'a>>],
    call: impl Fn(&mut dyn Pod) -> Result<()> + Sync,
) -> Result<()> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (participant, crowd) in participants.iter().zip(crowds) {
            let part = crowd.len().div_ceil(CROWD_WORKERS).max(1);
            for pods in crowd.chunks_mut(part) {
                let call = &call;
                threads.push(
                    scope.spawn(move || participant.on_node(|| pods.iter_mut().try_for_each(|pod| call(pod.as_mut())))),
                );
            }
        }
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a caller panicked"))?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simultaneous_calls_count_from_the_first_beginning() {
        let begun = Instant::now();
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        let mut samples = Samples::default();
        assert_eq!(note(&[(at(3), at(9)), (at(0), at(4))], &mut samples), Duration::from_millis(9));
        assert_eq!([50, 100].map(|percent| samples.percentile_ms(percent).round()), [4.0, 9.0]);
        assert_eq!(note(&[], &mut samples), Duration::ZERO);
    }
}
