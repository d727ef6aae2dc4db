//! Two engines on one machine with keys made up for the test, and attackers that hold valid keys.

mod fixture;

use culvert_core::packet::{Gso, VnetHeader};
use culvert_datagram::frame::{Epoch, Flags, Kind};
use culvert_datagram::rate::RateLimit;

use super::*;
use crate::tests::node::{eventually, record, record_v6};
use fixture::{Attacker, Engine, pair, tcp_super_packet, udp_super_packet};

const ONE: [u8; 4] = [10, 244, 1, 2];
const TWO: [u8; 4] = [10, 244, 2, 2];

#[tokio::test]
async fn packets_of_both_families_go_both_ways_in_order() {
    let (one, two) = pair(1);
    for round in 0..100_u8 {
        for (from, to, packet) in [
            (&one, &two, record(ONE, TWO, &[round; 100])),
            (&one, &two, record_v6("fd10:1::2", "fd10:2::2", &[round; 200])),
            (&two, &one, record(TWO, ONE, &[round; 300])),
        ] {
            from.send(0, &packet);
            assert_eq!(to.receive(0), packet);
        }
    }
    // A burst is counted after it was sent, a batch after it was written.
    eventually(|| (one.counters.snapshot().bytes_out == 100 * (120 + 240)).then_some(())).await;
    eventually(|| (two.counters.snapshot().packets_in == 200).then_some(())).await;
    let (sent, came) = (one.counters.snapshot(), two.counters.snapshot());
    assert_eq!(sent.packets_out, 200);
    assert_eq!(came.list().iter().filter(|(name, count)| name.starts_with("dropped") && *count > 0).count(), 0);
}

#[tokio::test]
async fn super_packets_are_cut_for_the_path_and_arrive_joined() {
    let (one, two) = pair(1);
    for packet in [tcp_super_packet(ONE, TWO, 60_000), udp_super_packet(ONE, TWO, 60_000, 1_200)] {
        one.send(0, &packet);
        let (mut bytes, mut pieces) = (0, 0);
        while bytes < 60_000 {
            let came = two.receive(0);
            let header = VnetHeader::decode(&came).unwrap();
            assert!(header.needs_checksum() && header.gso() != Ok(Gso::None));
            bytes += came.len() - usize::from(header.header_length) - 10;
            pieces += 1;
        }
        // How many arrive together is the system's choice; that they are joined is ours.
        assert!(bytes == 60_000 && pieces <= 4, "{bytes} bytes in {pieces} packets");
    }
}

#[tokio::test]
async fn a_peer_without_datagrams_is_left_to_the_stream() {
    let (one, mut two) = pair(1);
    one.peer.outbound.store(None);
    one.send(0, &udp_super_packet(ONE, TWO, 3_000, 1_000));
    eventually(|| (one.counters.snapshot().dropped_no_path == 1).then_some(())).await;
    let mut ring = two.take_ring();
    two.peer.outbound.store(None);
    two.ready_ring();
    two.send(0, &udp_super_packet(TWO, ONE, 2_500, 1_000));
    let batch = ring.recv().await.unwrap();
    // The far TUN may not take UDP super-packets, so each datagram goes by itself.
    let mut rest = batch.chunk.bytes.as_slice();
    let mut lengths = Vec::new();
    while let Some((frame, taken)) = culvert_core::packet::next_frame(rest).unwrap() {
        assert_eq!(frame.header, VnetHeader::with_partial_checksum(20, 6));
        lengths.push(frame.packet.len());
        rest = &rest[taken..];
    }
    assert_eq!(lengths, [1_028, 1_028, 528]);
}

#[tokio::test]
async fn a_packet_that_does_not_fit_the_path_is_counted() {
    let (one, two) = pair(1);
    one.send(0, &record(ONE, TWO, &[1; 1_400]));
    one.send(0, &record(ONE, TWO, &[2; 100]));
    assert_eq!(two.receive(0), record(ONE, TWO, &[2; 100]));
    assert_eq!(one.counters.snapshot().dropped_too_big, 1);
}

