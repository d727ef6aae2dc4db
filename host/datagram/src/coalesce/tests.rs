//! Joining undoes cutting, and joins nothing else.

use culvert_core::packet::VNET_HEADER_BYTES;
use proptest::prelude::*;

use super::*;
use crate::sample::{Sample, ip_checksum_holds, parse, samples};
use crate::segment::Segments;

/// A packet to write: its virtio header, and its bytes joined.
type Written = (VnetHeader, Vec<u8>);

/// Receives packets one after the other into one buffer, and writes what comes out.
fn coalesce(packets: &[(Vec<u8>, Checksum)], joins_udp: bool) -> Vec<Written> {
    let mut buffer = Vec::new();
    let mut coalescer = Coalescer::new(joins_udp);
    let mut written = Vec::new();
    for (bytes, checksum) in packets {
        if coalescer.is_full() {
            write(&mut coalescer, &mut buffer, &mut written);
        }
        buffer.extend([0xee; 16]);
        let start = buffer.len();
        buffer.extend(bytes);
        coalescer.push(&buffer, start, &parse(bytes), *checksum).unwrap();
        buffer.extend([0xee; 16]);
    }
    write(&mut coalescer, &mut buffer, &mut written);
    written
}

fn write(coalescer: &mut Coalescer, buffer: &mut [u8], written: &mut Vec<Written>) {
    let places: Vec<_> = coalescer
        .finish(buffer)
        .iter()
        .map(|packet| (VnetHeader::decode(packet.header()).unwrap(), packet.pieces().to_vec(), packet.length()))
        .collect();
    for (header, pieces, length) in places {
        let bytes = pieces.into_iter().flat_map(|piece| buffer[piece].to_vec()).collect::<Vec<_>>();
        assert_eq!(bytes.len(), length);
        written.push((header, bytes));
    }
    coalescer.clear();
}

fn cut(sample: &Sample, mtu: usize) -> Vec<(Vec<u8>, Checksum)> {
    let bytes = sample.bytes();
    let segments = Segments::plan(&sample.header(), &parse(&bytes), mtu).unwrap();
    let one = |index| {
        let mut segment = vec![0; segments.length(index)];
        segments.write(index, &mut segment).unwrap();
        (segment, segments.checksum())
    };
    (0..segments.count()).map(one).collect()
}

/// Segments of a sample, changed one by one, and how many packets they become.
fn joined(sample: &Sample, change: impl Fn(usize, &mut Vec<u8>)) -> usize {
    let mut packets = cut(sample, 1_400);
    packets.iter_mut().enumerate().for_each(|(index, (bytes, _))| change(index, bytes));
    coalesce(&packets, true).len()
}

fn udp() -> Sample {
    Sample { protocol: Protocol::Udp, ..Sample::default() }
}

#[test]
fn a_cut_super_packet_becomes_whole_again() {
    for sample in [Sample::default(), Sample { v6: true, ..Sample::default() }, udp(), Sample { v6: true, ..udp() }] {
        assert_eq!(coalesce(&cut(&sample, 1_400), true), [(sample.header(), sample.bytes())]);
    }
}

#[test]
fn one_packet_keeps_its_form() {
    let sample = Sample { payload: vec![1; 100], ..Sample::default() };
    let (partial, complete) = ((sample.bytes(), Checksum::Partial), (sample.bytes(), Checksum::Complete));
    assert_eq!(coalesce(&[partial], true), [(sample.plain_header(), sample.bytes())]);
    assert_eq!(coalesce(&[complete], true), [(VnetHeader::default(), sample.bytes())]);
}

#[test]
fn the_receiver_fills_in_a_partial_checksum_whatever_its_field_holds() {
    let sample = Sample { payload: vec![1; 100], ..Sample::default() };
    let mut bytes = sample.bytes();
    bytes[36..38].copy_from_slice(&[0xaa, 0x55]);
    assert_eq!(coalesce(&[(bytes, Checksum::Partial)], true), [(sample.plain_header(), sample.bytes())]);
}

