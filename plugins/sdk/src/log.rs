//! Lines for the operator, through the only function that a guest may call.
//!
//! The host passes 100 lines a minute of at most 512 bytes and counts the rest. On the author's machine there is no
//! host: the lines are kept for the test that runs, see [`taken`].

/// How much a line matters to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the author.
    Debug,
    /// Worth knowing.
    Info,
    /// Something was ignored or replaced.
    Warn,
    /// Something does not work.
    Error,
}

/// Writes a line for the author.
pub fn debug(message: &str) {
    write(Level::Debug, message);
}

/// Writes a line worth knowing.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// Writes that something was ignored or replaced.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// Writes that something does not work.
pub fn error(message: &str) {
    write(Level::Error, message);
}

/// Writes a line. Never fails: what is too much is dropped and counted by the host.
#[cfg(target_arch = "wasm32")]
pub fn write(level: Level, message: &str) {
    use crate::bindings::lifecycle::culvert::policy::log;
    let level = match level {
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    };
    log::write(level, message);
}

#[cfg(not(target_arch = "wasm32"))]
pub use native::{taken, write};

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::cell::RefCell;

    use super::Level;

    /// **Bounds** as many as the host passes in a minute. Further lines are dropped, as there.
    const MOST_LINES: usize = 100;

    thread_local! {
        static LINES: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
    }

    /// Writes a line. Never fails: what is too much is dropped.
    pub fn write(level: Level, message: &str) {
        LINES.with_borrow_mut(|lines| {
            if lines.len() < MOST_LINES {
                lines.push((level, message.to_owned()));
            }
        });
    }

    /// For tests: the lines this thread has written since the last call.
    #[must_use]
    pub fn taken() -> Vec<(Level, String)> {
        LINES.take()
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_for_the_test_that_runs_and_handed_out_once() {
        warn("low");
        error("gone");
        assert_eq!(taken(), [(Level::Warn, "low".to_owned()), (Level::Error, "gone".to_owned())]);
        assert_eq!(taken(), []);
    }

    #[test]
    fn lines_beyond_the_host_s_limit_are_dropped() {
        for _ in 0..101 {
            debug("again");
        }
        assert_eq!(taken().len(), 100);
    }
}
