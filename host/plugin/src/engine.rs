//! The one engine, and the ticker that stops guests at their deadline.
//!
//! The ticker raises the engine's epoch once a millisecond while a call is in flight. A timer of the kernel wakes it, set
//! by the first call and taken back by the last: a call that is over within the millisecond wakes nobody, and an idle
//! node is not woken at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use wasmtime::Engine;

use crate::engine_config::engine_config;

/// The time between two epochs: the precision of every deadline.
const TICK: Duration = Duration::from_millis(1);

/// A little before the rest: a deadline is only as punctual as the ticker.
const TICKER_NICE: i32 = -5;

/// The engine with its ticker. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Runtime {
    engine: Engine,
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Calls in flight; the timer runs while there are any.
    in_flight: Mutex<usize>,
    timer: OwnedFd,
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
        let shared = Arc::new(Shared::new().map_err(|errno| EngineError::Ticker(errno.into()))?);
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
        self.shared.count(|before| (before + 1, before == 0));
        InFlight(&self.shared)
    }
}

impl Shared {
    fn new() -> Result<Self, Errno> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        Ok(Self { in_flight: Mutex::new(0), timer, stop: AtomicBool::new(false) })
    }

    /// Changes the count of calls; sets the timer, or takes it back, where the count says so.
    fn count(&self, change: impl FnOnce(usize) -> (usize, bool)) {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, at_an_edge) = change(*in_flight);
        *in_flight = now;
        if at_an_edge {
            self.set_timer(if now == 0 { Duration::ZERO } else { TICK });
        }
    }

    /// Lets the timer ring at that interval; zero silences it.
    fn set_timer(&self, interval: Duration) {
        let span = Timespec { tv_sec: 0, tv_nsec: interval.subsec_nanos().into() };
        let times = Itimerspec { it_interval: span, it_value: span };
        // It can only fail for a descriptor or a span that is wrong, and neither is.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times);
    }

    /// Waits until the timer rings.
    fn wait(&self) {
        let mut rings = [0_u8; 8];
        while rustix::io::read(&self.timer, &mut rings) == Err(Errno::INTR) {}
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.set_timer(TICK);
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
        self.0.count(|before| (before.saturating_sub(1), before == 1));
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
    loop {
        shared.wait();
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        engine.increment_epoch();
    }
}
