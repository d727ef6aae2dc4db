//! Longest-prefix lookup for tables that are built once and read for every packet.
//!
//! Prefixes are either nested or disjoint, so a table of them flattens into ranges in ascending
//! order, each with the value of the longest prefix that covers it; a lookup is one binary search
//! over a dense array and touches no pointer.
//!
//! ```text
//! 10.0.0.0/8 = a, 10.1.0.0/16 = b   ->   10.0.0.0: a | 10.1.0.0: b | 10.2.0.0: a | 11.0.0.0: -
//! ```

use std::net::IpAddr;

use ipnet::IpNet;

/// An immutable map from prefixes to small values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixTable<T> {
    v4: Ranges<u32, T>,
    v6: Ranges<u128, T>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { v4: Ranges::default(), v6: Ranges::default() }
    }
}

impl<T: Copy> PrefixTable<T> {
    /// Builds the table. Host bits are ignored; of two entries for one prefix the first counts.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for (prefix, value) in entries {
            let length = prefix.prefix_len();
            match (prefix.network(), prefix.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    v4.push(Entry { first: first.to_bits(), next: last.to_bits().checked_add(1), length, value });
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    v6.push(Entry { first: first.to_bits(), next: last.to_bits().checked_add(1), length, value });
                }
                // A prefix's first and last address are of one family.
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
            }
        }
        Self { v4: Ranges::flatten(v4), v6: Ranges::flatten(v6) }
    }

    /// The value of the longest prefix that contains `address`.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.v4.get(address.to_bits()),
            IpAddr::V6(address) => self.v6.get(address.to_bits()),
        }
    }
}

/// One prefix before flattening; `next` is the address after its last one, if there is any.
struct Entry<W, T> {
    first: W,
    next: Option<W>,
    length: u8,
    value: T,
}

/// Ranges in ascending order: `values[i]` holds from `starts[i]` up to `starts[i + 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranges<W, T> {
    starts: Vec<W>,
    values: Vec<Option<T>>,
}

impl<W, T> Default for Ranges<W, T> {
    fn default() -> Self {
        Self { starts: Vec::new(), values: Vec::new() }
    }
}

impl<W: Copy + Ord, T: Copy> Ranges<W, T> {
    fn flatten(mut entries: Vec<Entry<W, T>>) -> Self {
        entries.sort_by_key(|entry| (entry.first, entry.length));
        entries.dedup_by(|later, earlier| later.first == earlier.first && later.length == earlier.length);
        let mut ranges = Self::default();
        // The prefixes that are open at the current address, outermost first.
        let mut open: Vec<Entry<W, T>> = Vec::new();
        for entry in entries {
            ranges.close(&mut open, Some(entry.first));
            ranges.start(entry.first, Some(entry.value));
            open.push(entry);
        }
        ranges.close(&mut open, None);
        ranges
    }

    /// Ends every open prefix that does not reach `until` (`None`: all of them).
    fn close(&mut self, open: &mut Vec<Entry<W, T>>, until: Option<W>) {
        while let Some(innermost) = open.last() {
            let reaches = match (innermost.next, until) {
                (Some(next), Some(until)) => next > until,
                (None, Some(_)) => true,
                (Some(_) | None, None) => false,
            };
            if reaches {
                return;
            }
            let ended = open.pop().and_then(|entry| entry.next);
            if let Some(next) = ended {
                self.start(next, open.last().map(|outer| outer.value));
            }
        }
    }

    fn start(&mut self, at: W, value: Option<T>) {
        match (self.starts.last(), self.values.last_mut()) {
            (Some(last), Some(current)) if *last == at => *current = value,
            (Some(_) | None, _) => {
                self.starts.push(at);
                self.values.push(value);
            }
        }
    }

    fn get(&self, address: W) -> Option<T> {
        let after = self.starts.partition_point(|start| *start <= address);
        self.values.get(after.checked_sub(1)?).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_prefix_wins_up_to_both_ends_of_the_space() {
        let entries = [
            ("0.0.0.0/0", 0),
            ("255.255.255.0/24", 1),
            ("255.255.255.255/32", 2),
            ("10.0.0.0/8", 3),
            ("10.0.0.0/16", 4),
            ("ffff::/16", 5),
        ];
        let table = PrefixTable::new(entries.map(|(prefix, value)| (prefix.parse().unwrap(), value)));
        let got = [
            "0.0.0.0",
            "255.255.255.1",
            "255.255.255.255",
            "10.0.255.255",
            "10.1.0.0",
            "11.0.0.0",
            "ffff::1",
            "fffe::",
        ]
        .map(|address| table.get(address.parse().unwrap()));
        assert_eq!(got, [Some(0), Some(1), Some(2), Some(4), Some(3), Some(0), Some(5), None]);
    }

    #[test]
    fn an_empty_table_knows_nothing() {
        assert_eq!(PrefixTable::<u8>::default().get("10.0.0.1".parse().unwrap()), None);
    }

    /// Few distinct bits, so that prefixes nest, touch and repeat.
    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (0_u32..64, 0_u8..=6)
            .prop_map(|(bits, length)| IpNet::new(IpAddr::V4((bits << 26).into()), length).unwrap());
        let v6 = (0_u128..64, 122_u8..=128)
            .prop_map(|(bits, length)| IpNet::new(IpAddr::V6((u128::MAX - bits).into()), length).unwrap());
        prop_oneof![v4, v6]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn lookups_agree_with_a_linear_scan(
            prefixes in proptest::collection::vec(prefix(), 0..40),
            probes in proptest::collection::vec(prefix(), 1..40),
        ) {
            let entries: Vec<(IpNet, usize)> =
                prefixes.into_iter().enumerate().map(|(value, prefix)| (prefix, value)).collect();
            let table = PrefixTable::new(entries.iter().copied());
            for probe in probes {
                for address in [probe.addr(), probe.network(), probe.broadcast()] {
                    let longest = entries
                        .iter()
                        .filter(|(prefix, _)| prefix.contains(&address))
                        .min_by_key(|(prefix, value)| (std::cmp::Reverse(prefix.prefix_len()), *value));
                    prop_assert_eq!(table.get(address), longest.map(|(_, value)| *value));
                }
            }
        }
    }
}
