//! The best path, with hysteresis: a path that works is left for one that is clearly better for a while, and at once
//! when it dies.
//!
//! ```text
//! cost = round trip + 10 ms for each percent of loss + 50 ms through a relay
//!
//! stream ──a path has settled──> path ──dead, or gone──> the cheapest alive, or stream
//!                                  └──another is cheaper by the margin, for 3 s──> that one
//! ```

use std::fmt;
use std::time::Duration;

use super::{Health, PathId};

/// Answers that a path needs before packets are moved to it, unless none else is there.
pub const SETTLED_ANSWERS: u32 = 3;

/// How long another path must be better. Longer than a burst of cross traffic.
pub const HOLD: Duration = Duration::from_secs(3);

/// Another path must be cheaper by this at least, so that two paths over the same cable do not take turns.
pub const MARGIN: Duration = Duration::from_millis(5);

/// And by this share of what the current one costs, because jitter grows with distance.
pub const MARGIN_PERCENT: u32 = 20;

/// What a relay costs beyond its round trip: it carries everybody's packets, and may be metered.
pub const RELAY_COST: Duration = Duration::from_millis(50);

/// What each percent of loss costs: TCP loses more by it than by the round trip.
const LOSS_COST: Duration = Duration::from_millis(10);

/// A path as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Which.
    pub id: PathId,
    /// Whether no relay is on the way.
    pub is_direct: bool,
    /// Whether it carries packets.
    pub health: Health,
    /// **Units** answered probes.
    pub answers: u32,
    /// Its round trip; there when it is alive.
    pub round_trip: Duration,
    /// **Units** per thousand.
    pub loss_permille: u32,
}

impl Contender {
    /// What using it costs. Only meant to be compared.
    #[must_use]
    pub fn cost(&self) -> Duration {
        let relay = if self.is_direct { Duration::ZERO } else { RELAY_COST };
        self.round_trip + relay + LOSS_COST * self.loss_permille / 10
    }
}

/// Why the path changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Datagrams get through where only the stream did.
    FirstAnswers,
    /// The path's probes are not answered any more.
    Died,
    /// The path is no candidate any more, or its keys are gone.
    Gone,
    /// Another is better.
    Better {
        /// What the old one cost.
        from_cost: Duration,
        /// What the new one costs.
        to_cost: Duration,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstAnswers => formatter.write_str("its probes are answered"),
            Self::Died => formatter.write_str("probes of the former path are not answered any more"),
            Self::Gone => formatter.write_str("the former path is no candidate any more"),
            Self::Better { from_cost, to_cost } => {
                write!(formatter, "it costs {} ms, the former path {} ms", to_cost.as_millis(), from_cost.as_millis())
            }
        }
    }
}

/// A change of path. `None` is the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path before.
    pub from: Option<PathId>,
    /// The path from now on.
    pub to: Option<PathId>,
    /// Why.
    pub reason: Reason,
}

/// The path in use, and the one that may follow it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chooser {
    current: Option<PathId>,
    /// Which is better than the current one, and since when.
    rival: Option<(PathId, Duration)>,
}

impl Chooser {
    /// The path in use; `None` is the stream.
    #[must_use]
    pub fn current(&self) -> Option<PathId> {
        self.current
    }

    /// The path that will follow when it stays better.
    #[must_use]
    pub fn rival(&self) -> Option<PathId> {
        self.rival.map(|(id, _)| id)
    }

    /// Decides again.
    pub fn decide(&mut self, now: Duration, contenders: &[Contender]) -> Option<Change> {
        let (to, reason) = self.judge(now, contenders)?;
        self.rival = None;
        let from = std::mem::replace(&mut self.current, to);
        Some(Change { from, to, reason })
    }

