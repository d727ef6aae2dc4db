//! Cutting makes whole packets of the path's size, and refuses what is none.

use proptest::prelude::*;

use super::*;
use crate::sample::{Sample, ip_checksum_holds, parse, samples, transport_checksum_holds};

fn plan<'a>(header: &VnetHeader, bytes: &'a [u8], mtu: usize) -> Result<Segments<'a>, SegmentError> {
    Segments::plan(header, &parse(bytes), mtu)
}

fn written(segments: &Segments<'_>) -> Vec<Vec<u8>> {
    let one = |index| {
        let mut segment = vec![0xee; segments.length(index)];
        segments.write(index, &mut segment).unwrap();
        segment
    };
    (0..segments.count()).map(one).collect()
}

fn cut(sample: &Sample, mtu: usize) -> Vec<Vec<u8>> {
    written(&plan(&sample.header(), &sample.bytes(), mtu).unwrap())
}

#[test]
fn lengths_and_counters_go_on_from_segment_to_segment() {
    let segments = cut(&Sample { payload: vec![1; 2_500], ..Sample::default() }, 1_400);
    let fields = segments.iter().map(|bytes| {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        (bytes.len(), word(2), word(4), u32::from_be_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]))
    });
    let expected = [(1_052, 1_052, 7, 1_000), (1_052, 1_052, 8, 2_000), (552, 552, 9, 3_000)];
    assert_eq!(fields.collect::<Vec<_>>(), expected);
}

#[test]
fn the_reduced_window_is_told_first_and_the_end_last() {
    let flags = tcp_flags::CWR | tcp_flags::ACK | tcp_flags::PSH | tcp_flags::FIN;
    let segments = cut(&Sample { tcp_flags: flags, ..Sample::default() }, 1_400);
    let got: Vec<u8> = segments.iter().map(|bytes| bytes[33]).collect();
    assert_eq!(got, [0x90, 0x10, 0x19]);
}

#[test]
fn a_narrow_path_gets_smaller_segments_of_tcp_and_none_of_udp() {
    let tcp = Sample { payload: vec![1; 4_000], gso_size: 1_348, ..Sample::default() };
    let lengths: Vec<usize> = cut(&tcp, 1_052).iter().map(Vec::len).collect();
    assert_eq!(lengths, [1_052; 4]);
    let udp = Sample { protocol: Protocol::Udp, ..tcp.clone() };
    let error = plan(&udp.header(), &udp.bytes(), 1_375).unwrap_err();
    assert_eq!(error, SegmentError::TooBig { length: 1_376, mtu: 1_375 });
    assert_eq!(cut(&udp, 1_376).len(), 3);
}

#[test]
fn a_single_tcp_packet_that_does_not_fit_is_cut_and_any_other_is_too_big() {
    let tcp = Sample { payload: vec![1; 1_300], ..Sample::default() };
    let bytes = tcp.bytes();
    let segments = plan(&tcp.plain_header(), &bytes, 700).unwrap();
    assert_eq!(written(&segments).iter().map(Vec::len).collect::<Vec<_>>(), [700, 700, 56]);
    let too_big = |length| Some(SegmentError::TooBig { length, mtu: 700 });
    // Its checksum is complete: it came from elsewhere, and its sender chose the length.
    assert_eq!(plan(&VnetHeader::default(), &bytes, 700).err(), too_big(bytes.len()));
    let udp = Sample { protocol: Protocol::Udp, ..tcp.clone() };
    let bytes = udp.bytes();
    assert_eq!(plan(&udp.plain_header(), &bytes, 700).err(), too_big(bytes.len()));
    assert_eq!(plan(&tcp.header(), &tcp.bytes(), 52).err(), Some(SegmentError::TooBig { length: 1_052, mtu: 52 }));
}

#[test]
fn one_packet_goes_as_it_is_with_its_checksum_partial() {
    let sample = Sample { payload: vec![1; 100], ..Sample::default() };
    let bytes = sample.bytes();
    let segments = plan(&sample.plain_header(), &bytes, 1_400).unwrap();
    assert_eq!((segments.checksum(), written(&segments)), (Checksum::Partial, vec![bytes.clone()]));
    let segments = plan(&VnetHeader::default(), &bytes, 1_400).unwrap();
    assert_eq!((segments.checksum(), written(&segments)), (Checksum::Complete, vec![bytes]));
}

#[test]
fn a_segment_by_itself_is_what_a_tun_would_have_handed_over() {
    for v6 in [false, true] {
        let sample = Sample { protocol: Protocol::Udp, v6, payload: vec![7; 2_500], ..Sample::default() };
        let bytes = sample.bytes();
        let segments = plan(&sample.header(), &bytes, 1_400).unwrap();
        for (index, length) in [(0, 1_000), (1, 1_000), (2, 500)] {
            let identification = 7 + u16::try_from(index).unwrap();
            let single = Sample { payload: vec![7; length], identification, ..sample.clone() };
            let mut segment = vec![0; segments.length(index)];
            let header = segments.write_single(index, &mut segment);
            assert_eq!((header, segment), (Some(single.plain_header()), single.bytes()));
        }
    }
}

