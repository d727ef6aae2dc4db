//! When to dial a peer, and how: pure decisions, with time and chance as arguments.
//!
//! ```text
//! round:  QUIC to every address ──200 ms──> TCP to every address ──200 ms──> a circuit ──back off──> again
//! ```
//! Private addresses of another site may belong to somebody else here, or to nobody: they are cheap
//! to try and never waited for. While only a circuit connects, direct addresses are tried again at
//! long intervals. A peer that was last reached by a circuit is dialed by circuit at once.

use std::time::{Duration, Instant};

/// The head start of each kind of dial over the next: two round trips on most links. A tunnel gap after
/// a restart contains two of these when only a circuit connects, and should stay below a second.
const STAGGER: Duration = Duration::from_millis(200);

/// The first pause after a round that reached nobody. A peer that restarts is back within it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause between rounds while the peer is not connected.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The first and the longest pause between rounds while a circuit connects.
const FIRST_UPGRADE_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_UPGRADE_PAUSE: Duration = Duration::from_secs(300);

/// How much later the peer with the higher id redials a lost connection, so that both rarely dial at once.
const SECOND_MOVER_PAUSE: Duration = Duration::from_millis(400);

/// How a peer is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Apart,
    Relayed,
    Direct,
}

/// What can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Means {
    /// Whether any direct address is known.
    pub(crate) addresses: bool,
    /// Whether any relay is connected.
    pub(crate) relays: bool,
}

/// What to dial now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dials {
    pub(crate) quic: bool,
    pub(crate) tcp: bool,
    pub(crate) circuit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Quic,
    Tcp,
    Circuit,
}

/// Where the dialing of one peer stands.
#[derive(Clone, Debug)]
pub(crate) struct DialState {
    step: Step,
    due: Instant,
    failures: u32,
    circuit_worked: bool,
}

impl DialState {
    /// Dials at once.
    pub(crate) fn new(now: Instant) -> Self {
        Self { step: Step::Quic, due: now, failures: 0, circuit_worked: false }
    }

    /// The peer is connected.
    pub(crate) fn connected(&mut self, link: Link, now: Instant) {
        self.failures = 0;
        match link {
            Link::Direct => self.circuit_worked = false,
            Link::Relayed => {
                self.circuit_worked = true;
                // A round under way still tries its other addresses.
                if self.step == Step::Quic {
                    self.due = now + FIRST_UPGRADE_PAUSE;
                }
            }
            Link::Apart => {}
        }
    }

    /// The last connection is gone. `first_mover` is the peer with the lower id.
    pub(crate) fn lost(&mut self, now: Instant, first_mover: bool) {
        let pause = if first_mover { Duration::ZERO } else { SECOND_MOVER_PAUSE };
        (self.step, self.due, self.failures) = (Step::Quic, now + pause, 0);
    }

    /// Something changed for the better: do not wait out a long pause.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if self.step == Step::Quic {
            self.failures = 0;
            self.due = self.due.min(now);
        }
    }

    /// What to dial now. `chance` is between 0 and 1 and spreads the rounds of many nodes.
    pub(crate) fn due(&mut self, now: Instant, link: Link, means: Means, chance: f64) -> Dials {
        let mut dials = Dials::default();
        if link == Link::Direct {
            return dials;
        }
        while now >= self.due {
            match self.step {
                Step::Quic => {
                    dials.quic = means.addresses;
                    dials.circuit = self.circuit_worked && means.relays && link == Link::Apart;
                    self.advance(Step::Tcp, now, means);
                }
                Step::Tcp => {
                    dials.tcp = means.addresses;
                    self.advance(Step::Circuit, now, means);
                }
                Step::Circuit => {
                    dials.circuit |= means.relays && link == Link::Apart;
                    self.step = Step::Quic;
                    self.failures = self.failures.saturating_add(1);
                    self.due = now + pause(link, self.failures, chance);
                    break;
                }
            }
        }
        dials
    }

    fn advance(&mut self, step: Step, now: Instant, means: Means) {
        self.step = step;
        self.due = if means.addresses { now + STAGGER } else { now };
    }
}

