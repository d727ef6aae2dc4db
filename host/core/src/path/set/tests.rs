//! Paths over a network that is played: each address answers after its delay, or not at all.

use proptest::prelude::*;

use super::*;
use crate::membership::PeerId;
use crate::path::Reason;

/// How often the owner looks.
const TICK: Duration = Duration::from_millis(50);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn direct(host: u8) -> Endpoint {
    Endpoint::Direct(SocketAddr::from(([192, 0, 2, host], 20_007)))
}

fn relayed(host: u8) -> Endpoint {
    let at = SocketAddr::from(([203, 0, 113, host], 20_007));
    Endpoint::Relayed { relay: PeerId(format!("relay-{host}")), at, index: u32::from(host), tag: 7 }
}

/// A network where an endpoint is there when it has a delay.
struct Play {
    set: PathSet,
    now: Duration,
    network: BTreeMap<Endpoint, Duration>,
    flying: Vec<(Duration, PathId, u32)>,
    carries_packets: bool,
    /// The longest packet that gets through. **Units** bytes.
    limit: u16,
    probes: usize,
    changes: Vec<(Duration, Option<Endpoint>, Reason)>,
}

impl Play {
    fn new(told: &[Endpoint], network: &[(Endpoint, u64)]) -> Self {
        let mut set = PathSet::default();
        set.tell(Duration::ZERO, told);
        let network = network.iter().map(|(endpoint, delay)| (endpoint.clone(), ms(*delay))).collect();
        let (flying, changes) = (Vec::new(), Vec::new());
        Self { set, now: Duration::ZERO, network, flying, carries_packets: true, limit: 1500, probes: 0, changes }
    }

    /// Plays that long, in ticks.
    fn run(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            let (now, arrived) = (self.now, std::mem::take(&mut self.flying));
            for (at, path, sequence) in arrived {
                if at <= now {
                    self.set.answered(at, path, sequence);
                } else {
                    self.flying.push((at, path, sequence));
                }
            }
            let due = self.set.due_probes(now, self.carries_packets);
            self.probes += due.len();
            let limit = self.limit;
            let passes = |probe: &&ProbeOrder| match probe.size {
                ProbeSize::Shortest => true,
                ProbeSize::Packet(bytes) => bytes <= limit,
            };
            let answers = due.iter().filter(passes).filter_map(|probe| {
                self.network.get(&probe.endpoint).map(|delay| (now + *delay, probe.path, probe.sequence))
            });
            self.flying.extend(answers);
            if let Some(change) = self.set.decide(now) {
                let to = change.to.and_then(|id| self.set.endpoint(id).cloned());
                self.changes.push((now, to, change.reason));
            }
        }
        self
    }

    fn cut(&mut self, endpoint: &Endpoint) -> &mut Self {
        self.network.remove(endpoint);
        self
    }

    fn current(&self) -> Option<Endpoint> {
        self.set.current().cloned()
    }
}

#[test]
fn the_direct_path_is_used_within_a_second_when_it_answers() {
    let mut play = Play::new(&[direct(1), direct(2), relayed(1)], &[(direct(2), 20), (relayed(1), 30)]);
    play.run(ms(1000));
    assert_eq!(play.current(), Some(direct(2)));
    play.run(ms(60_000));
    assert_eq!(play.changes.len(), 1, "{:?}", play.changes);
}

#[test]
fn without_any_answer_the_stream_stays_and_probes_become_rare() {
    let mut play = Play::new(&[direct(1)], &[]);
    play.run(ms(5000));
    let eager = play.probes;
    play.run(ms(60_000));
    assert_eq!((play.current(), eager, play.probes - eager), (None, 25, 4));
}

#[test]
fn a_path_that_dies_under_traffic_is_left_within_a_second() {
    let mut play = Play::new(&[direct(1), relayed(1)], &[(direct(1), 20), (relayed(1), 40)]);
    play.run(ms(10_000)).cut(&direct(1)).run(ms(1000));
    assert_eq!(play.current(), Some(relayed(1)));
    assert_eq!(play.changes.last().unwrap().2, Reason::Died);
    play.cut(&relayed(1)).run(ms(1000));
    assert_eq!(play.current(), None);
}

#[test]
fn a_path_that_dies_while_idle_is_found_within_ten_seconds() {
    let mut play = Play::new(&[direct(1), relayed(1)], &[(direct(1), 20), (relayed(1), 40)]);
    play.carries_packets = false;
    play.run(ms(10_000)).cut(&direct(1)).run(ms(10_000));
    assert_eq!(play.current(), Some(relayed(1)));
}

#[test]
fn a_path_that_comes_back_is_used_again() {
    let mut play = Play::new(&[direct(1), relayed(1)], &[(direct(1), 20), (relayed(1), 40)]);
    play.run(ms(10_000)).cut(&direct(1)).run(ms(30_000));
    play.network.insert(direct(1), ms(20));
    play.run(QUIET_INTERVAL + ms(5000));
    assert_eq!(play.current(), Some(direct(1)));
    assert!(matches!(play.changes.last().unwrap().2, Reason::Better { .. }));
}

#[test]
fn a_path_below_the_smallest_size_is_never_used_and_seldom_probed() {
    let mut play = Play::new(&[direct(1)], &[(direct(1), 20)]);
    play.limit = 1200;
    play.run(ms(10_000));
    let before = play.probes;
    play.run(ms(60_000));
    assert_eq!(play.current(), None);
    assert!(play.probes - before <= 50, "{}", play.probes - before);
    play.limit = 1300;
    play.run(QUIET_INTERVAL + ms(3000));
    assert_eq!((play.current(), play.set.current_mtu_bytes()), (Some(direct(1)), Some(1280)));
}

