//! The place of one policy: the generation that answers, and those that can be put back.
//!
//! ```text
//! empty ── activate ─> g1 ── activate ─> g2 on probation ── faults ─> g3 (the policy of g1 again)
//! ```
//!
//! When a generation is taken back is decided by [`culvert_core::swap`]; this holds the policies it speaks
//! of. A swap is the change of one pointer: callers in flight finish on the generation they began with.
//! Once filled a slot is never empty: a generation without a good one before it stays, however it fails.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use culvert_core::policy::PolicyError;
use culvert_core::swap::{self, Phase, Resting, SlotAction, SlotEvent, UnitDigest};

use crate::fault::{Fault, FaultKind};
use crate::policy::{Card, Policy};
use crate::unit::Digest;

/// The place of one policy. Shared by reference between callers.
#[derive(Debug)]
pub struct Slot<P> {
    active: ArcSwapOption<Generation<P>>,
    book: Mutex<Book<P>>,
}

/// One activation of a policy.
#[derive(Debug)]
struct Generation<P> {
    number: u64,
    policy: Arc<P>,
    calls: AtomicU64,
    faults: [AtomicU64; FaultKind::ALL.len()],
}

/// What a swap changes beside the pointer.
#[derive(Debug)]
struct Book<P> {
    /// Decides; none while the slot is empty.
    machine: Option<swap::Slot>,
    /// The unit that filled the slot first: the last way back.
    first: Option<UnitDigest>,
    /// The generations the machine can speak of: the active one, the last good one, the first one.
    kept: BTreeMap<UnitDigest, Arc<Generation<P>>>,
    last_fault: Option<String>,
    rolled_back: Option<RolledBack>,
}

/// Why a call of a slot gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Nothing was ever activated.
    #[error("no plugin is active yet")]
    Empty,
    /// The policy gave none.
    #[error("the plugin {unit} {fault}")]
    Failed {
        /// The unit that failed.
        unit: String,
        /// What it did.
        fault: Fault,
        /// The number of the generation that was put back because of this fault: ask again.
        back_to: Option<u64>,
    },
}

/// A generation that was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// Its number.
    pub number: u64,
    /// What it was.
    pub card: Card,
    /// The fault that was one too many.
    pub fault: Fault,
}

/// What a slot holds, for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotStatus {
    /// The generation that answers.
    pub active: Option<GenerationStatus>,
    /// The one that is put back when it fails, with what was counted while it was active.
    pub previous: Option<GenerationStatus>,
    /// The text of the last fault of any generation.
    pub last_fault: Option<String>,
    /// Set when the active generation came back because the one after it failed; cleared by the next
    /// activation.
    pub rolled_back: Option<RolledBack>,
    /// Whether the active generation has yet to prove itself.
    pub on_probation: bool,
}

/// One generation, for people and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationStatus {
    /// Grows with every activation and every time one is put back.
    pub number: u64,
    /// What it is.
    pub card: Card,
    /// Calls since it was activated.
    pub calls: u64,
    /// Those without an answer, in the order of [`FaultKind::ALL`].
    pub faults: [u64; FaultKind::ALL.len()],
    /// Lines of its log that were dropped.
    pub log_lines_dropped: u64,
}

impl GenerationStatus {
    /// Calls that failed in this way.
    #[must_use]
    pub fn faults_of(&self, kind: FaultKind) -> u64 {
        self.faults[kind as usize]
    }
}

impl<P> Default for Slot<P> {
    fn default() -> Self {
        let book = Book { machine: None, first: None, kept: BTreeMap::new(), last_fault: None, rolled_back: None };
        Self { active: ArcSwapOption::empty(), book: Mutex::new(book) }
    }
}

impl<P: Policy> Slot<P> {
    /// An empty slot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `policy` the one that answers, and returns the number of its generation. The same content as
    /// the active one changes nothing.
    pub fn activate(&self, policy: P) -> u64 {
        let digest = unit_digest(policy.digest());
        let mut book = self.book();
        let book = &mut *book;
        let first = || swap::Slot::new(digest.clone());
        let machine = book.machine.get_or_insert_with(first);
        machine.handle(&SlotEvent::Activated { digest: digest.clone(), now_ms: now_ms() });
        let number = machine.generation();
        if self.generation() != Some(number) {
            let next = Arc::new(Generation::new(number, Arc::new(policy)));
            book.first.get_or_insert_with(|| digest.clone());
            book.rolled_back = None;
            self.install(book, digest, next);
        }
        number
    }

    /// Whether a unit may be activated by itself now, or failed a short time ago.
    ///
    /// # Errors
    /// Until when it rests.
    pub fn may_activate(&self, digest: Digest) -> Result<(), Resting> {
        let book = self.book();
        book.machine.as_ref().map_or(Ok(()), |machine| machine.may_activate(&unit_digest(digest), now_ms()))
    }

    /// Asks the active policy.
    ///
    /// # Errors
    /// Why there is no answer. After [`SlotError::Failed`] with `back_to` another generation is active.
    pub fn call<T>(&self, ask: impl FnOnce(&P) -> Result<T, Fault>) -> Result<T, SlotError> {
        let generation = self.active.load();
        let Some(generation) = generation.as_ref() else { return Err(SlotError::Empty) };
        generation.calls.fetch_add(1, Ordering::Relaxed);
        match ask(&generation.policy) {
            Ok(answer) => {
                self.book().answered(generation.number);
                Ok(answer)
            }
            Err(fault) => Err(self.failed(generation, fault)),
        }
    }