    fn judge(&mut self, now: Duration, contenders: &[Contender]) -> Option<(Option<PathId>, Reason)> {
        let alive = contenders.iter().filter(|contender| contender.health == Health::Alive);
        // Of equal ones the first: numbers grow, so the choice does not depend on the order of the list.
        let cheapest = |settled: bool| {
            let ready = alive.clone().filter(move |contender| !settled || contender.answers >= SETTLED_ANSWERS);
            ready.min_by_key(|contender| (contender.cost(), contender.id))
        };
        let Some(id) = self.current else {
            return cheapest(true).map(|best| (Some(best.id), Reason::FirstAnswers));
        };
        let current = contenders.iter().find(|contender| contender.id == id);
        let Some(current) = current.filter(|current| current.health == Health::Alive) else {
            let reason = if current.is_some() { Reason::Died } else { Reason::Gone };
            return Some((cheapest(true).or(cheapest(false)).map(|best| best.id), reason));
        };
        let best = cheapest(true).filter(|best| is_clearly_better(best, current));
        // Another rival starts the wait anew only when none was better all along.
        let since = best.map(|_| self.rival.map_or(now, |(_, since)| since));
        self.rival = best.map(|best| best.id).zip(since);
        let best = best.filter(|_| since.is_some_and(|since| now.saturating_sub(since) >= HOLD))?;
        Some((Some(best.id), Reason::Better { from_cost: current.cost(), to_cost: best.cost() }))
    }
}

