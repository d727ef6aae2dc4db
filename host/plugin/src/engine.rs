//! The one engine, and the ticker that stops guests at their deadline.
//!
//! The ticker raises the engine's epoch once a millisecond while a call is in flight, and parks when none
//! is: an idle node is not woken a thousand times a second. It parks a little late, so that a burst of
//! short calls pays for waking it once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::Engine;

use crate::engine_config::engine_config;

/// The time between two epochs: the precision of every deadline.
const TICK: Duration = Duration::from_millis(1);

/// Ticks without a call before the ticker parks.
const LINGER_TICKS: u32 = 50;

/// A little before the rest: a deadline is only as punctual as the ticker.
const TICKER_NICE: i32 = -5;

/// The engine with its ticker. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Runtime {
    engine: Engine,
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    in_flight: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
}

/// Why the engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The runtime refuses the settings on this machine.
    #[error("the WebAssembly runtime does not start: {0}")]
    Engine(String),
    /// No thread for the deadlines.
    #[error("no thread for the plugins' deadlines")]
    Ticker(#[source] std::io::Error),
}

impl Runtime {
    pub(crate) fn new() -> Result<Self, EngineError> {
        let engine = Engine::new(&engine_config()).map_err(|error| EngineError::Engine(format!("{error:#}")))?;
        let shared = Arc::new(Shared::default());
        let ticker = {
            let (engine, shared) = (engine.clone(), Arc::clone(&shared));
            let body = move || tick(&engine, &shared);
            thread::Builder::new().name("culvert-epoch".to_owned()).spawn(body).map_err(EngineError::Ticker)?
        };
        Ok(Self { engine, shared, ticker: Some(ticker) })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Keeps the ticker running until the guard is dropped.
    pub(crate) fn enter(&self) -> InFlight<'_> {
        self.shared.in_flight.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            self.wake();
        }
        InFlight(&self.shared)
    }

    fn wake(&self) {
        if let Some(ticker) = &self.ticker {
            ticker.thread().unpark();
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(ticker) = self.ticker.take() {
            // A panic of the ticker has been printed by its own thread; there is nothing left to undo.
            let _ = ticker.join();
        }
    }
}

/// A call in flight.
pub(crate) struct InFlight<'a>(&'a Shared);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Epochs after which a call has surely had `budget`: one more than its milliseconds, because the first
/// one may come at once.
pub(crate) fn ticks(budget: Duration) -> u64 {
    u64::try_from(budget.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

fn tick(engine: &Engine, shared: &Shared) {
    // Without the right to raise its priority the ticker runs at the common one.
    let _ = rustix::process::setpriority_process(None, TICKER_NICE);
    let mut idle_ticks = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.in_flight.load(Ordering::SeqCst) > 0 {
            idle_ticks = 0;
        } else if idle_ticks < LINGER_TICKS {
            idle_ticks += 1;
        } else {
            park(shared);
            idle_ticks = 0;
        }
        thread::sleep(TICK);
        engine.increment_epoch();
    }
}

/// Sleeps until a call comes. The flag is raised before the count is read, and a caller raises the count
/// before it reads the flag, so one of the two always sees the other.
fn park(shared: &Shared) {
    shared.parked.store(true, Ordering::SeqCst);
    while shared.in_flight.load(Ordering::SeqCst) == 0 && !shared.stop.load(Ordering::SeqCst) {
        thread::park();
    }
    shared.parked.store(false, Ordering::SeqCst);
}
