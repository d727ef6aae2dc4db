//! Rates: what a bandwidth policy answers and what the host lets through.

use serde::{Deserialize, Serialize};

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// **Units** bits/s, at least 1.
    pub bits_per_second: u64,
    /// **Units** bytes.
    pub burst_bytes: u32,
}

/// Limits by direction, seen from the pod; `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Towards the pod.
    pub ingress: Option<Rate>,
    /// Away from the pod.
    pub egress: Option<Rate>,
}

/// Everything a pod is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shaping {
    /// All traffic of the pod.
    pub total: Limits,
    /// Further limits for the part that goes through the tunnel.
    pub tunnel: Limits,
}

/// The lowest rate the host sets: below it not even one full packet a second would get through, and
/// a pod would look dead instead of slow.
pub const MIN_BITS_PER_SECOND: u64 = 16_000;

/// The highest rate the host sets; more is no limit on any link this runs on, and the kernel's
/// token arithmetic stays far from its ends.
pub const MAX_BITS_PER_SECOND: u64 = 1_000_000_000_000;

/// The smallest burst, besides the MTU: ten full packets, so that a bucket is not emptied by one
/// segment train of TCP. **Units** bytes.
pub const MIN_BURST_BYTES: u32 = 16_384;

/// The largest burst. **Units** bytes.
pub const MAX_BURST_BYTES: u32 = 16 * 1024 * 1024;

/// A burst at least this large means that nobody chose one: container runtimes then send
/// 4,294,967,295 bits. **Units** bytes.
pub const UNCHOSEN_BURST_BYTES: u32 = u32::MAX / 8;

/// An unchosen burst lets through what the rate carries in this part of a second: a tenth.
const DEFAULT_BURST_DIVISOR: u64 = 10;

/// A link header in front of the MTU: Ethernet with one VLAN tag, which tbf counts. **Units** bytes.
pub(crate) const LINK_HEADER_BYTES: u32 = 18;

/// What a node lets a bandwidth policy set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// **Units** bits/s; no pod gets less.
    pub min_bits_per_second: u64,
    /// **Units** bits/s; no limit is set above it.
    pub max_bits_per_second: u64,
    /// **Units** bytes; a bucket that cannot hold one packet would let nothing through.
    pub mtu_bytes: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { min_bits_per_second: MIN_BITS_PER_SECOND, max_bits_per_second: MAX_BITS_PER_SECOND, mtu_bytes: 1_500 }
    }
}

/// Brings a policy's answer, or what the runtime requested, within bounds. Every input has an
/// answer, and admitting twice changes nothing.
#[must_use]
pub fn admit(shaping: &Shaping, bounds: &Bounds) -> Shaping {
    let limits = |limits: &Limits| Limits {
        ingress: limits.ingress.map(|rate| admit_rate(rate, bounds)),
        egress: limits.egress.map(|rate| admit_rate(rate, bounds)),
    };
    Shaping { total: limits(&shaping.total), tunnel: limits(&shaping.tunnel) }
}

fn admit_rate(rate: Rate, bounds: &Bounds) -> Rate {
    let lowest = bounds.min_bits_per_second.clamp(MIN_BITS_PER_SECOND, MAX_BITS_PER_SECOND);
    let highest = bounds.max_bits_per_second.clamp(lowest, MAX_BITS_PER_SECOND);
    let bits_per_second = rate.bits_per_second.clamp(lowest, highest);
    Rate { bits_per_second, burst_bytes: admit_burst(rate.burst_bytes, bits_per_second, bounds.mtu_bytes) }
}

