//! Which counters were seen: a frame that comes twice is dropped.
//!
//! The window is a ring of blocks of 32 counters. Each block is one atomic word that holds its own number beside
//! the 32 marks, so that the word says alone whether a counter is new, seen, or too old. There is no newest counter
//! to keep in step with the marks, and several threads may receive from one peer without a lock.
//!
//! ```text
//! counter = block number × 32 + mark            word[block number % 256] = block number + 1 | 32 marks
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use crate::frame::MAX_FRAMES_PER_KEY;

/// How far counters may arrive out of order. Less than a second of a 100 Mbit/s path, and much more than the
/// reordering of any path that TCP can use.
pub const WINDOW_FRAMES: usize = 8192;

/// Marks in a block.
const MARKS: u64 = 32;
/// Blocks in the ring.
const BLOCKS: usize = WINDOW_FRAMES / 32;

/// Why a counter is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It was accepted before.
    #[error("the frame was received before")]
    Seen,
    /// It is so far behind that nobody remembers.
    #[error("the frame is too far behind the newest one")]
    TooOld,
    /// It is beyond what a key may seal.
    #[error("the frame's counter is beyond what a key may seal")]
    Beyond,
}

/// The counters seen of one key. Accepts each at most once, whatever threads ask.
///
/// **Bounds** a counter less than [`WINDOW_FRAMES`] − 32 behind the newest one is never too old; 2 KiB.
#[derive(Debug)]
pub struct ReplayWindow {
    words: Box<[AtomicU64; BLOCKS]>,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { words: Box::new([const { AtomicU64::new(0) }; BLOCKS]) }
    }
}

impl ReplayWindow {
    /// Accepts a counter whose frame was opened, once.
    ///
    /// # Errors
    /// Why the frame must be dropped.
    pub fn accept(&self, counter: u64) -> Result<(), ReplayError> {
        if counter >= MAX_FRAMES_PER_KEY {
            return Err(ReplayError::Beyond);
        }
        let (block, mark) = (counter / MARKS, 1_u64 << (counter % MARKS));
        // 0 is a word that holds no block yet. The sum stays below 2^27 + 1.
        let name = (block + 1) << MARKS;
        let word = usize::try_from(block).ok().and_then(|block| self.words.get(block % BLOCKS));
        let word = word.ok_or(ReplayError::Beyond)?;
        let judge = |held: u64| match (held >> MARKS).cmp(&(block + 1)) {
            std::cmp::Ordering::Less => Ok(name | mark),
            std::cmp::Ordering::Greater => Err(ReplayError::TooOld),
            std::cmp::Ordering::Equal if held & mark != 0 => Err(ReplayError::Seen),
            std::cmp::Ordering::Equal => Ok(held | mark),
        };
        let mut held = word.load(Ordering::Relaxed);
        loop {
            // The word is all there is to agree on, so no other memory has to be ordered with it.
            match word.compare_exchange_weak(held, judge(held)?, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => held = other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_counter_is_accepted_once() {
        let window = ReplayWindow::default();
        for counter in [0, 1, 31, 32, 5, 8191, 100_000, MAX_FRAMES_PER_KEY - 1] {
            assert_eq!(window.accept(counter), Ok(()), "{counter}");
        }
        for counter in [100_000, MAX_FRAMES_PER_KEY - 1] {
            assert_eq!(window.accept(counter), Err(ReplayError::Seen), "{counter}");
        }
        assert_eq!(window.accept(MAX_FRAMES_PER_KEY), Err(ReplayError::Beyond));
        assert_eq!(window.accept(u64::MAX), Err(ReplayError::Beyond));
    }

    #[test]
    fn what_is_late_within_the_window_is_accepted_and_what_is_beyond_is_not() {
        let window = ReplayWindow::default();
        let newest = 1_000_000;
        for counter in 0..=newest {
            if counter % 2 == 0 {
                assert_eq!(window.accept(counter), Ok(()));
            }
        }
        let size = u64::try_from(WINDOW_FRAMES).unwrap();
        for late in (newest - size + MARKS..newest).filter(|counter| counter % 2 == 1) {
            assert_eq!(window.accept(late), Ok(()), "{late}");
        }
        assert_eq!(window.accept(newest - size - MARKS + 1), Err(ReplayError::TooOld));
        assert_eq!(window.accept(1), Err(ReplayError::TooOld));
    }

    #[test]
    fn a_million_replays_are_refused_and_the_honest_frames_between_them_pass() {
        let window = ReplayWindow::default();
        let mut refused = 0;
        for counter in 0..100_000_u64 {
            assert_eq!(window.accept(counter), Ok(()));
            for back in 0..10 {
                refused += u32::from(window.accept(counter.saturating_sub(back * 997)).is_err());
            }
        }
        assert_eq!(refused, 1_000_000);
    }

    #[test]
    fn threads_that_race_accept_each_counter_once() {
        let window = ReplayWindow::default();
        let accepted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for counter in 0..50_000 {
                        let fresh = usize::from(window.accept(counter).is_ok());
                        accepted.fetch_add(fresh, Ordering::Relaxed);
                    }
                });
            }
        });
        // A thread that falls behind finds counters too old, which another one had accepted.
        assert_eq!(accepted.load(Ordering::Relaxed), 50_000);
    }

    proptest! {
        #[test]
        fn no_counter_is_accepted_twice_and_none_near_the_newest_is_lost(
            jumps in prop::collection::vec((0..20_000_u64, any::<bool>()), 1..400),
        ) {
            let (window, mut seen, mut at, mut newest) = (ReplayWindow::default(), BTreeSet::new(), 0_u64, 0_u64);
            for (jump, forward) in jumps {
                at = if forward { at + jump } else { at.saturating_sub(jump) };
                newest = newest.max(at);
                let fresh = !seen.contains(&at);
                let near = newest - at < u64::try_from(WINDOW_FRAMES).unwrap() - MARKS;
                let accepted = window.accept(at).is_ok();
                prop_assert!(fresh || !accepted, "{} twice", at);
                prop_assert!(accepted || !fresh || !near, "{} lost, newest {}", at, newest);
                if accepted {
                    seen.insert(at);
                }
            }
        }
    }
}
