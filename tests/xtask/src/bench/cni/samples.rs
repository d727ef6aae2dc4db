//! Times of many calls, and what is said of them.

use std::time::Duration;

/// Times of one kind of call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Samples {
    ascending: Vec<Duration>,
}

impl Samples {
    /// Adds one.
    pub(super) fn add(&mut self, sample: Duration) {
        let place = self.ascending.partition_point(|other| *other <= sample);
        self.ascending.insert(place, sample);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.ascending.len()
    }

    /// The smallest time that at least this percentage did not exceed (the nearest rank). **Units** milliseconds; not a
    /// number without samples.
    pub(super) fn percentile_ms(&self, percent: usize) -> f64 {
        let rank = (self.ascending.len() * percent).div_ceil(100).max(1);
        self.ascending.get(rank - 1).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: impl Iterator<Item = u64>) -> Samples {
        let mut samples = Samples::default();
        milliseconds.for_each(|value| samples.add(Duration::from_millis(value)));
        samples
    }

    #[test]
    fn percentiles_are_samples_by_the_nearest_rank() {
        let hundred = of((1..=100).rev());
        let seen = [50, 95, 99, 100].map(|percent| hundred.percentile_ms(percent).round());
        assert_eq!(seen, [50.0, 95.0, 99.0, 100.0]);
        assert_eq!(of([7, 3].into_iter()).percentile_ms(50).round(), 3.0);
        assert_eq!((of([5].into_iter()).percentile_ms(99).round(), of([5].into_iter()).count()), (5.0, 1));
    }

    #[test]
    fn nothing_measured_is_no_number() {
        assert!(Samples::default().percentile_ms(50).is_nan());
    }
}
