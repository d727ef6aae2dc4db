//! What a guest writes: cut, escaped, counted, and handed to `tracing`.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::text;

/// Lines a policy may write in [`WINDOW`]. Enough to tell what happened; a policy that writes a line a
/// route would otherwise fill the disk of the node. What is more is dropped and counted.
pub(crate) const LINES_A_WINDOW: u32 = 100;

/// The time over which lines are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// The log of one policy, shared by its instances.
#[derive(Debug)]
pub(crate) struct GuestLog {
    plugin: String,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    dropped: u64,
    dropped_in_all: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// Lines dropped in the window that just ended, when one ended and it dropped some.
    dropped_before: Option<u64>,
    written: bool,
}

impl Window {
    fn count(&mut self, now: Instant) -> Verdict {
        let mut dropped_before = None;
        if now.saturating_duration_since(self.since) >= WINDOW {
            dropped_before = Some(self.dropped).filter(|dropped| *dropped > 0);
            (self.since, self.lines, self.dropped) = (now, 0, 0);
        }
        let written = self.lines < LINES_A_WINDOW;
        if written {
            self.lines += 1;
        } else {
            self.dropped += 1;
            self.dropped_in_all += 1;
        }
        Verdict { dropped_before, written }
    }
}

impl GuestLog {
    pub(crate) fn new(plugin: &str) -> Self {
        let window = Window { since: Instant::now(), lines: 0, dropped: 0, dropped_in_all: 0 };
        Self { plugin: plugin.to_owned(), window: Mutex::new(window) }
    }

    /// Lines dropped since the policy was loaded.
    pub(crate) fn lines_dropped(&self) -> u64 {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).dropped_in_all
    }

    /// Writes one line of the guest, or drops it.
    pub(crate) fn write(&self, level: Level, message: &str) {
        let verdict = self.window.lock().unwrap_or_else(PoisonError::into_inner).count(Instant::now());
        let plugin = self.plugin.as_str();
        if let Some(dropped) = verdict.dropped_before {
            tracing::warn!(target: "culvert::plugin", plugin, dropped, "dropped lines of the plugin's log");
        }
        if !verdict.written {
            return;
        }
        let message = text::cut(message);
        match level {
            Level::Debug => tracing::debug!(target: "culvert::plugin", plugin, "{message}"),
            Level::Info => tracing::info!(target: "culvert::plugin", plugin, "{message}"),
            Level::Warn => tracing::warn!(target: "culvert::plugin", plugin, "{message}"),
            Level::Error => tracing::error!(target: "culvert::plugin", plugin, "{message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_the_next_window_says_how_much_was_dropped() {
        let start = Instant::now();
        let mut window = Window { since: start, lines: 0, dropped: 0, dropped_in_all: 0 };
        let written = (0..1_000).filter(|_| window.count(start).written).count();
        assert_eq!(written, 100);
        assert_eq!(window.count(start + WINDOW), Verdict { dropped_before: Some(900), written: true });
        assert_eq!(window.count(start + WINDOW * 2), Verdict { dropped_before: None, written: true });
        assert_eq!(window.dropped_in_all, 900);
    }
}