/// 0 and "unchosen" become a tenth of a second at the rate; anything else is a wish, kept between
/// one packet and one second at the rate.
fn admit_burst(burst_bytes: u32, bits_per_second: u64, mtu_bytes: u32) -> u32 {
    let least = mtu_bytes.saturating_add(LINK_HEADER_BYTES).clamp(MIN_BURST_BYTES, MAX_BURST_BYTES);
    let bytes_per_second = bits_per_second / 8;
    let within = |bytes: u64| u32::try_from(bytes).unwrap_or(MAX_BURST_BYTES).clamp(least, MAX_BURST_BYTES);
    if burst_bytes == 0 || burst_bytes >= UNCHOSEN_BURST_BYTES {
        return within(bytes_per_second / DEFAULT_BURST_DIVISOR);
    }
    burst_bytes.clamp(least, within(bytes_per_second))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admitted(bits_per_second: u64, burst_bytes: u32) -> Rate {
        let total = Limits { ingress: Some(Rate { bits_per_second, burst_bytes }), egress: None };
        let shaping = Shaping { total, tunnel: Limits::default() };
        admit(&shaping, &Bounds::default()).total.ingress.unwrap()
    }

    fn rate(bits_per_second: u64, burst_bytes: u32) -> Rate {
        Rate { bits_per_second, burst_bytes }
    }

    #[test]
    fn rates_and_bursts_are_brought_within_bounds() {
        for (bits_per_second, burst_bytes, expected) in [
            // As wished.
            (100_000_000, 50_000, rate(100_000_000, 50_000)),
            // The rate's ends.
            (0, 0, rate(MIN_BITS_PER_SECOND, MIN_BURST_BYTES)),
            (u64::MAX, 0, rate(MAX_BITS_PER_SECOND, MAX_BURST_BYTES)),
            // No burst, and the runtimes' way to say so: a tenth of a second.
            (100_000_000, 0, rate(100_000_000, 1_250_000)),
            (100_000_000, u32::MAX / 8, rate(100_000_000, 1_250_000)),
            (100_000_000, u32::MAX, rate(100_000_000, 1_250_000)),
            // A burst that could not hold ten packets, and one of more than a second.
            (100_000_000, 1, rate(100_000_000, MIN_BURST_BYTES)),
            (1_000_000, 10_000_000, rate(1_000_000, 125_000)),
        ] {
            assert_eq!(admitted(bits_per_second, burst_bytes), expected, "{bits_per_second} {burst_bytes}");
        }
    }

    #[test]
    fn a_bucket_always_holds_one_packet_with_its_link_header() {
        let bounds = Bounds { mtu_bytes: 65_521, ..Bounds::default() };
        let total = Limits { ingress: Some(rate(MIN_BITS_PER_SECOND, 1)), egress: None };
        let shaping = admit(&Shaping { total, tunnel: Limits::default() }, &bounds);
        assert_eq!(shaping.total.ingress, Some(rate(MIN_BITS_PER_SECOND, 65_539)));
    }

    #[test]
    fn no_limit_stays_no_limit() {
        assert_eq!(admit(&Shaping::default(), &Bounds::default()), Shaping::default());
    }

    #[test]
    fn each_direction_and_class_is_admitted_by_itself() {
        let limits = |ingress, egress| Limits { ingress: Some(rate(ingress, 0)), egress: Some(rate(egress, 0)) };
        let shaping = Shaping { total: limits(80_000_000, 160_000_000), tunnel: limits(8_000_000, 0) };
        let expected = Shaping {
            total: Limits { ingress: Some(rate(80_000_000, 1_000_000)), egress: Some(rate(160_000_000, 2_000_000)) },
            tunnel: Limits {
                ingress: Some(rate(8_000_000, 100_000)),
                egress: Some(rate(MIN_BITS_PER_SECOND, MIN_BURST_BYTES)),
            },
        };
        assert_eq!(admit(&shaping, &Bounds::default()), expected);
    }

    proptest! {
        #[test]
        fn every_answer_is_within_bounds_and_stays_there(
            bits_per_second: u64,
            burst_bytes: u32,
            min_bits_per_second: u64,
            max_bits_per_second: u64,
            mtu_bytes in 68_u32..65_536,
        ) {
            let bounds = Bounds { min_bits_per_second, max_bits_per_second, mtu_bytes };
            let egress = Some(Rate { bits_per_second, burst_bytes });
            let shaping = Shaping { tunnel: Limits { ingress: None, egress }, ..Shaping::default() };
            let once = admit(&shaping, &bounds);
            let rate = once.tunnel.egress.unwrap();
            prop_assert!((MIN_BITS_PER_SECOND..=MAX_BITS_PER_SECOND).contains(&rate.bits_per_second));
            prop_assert!((mtu_bytes + LINK_HEADER_BYTES..=MAX_BURST_BYTES).contains(&rate.burst_bytes));
            prop_assert_eq!(admit(&once, &bounds), once);
        }
    }
}
