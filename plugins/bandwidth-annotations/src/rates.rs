//! Which rate wins, and with what burst.

use culvert_policy_sdk::bandwidth::Rate;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::settings::Settings;

use crate::quantity::parse_bits_per_second;

/// **Units** bytes. One super-packet of the kernel: a smaller bucket could never pass it.
const SMALLEST_BURST: u64 = 65_536;

/// A burst is the bytes of this part of a second: 1/20, 50 ms, a few timer ticks and less than a buffer anyone notices.
const BURSTS_PER_SECOND: u64 = 20;

/// A value for each direction, seen from the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Direction<T> {
    /// Towards the pod.
    pub(crate) ingress: T,
    /// Away from the pod.
    pub(crate) egress: T,
}

/// What the settings say of one kind of traffic. **Units** bits/s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// For who asks for nothing.
    pub(crate) defaults: Direction<Option<u64>>,
    /// For all.
    pub(crate) caps: Direction<Option<u64>>,
}

impl Bounds {
    /// Reads `defaults` and `caps`.
    pub(crate) fn read(settings: &mut Settings) -> Result<Self, PolicyError> {
        Ok(Self { defaults: read_direction(settings, "defaults")?, caps: read_direction(settings, "caps")? })
    }
}

fn read_direction(settings: &mut Settings, key: &'static str) -> Result<Direction<Option<u64>>, PolicyError> {
    let mut rates = settings.object(key)?;
    let direction = Direction { ingress: read_rate(&mut rates, "ingress")?, egress: read_rate(&mut rates, "egress")? };
    rates.finish()?;
    Ok(direction)
}

fn read_rate(rates: &mut Settings, key: &'static str) -> Result<Option<u64>, PolicyError> {
    let Some(text) = rates.text(key)? else {
        return Ok(None);
    };
    parse_bits_per_second(&text).map(Some).map_err(|reason| rates.refuse(key, &format!("{text}: {reason}")))
}

/// The first that is there, and never more than the cap.
pub(crate) fn decide(
    annotated: Option<Rate>,
    requested: Option<Rate>,
    default: Option<u64>,
    cap: Option<u64>,
) -> Option<Rate> {
    let wanted = annotated.or(requested).or(default.map(with_usual_burst));
    let Some(cap) = cap else {
        return wanted;
    };
    match wanted {
        Some(rate) if rate.bits_per_second <= cap => Some(rate),
        Some(_) | None => Some(with_usual_burst(cap)),
    }
}

/// The rate with the burst that this policy gives.
pub(crate) fn with_usual_burst(bits_per_second: u64) -> Rate {
    let bytes = (bits_per_second / 8 / BURSTS_PER_SECOND).max(SMALLEST_BURST);
    Rate { bits_per_second, burst_bytes: u32::try_from(bytes).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTED: Rate = Rate { bits_per_second: 5_000_000, burst_bytes: 1_234 };

    #[test]
    fn the_annotation_comes_before_the_request_and_that_before_the_default() {
        let annotated = with_usual_burst(1_000_000);
        assert_eq!(decide(Some(annotated), Some(REQUESTED), Some(2_000_000), None), Some(annotated));
        assert_eq!(decide(None, Some(REQUESTED), Some(2_000_000), None), Some(REQUESTED));
        assert_eq!(decide(None, None, Some(2_000_000), None), Some(with_usual_burst(2_000_000)));
        assert_eq!(decide(None, None, None, None), None);
    }

    #[test]
    fn nothing_is_above_its_cap_not_even_no_limit() {
        assert_eq!(decide(None, Some(REQUESTED), None, Some(5_000_000)), Some(REQUESTED));
        assert_eq!(decide(None, Some(REQUESTED), None, Some(4_999_999)), Some(with_usual_burst(4_999_999)));
        assert_eq!(decide(None, None, Some(9_000_000), Some(4_000_000)), Some(with_usual_burst(4_000_000)));
        assert_eq!(decide(None, None, None, Some(4_000_000)), Some(with_usual_burst(4_000_000)));
    }

    #[test]
    fn the_burst_is_50_ms_of_the_rate_between_one_super_packet_and_what_the_contract_holds() {
        assert_eq!(with_usual_burst(1_000).burst_bytes, 65_536);
        assert_eq!(with_usual_burst(100_000_000).burst_bytes, 625_000);
        assert_eq!(with_usual_burst(1_000_000_000_000_000).burst_bytes, u32::MAX);
    }
}