    /// The number of the active generation; it changes whenever answers may.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.active.load().as_ref().map(|generation| generation.number)
    }

    /// The policy that answers now.
    #[must_use]
    pub fn active(&self) -> Option<Arc<P>> {
        self.active.load().as_ref().map(|generation| Arc::clone(&generation.policy))
    }

    /// What the slot holds.
    #[must_use]
    pub fn status(&self) -> SlotStatus {
        let book = self.book();
        let phase = book.machine.as_ref().map(swap::Slot::phase);
        SlotStatus {
            active: self.active.load().as_ref().map(|generation| generation.status()),
            previous: book.way_back().map(|generation| generation.status()),
            last_fault: book.last_fault.clone(),
            rolled_back: book.rolled_back.clone(),
            on_probation: matches!(phase, Some(Phase::Probation { .. })),
        }
    }

    fn failed(&self, generation: &Arc<Generation<P>>, fault: Fault) -> SlotError {
        generation.faults[fault.kind() as usize].fetch_add(1, Ordering::Relaxed);
        let unit = generation.policy.card().unit.clone();
        let mut book = self.book();
        book.last_fault = Some(format!("{unit} {fault}"));
        let back_to = match book.faulted(generation.number, &fault) {
            SlotAction::RollBack { to, .. } => self.put_back(&mut book, to, (generation, &fault)),
            // A failed instance is thrown away by the policy itself, and the daemon records what it activated.
            SlotAction::Keep | SlotAction::Reinstantiate | SlotAction::Commit => None,
        };
        SlotError::Failed { unit, fault, back_to }
    }

    /// Puts an earlier policy back, as a generation of its own.
    fn put_back(
        &self,
        book: &mut Book<P>,
        to: UnitDigest,
        (failed, fault): (&Arc<Generation<P>>, &Fault),
    ) -> Option<u64> {
        let policy = Arc::clone(&book.kept.get(&to)?.policy);
        let number = book.machine.as_ref().map(swap::Slot::generation)?;
        let card = failed.policy.card().clone();
        tracing::error!(
            target: "culvert::plugin",
            plugin = card.unit, digest = %card.digest, %fault, back = policy.card().unit, generation = number,
            "the plugin fails: an earlier one is put back"
        );
        book.rolled_back = Some(RolledBack { number: failed.number, card, fault: fault.clone() });
        self.install(book, to, Arc::new(Generation::new(number, policy)));
        Some(number)
    }

    fn install(&self, book: &mut Book<P>, digest: UnitDigest, next: Arc<Generation<P>>) {
        book.kept.insert(digest, Arc::clone(&next));
        book.forget_unneeded();
        self.active.store(Some(next));
    }

    fn book(&self) -> MutexGuard<'_, Book<P>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> Book<P> {
    /// The machine, if it is still about this generation: what a replaced one does is nobody's concern.
    fn machine_of(&mut self, number: u64) -> Option<&mut swap::Slot> {
        self.machine.as_mut().filter(|machine| machine.generation() == number)
    }

    fn answered(&mut self, number: u64) {
        if let Some(machine) = self.machine_of(number) {
            machine.handle(&SlotEvent::CallOk);
            machine.handle(&SlotEvent::Tick { now_ms: now_ms() });
        }
    }

    /// That there is no space left, or that an input is not supported, is an honest answer: an earlier
    /// policy need not know better, so it counts as one.
    fn faulted(&mut self, number: u64, fault: &Fault) -> SlotAction {
        let honest = matches!(fault, Fault::Refused(PolicyError::Exhausted(_) | PolicyError::Unsupported(_)));
        let event = if honest {
            SlotEvent::CallOk
        } else {
            SlotEvent::Fault { kind: core_kind(fault.kind()), now_ms: now_ms() }
        };
        self.machine_of(number).map_or(SlotAction::Keep, |machine| machine.handle(&event))
    }

    /// The generation that would be put back.
    fn way_back(&self) -> Option<&Arc<Generation<P>>> {
        let machine = self.machine.as_ref()?;
        let ways = [Some(machine.last_good()), self.first.as_ref()];
        let way = ways.into_iter().flatten().find(|digest| *digest != machine.active())?;
        self.kept.get(way)
    }

    fn forget_unneeded(&mut self) {
        let Some(machine) = self.machine.as_ref() else { return };
        let first = self.first.as_ref();
        self.kept
            .retain(|digest, _| digest == machine.active() || digest == machine.last_good() || Some(digest) == first);
    }
}

impl<P> Generation<P> {
    fn new(number: u64, policy: Arc<P>) -> Self {
        Self { number, policy, calls: AtomicU64::new(0), faults: Default::default() }
    }
}

impl<P: Policy> Generation<P> {
    fn status(&self) -> GenerationStatus {
        GenerationStatus {
            number: self.number,
            card: self.policy.card().clone(),
            calls: self.calls.load(Ordering::Relaxed),
            faults: std::array::from_fn(|kind| self.faults[kind].load(Ordering::Relaxed)),
            log_lines_dropped: self.policy.log_lines_dropped(),
        }
    }
}

fn unit_digest(digest: Digest) -> UnitDigest {
    UnitDigest(digest.to_string())
}

fn core_kind(kind: FaultKind) -> swap::FaultKind {
    match kind {
        FaultKind::Trap => swap::FaultKind::Trap,
        FaultKind::Timeout => swap::FaultKind::Timeout,
        FaultKind::Memory => swap::FaultKind::Memory,
        FaultKind::Refused => swap::FaultKind::Refused,
        FaultKind::Invalid => swap::FaultKind::Invalid,
    }
}

/// **Units** milliseconds since the epoch; rests outlive the process, so they are in wall time.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