#[tokio::test]
async fn a_peer_with_keys_can_neither_spoof_nor_replay() {
    const ATTEMPTS: u64 = 100_000;
    let (one, two) = pair(1);
    let mut attacker = Attacker::with_keys_of(&one, &two);
    let (good, spoofed) =
        (record(ONE, TWO, b"good")[10..].to_vec(), record([10, 244, 3, 2], TWO, b"bad")[10..].to_vec());
    let replayed = attacker.seal(Flags::default(), &good);
    attacker.send(&replayed);
    assert_eq!(two.receive(0)[10..], good);
    for attempt in 0..ATTEMPTS {
        attacker.send(&replayed);
        let frame = attacker.seal(Flags::default(), &spoofed);
        attacker.send(&frame);
        // The system would drop what the thread does not keep up with, and nothing would have been tried.
        two.wait_dropped(2 * attempt.saturating_sub(100)).await;
    }
    two.wait_dropped(2 * ATTEMPTS).await;
    one.send(0, &record(ONE, TWO, b"honest"));
    assert_eq!(two.receive(0)[10..], record(ONE, TWO, b"honest")[10..]);
    let counted = two.counters.snapshot();
    assert_eq!((counted.dropped_frame_replayed, counted.dropped_foreign_source), (ATTEMPTS, ATTEMPTS));
    eventually(|| (two.counters.snapshot().packets_in == 2).then_some(())).await;
}

#[tokio::test]
async fn what_is_no_frame_of_a_peer_is_dropped_by_its_own_name() {
    let (one, two) = pair(1);
    let mut attacker = Attacker::with_keys_of(&one, &two);
    let good = record(ONE, TWO, b"good")[10..].to_vec();
    let before = two.counters.snapshot();
    let frame = attacker.seal(Flags::default(), &good);
    for length in 1..32 {
        attacker.send(&frame[..length]);
    }
    attacker.send(&[&[9], &frame[1..]].concat());
    let with = |position: usize, value: u8| {
        let mut changed = frame.clone();
        changed[position] = value;
        changed
    };
    attacker.send(&with(7, 9));
    attacker.send(&with(2, 77));
    attacker.send(&with(3, 5));
    attacker.send(&with(20, frame[20] ^ 1));
    // Sealed well, but no IP packet; for somebody else; to ourselves; and a partial checksum with nowhere to put it.
    for (flags, bytes) in [
        (Flags::default(), b"no packet".to_vec()),
        (Flags::default(), record(ONE, [10, 244, 3, 9], b"")[10..].to_vec()),
        (Flags::default(), record(ONE, [127, 0, 0, 1], b"")[10..].to_vec()),
        (Flags { partial_checksum: true }, {
            let mut icmp = good.clone();
            icmp[9] = 1;
            icmp
        }),
    ] {
        let sealed = attacker.seal(flags, &bytes);
        attacker.send(&sealed);
    }
    attacker.send(&frame);
    assert_eq!(two.receive(0)[10..], good);
    let counted = two.counters.snapshot();
    assert_eq!(counted.dropped_frame_malformed - before.dropped_frame_malformed, 32);
    assert_eq!((counted.dropped_frame_unknown, counted.dropped_frame_no_key, counted.dropped_frame_forged), (1, 2, 1));
    assert_eq!((counted.dropped_malformed_in, counted.dropped_offload), (1, 1));
    assert_eq!((counted.dropped_foreign_destination, counted.dropped_forbidden_destination), (1, 1));
    assert_eq!(two.peer.refused.read(), 2);
}

#[tokio::test]
async fn an_older_epoch_opens_until_it_is_taken_away() {
    let (one, two) = pair(1);
    let mut old = Attacker::with_keys_of(&one, &two);
    two.accept_epochs(&[Epoch(2), Epoch(1)]);
    old.deliver(&two, b"before");
    two.accept_epochs(&[Epoch(2)]);
    let frame = old.seal(Flags::default(), &record(ONE, TWO, b"after")[10..]);
    old.send(&frame);
    eventually(|| (two.counters.snapshot().dropped_frame_no_key == 1).then_some(())).await;
}

#[tokio::test]
async fn a_peer_that_moved_is_noticed_once_and_only_by_what_opens() {
    let (one, mut two) = pair(1);
    let mut moved = Attacker::with_keys_of(&one, &two);
    let mut forged = moved.seal(Flags::default(), &record(ONE, TWO, b"x")[10..]);
    forged[20] ^= 1;
    moved.send(&forged);
    for _ in 0..3 {
        moved.deliver(&two, b"moved");
    }
    let Notice::Moved { peer, from, relay } = two.notice().await else { panic!("another notice came") };
    assert_eq!((peer, from, relay), (one.name.clone(), moved.address(), None));
    assert!(two.notices.try_recv().is_err());
}

