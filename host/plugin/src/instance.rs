//! One program, its instances, and a call: the deadline, the meter and the fault of each.
//!
//! An instance whose call failed is thrown away by its owner. A program makes the next one in some
//! 30 µs, so nothing is gained by repairing one.

use std::mem::size_of;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::{Component, Linker};

use crate::engine::{self, Runtime};
use crate::fault::{Fault, Granted, classify};
use crate::guest_log::GuestLog;
use crate::limits::{Guest, Limits};
use crate::text;
use crate::unit::{Description, WANTS};
use crate::v0_1::{Answer, World, from_guest, types};

/// **Units** bytes a guest may hand to the host in one go, beyond the list its answer is for: texts, and
/// the lines of its log. The runtime copies them before the host can look at their length.
pub(crate) const TEXT_TRANSFER_BYTES: usize = 64 << 10;

/// Warm instances kept for `shape` and `pick`. Two pods that start at once find one each; a third caller
/// makes its own, which is dropped afterwards.
const WARM_INSTANCES: usize = 2;

/// A linked component with its settings.
pub(crate) struct Program<W: World> {
    runtime: Arc<Runtime>,
    ready: W::Ready,
    settings: String,
    limits: Limits,
    log: Arc<GuestLog>,
    warm: Mutex<Vec<Instance<W>>>,
}

/// One instance, configured.
pub(crate) struct Instance<W> {
    runtime: Arc<Runtime>,
    store: Store<Guest>,
    world: W,
}

/// What a call may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub time: Duration,
    /// **Units** bytes the guest may hand over.
    pub transfer_bytes: usize,
}

impl Budget {
    /// For an answer that is a list of at most `entries` of type `T`. Twice as many are let through, so
    /// that an answer just beyond its limit is refused by the check that can say what is wrong with it.
    pub(crate) fn for_list<T>(time: Duration, entries: usize) -> Self {
        let list_bytes = entries.saturating_mul(2).saturating_mul(size_of::<T>());
        Self { time, transfer_bytes: list_bytes.saturating_add(TEXT_TRANSFER_BYTES) }
    }
}

/// Why a program cannot be loaded.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// Its imports do not fit.
    Imports(String),
    /// Its exports have other types.
    Types(String),
    /// It failed while starting or in `configure`.
    Fault(Fault),
}

impl<W: World> Program<W> {
    /// Links a component and starts it once, which compares its types and runs `configure`.
    pub(crate) fn load(
        runtime: &Arc<Runtime>,
        linker: &Linker<Guest>,
        component: &Component,
        settings: &str,
        (limits, log): (&Limits, Arc<GuestLog>),
    ) -> Result<(Self, Description), LoadError> {
        let linked = linker.instantiate_pre(component).map_err(|error| LoadError::Imports(told(&error)))?;
        let ready = W::ready(linked).map_err(|error| LoadError::Types(told(&error)))?;
        let program = Self {
            runtime: Arc::clone(runtime),
            ready,
            settings: settings.to_owned(),
            limits: limits.clone(),
            log,
            warm: Mutex::new(Vec::with_capacity(WARM_INSTANCES)),
        };
        let (_, description) = program.start()?;
        Ok((program, description))
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn log_lines_dropped(&self) -> u64 {
        self.log.lines_dropped()
    }

    /// A fresh, configured instance.
    pub(crate) fn fresh(&self) -> Result<Instance<W>, Fault> {
        match self.start() {
            Ok((instance, _)) => Ok(instance),
            Err(LoadError::Fault(fault)) => Err(fault),
            Err(LoadError::Imports(text) | LoadError::Types(text)) => Err(Fault::Invalid(text)),
        }
    }

    /// Asks a warm instance, or a fresh one when none is there. It is kept when it may answer again.
    pub(crate) fn on_warm<T>(&self, ask: impl FnOnce(&mut Instance<W>) -> Result<T, Fault>) -> Result<T, Fault> {
        let waiting = self.warm.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut instance = match waiting {
            Some(instance) => instance,
            None => self.fresh()?,
        };
        let answer = ask(&mut instance);
        if answer.as_ref().err().is_none_or(Fault::spares_instance) {
            let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
            if warm.len() < WARM_INSTANCES {
                warm.push(instance);
            }
        }
        answer
    }

    fn start(&self) -> Result<(Instance<W>, Description), LoadError> {
        let _in_flight = self.runtime.enter();
        let budget = Budget { time: self.limits.configure, transfer_bytes: TEXT_TRANSFER_BYTES };
        let mut store = self.store();
        grant(&mut store, budget);
        let world = match W::instantiate(&self.ready, &mut store) {
            Ok(world) => world,
            Err(error) => return Err(not_started(&error, &store, budget)),
        };
        let answer = world.configure(&mut store, &self.settings);
        let instance = Instance { runtime: Arc::clone(&self.runtime), store, world };
        let answer = answer.map_err(|error| LoadError::Fault(instance.fault(&error, budget)))?;
        let description = answer.map_err(|error| LoadError::Fault(Fault::Refused(error)))?;
        if description.wants.len() > WANTS {
            let wants = description.wants.len();
            return Err(LoadError::Fault(Fault::Invalid(format!("it wants {wants} keys, {WANTS} are allowed"))));
        }
        Ok((instance, description))
    }

    fn store(&self) -> Store<Guest> {
        let guest = Guest { log: Arc::clone(&self.log), memory_bytes: self.limits.memory_bytes, memory_refused: false };
        let mut store = Store::new(self.runtime.engine(), guest);
        store.limiter(|guest| guest);
        store
    }
}

impl<W> Instance<W> {
    /// One call of an export.
    pub(crate) fn call<T>(
        &mut self,
        budget: Budget,
        export: impl FnOnce(&W, &mut Store<Guest>) -> Answer<T>,
    ) -> Result<T, Fault> {
        let runtime = Arc::clone(&self.runtime);
        let _in_flight = runtime.enter();
        grant(&mut self.store, budget);
        match export(&self.world, &mut self.store) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(refused(error)),
            Err(error) => Err(self.fault(&error, budget)),
        }
    }

    fn fault(&self, error: &wasmtime::Error, budget: Budget) -> Fault {
        classify(error, granted(&self.store, budget))
    }
}

fn refused(error: types::PolicyError) -> Fault {
    Fault::Refused(from_guest::policy_error(error))
}

/// Gives the store what the next call may use. A store without a deadline would trap at once.
fn grant(store: &mut Store<Guest>, budget: Budget) {
    store.set_epoch_deadline(engine::ticks(budget.time));
    store.set_hostcall_fuel(budget.transfer_bytes);
}

fn granted(store: &Store<Guest>, budget: Budget) -> Granted {
    let guest = store.data();
    Granted {
        budget_ms: u64::try_from(budget.time.as_millis()).unwrap_or(u64::MAX),
        memory_bytes: guest.memory_bytes as u64,
        memory_refused: guest.memory_refused,
    }
}

/// Instantiation fails by a trap of the start function, by a limit, or because a type differs. Only the
/// last is no fault of a running guest.
fn not_started(error: &wasmtime::Error, store: &Store<Guest>, budget: Budget) -> LoadError {
    match classify(error, granted(store, budget)) {
        Fault::Invalid(_) => LoadError::Types(told(error)),
        fault @ (Fault::Trap(_) | Fault::Timeout(_) | Fault::Memory(_) | Fault::Refused(_)) => LoadError::Fault(fault),
    }
}

/// The whole chain of an error of the runtime: what was looked at first, then what differs.
fn told(error: &wasmtime::Error) -> String {
    text::cut(&format!("{error:#}"))
}
