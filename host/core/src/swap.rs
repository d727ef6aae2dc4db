//! The slot of one kind of policy: which unit answers, which one is kept to go back to, and when to.
//!
//! ```text
//!            activate                      60 s and 20 calls without fault
//! (standing) ────────> probation ─────────────────────────────────────────> standing, last good
//!                          │ fault
//!                          └────────> previous unit, new generation; the faulty one rests
//! ```
//! A slot is never empty: it starts with the shipped unit, and the last way back ends there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How long a unit is on probation. **Units** milliseconds.
pub const PROBATION_MS: u64 = 60_000;

/// How many calls must have gone well by then. A slot that is asked rarely stays on probation.
pub const PROBATION_CALLS: u32 = 20;

/// Defects that send a unit on probation back: the first one. The previous unit works, so nothing is
/// gained by trying again.
pub const DEFECTS_ON_PROBATION: u32 = 1;

/// Faults in a row that send a standing unit back, and one on probation that only refuses: one may
/// be the input's fault, three in a row are the unit's.
pub const FAULTS_IN_A_ROW: u32 = 3;

/// How long a unit that was sent back rests, the first time. Doubles each time. **Units** milliseconds.
pub const FIRST_REST_MS: u64 = 30_000;

/// The longest rest. **Units** milliseconds.
pub const LONGEST_REST_MS: u64 = 3_600_000;

/// How many faulty units are remembered. When it is full the one whose rest ends first is forgotten.
pub const MAX_FAILED: usize = 64;

/// What identifies a unit: the digest of component and settings together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnitDigest(pub String);

/// How a call of a policy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The guest trapped.
    Trap,
    /// The guest overran its deadline.
    Timeout,
    /// The guest asked for more memory than it may have.
    Memory,
    /// The answer was refused at the door.
    Invalid,
    /// The policy itself said that it has no answer.
    Refused,
}

impl FaultKind {
    /// Whether this is a defect of the unit whatever the input was.
    #[must_use]
    pub fn is_defect(self) -> bool {
        match self {
            Self::Trap | Self::Timeout | Self::Memory | Self::Invalid => true,
            Self::Refused => false,
        }
    }
}

/// What happened to the active unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotEvent {
    /// A unit passed the gate and takes over. **Units** `now_ms` in milliseconds.
    Activated {
        /// Its digest.
        digest: UnitDigest,
        /// The time.
        now_ms: u64,
    },
    /// A call went well.
    CallOk,
    /// A call failed.
    Fault {
        /// How.
        kind: FaultKind,
        /// The time.
        now_ms: u64,
    },
    /// Time went by.
    Tick {
        /// The time.
        now_ms: u64,
    },
}

/// What the supervisor has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotAction {
    /// Nothing.
    Keep,
    /// The active unit has passed its probation: persist it as the last good one.
    Commit,
    /// Make a fresh instance of the active unit; there is nothing better to go back to.
    Reinstantiate,
    /// Make this unit active, under the new generation, and ask it again.
    RollBack {
        /// The unit to go back to.
        to: UnitDigest,
        /// The unit that failed.
        from: UnitDigest,
    },
}

/// A unit that may not be activated yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unit {} failed {times} times and rests until {until_ms} ms: change it, or activate it by hand", digest.0)]
pub struct Resting {
    /// The unit.
    pub digest: UnitDigest,
    /// How often it was sent back.
    pub times: u32,
    /// **Units** milliseconds since the epoch.
    pub until_ms: u64,
}

/// How the active unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It has proved itself, or is the shipped one.
    Standing,
    /// It has taken over a short time ago.
    Probation {
        /// **Units** milliseconds since the epoch.
        since_ms: u64,
        /// Calls that went well.
        calls: u32,
    },
}

/// A unit that was sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Failure {
    times: u32,
    until_ms: u64,
}

/// The slot. Persisted, so that a restart without network begins where it stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    shipped: UnitDigest,
    active: UnitDigest,
    last_good: UnitDigest,
    phase: Phase,
    faults_in_a_row: u32,
    defects: u32,
    failed: BTreeMap<UnitDigest, Failure>,
    generation: u64,
}

impl Slot {
    /// A slot with the unit that ships with the daemon.
    #[must_use]
    pub fn new(shipped: UnitDigest) -> Self {
        Self {
            active: shipped.clone(),
            last_good: shipped.clone(),
            shipped,
            phase: Phase::Standing,
            faults_in_a_row: 0,
            defects: 0,
            failed: BTreeMap::new(),
            generation: 1,
        }
    }