#[test]
fn packets_that_differ_in_a_field_stay_apart() {
    let second = |at: usize, value: u8| {
        move |index: usize, bytes: &mut Vec<u8>| {
            if index == 1 {
                bytes[at] = value
            }
        }
    };
    let tcp = Sample { gso_size: 1_500, ..Sample::default() };
    let tcp = Sample { payload: vec![1; 2_000], gso_size: 1_000, ..tcp };
    assert_eq!(joined(&tcp, |_, _| {}), 1);
    // Traffic class, identification, time to live, port, sequence, acknowledgement, flags, window, urgent pointer, options.
    for at in [1, 5, 8, 13, 19, 20, 23, 27, 31, 33, 34, 39, 45] {
        assert_eq!(joined(&tcp, second(at, 0xc7)), 2, "byte {at}");
    }
    let tcp = Sample { v6: true, ..tcp };
    // Traffic class, flow label, hop limit, source, destination.
    for at in [1, 3, 7, 9, 39] {
        assert_eq!(joined(&tcp, second(at, 0x01)), 2, "byte {at}");
    }
}

#[test]
fn the_identification_does_not_matter_where_fragments_are_forbidden() {
    let tcp = Sample { payload: vec![1; 2_000], ..Sample::default() };
    let same = |_: usize, bytes: &mut Vec<u8>| (bytes[6], bytes[5]) = (0x40, 0);
    assert_eq!(joined(&tcp, same), 1);
}

#[test]
fn the_end_and_the_push_close_a_super_packet_and_stay_with_it() {
    let tcp = Sample { payload: vec![1; 3_000], ..Sample::default() };
    let flagged = |flag: u8| {
        move |index: usize, bytes: &mut Vec<u8>| {
            if index == 1 {
                bytes[33] |= flag
            }
        }
    };
    assert_eq!(joined(&tcp, flagged(tcp_flags::PSH)), 2);
    assert_eq!(joined(&tcp, flagged(tcp_flags::FIN)), 2);
    let last = Sample { tcp_flags: tcp_flags::ACK | tcp_flags::PSH | tcp_flags::FIN, ..tcp };
    assert_eq!(coalesce(&cut(&last, 1_400), true), [(last.header(), last.bytes())]);
}

#[test]
fn what_cannot_be_joined_is_written_as_it_came() {
    let tcp = Sample { payload: vec![1; 2_000], ..Sample::default() };
    let complete: Vec<_> = cut(&tcp, 1_400).into_iter().map(|(bytes, _)| (bytes, Checksum::Complete)).collect();
    assert_eq!(coalesce(&complete, true).len(), 2);
    assert_eq!(coalesce(&cut(&udp(), 1_400), false).len(), 3);
    let empty = Sample { payload: vec![], ..Sample::default() };
    let acknowledgement = (empty.bytes(), Checksum::Partial);
    assert_eq!(coalesce(&[acknowledgement.clone(), acknowledgement], true).len(), 2);
}

#[test]
fn a_partial_checksum_without_a_transport_header_is_refused() {
    let mut bytes = Sample { payload: vec![1; 20], ..Sample::default() }.bytes();
    bytes[9] = 1;
    let push = |checksum| Coalescer::new(true).push(&bytes, 0, &parse(&bytes), checksum);
    assert_eq!((push(Checksum::Partial), push(Checksum::Complete)), (Err(NoTransport), Ok(())));
}

#[test]
fn a_fragment_is_passed_by_nothing() {
    let packets = cut(&udp(), 1_400);
    let mut fragment = packets[0].0.clone();
    fragment[6] = 0x20;
    let mixed = [packets[0].clone(), (fragment.clone(), Checksum::Complete), packets[1].clone()];
    let written = coalesce(&mixed, true);
    let middle = written.iter().position(|(_, bytes)| *bytes == fragment);
    assert_eq!((written.len(), middle), (3, Some(1)));
}

