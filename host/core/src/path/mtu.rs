//! The largest packet that a path carries, found by probes of different lengths. No ICMP message is needed or
//! believed, so a path that drops large packets in silence is found all the same.
//!
//! ```text
//! unknown ──probes from the largest size down, in turn──> the largest that was answered
//!                                                     ├─ a larger one is answered ──> that one
//!                                                     └─ three of its size are lost while short ones are not ──> one less
//! ```

use std::time::Duration;

/// What links are known to carry: Ethernet, common tunnels and clouds, and the least that IPv6 allows. **Units** bytes
/// of an IP packet. Below the last one a path is not used.
pub const MTU_STEPS: [u16; 4] = [1500, 1450, 1400, 1280];

/// One probe in so many has the length that is in use.
const CHECK_EVERY: u32 = 4;
/// And one in so many tries the next larger.
const RAISE_EVERY: u32 = 64;

/// Long probes in a row that must be lost.
const LOST_TO_LOWER: usize = 3;

/// How long a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeSize {
    /// As short as a probe can be.
    Shortest,
    /// As long as an IP packet of that many bytes on the wire.
    Packet(u16),
}

/// What is known of the size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathMtu {
    /// Position in [`MTU_STEPS`].
    step: Option<usize>,
    /// Sizes tried while none is known.
    tries: usize,
}

impl PathMtu {
    /// **Units** bytes of an IP packet; `None` before the first answer.
    #[must_use]
    pub fn bytes(&self) -> Option<u16> {
        self.step.and_then(|step| MTU_STEPS.get(step).copied())
    }

    /// Whether no size was tried yet.
    #[must_use]
    pub fn is_untried(&self) -> bool {
        self.step.is_none() && self.tries == 0
    }

    /// How long the next probe, which has that number, should be.
    pub fn next_size(&mut self, sequence: u32) -> ProbeSize {
        let step = match self.step {
            None => {
                self.tries += 1;
                Some((self.tries - 1) % MTU_STEPS.len())
            }
            Some(step) if sequence.is_multiple_of(RAISE_EVERY) => Some(step.saturating_sub(1)),
            Some(step) if sequence.is_multiple_of(CHECK_EVERY) => Some(step),
            Some(_) => None,
        };
        step.and_then(|step| MTU_STEPS.get(step)).map_or(ProbeSize::Shortest, |size| ProbeSize::Packet(*size))
    }

    /// A probe of that size was answered.
    pub fn note_answered(&mut self, size: ProbeSize) {
        let found = MTU_STEPS.iter().position(|step| ProbeSize::Packet(*step) == size);
        self.step = match (self.step, found) {
            (Some(step), Some(found)) => Some(step.min(found)),
            (step, found) => step.or(found),
        };
    }

    /// Whether the loss of a probe of that size says something of the path: a size beyond what is known does not.
    #[must_use]
    pub fn expects(&self, size: ProbeSize) -> bool {
        match (size, self.bytes()) {
            (ProbeSize::Shortest, _) | (_, None) => true,
            (ProbeSize::Packet(size), Some(known)) => size <= known,
        }
    }

    /// Looks at the probes of the size in use, the newest first: when each was sent and whether it was answered.
    /// Short ones are answered, so the path lives. True when the size went down.
    pub fn review(
        &mut self,
        now: Duration,
        patience: Duration,
        probes: impl Iterator<Item = (Duration, bool)>,
    ) -> bool {
        let due = probes.filter(|(at, answered)| *answered || now.saturating_sub(*at) >= patience);
        let lost = due.take(LOST_TO_LOWER).filter(|(_, answered)| !answered).count();
        let lower = self.step.map(|step| step + 1).filter(|step| *step < MTU_STEPS.len());
        if lost < LOST_TO_LOWER || lower.is_none() {
            return false;
        }
        self.step = lower;
        true
    }

    /// Forgets what is known.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: usize) -> PathMtu {
        PathMtu { step: Some(step), tries: 0 }
    }

    #[test]
    fn an_unknown_path_is_asked_for_every_size_from_the_largest_down() {
        let mut mtu = PathMtu::default();
        let asked: Vec<_> = (7..12).map(|sequence| mtu.next_size(sequence)).collect();
        assert_eq!(asked, [1500, 1450, 1400, 1280, 1500].map(ProbeSize::Packet));
    }

    #[test]
    fn a_known_path_is_asked_for_its_size_now_and_then_and_seldom_for_more() {
        let asked: Vec<_> = (60..70).map(|sequence| at(2).next_size(sequence)).collect();
        let (short, own, more) = (ProbeSize::Shortest, ProbeSize::Packet(1400), ProbeSize::Packet(1450));
        assert_eq!(asked, [own, short, short, short, more, short, short, short, own, short]);
        assert_eq!(at(0).next_size(64), ProbeSize::Packet(1500));
    }

    #[test]
    fn the_largest_answered_size_counts() {
        let mut mtu = PathMtu::default();
        for (size, expected) in [(1400, 1400), (1280, 1400), (1500, 1500), (77, 1500)] {
            mtu.note_answered(ProbeSize::Packet(size));
            assert_eq!(mtu.bytes(), Some(expected));
        }
        mtu.note_answered(ProbeSize::Shortest);
        assert_eq!(mtu.bytes(), Some(1500));
    }

    #[test]
    fn three_lost_in_a_row_lower_the_size_to_the_last_step_and_no_further() {
        let (now, patience) = (Duration::from_secs(100), Duration::from_secs(1));
        let review = |step: usize, probes: &[(u64, bool)]| {
            let mut mtu = at(step);
            let probes = probes.iter().map(|(at, answered)| (Duration::from_secs(*at), *answered));
            mtu.review(now, patience, probes).then(|| mtu.bytes()).flatten()
        };
        assert_eq!(review(0, &[(98, false), (96, false), (94, false)]), Some(1450));
        assert_eq!(review(0, &[(100, false), (98, false), (96, false), (94, true)]), None);
        assert_eq!(review(0, &[(98, false), (96, true), (94, false), (92, false)]), None);
        assert_eq!(review(3, &[(98, false), (96, false), (94, false)]), None);
    }

    #[test]
    fn a_lost_probe_of_a_size_that_was_only_tried_says_nothing() {
        assert!(!at(1).expects(ProbeSize::Packet(1500)));
        assert!(at(1).expects(ProbeSize::Packet(1450)) && at(1).expects(ProbeSize::Shortest));
    }
}