#[test]
fn a_checksum_that_the_receiver_could_not_find_is_completed() {
    let sample = Sample { v6: true, extension: true, payload: vec![1; 101], ..Sample::default() };
    let bytes = sample.bytes();
    let segments = plan(&sample.plain_header(), &bytes, 1_400).unwrap();
    assert_eq!(segments.checksum(), Checksum::Complete);
    assert!(transport_checksum_holds(&written(&segments)[0], &sample));
}

#[test]
fn a_super_packet_needs_the_transport_header_it_speaks_of() {
    let sample = Sample::default();
    let bytes = sample.bytes();
    let header = sample.header();
    let without_checksum = VnetHeader { flags: 0, ..header };
    let elsewhere = VnetHeader { checksum_start: 24, ..header };
    let another_field = VnetHeader { checksum_offset: 6, ..header };
    for (header, start) in [(without_checksum, 20), (elsewhere, 24), (another_field, 20)] {
        assert_eq!(plan(&header, &bytes, 1_400).err(), Some(SegmentError::NoTransport { start }));
    }
    let mut fragment = bytes.clone();
    fragment[6] = 0x20;
    let mut short = bytes;
    short[32] = 0x40;
    for bytes in [fragment, short] {
        assert_eq!(plan(&header, &bytes, 1_400).err(), Some(SegmentError::NoTransport { start: 20 }));
    }
}

#[test]
fn a_super_packet_of_tiny_segments_is_refused() {
    let sample = Sample { payload: vec![1; MAX_SEGMENTS + 1], gso_size: 1, ..Sample::default() };
    assert_eq!(plan(&sample.header(), &sample.bytes(), 1_400).err(), Some(SegmentError::TooMany { size: 1 }));
}

#[test]
fn a_buffer_of_another_length_is_not_written() {
    let sample = Sample::default();
    let bytes = sample.bytes();
    let segments = plan(&sample.header(), &bytes, 1_400).unwrap();
    assert_eq!(segments.write(0, &mut [0; 1_051]), None);
    assert_eq!(segments.write(3, &mut []), None);
    assert_eq!(segments.length(3), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn segments_fit_the_path_and_hold_the_whole_payload(sample in samples(), mtu in 300_usize..1_500) {
        let bytes = sample.bytes();
        let Ok(segments) = plan(&sample.header(), &bytes, mtu) else {
            let needed = sample.headers() + usize::from(sample.gso_size).min(sample.payload.len());
            prop_assert!(sample.protocol == Protocol::Udp && needed > mtu);
            return Ok(());
        };
        let cut = written(&segments);
        let mut payload: Vec<u8> = Vec::new();
        for (index, segment) in cut.iter().enumerate() {
            let packet = IpPacket::new_checked(segment).unwrap();
            prop_assert!(segment.len() <= mtu && ip_checksum_holds(segment));
            let found = Transport::at(&packet, sample.protocol, sample.transport_start()).unwrap();
            prop_assert_eq!(segments.checksum() == Checksum::Complete, sample.extension);
            prop_assert!(!sample.extension || transport_checksum_holds(segment, &sample));
            if sample.protocol == Protocol::Udp {
                let last = index + 1 == cut.len();
                prop_assert!(last || segment.len() - found.payload == usize::from(sample.gso_size));
            }
            payload.extend(&segment[found.payload..]);
        }
        prop_assert_eq!(payload, sample.payload);
    }

    #[test]
    fn what_nobody_checked_never_panics(
        header in any::<[u8; 10]>(),
        flags in 0_u8..4,
        gso in prop_oneof![Just(0_u8), Just(1), Just(4), Just(5)],
        flips in proptest::collection::vec((0_usize..80, any::<u8>()), 0..6),
        sample in samples(),
        mtu in 0_usize..3_000,
    ) {
        let mut header = VnetHeader::decode(&header).unwrap();
        (header.flags, header.gso_type) = (flags, gso);
        header.header_length = 0;
        header.checksum_start %= 120;
        header.checksum_offset %= 20;
        let mut bytes = sample.bytes();
        for (at, byte) in flips {
            if let Some(slot) = bytes.get_mut(at) {
                *slot ^= byte;
            }
        }
        for header in [header, sample.header()] {
            let Ok(packet) = IpPacket::new_checked(&bytes) else { continue };
            let Ok(segments) = Segments::plan(&header, &packet, mtu) else { continue };
            prop_assert!(segments.count() <= MAX_SEGMENTS);
            for segment in written(&segments) {
                prop_assert!(segment.len() <= mtu);
                prop_assert!(IpPacket::new_checked(&segment).is_ok());
            }
        }
    }
}
