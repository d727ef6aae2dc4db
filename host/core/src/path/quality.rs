//! What the answers to its probes say of one path: alive or not, round trip, loss, and the largest packet.

use std::collections::VecDeque;
use std::time::Duration;

use super::{PathMtu, ProbeSize};

/// Probes in a row without an answer that make a path dead, once they are overdue. Three rule out one lost probe
/// and one lost answer.
pub const UNANSWERED_TO_DIE: usize = 3;

/// The first of them must be this old, and twice the round trip more. With a probe every 200 ms a path that carries
/// packets is given up within a second. **Source** TRUST: half-open peers are found within 1 s under traffic.
const DEAD_AFTER: Duration = Duration::from_millis(700);

/// A doubted path whose probe is unanswered for this long, and twice the round trip more, is dead.
const DOUBT_LASTS: Duration = Duration::from_millis(100);

/// Probes that are remembered: enough to tell 3 % of loss from none, few enough to forget a bad minute.
const REMEMBERED: usize = 32;

/// Loss is not known from fewer probes.
const FEWEST_FOR_LOSS: u32 = 8;

/// Whether a path carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// No probe was ever answered.
    Untried,
    /// Answers come.
    Alive,
    /// Answers came once, and come no more.
    Dead,
}

/// A probe on its way or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    sequence: u32,
    at: Duration,
    size: ProbeSize,
    answered: bool,
}

/// What is known of one path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    /// The newest last. At most [`REMEMBERED`].
    sent: VecDeque<Sent>,
    next: u32,
    last_sent: Option<Duration>,
    round_trip: Option<Duration>,
    answers: u32,
    doubted_at: Option<Duration>,
    mtu: PathMtu,
}