/// Doubles with every failure, up to the longest, a quarter more or less by chance.
fn pause(link: Link, failures: u32, chance: f64) -> Duration {
    let (first, longest) = match link {
        Link::Apart | Link::Direct => (FIRST_PAUSE, LONGEST_PAUSE),
        Link::Relayed => (FIRST_UPGRADE_PAUSE, LONGEST_UPGRADE_PAUSE),
    };
    let doublings = failures.saturating_sub(1).min(16);
    let whole = first.saturating_mul(1 << doublings).min(longest);
    whole.mul_f64(0.75 + 0.5 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Means = Means { addresses: true, relays: true };

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn dials(quic: bool, tcp: bool, circuit: bool) -> Dials {
        Dials { quic, tcp, circuit }
    }

    #[test]
    fn a_round_tries_quic_then_tcp_then_a_circuit_and_pauses() {
        let start = Instant::now();
        let mut state = DialState::new(start);
        let mut due = |millis| state.due(at(start, millis), Link::Apart, BOTH, 0.5);
        assert_eq!(due(0), dials(true, false, false));
        assert_eq!(due(199), Dials::default());
        assert_eq!(due(200), dials(false, true, false));
        assert_eq!(due(400), dials(false, false, true));
        assert_eq!(due(649), Dials::default());
        assert_eq!(due(650), dials(true, false, false));
    }

    #[test]
    fn without_addresses_the_circuit_is_dialed_at_once() {
        let start = Instant::now();
        let means = Means { addresses: false, relays: true };
        assert_eq!(DialState::new(start).due(start, Link::Apart, means, 0.5), dials(false, false, true));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_spread_by_a_quarter() {
        let pauses: Vec<_> = (1..=8).map(|failures| pause(Link::Apart, failures, 0.5).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        assert_eq!(pause(Link::Apart, 1, 0.0), Duration::from_micros(187_500));
        assert_eq!(pause(Link::Apart, 1, 1.0), Duration::from_micros(312_500));
        assert_eq!(pause(Link::Relayed, u32::MAX, 0.5), LONGEST_UPGRADE_PAUSE);
    }

    #[test]
    fn a_connected_peer_is_not_dialed_and_a_relayed_one_by_direct_means_alone() {
        let start = Instant::now();
        let mut state = DialState::new(start);
        assert_eq!(state.due(start, Link::Direct, BOTH, 0.5), Dials::default());
        state.connected(Link::Relayed, start);
        assert_eq!(state.due(at(start, 29_999), Link::Relayed, BOTH, 0.5), Dials::default());
        assert_eq!(state.due(at(start, 30_000), Link::Relayed, BOTH, 0.5), dials(true, false, false));
        assert_eq!(state.due(at(start, 30_200), Link::Relayed, BOTH, 0.5), dials(false, true, false));
        assert_eq!(state.due(at(start, 30_400), Link::Relayed, BOTH, 0.5), Dials::default());
    }

    #[test]
    fn a_lost_circuit_is_redialed_at_once_by_the_first_mover() {
        let start = Instant::now();
        let mut state = DialState::new(start);
        state.connected(Link::Relayed, start);
        state.lost(at(start, 5000), true);
        assert_eq!(state.due(at(start, 5000), Link::Apart, BOTH, 0.5), dials(true, false, true));
        state.lost(at(start, 9000), false);
        assert_eq!(state.due(at(start, 9399), Link::Apart, BOTH, 0.5), Dials::default());
        assert_eq!(state.due(at(start, 9400), Link::Apart, BOTH, 0.5), dials(true, false, true));
    }

    #[test]
    fn hurrying_ends_a_long_pause() {
        let start = Instant::now();
        let nothing = Means { addresses: false, relays: false };
        let mut state = DialState::new(start);
        let mut now = start;
        for _ in 0..20 {
            assert_eq!(state.due(now, Link::Apart, nothing, 0.5), Dials::default());
            now += LONGEST_PAUSE;
        }
        state.due(now, Link::Apart, nothing, 0.5);
        state.hurry(at(now, 1));
        let relays = Means { addresses: false, relays: true };
        assert_eq!(state.due(at(now, 1), Link::Apart, relays, 0.5), dials(false, false, true));
    }
}
