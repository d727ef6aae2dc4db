//! Two links over a wire that is played, without any I/O.

use culvert_core::membership::PeerId;
use culvert_datagram::agreement::{Salt, Terms};
use culvert_datagram::frame::{Datagram, MAX_DATAGRAM_BYTES};

use super::*;

/// As the mesh's task.
const TICK: Duration = Duration::from_millis(100);

struct Node {
    link: DatagramLink,
    peer: Arc<DatagramPeer>,
    address: SocketAddr,
}

impl Node {
    fn new(ours: &str, theirs: &str, number: u8) -> Self {
        let salts = vec![Salt { name: [1; 16], secret: Zeroizing::new([2; 32]) }];
        let terms = Arc::new(Terms { queues: 1, has_aes: true, salts });
        let (ours, theirs) = (PeerId(ours.into()), PeerId(theirs.into()));
        let peer = DatagramPeer::new(theirs.clone(), Arc::default());
        let agreement = Agreement::new(ours, theirs, ReceiverIndex(number.into()), terms);
        let link = DatagramLink::new(Arc::clone(&peer), agreement);
        Self { link, peer, address: SocketAddr::from(([192, 0, 2, number], 7)) }
    }

    /// What the receiver thread would do with a probe or an answer. Returns what is to be sent back.
    fn hear(&mut self, now: Duration, from: SocketAddr, mut bytes: Vec<u8>) -> Option<Ready> {
        assert!(bytes.len() < MAX_DATAGRAM_BYTES);
        let datagram = Datagram::new_checked(&mut bytes).unwrap();
        let keys = self.peer.inbound.load_full();
        let opened = keys.open(datagram.frame).unwrap();
        if opened.header.kind() == Kind::Probe {
            return self.link.on_probe(now, from, None, opened.payload);
        }
        self.link.on_answer(now, opened.payload);
        None
    }

    fn remote(&self) -> Option<SocketAddr> {
        self.peer.outbound.load().as_ref().map(|outbound| outbound.remote)
    }
}

struct Wire {
    a: Node,
    b: Node,
    now: Duration,
    is_cut: bool,
    /// The longest frame that gets through. **Units** bytes.
    limit: usize,
    moved: Vec<Moved>,
}

impl Wire {
    fn new() -> Self {
        let (a, b) = (Node::new("a", "b", 1), Node::new("b", "a", 2));
        Self { a, b, now: Duration::from_secs(1), is_cut: false, limit: 1472, moved: Vec::new() }
    }

    fn agree(&mut self) {
        let offer = self.a.link.offer(self.now).unwrap();
        let accept = self.b.link.on_offer(self.now, &offer).unwrap();
        let confirm = self.a.link.on_accept(self.now, &accept).unwrap();
        self.b.link.on_confirm(self.now, &confirm).unwrap();
    }

    fn tell(&mut self) {
        self.a.link.on_told(self.now, &[self.b.address]);
        self.b.link.on_told(self.now, &[self.a.address]);
    }

    fn run(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now += TICK;
            let (now, is_cut, limit) = (self.now, self.is_cut, self.limit);
            for is_a in [true, false] {
                let (from, to) = if is_a { (&mut self.a, &mut self.b) } else { (&mut self.b, &mut self.a) };
                let (ready, moved) = from.link.on_tick(now);
                self.moved.extend(moved.filter(|_| is_a));
                let there = to.address;
                let passes = |ready: &Ready| !is_cut && ready.bytes.len() <= limit && ready.to == there;
                for ready in ready.into_iter().filter(passes) {
                    let Some(back) = to.hear(now, from.address, ready.bytes) else { continue };
                    assert_eq!((back.to, from.hear(now, to.address, back.bytes)), (from.address, None));
                }
            }
        }
    }
}

#[test]
fn nothing_is_probed_before_keys_are_agreed_on() {
    let mut wire = Wire::new();
    wire.tell();
    assert_eq!(wire.a.link.on_tick(wire.now), (Vec::new(), None));
    assert_eq!(wire.a.remote(), None);
}

#[test]
fn keys_and_answered_probes_make_a_path_on_both_ends() {
    let mut wire = Wire::new();
    wire.tell();
    wire.agree();
    wire.run(10);
    assert_eq!((wire.a.remote(), wire.b.remote()), (Some(wire.b.address), Some(wire.a.address)));
    let outbound = wire.a.peer.outbound.load_full().unwrap();
    assert_eq!((outbound.mtu_bytes, outbound.relay), (1440, None));
    let report = wire.a.link.report(wire.now).unwrap();
    assert_eq!((report.endpoint, report.loss_permille), (Endpoint::Direct(wire.b.address), 0));
}

#[test]
fn the_end_that_was_told_nothing_learns_the_address_from_the_first_probe() {
    let mut wire = Wire::new();
    wire.agree();
    wire.a.link.on_told(wire.now, &[wire.b.address]);
    wire.run(20);
    assert_eq!(wire.b.remote(), Some(wire.a.address));
}

