//! A limit on bytes per second that lets bursts pass, as one moment in time.
//!
//! **Source** the generic cell rate algorithm, ITU-T I.371; a token bucket without the tokens.

use std::time::Duration;

/// A rate and how far it has been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    bytes_per_sec: u64,
    /// How long the rate takes for a whole burst.
    burst: Duration,
    /// When all that was let pass would have passed at the rate.
    clear_at: Duration,
}

impl RateLimit {
    /// A limit that nothing has used. **Bounds** a rate of 0 counts as 1.
    #[must_use]
    pub fn new(bytes_per_sec: u64, burst_bytes: u64) -> Self {
        let bytes_per_sec = bytes_per_sec.max(1);
        Self { bytes_per_sec, burst: time_for(burst_bytes, bytes_per_sec), clear_at: Duration::ZERO }
    }

    /// Whether so many bytes may pass at `now`; they count then. Time is counted from any fixed moment.
    pub fn allows(&mut self, bytes: usize, now: Duration) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let after = self.clear_at.max(now).saturating_add(time_for(bytes, self.bytes_per_sec));
        if after > now.saturating_add(self.burst) {
            return false;
        }
        self.clear_at = after;
        true
    }
}

fn time_for(bytes: u64, bytes_per_sec: u64) -> Duration {
    let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_sec);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let mut limit = RateLimit::new(1_000, 3_000);
        let at = Duration::from_millis;
        let asked = [
            (at(0), 3_000),
            (at(0), 1),
            (at(999), 1_000),
            (at(1_000), 1_000),
            (at(60_000), 3_001),
            (at(60_000), 3_000),
        ];
        let passed = asked.map(|(now, bytes)| limit.allows(bytes, now));
        assert_eq!(passed, [true, false, false, true, false, true]);
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_carries_more_than_the_rate_and_a_burst(
            asked in proptest::collection::vec((0_u64..50, 1_usize..2_000), 1..200),
        ) {
            let mut limit = RateLimit::new(10_000, 4_000);
            let (mut now, mut passed) = (Duration::ZERO, Vec::new());
            for (pause, bytes) in asked {
                now += Duration::from_millis(pause);
                if limit.allows(bytes, now) {
                    passed.push((now, bytes));
                }
            }
            for (first, (from, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                for (until, bytes) in &passed[first..] {
                    sum += bytes;
                    let allowed = 4_000.0 + 10_000.0 * (*until - *from).as_secs_f64();
                    prop_assert!(f64::from(u32::try_from(sum).unwrap()) <= allowed + 1.0);
                }
            }
        }
    }
}
