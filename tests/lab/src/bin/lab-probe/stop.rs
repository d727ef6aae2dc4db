//! Tells a probe to stop when its standard input closes: the one who started it is done, or gone.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the probe is to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops by itself only, never by standard input.
    pub(crate) fn never() -> Self {
        Self::default()
    }

    /// Stops when standard input closes.
    pub(crate) fn when_input_closes() -> Self {
        let stop = Self::default();
        let seen = stop.clone();
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 64];
            while matches!(std::io::stdin().read(&mut buffer), Ok(count) if count > 0) {}
            seen.set();
        });
        stop
    }

    /// Tells everyone to stop.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
