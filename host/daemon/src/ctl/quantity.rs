//! Times and numbers in words for people.

use ipnet::IpNet;

/// **Units** takes seconds: the two largest parts, `3 d 4 h`.
pub(super) fn duration(seconds: u64) -> String {
    let parts = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let first = parts.iter().position(|(number, _)| *number > 0).unwrap_or(parts.len() - 1);
    let shown = parts.iter().skip(first).take(2);
    shown
        .filter(|(number, _)| *number > 0 || seconds == 0)
        .map(|(number, unit)| format!("{number} {unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// **Units** takes microseconds: `740 µs`, `12.3 ms`, `1.50 s`.
pub(super) fn round_trip(microseconds: u64) -> String {
    match microseconds {
        0..1_000 => format!("{microseconds} µs"),
        1_000..1_000_000 => format!("{}.{} ms", microseconds / 1_000, microseconds % 1_000 / 100),
        _ => format!("{}.{:02} s", microseconds / 1_000_000, microseconds % 1_000_000 / 10_000),
    }
}

/// **Units** takes milliseconds: `420 ms`, `1.50 s`.
pub(super) fn milliseconds(milliseconds: u64) -> String {
    match milliseconds {
        0..1_000 => format!("{milliseconds} ms"),
        _ => format!("{}.{:02} s", milliseconds / 1_000, milliseconds % 1_000 / 10),
    }
}

/// `1 member`, `3 members`.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// How many addresses of a block can be given to pods, when that is a number worth reading: network,
/// gateway and (IPv4) broadcast are not.
pub(super) fn assignable(block: &str) -> Option<u64> {
    let (host_bits, kept) = match block.parse().ok()? {
        IpNet::V4(block) => (32 - u32::from(block.prefix_len()), 3),
        IpNet::V6(block) => (128 - u32::from(block.prefix_len()), 2),
    };
    match host_bits {
        0..=32 => Some((1_u64 << host_bits).saturating_sub(kept)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_parts() {
        let cases = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3_605, "1 h"),
            (97_500, "1 d 3 h"),
            (86_459, "1 d"),
        ];
        assert_eq!(cases.map(|(seconds, _)| duration(seconds)), cases.map(|(_, text)| text.to_owned()));
    }

    #[test]
    fn round_trips_have_the_unit_that_fits() {
        let cases = [(0, "0 µs"), (999, "999 µs"), (1_000, "1.0 ms"), (12_349, "12.3 ms"), (1_509_999, "1.50 s")];
        assert_eq!(cases.map(|(value, _)| round_trip(value)), cases.map(|(_, text)| text.to_owned()));
        assert_eq!([420, 1_509].map(milliseconds), ["420 ms", "1.50 s"]);
    }

    #[test]
    fn a_block_has_room_for_all_but_its_reserved_addresses() {
        let cases = [
            ("10.0.0.0/24", Some(253)),
            ("10.0.0.1/32", Some(0)),
            ("fd00::/120", Some(254)),
            ("fd00::/64", None),
            ("x", None),
        ];
        assert_eq!(cases.map(|(block, _)| assignable(block)), cases.map(|(_, room)| room));
    }

    #[test]
    fn one_is_singular() {
        assert_eq!([0, 1, 2].map(|number| count(number, "member", "members")), ["0 members", "1 member", "2 members"]);
    }
}