fn is_clearly_better(other: &Contender, current: &Contender) -> bool {
    let margin = MARGIN.max(current.cost() * MARGIN_PERCENT / 100);
    other.cost() + margin <= current.cost()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn path(id: u32, is_direct: bool, round_trip: u64) -> Contender {
        let (health, answers) = (Health::Alive, SETTLED_ANSWERS);
        Contender { id: PathId(id), is_direct, health, answers, round_trip: ms(round_trip), loss_permille: 0 }
    }

    fn dead(contender: Contender) -> Contender {
        Contender { health: Health::Dead, ..contender }
    }

    fn on(id: u32) -> Chooser {
        Chooser { current: Some(PathId(id)), rival: None }
    }

    fn to(change: Option<Change>) -> Option<Option<u32>> {
        change.map(|change| change.to.map(|id| id.0))
    }

    #[test]
    fn the_stream_is_left_for_the_cheapest_path_that_has_settled() {
        let mut chooser = Chooser::default();
        let fresh = Contender { answers: SETTLED_ANSWERS - 1, ..path(1, true, 5) };
        assert_eq!(chooser.decide(ms(0), &[fresh]), None);
        let change = chooser.decide(ms(0), &[fresh, path(2, false, 40), path(3, true, 30)]);
        assert_eq!(change, Some(Change { from: None, to: Some(PathId(3)), reason: Reason::FirstAnswers }));
        assert_eq!(chooser.current(), Some(PathId(3)));
    }

    #[test]
    fn a_dead_path_is_left_at_once_for_any_that_lives_or_the_stream() {
        let relayed = Contender { answers: 1, ..path(2, false, 90) };
        let change = on(1).decide(ms(0), &[dead(path(1, true, 1)), relayed]);
        assert_eq!(change, Some(Change { from: Some(PathId(1)), to: Some(PathId(2)), reason: Reason::Died }));
        let change = on(1).decide(ms(0), &[dead(path(1, true, 1)), dead(path(2, false, 1))]);
        assert_eq!(change, Some(Change { from: Some(PathId(1)), to: None, reason: Reason::Died }));
        let change = on(1).decide(ms(0), &[]);
        assert_eq!(change, Some(Change { from: Some(PathId(1)), to: None, reason: Reason::Gone }));
    }

    #[test]
    fn a_clearly_better_path_wins_after_the_hold_and_not_before() {
        let mut chooser = on(1);
        let both = [path(1, true, 100), path(2, true, 79)];
        assert_eq!(chooser.decide(ms(1000), &both), None);
        assert_eq!(chooser.decide(ms(3999), &both), None);
        let change = chooser.decide(ms(4000), &both).unwrap();
        assert_eq!(change.reason, Reason::Better { from_cost: ms(100), to_cost: ms(79) });
        assert_eq!(change.reason.to_string(), "it costs 79 ms, the former path 100 ms");
    }

    #[test]
    fn a_moment_without_the_advantage_starts_the_hold_anew() {
        let mut chooser = on(1);
        let (better, same) = ([path(1, true, 100), path(2, true, 10)], [path(1, true, 100), path(2, true, 95)]);
        assert_eq!(chooser.decide(ms(0), &better), None);
        assert_eq!(chooser.decide(ms(2900), &same), None);
        assert_eq!(chooser.decide(ms(3000), &better), None);
        assert_eq!(chooser.decide(ms(5999), &better), None);
        assert_eq!(to(chooser.decide(ms(6000), &better)), Some(Some(2)));
    }

    #[test]
    fn small_advantages_never_count() {
        for (current, other) in [(10, 6), (100, 81), (1, 0)] {
            let (mut chooser, both) = (on(1), [path(1, true, current), path(2, true, other)]);
            assert!((0..100).all(|second| chooser.decide(ms(second * 1000), &both).is_none()), "{current} {other}");
        }
    }

    #[test]
    fn a_direct_path_beats_a_relayed_one_unless_it_is_much_worse() {
        let after_hold = |current: u32, contenders: &[Contender]| {
            let mut chooser = on(current);
            chooser.decide(ms(0), contenders);
            to(chooser.decide(HOLD, contenders))
        };
        assert_eq!(after_hold(1, &[path(1, false, 30), path(2, true, 40)]), Some(Some(2)));
        assert_eq!(after_hold(1, &[path(1, false, 30), path(2, true, 120)]), None);
        let lossy = Contender { loss_permille: 150, ..path(2, true, 40) };
        assert_eq!(after_hold(2, &[path(1, false, 30), lossy]), Some(Some(1)));
    }

    fn contenders() -> impl Strategy<Value = Vec<Contender>> {
        let one = (any::<bool>(), 0..3_u8, 0..6_u32, 0..300_u64, 0..300_u32);
        prop::collection::vec(one, 0..6).prop_map(|all| {
            let make = |(id, (is_direct, health, answers, round_trip, loss_permille))| Contender {
                health: [Health::Untried, Health::Alive, Health::Dead][usize::from(health)],
                answers,
                loss_permille,
                ..path(id, is_direct, round_trip)
            };
            (0..).zip(all).map(make).collect()
        })
    }

    proptest! {
        #[test]
        fn the_path_in_use_is_alive_or_the_stream(rounds in prop::collection::vec((contenders(), 0..5000_u64), 1..40)) {
            let (mut chooser, mut now) = (Chooser::default(), 0);
            for (contenders, step) in rounds {
                now += step;
                let before = chooser.current();
                let change = chooser.decide(ms(now), &contenders);
                prop_assert_eq!(change.map_or(before, |change| change.to), chooser.current());
                prop_assert!(change.is_none_or(|change| change.from == before && (change.from != change.to)));
                let alive = |contender: &&Contender| contender.health == Health::Alive;
                match chooser.current() {
                    Some(id) => prop_assert!(contenders.iter().filter(alive).any(|path| path.id == id)),
                    None => prop_assert!(!contenders.iter().filter(alive).any(|path| path.answers >= SETTLED_ANSWERS)),
                }
            }
        }

        #[test]
        fn paths_that_do_not_change_lead_to_one_change_at_most(
            contenders in contenders(),
            current in prop::option::of(0..6_u32),
        ) {
            let mut chooser = Chooser { current: current.map(PathId), rival: None };
            chooser.decide(ms(0), &contenders);
            let changes = (1..200).filter(|second| chooser.decide(ms(second * 1000), &contenders).is_some()).count();
            prop_assert!(changes <= 1, "{}", changes);
        }

        #[test]
        fn living_paths_are_not_changed_more_often_than_the_hold(
            trips in prop::collection::vec(prop::collection::vec(0..300_u64, 4), 1..200),
        ) {
            let (mut chooser, mut last) = (Chooser::default(), None);
            for (tick, trips) in (0_u64..).zip(trips) {
                let now = ms(tick * 200);
                let all: Vec<Contender> = (0..).zip(trips).map(|(id, trip)| path(id, true, trip)).collect();
                if chooser.decide(now, &all).is_some() {
                    prop_assert!(last.is_none_or(|last| now - last >= HOLD));
                    last = Some(now);
                }
            }
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(contenders in contenders(), current in prop::option::of(0..6_u32)) {
            let decide = |contenders: &[Contender]| {
                let mut chooser = Chooser { current: current.map(PathId), rival: None };
                [0, 3000].map(|now| chooser.decide(ms(now), contenders))
            };
            let reversed: Vec<Contender> = contenders.iter().rev().copied().collect();
            prop_assert_eq!(decide(&contenders), decide(&reversed));
        }
    }
}