#[test]
fn a_cut_wire_leads_to_the_stream_and_back() {
    let mut wire = Wire::new();
    wire.tell();
    wire.agree();
    wire.run(20);
    wire.a.peer.is_busy.store(true, Ordering::Relaxed);
    wire.is_cut = true;
    wire.run(50);
    assert_eq!((wire.a.remote(), wire.b.remote()), (None, None));
    wire.is_cut = false;
    wire.run(200);
    assert_eq!((wire.a.remote(), wire.b.remote()), (Some(wire.b.address), Some(wire.a.address)));
    let reasons: Vec<_> = wire.moved.iter().map(|moved| (moved.to.is_some(), moved.reason)).collect();
    assert_eq!(reasons, [(true, Reason::FirstAnswers), (false, Reason::Died), (true, Reason::FirstAnswers)]);
}

#[test]
fn a_busy_path_that_dies_is_left_within_a_second() {
    let mut wire = Wire::new();
    wire.tell();
    wire.agree();
    wire.run(20);
    wire.is_cut = true;
    for _ in 0..11 {
        wire.a.peer.is_busy.store(true, Ordering::Relaxed);
        wire.run(1);
    }
    assert_eq!(wire.a.remote(), None);
}

#[test]
fn the_largest_packet_follows_what_the_path_carries() {
    let mut wire = Wire::new();
    wire.tell();
    wire.agree();
    wire.run(20);
    let mtu_of = |wire: &Wire| wire.a.peer.outbound.load().as_ref().map(|outbound| outbound.mtu_bytes);
    assert_eq!(mtu_of(&wire), Some(1440));
    wire.limit = 1400 - 28;
    for _ in 0..100 {
        wire.a.peer.is_busy.store(true, Ordering::Relaxed);
        wire.run(1);
    }
    assert_eq!(mtu_of(&wire), Some(1340));
    assert_eq!(wire.moved.len(), 1, "{:?}", wire.moved);
}

#[test]
fn new_keys_take_the_place_of_old_ones_on_the_path() {
    let mut wire = Wire::new();
    wire.tell();
    wire.agree();
    wire.run(10);
    let before = wire.a.peer.outbound.load_full().unwrap();
    assert_eq!(wire.a.link.offer(wire.now), None);
    wire.now += Duration::from_secs(600);
    wire.agree();
    let after = wire.a.peer.outbound.load_full().unwrap();
    assert!(!Arc::ptr_eq(&before.keys, &after.keys) && before.remote == after.remote);
    wire.run(20);
    assert_eq!(wire.a.remote(), Some(wire.b.address));
}

#[test]
fn a_restarted_peer_takes_keys_and_path_with_it() {
    let mut wire = Wire::new();
    wire.tell();
    wire.agree();
    wire.run(10);
    let moved = wire.a.link.on_restart(wire.now).unwrap();
    assert_eq!((moved.from, moved.to), (Some(Endpoint::Direct(wire.b.address)), None));
    assert_eq!((wire.a.remote(), wire.a.link.report(wire.now)), (None, None));
    wire.b = Node::new("b", "a", 2);
    wire.tell();
    wire.agree();
    wire.run(10);
    assert_eq!(wire.a.remote(), Some(wire.b.address));
}

#[test]
fn a_flood_of_probes_is_answered_in_part_only() {
    let mut wire = Wire::new();
    wire.agree();
    let mut payload = [0; ANSWER_BYTES];
    Probe { path: 1, sequence: 1 }.write(&mut payload).unwrap();
    let (now, from) = (wire.now, wire.a.address);
    let answered = (0..1000).filter(|_| wire.b.link.on_probe(now, from, None, &payload).is_some()).count();
    assert_eq!(answered, 16);
    wire.run(1);
    assert!(wire.b.link.on_probe(now, from, None, &payload).is_some());
}

#[test]
fn relays_are_sought_when_no_direct_path_is_found_for_a_while() {
    let mut wire = Wire::new();
    wire.tell();
    assert!(!wire.a.link.seeks_relays(wire.now), "without keys no datagram goes anywhere");
    wire.agree();
    wire.is_cut = true;
    let mut asked = Vec::new();
    for tick in 0..100 {
        wire.run(1);
        asked.extend(wire.a.link.seeks_relays(wire.now).then_some(tick));
    }
    assert_eq!(asked, [20, 70]);
    wire.is_cut = false;
    wire.run(200);
    assert!(!wire.a.link.seeks_relays(wire.now), "there is a direct path");
}

#[test]
fn a_place_at_a_relay_is_one_more_path_until_the_relay_goes() {
    let mut wire = Wire::new();
    wire.agree();
    let (relay, at) = (PeerId("relay".into()), SocketAddr::from(([203, 0, 113, 1], 7)));
    wire.a.link.on_place(wire.now, relay.clone(), at, RelayPlace { port: 7, index: 5, tag: 6 });
    assert!(wire.a.link.has_place(&relay));
    let (ready, _) = wire.a.link.on_tick(wire.now);
    let prefix = RelayPrefix { index: RelayIndex::new(5), tag: 6 };
    assert_eq!(
        ready.iter().map(|ready| (ready.to, &ready.bytes[..8])).collect::<Vec<_>>(),
        [(at, &prefix.encode()[..])]
    );
    wire.a.link.on_told(wire.now, &[wire.b.address]);
    assert!(wire.a.link.has_place(&relay));
    wire.a.link.forget_relay(wire.now, &relay);
    wire.now += Duration::from_secs(60);
    let (ready, _) = wire.a.link.on_tick(wire.now);
    assert_eq!(ready.iter().map(|ready| ready.to).collect::<Vec<_>>(), [wire.b.address]);
}