#[tokio::test]
async fn probes_are_passed_on_and_never_reach_the_tun() {
    let (one, mut two) = pair(1);
    let mut prober = Attacker::with_probe_keys_of(&one, &two);
    let frame = prober.seal_kind(Kind::Probe, b"are you there");
    prober.send(&frame);
    let Notice::Probe { kind, payload, from, .. } = two.notice().await else { panic!("another notice came") };
    assert_eq!((kind, payload.as_slice(), from), (Kind::Probe, &b"are you there"[..], prober.address()));
    assert_eq!(two.counters.snapshot().packets_in, 0);
}

#[tokio::test]
async fn a_relay_forwards_between_two_ends_and_reads_nothing() {
    let (mut one, mut two) = pair(1);
    let relay = Engine::start(3, 1);
    let [first, second] = relay.reserve(RateLimit::new(1 << 30, 1 << 20));
    one.send_through(&relay, first);
    two.send_through(&relay, second);
    // The first packet shows where its sender is; nobody knows yet where it should go.
    one.send(0, &record(ONE, TWO, b"lost"));
    relay.wait_dropped(1).await;
    for round in 0..50_u8 {
        for (from, to, packet) in [
            (&two, &one, record(TWO, ONE, &[round; 100])),
            (&one, &two, record(ONE, TWO, &[round; 1_000])),
            (&one, &two, tcp_super_packet(ONE, TWO, 1_360)),
        ] {
            from.send(0, &packet);
            let came = to.receive(0);
            // Length and addresses: the kernel's own fields of a super-packet are filled in on the way.
            assert_eq!((came.len(), &came[22..30]), (packet.len(), &packet[22..30]));
        }
    }
    eventually(|| (relay.counters.snapshot().relayed_datagrams == 150).then_some(())).await;
    let counted = relay.counters.snapshot();
    assert_eq!((counted.dropped_relay_waiting, counted.packets_in), (1, 0));
    // Packets by the way that is in use are no news.
    assert!(one.notices.try_recv().is_err() && two.notices.try_recv().is_err());
    relay.release(first);
    one.send(0, &record(ONE, TWO, b"after"));
    // Now the frame is for the relay itself, which gave that number to somebody else, without keys.
    relay.wait_dropped(2).await;
    assert_eq!(relay.counters.snapshot().dropped_frame_no_key, 1);
}

#[tokio::test]
async fn a_relay_holds_each_end_to_its_share() {
    let (one, two) = pair(1);
    let relay = Engine::start(3, 1);
    let [first, second] = relay.reserve(RateLimit::new(1, 2_000));
    one.send_through(&relay, first);
    two.send_through(&relay, second);
    two.send(0, &record(TWO, ONE, b"here"));
    relay.wait_dropped(1).await;
    let packet = record(ONE, TWO, &[1; 400]);
    for _ in 0..4 {
        one.send(0, &packet);
        assert_eq!(two.receive(0), packet);
    }
    for _ in 0..6 {
        one.send(0, &packet);
    }
    relay.wait_dropped(7).await;
    assert_eq!(relay.counters.snapshot().dropped_relay_quota, 6);
}

#[tokio::test]
async fn each_queue_has_its_own_keys_and_ends_at_the_queue_of_the_same_number() {
    let (one, two) = pair(3);
    for round in 0..50_u8 {
        for queue in 0..3 {
            let packet = record(ONE, TWO, &[round, queue]);
            one.send(queue, &packet);
            assert_eq!(two.receive(queue), packet);
        }
    }
}

#[test]
fn threads_end_when_they_are_dropped() {
    let (one, two) = pair(2);
    for engine in [one, two] {
        let Engine { threads, ends, .. } = engine;
        // The writer ends with those who bring it packets.
        drop(ends);
        threads.join();
    }
}

#[test]
fn a_key_goes_back_with_its_counter() {
    let keys = fixture::send_keys(1, 1);
    let mut held = HeldKey::take(&keys, 0).unwrap();
    assert!(HeldKey::take(&keys, 0).is_none());
    let mut frame = [0; 40];
    held.key().unwrap().seal(Kind::Packet, Flags::default(), &mut frame).unwrap();
    drop(held);
    assert_eq!(HeldKey::take(&keys, 0).unwrap().key().unwrap().sealed(), 1);
    assert!(HeldKey::take(&keys, 1).is_none());
}