impl Quality {
    /// Notes a probe that is about to be sent and returns its sequence number and length.
    pub fn note_sent(&mut self, now: Duration) -> (u32, ProbeSize) {
        let sequence = self.next;
        // Nobody gets long datagrams before he has answered a short one: the address may be a stranger's.
        let size = match self.round_trip {
            None => ProbeSize::Shortest,
            Some(_) => self.mtu.next_size(sequence),
        };
        self.next = self.next.wrapping_add(1);
        self.last_sent = Some(now);
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { sequence, at: now, size, answered: false });
        (sequence, size)
    }

    /// Notes an answer. False when no such probe waits for one: it came twice, far too late, or was never sent.
    pub fn note_answer(&mut self, now: Duration, sequence: u32) -> bool {
        let waiting = |sent: &Sent| sent.sequence == sequence && !sent.answered;
        let Some(position) = self.sent.iter().rposition(waiting) else { return false };
        if self.round_trip.is_none() {
            // What was lost before the path was there says nothing of it.
            self.sent.drain(..position);
        }
        let Some(sent) = self.sent.iter_mut().find(|sent| waiting(sent)) else { return false };
        sent.answered = true;
        self.mtu.note_answered(sent.size);
        if self.doubted_at.is_some_and(|doubted| sent.at >= doubted) {
            self.doubted_at = None;
        }
        let took = now.saturating_sub(sent.at);
        // RFC 6298's weight: one odd probe does not make a path look bad.
        self.round_trip = Some(self.round_trip.map_or(took, |known| (known * 7 + took) / 8));
        self.answers = self.answers.saturating_add(1);
        true
    }

    /// The peer has shown up elsewhere, so this path may be gone: one unanswered probe is enough to give it up now.
    pub fn doubt(&mut self, now: Duration) {
        self.doubted_at = self.doubted_at.or(Some(now));
    }

    /// Whether a probe is due at once: a doubt waits for its first one, or the first answer for the first long one.
    #[must_use]
    pub fn wants_probe(&self) -> bool {
        let doubted = self.doubted_at.is_some_and(|doubted| self.last_sent().is_none_or(|last| last < doubted));
        doubted || (self.round_trip.is_some() && self.mtu.is_untried())
    }

    /// How many probes were answered since the path was new or came back.
    #[must_use]
    pub fn answers(&self) -> u32 {
        self.answers
    }

    /// The round trip, smoothed.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The largest packet that gets through. **Units** bytes; `None` before the first answer.
    #[must_use]
    pub fn mtu_bytes(&self) -> Option<u16> {
        self.mtu.bytes()
    }

    /// Lowers the largest packet when such get lost while short ones do not.
    pub fn review_mtu(&mut self, now: Duration) {
        let Some(size) = self.mtu.bytes().map(ProbeSize::Packet) else { return };
        let patience = self.patience();
        let probes = self.sent.iter().rev().filter(|sent| sent.size == size).map(|sent| (sent.at, sent.answered));
        self.mtu.review(now, patience, probes);
    }

    /// How long an answer is waited for.
    fn patience(&self) -> Duration {
        DEAD_AFTER + 2 * self.round_trip.unwrap_or_default()
    }

    /// The probes whose loss says something, the newest first.
    fn telling(&self) -> impl Iterator<Item = &Sent> + Clone {
        self.sent.iter().rev().filter(|sent| self.mtu.expects(sent.size))
    }

    /// When the last probe was sent.
    #[must_use]
    pub fn last_sent(&self) -> Option<Duration> {
        self.last_sent
    }

    /// Whether the path carries packets.
    #[must_use]
    pub fn health(&self, now: Duration) -> Health {
        let Some(round_trip) = self.round_trip else { return Health::Untried };
        let unanswered = self.telling().take_while(|sent| !sent.answered);
        let first = unanswered.clone().last();
        let overdue = first.is_some_and(|first| now.saturating_sub(first.at) >= self.patience());
        let unanswered = unanswered.count();
        let refuted = self.doubted_at.is_some_and(|doubted| {
            let asked = self.telling().filter(|sent| sent.at >= doubted && !sent.answered).last();
            asked.is_some_and(|sent| now.saturating_sub(sent.at) >= DOUBT_LASTS + 2 * round_trip)
        });
        if refuted || (unanswered >= UNANSWERED_TO_DIE && overdue) { Health::Dead } else { Health::Alive }
    }

    /// Probes without an answer among those that are due. **Units** per thousand.
    #[must_use]
    pub fn loss_permille(&self, now: Duration) -> u32 {
        let (mut due, mut lost) = (0_u32, 0_u32);
        for sent in self.telling() {
            let is_overdue = now.saturating_sub(sent.at) >= self.patience();
            due += u32::from(sent.answered || is_overdue);
            lost += u32::from(!sent.answered && is_overdue);
        }
        if due < FEWEST_FOR_LOSS { 0 } else { lost * 1000 / due }
    }

    /// Forgets what a dead path once was, so that it has to prove itself again; not when it was probed last.
    pub fn forget(&mut self) {
        self.sent.clear();
        self.mtu.forget();
        (self.round_trip, self.answers, self.doubted_at) = (None, 0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A path that was probed every 200 ms and answered after 10 ms, but for the probes in `lost`.
    fn probed(count: u64, lost: &[u64]) -> Quality {
        let mut quality = Quality::default();
        for probe in 0..count {
            let (sequence, _) = quality.note_sent(ms(probe * 200));
            if !lost.contains(&probe) {
                assert!(quality.note_answer(ms(probe * 200 + 10), sequence));
            }
        }
        quality
    }

    #[test]
    fn a_path_is_untried_until_a_probe_is_answered() {
        let quality = probed(20, &(0..20).collect::<Vec<_>>());
        assert_eq!((quality.health(ms(60_000)), quality.round_trip()), (Health::Untried, None));
        assert_eq!(probed(1, &[]).health(ms(60_000)), Health::Alive);
    }

    #[test]
    fn three_overdue_probes_in_a_row_make_it_dead_within_a_second() {
        let quality = probed(13, &[10, 11, 12]);
        assert_eq!(quality.health(ms(2719)), Health::Alive);
        assert_eq!(quality.health(ms(2720)), Health::Dead);
        assert_eq!(probed(12, &[10, 11]).health(ms(60_000)), Health::Alive);
        assert_eq!(probed(14, &[10, 11, 12]).health(ms(60_000)), Health::Alive);
    }

    #[test]
    fn a_slow_path_is_given_time() {
        let mut quality = Quality::default();
        let (first, _) = quality.note_sent(ms(0));
        quality.note_answer(ms(800), first);
        let _unanswered = [1000, 1200, 1400].map(|at| quality.note_sent(ms(at)));
        assert_eq!(quality.health(ms(3299)), Health::Alive);
        assert_eq!(quality.health(ms(3300)), Health::Dead);
    }

    #[test]
    fn loss_is_the_share_of_overdue_probes() {
        assert_eq!(probed(20, &[]).loss_permille(ms(60_000)), 0);
        assert_eq!(probed(20, &[3, 9]).loss_permille(ms(60_000)), 100);
        // On its way is not lost, and few probes say nothing.
        assert_eq!(probed(20, &[19]).loss_permille(ms(19 * 200 + 100)), 0);
        assert_eq!(probed(7, &[3]).loss_permille(ms(60_000)), 0);
    }

    #[test]
    fn probes_before_the_first_answer_are_no_loss() {
        let quality = probed(40, &(0..25).collect::<Vec<_>>());
        assert_eq!((quality.loss_permille(ms(60_000)), quality.answers()), (0, 15));
    }

    #[test]
    fn a_doubted_path_needs_one_answer_soon() {
        let mut gone = probed(5, &[]);
        gone.doubt(ms(1000));
        assert!(gone.wants_probe());
        let (sequence, _) = gone.note_sent(ms(1000));
        let mut there = gone.clone();
        assert!(!gone.wants_probe());
        assert_eq!([1119, 1120].map(|at| gone.health(ms(at))), [Health::Alive, Health::Dead]);
        there.note_answer(ms(1010), sequence);
        let _unanswered = there.note_sent(ms(1200));
        assert_eq!(there.health(ms(1800)), Health::Alive);
    }

    /// Probes every 200 ms; those longer than `limit` are lost.
    fn limited(quality: &mut Quality, from: u64, count: u64, limit: u16) {
        for probe in from..from + count {
            let (sequence, size) = quality.note_sent(ms(probe * 200));
            quality.review_mtu(ms(probe * 200));
            if size == ProbeSize::Shortest || matches!(size, ProbeSize::Packet(size) if size <= limit) {
                quality.note_answer(ms(probe * 200 + 10), sequence);
            }
        }
    }

    #[test]
    fn a_path_for_smaller_packets_is_alive_without_loss_at_its_size() {
        let mut quality = Quality::default();
        limited(&mut quality, 0, 100, 1400);
        assert_eq!((quality.mtu_bytes(), quality.loss_permille(ms(20_000))), (Some(1400), 0));
        assert_eq!(quality.health(ms(20_000)), Health::Alive);
    }

    #[test]
    fn a_path_that_begins_to_drop_large_packets_heals_within_five_seconds() {
        let mut quality = Quality::default();
        limited(&mut quality, 0, 40, 1500);
        assert_eq!(quality.mtu_bytes(), Some(1500));
        limited(&mut quality, 40, 25, 1450);
        assert_eq!((quality.mtu_bytes(), quality.health(ms(13_000))), (Some(1450), Health::Alive));
        limited(&mut quality, 65, 130, 1500);
        assert_eq!(quality.mtu_bytes(), Some(1500));
    }

    #[test]
    fn an_answer_counts_once_and_only_for_a_probe_that_was_sent() {
        let mut quality = Quality::default();
        let (sequence, _) = quality.note_sent(ms(0));
        assert!(!quality.note_answer(ms(5), sequence + 1));
        assert!(quality.note_answer(ms(5), sequence));
        assert!(!quality.note_answer(ms(50), sequence));
        assert_eq!((quality.round_trip(), quality.answers()), (Some(ms(5)), 1));
    }

    #[test]
    fn the_round_trip_follows_slowly() {
        let mut quality = probed(5, &[]);
        let (sequence, _) = quality.note_sent(ms(1000));
        quality.note_answer(ms(1090), sequence);
        assert_eq!(quality.round_trip(), Some(ms(20)));
    }
}