#[test]
fn strangers_get_short_probes_only() {
    let mut set = PathSet::default();
    set.tell(Duration::ZERO, &[direct(1)]);
    let sizes = (0..100).flat_map(|tick| set.due_probes(ms(tick * 200), true)).map(|probe| probe.size);
    assert!(sizes.into_iter().all(|size| size == ProbeSize::Shortest));
}

#[test]
fn another_relay_takes_over_from_one_that_dies() {
    let mut play = Play::new(&[relayed(1), relayed(2)], &[(relayed(1), 20), (relayed(2), 25)]);
    play.run(ms(10_000)).cut(&relayed(1)).run(ms(1000));
    assert_eq!(play.current(), Some(relayed(2)));
}

#[test]
fn a_peer_that_shows_up_from_another_address_is_followed() {
    let mut play = Play::new(&[direct(1)], &[(direct(1), 20)]);
    play.run(ms(10_000)).cut(&direct(1));
    play.network.insert(direct(9), ms(20));
    let Endpoint::Direct(address) = direct(9) else { unreachable!("it is direct") };
    assert!(play.set.see(play.now, address));
    assert!(!play.set.see(play.now, address));
    // A NAT that changes its mind every few seconds must not cost a second each time.
    play.run(ms(250));
    assert_eq!(play.current(), Some(direct(9)));
}

#[test]
fn a_path_that_still_works_is_kept_when_the_peer_shows_up_elsewhere_too() {
    let mut play = Play::new(&[direct(1)], &[(direct(1), 20), (direct(9), 20)]);
    play.run(ms(10_000));
    let Endpoint::Direct(address) = direct(9) else { unreachable!("it is direct") };
    assert!(play.set.see(play.now, address));
    play.run(ms(10_000));
    assert_eq!((play.current(), play.changes.len()), (Some(direct(1)), 1));
}

#[test]
fn what_a_peer_tells_no_more_goes_unless_it_works() {
    let mut play = Play::new(&[direct(1), direct(2), relayed(1)], &[(direct(1), 20), (relayed(1), 20)]);
    play.run(ms(10_000));
    play.set.tell(play.now, &[direct(3)]);
    let left: Vec<_> = play.set.report(play.now).into_iter().map(|path| (path.endpoint, path.origin)).collect();
    assert_eq!(left, [(direct(1), Origin::Seen), (direct(3), Origin::Told)]);
    play.run(ms(1000));
    assert_eq!(play.current(), Some(direct(1)));
}

#[test]
fn a_relay_s_place_that_was_taken_back_is_left() {
    let mut play = Play::new(&[relayed(1)], &[(relayed(1), 20)]);
    play.run(ms(10_000));
    play.set.tell(play.now, &[]);
    play.run(TICK);
    assert_eq!((play.current(), play.changes.last().unwrap().2), (None, Reason::Gone));
}

#[test]
fn candidates_are_bounded_and_the_path_in_use_is_never_the_one_that_goes() {
    let many: Vec<Endpoint> = (0..100).map(direct).collect();
    let mut play = Play::new(&many, &[(direct(0), 20)]);
    assert_eq!(play.set.report(play.now).len(), MAX_TOLD);
    play.run(ms(1000));
    play.set.tell(play.now, &[]);
    for host in 100..200 {
        let Endpoint::Direct(address) = direct(host) else { unreachable!("it is direct") };
        play.set.see(play.now + ms(u64::from(host)), address);
    }
    let left: Vec<_> = play.set.report(play.now).into_iter().map(|path| path.endpoint).collect();
    assert_eq!(left, [direct(0), direct(197), direct(198), direct(199)]);
    assert_eq!(play.current(), Some(direct(0)));
}

#[test]
fn lost_keys_lead_back_to_the_stream_until_new_answers_come() {
    let mut play = Play::new(&[direct(1)], &[(direct(1), 20)]);
    play.run(ms(10_000));
    assert_eq!(play.set.forget(play.now).map(|change| change.to), Some(None));
    play.run(ms(1000));
    assert_eq!(play.current(), Some(direct(1)));
}

#[test]
fn an_answer_to_nothing_changes_nothing() {
    let mut play = Play::new(&[direct(1)], &[]);
    play.run(ms(1000));
    let before = play.set.clone();
    assert!(!play.set.answered(play.now, PathId(99), 0));
    assert_eq!(play.set, before);
    assert!(!play.set.answered(play.now, PathId(0), 12_345));
    assert_eq!(play.current(), None);
}

proptest! {
    #[test]
    fn no_packets_go_by_a_path_that_has_been_down_for_a_second(
        steps in prop::collection::vec((0..3_u8, any::<bool>(), 1..60_u64), 1..30),
    ) {
        let all = [direct(1), direct(2), relayed(1)];
        let mut play = Play::new(&all, &[(direct(1), 10), (relayed(1), 30)]);
        for (which, is_up, time) in steps {
            let endpoint = all[usize::from(which)].clone();
            if is_up {
                play.network.insert(endpoint, ms(10));
            } else {
                play.cut(&endpoint);
            }
            play.run(ms(1050));
            prop_assert!(play.current().is_none_or(|current| play.network.contains_key(&current)));
            play.run(ms(time * 500));
            let should_work = !play.network.is_empty() && time * 500 > 16_000;
            prop_assert!(play.current().is_some() || !should_work);
        }
    }
}