    /// The unit that answers.
    #[must_use]
    pub fn active(&self) -> &UnitDigest {
        &self.active
    }

    /// The unit that passed its probation last.
    #[must_use]
    pub fn last_good(&self) -> &UnitDigest {
        &self.last_good
    }

    /// How the active unit stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Grows with every change of the active unit.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a unit may be activated by itself now.
    ///
    /// # Errors
    /// [`Resting`] when it failed a short time ago.
    pub fn may_activate(&self, digest: &UnitDigest, now_ms: u64) -> Result<(), Resting> {
        match self.failed.get(digest) {
            // A clock that jumped back must not make the rest longer than it can be.
            Some(failure) if failure.until_ms > now_ms && failure.until_ms - now_ms <= LONGEST_REST_MS => {
                Err(Resting { digest: digest.clone(), times: failure.times, until_ms: failure.until_ms })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A unit that failed before it could take over (at the gate's self-test, say) rests as well.
    pub fn candidate_failed(&mut self, digest: &UnitDigest, now_ms: u64) {
        if *digest != self.active {
            self.rest(digest.clone(), now_ms);
        }
    }

    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, event: &SlotEvent) -> SlotAction {
        match event {
            SlotEvent::Activated { digest, now_ms } => self.activate(digest, *now_ms),
            SlotEvent::CallOk => self.call_ok(),
            SlotEvent::Fault { kind, now_ms } => self.fault(*kind, *now_ms),
            SlotEvent::Tick { now_ms } => self.tick(*now_ms),
        }
    }

    /// The unit that is active already stays what it is: the same content never reloads.
    fn activate(&mut self, digest: &UnitDigest, now_ms: u64) -> SlotAction {
        if *digest == self.active {
            return SlotAction::Keep;
        }
        self.make_active(digest.clone(), Phase::Probation { since_ms: now_ms, calls: 0 });
        SlotAction::Keep
    }

    fn call_ok(&mut self) -> SlotAction {
        self.faults_in_a_row = 0;
        match &mut self.phase {
            Phase::Standing => {}
            Phase::Probation { calls, .. } => *calls = calls.saturating_add(1),
        }
        SlotAction::Keep
    }

    fn fault(&mut self, kind: FaultKind, now_ms: u64) -> SlotAction {
        self.faults_in_a_row = self.faults_in_a_row.saturating_add(1);
        self.defects = self.defects.saturating_add(u32::from(kind.is_defect()));
        let on_probation = matches!(self.phase, Phase::Probation { .. });
        let enough = self.faults_in_a_row >= FAULTS_IN_A_ROW || (on_probation && self.defects >= DEFECTS_ON_PROBATION);
        if !enough {
            return if kind.is_defect() { SlotAction::Reinstantiate } else { SlotAction::Keep };
        }
        let Some(to) = self.way_back() else {
            self.faults_in_a_row = 0;
            return SlotAction::Reinstantiate;
        };
        let from = self.active.clone();
        self.rest(from.clone(), now_ms);
        self.make_active(to.clone(), Phase::Standing);
        self.last_good = to.clone();
        SlotAction::RollBack { to, from }
    }

    fn tick(&mut self, now_ms: u64) -> SlotAction {
        match self.phase {
            Phase::Probation { since_ms, calls }
                if calls >= PROBATION_CALLS && now_ms.saturating_sub(since_ms) >= PROBATION_MS =>
            {
                self.phase = Phase::Standing;
                self.last_good = self.active.clone();
                self.failed.remove(&self.active);
                SlotAction::Commit
            }
            Phase::Probation { .. } | Phase::Standing => SlotAction::Keep,
        }
    }

    /// The last good unit, else the shipped one; never the one that is active.
    fn way_back(&self) -> Option<UnitDigest> {
        [&self.last_good, &self.shipped].into_iter().find(|digest| **digest != self.active).cloned()
    }

    fn make_active(&mut self, digest: UnitDigest, phase: Phase) {
        self.active = digest;
        self.phase = phase;
        self.faults_in_a_row = 0;
        self.defects = 0;
        self.generation += 1;
    }

    fn rest(&mut self, digest: UnitDigest, now_ms: u64) {
        let times = self.failed.get(&digest).map_or(1, |failure| failure.times.saturating_add(1));
        let rest_ms = FIRST_REST_MS.saturating_mul(1 << (times - 1).min(16)).min(LONGEST_REST_MS);
        if self.failed.len() >= MAX_FAILED && !self.failed.contains_key(&digest) {
            let first = self.failed.iter().min_by_key(|(_, failure)| failure.until_ms);
            if let Some(first) = first.map(|(digest, _)| digest.clone()) {
                self.failed.remove(&first);
            }
        }
        self.failed.insert(digest, Failure { times, until_ms: now_ms.saturating_add(rest_ms) });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unit(name: &str) -> UnitDigest {
        UnitDigest(name.to_owned())
    }

    fn activated(name: &str, now_ms: u64) -> SlotEvent {
        SlotEvent::Activated { digest: unit(name), now_ms }
    }

    fn fault(kind: FaultKind) -> SlotEvent {
        SlotEvent::Fault { kind, now_ms: 1_000 }
    }

    fn roll_back(from: &str, to: &str) -> SlotAction {
        SlotAction::RollBack { to: unit(to), from: unit(from) }
    }

    /// A slot whose unit `name` has passed its probation.
    fn standing(name: &str) -> Slot {
        let mut slot = Slot::new(unit("shipped"));
        slot.handle(&activated(name, 0));
        (0..PROBATION_CALLS).for_each(|_| assert_eq!(slot.handle(&SlotEvent::CallOk), SlotAction::Keep));
        assert_eq!(slot.handle(&SlotEvent::Tick { now_ms: PROBATION_MS }), SlotAction::Commit);
        slot
    }

    const KINDS: [FaultKind; 5] =
        [FaultKind::Trap, FaultKind::Timeout, FaultKind::Memory, FaultKind::Invalid, FaultKind::Refused];

    #[test]
    fn a_slot_starts_with_the_shipped_unit() {
        let slot = Slot::new(unit("shipped"));
        assert_eq!((slot.active(), slot.last_good()), (&unit("shipped"), &unit("shipped")));
        assert_eq!((slot.phase(), slot.generation()), (Phase::Standing, 1));
    }

    #[test]
    fn probation_ends_after_enough_time_and_enough_calls() {
        let mut slot = Slot::new(unit("shipped"));
        slot.handle(&activated("new", 10));
        assert_eq!((slot.active(), slot.last_good(), slot.generation()), (&unit("new"), &unit("shipped"), 2));
        assert_eq!(slot.handle(&SlotEvent::Tick { now_ms: 10 + PROBATION_MS }), SlotAction::Keep);
        (0..PROBATION_CALLS).for_each(|_| assert_eq!(slot.handle(&SlotEvent::CallOk), SlotAction::Keep));
        assert_eq!(slot.handle(&SlotEvent::Tick { now_ms: 9 + PROBATION_MS }), SlotAction::Keep);
        assert_eq!(slot.handle(&SlotEvent::Tick { now_ms: 10 + PROBATION_MS }), SlotAction::Commit);
        assert_eq!((slot.last_good(), slot.phase()), (&unit("new"), Phase::Standing));
        assert_eq!(slot.handle(&SlotEvent::Tick { now_ms: u64::MAX }), SlotAction::Keep);
    }

    #[test]
    fn the_first_defect_on_probation_goes_back_to_the_last_good_unit() {
        for kind in KINDS.into_iter().filter(|kind| kind.is_defect()) {
            let mut slot = standing("good");
            slot.handle(&activated("bad", 500));
            slot.handle(&SlotEvent::CallOk);
            assert_eq!(slot.handle(&fault(kind)), roll_back("bad", "good"), "{kind:?}");
            assert_eq!((slot.active(), slot.phase(), slot.generation()), (&unit("good"), Phase::Standing, 4));
        }
    }

    #[test]
    fn refusals_alone_go_back_only_after_three_in_a_row() {
        let mut slot = standing("good");
        slot.handle(&activated("stubborn", 500));
        let refused = fault(FaultKind::Refused);
        assert_eq!([slot.handle(&refused), slot.handle(&refused)], [SlotAction::Keep, SlotAction::Keep]);
        slot.handle(&SlotEvent::CallOk);
        assert_eq!([slot.handle(&refused), slot.handle(&refused)], [SlotAction::Keep, SlotAction::Keep]);
        assert_eq!(slot.handle(&refused), roll_back("stubborn", "good"));
    }

    #[test]
    fn a_standing_unit_is_made_afresh_twice_and_then_goes_back_to_the_shipped_one() {
        for kind in KINDS {
            let mut slot = standing("tired");
            let first = if kind.is_defect() { SlotAction::Reinstantiate } else { SlotAction::Keep };
            let actions = [(); 3].map(|()| slot.handle(&fault(kind)));
            assert_eq!(actions, [first.clone(), first, roll_back("tired", "shipped")], "{kind:?}");
            assert_eq!((slot.active(), slot.last_good()), (&unit("shipped"), &unit("shipped")));
        }
    }

    #[test]
    fn the_shipped_unit_has_nothing_to_go_back_to_and_stays() {
        let mut slot = Slot::new(unit("shipped"));
        for _ in 0..10 {
            assert_eq!(slot.handle(&fault(FaultKind::Trap)), SlotAction::Reinstantiate);
        }
        assert_eq!((slot.active(), slot.generation()), (&unit("shipped"), 1));
    }

    #[test]
    fn the_same_content_never_reloads() {
        let mut slot = standing("good");
        let before = slot.clone();
        assert_eq!(slot.handle(&activated("good", 99)), SlotAction::Keep);
        assert_eq!(slot, before);
    }

    #[test]
    fn a_unit_that_was_sent_back_rests_longer_each_time() {
        let mut slot = Slot::new(unit("shipped"));
        let mut rests = Vec::new();
        for _ in 0..9 {
            slot.handle(&activated("bad", 0));
            slot.handle(&fault(FaultKind::Trap));
            let resting = slot.may_activate(&unit("bad"), 1_000).unwrap_err();
            assert_eq!(slot.may_activate(&unit("bad"), resting.until_ms), Ok(()));
            rests.push((resting.times, (resting.until_ms - 1_000) / 1_000));
        }
        assert_eq!(
            rests,
            [(1, 30), (2, 60), (3, 120), (4, 240), (5, 480), (6, 960), (7, 1_920), (8, 3_600), (9, 3_600),]
        );
        assert_eq!(slot.may_activate(&unit("other"), 0), Ok(()));
    }

    #[test]
    fn a_clock_that_jumped_back_does_not_keep_a_unit_resting() {
        let mut slot = Slot::new(unit("shipped"));
        slot.candidate_failed(&unit("bad"), 10_000_000_000);
        assert!(slot.may_activate(&unit("bad"), 10_000_000_000).is_err());
        assert_eq!(slot.may_activate(&unit("bad"), 5), Ok(()));
    }

    #[test]
    fn only_so_many_faulty_units_are_remembered() {
        let mut slot = Slot::new(unit("shipped"));
        for index in 0..=MAX_FAILED as u64 {
            slot.candidate_failed(&unit(&format!("bad-{index}")), index);
        }
        assert_eq!(slot.failed.len(), MAX_FAILED);
        assert_eq!(slot.may_activate(&unit("bad-0"), 1), Ok(()));
        assert!(slot.may_activate(&unit("bad-1"), 1).is_err());
    }

    fn event() -> impl Strategy<Value = SlotEvent> {
        let kind = proptest::sample::select(KINDS.to_vec());
        prop_oneof![
            (0_u8..4, any::<u64>()).prop_map(|(name, now_ms)| activated(&format!("unit-{name}"), now_ms)),
            Just(SlotEvent::CallOk),
            (kind, any::<u64>()).prop_map(|(kind, now_ms)| SlotEvent::Fault { kind, now_ms }),
            any::<u64>().prop_map(|now_ms| SlotEvent::Tick { now_ms }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_a_change_of_unit_is_a_new_generation(events in proptest::collection::vec(event(), 0..200)) {
            let mut slot = Slot::new(unit("shipped"));
            for event in events {
                let (before, generation) = (slot.active().clone(), slot.generation());
                let action = slot.handle(&event);
                prop_assert_eq!(slot.generation(), generation + u64::from(*slot.active() != before));
                if let SlotAction::RollBack { to, from } = action {
                    prop_assert_eq!((&to, &from), (slot.active(), &before));
                    prop_assert_ne!(to, from);
                }
            }
        }
    }
}