#[test]
fn super_packets_are_bounded() {
    let datagrams = Sample { payload: vec![1; 100 * 64], gso_size: 64, ..udp() };
    let counts: Vec<usize> = coalesce(&cut(&datagrams, 1_400), true).iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(counts, [28 + 64 * 64, 28 + 36 * 64]);
    let mut long = cut(&Sample { payload: vec![1; 65_000], ..Sample::default() }, 1_400);
    long.extend(cut(
        &Sample { payload: vec![1; 65_000], sequence: 66_000, identification: 72, ..Sample::default() },
        1_400,
    ));
    let lengths: Vec<usize> = coalesce(&long, true).iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [65_052, 65_052]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn coalescing_undoes_segmentation(sample in samples(), mtu in 300_usize..1_500) {
        let sample = Sample { extension: false, tcp_flags: tcp_flags::ACK, ..sample };
        let bytes = sample.bytes();
        if Segments::plan(&sample.header(), &parse(&bytes), mtu).is_err() {
            return Ok(());
        }
        let segments = cut(&sample, mtu);
        let limit = if sample.protocol == Protocol::Tcp { MAX_PIECES } else { MAX_DATAGRAMS };
        let written = coalesce(&segments, true);
        prop_assert_eq!(written.len(), segments.len().div_ceil(limit));
        let payloads: Vec<u8> = written.iter().flat_map(|(_, bytes)| bytes[sample.headers()..].to_vec()).collect();
        prop_assert_eq!(payloads, &sample.payload[..]);
        if segments.len() > 1 && written.len() == 1 {
            // Byte for byte what the sender's kernel had handed over.
            prop_assert_eq!(&written[0].1, &bytes);
        }
    }

    #[test]
    fn cutting_again_gives_the_packets_that_came_in_the_order_of_each_flow(
        samples in proptest::collection::vec(samples(), 1..5),
        order in proptest::collection::vec(0_usize..5, 0..200),
        joins_udp in any::<bool>(),
    ) {
        // Few flows, in turns, with losses.
        let mut flows: Vec<_> = Vec::new();
        for (index, sample) in samples.into_iter().enumerate() {
            let port = u16::try_from(index).unwrap();
            let gso_size = sample.gso_size.min(900);
            let flow = Sample { ports: [port, port], gso_size, extension: false, ..sample };
            flows.push(cut(&flow, 1_400).into_iter());
        }
        let mut sent = Vec::new();
        for turn in order {
            let count = flows.len();
            if let Some(packet) = flows[turn % count].nth(usize::from(turn == 4)) {
                sent.push(packet);
            }
        }
        let mut came = Vec::new();
        for (header, bytes) in coalesce(&sent, joins_udp) {
            prop_assert!(ip_checksum_holds(&bytes));
            let packet = parse(&bytes);
            let segments = Segments::plan(&header, &packet, 65_535).unwrap();
            for index in 0..segments.count() {
                let mut segment = vec![0; segments.length(index)];
                segments.write(index, &mut segment).unwrap();
                came.push(segment);
            }
        }
        // The field of a partial checksum holds nothing of use.
        let of_flow = |packets: &[Vec<u8>], port: u8| -> Vec<Vec<u8>> {
            let cleared = packets.iter().map(|bytes| {
                let found = Transport::find(&parse(bytes)).unwrap();
                let mut bytes = bytes.clone();
                bytes[found.checksum_at()..][..2].fill(0);
                (bytes[found.start + 1], bytes)
            });
            cleared.filter(|(of, _)| *of == port).map(|(_, bytes)| bytes).collect()
        };
        let sent: Vec<Vec<u8>> = sent.into_iter().map(|(bytes, _)| bytes).collect();
        for port in 0..5 {
            prop_assert_eq!(of_flow(&sent, port), of_flow(&came, port));
        }
    }

    #[test]
    fn bytes_that_nobody_checked_never_panic(
        flips in proptest::collection::vec((0_usize..80, any::<u8>()), 0..4),
        sample in samples(),
        partial in any::<bool>(),
    ) {
        let sample = Sample { payload: sample.payload.into_iter().take(200).collect(), ..sample };
        let mut bytes = sample.bytes();
        for (at, byte) in flips {
            if let Some(slot) = bytes.get_mut(at) {
                *slot ^= byte;
            }
        }
        let Ok(packet) = IpPacket::new_checked(&bytes) else { return Ok(()) };
        let checksum = if partial { Checksum::Partial } else { Checksum::Complete };
        let mut coalescer = Coalescer::new(true);
        let mut buffer = [bytes.clone(), bytes.clone()].concat();
        for start in [0, bytes.len()] {
            let _ = coalescer.push(&buffer, start, &packet, checksum);
        }
        for packet in coalescer.finish(&mut buffer) {
            prop_assert_eq!(packet.header().len(), VNET_HEADER_BYTES);
            prop_assert_eq!(packet.pieces().iter().map(ExactSizeIterator::len).sum::<usize>(), packet.length());
        }
    }
}
