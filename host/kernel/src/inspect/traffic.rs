//! Reads rates and redirections out of what the kernel lists: the reverse of `message::traffic`.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use culvert_core::bandwidth::Rate;
use netlink_packet_core::{Nla, NlasIterator};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute, TcFilterU32Option, TcHandle,
    TcMessage, TcMirrorActionType, TcOption,
};

use crate::message::traffic::{TBF_PARAMETERS, TBF_RATE_64, TICK_NANOSECONDS, filter_place};

// Places in `struct tc_tbf_qopt`. **Units** bytes.
const RATE_AT: usize = 8;
const BUFFER_AT: usize = 28;

/// What the token bucket at the root of a link lets out; `None` when there is no token bucket.
///
/// The kernel keeps the burst as a time, in ticks, so it comes back rounded down by up to two of them.
pub(super) fn rate(disciplines: &[TcMessage], index: u32) -> Option<Rate> {
    let on_link = disciplines.iter().filter(|message| u32::try_from(message.header.index) == Ok(index));
    let root = on_link.into_iter().find(|message| message.header.parent == TcHandle::ROOT)?;
    if !root.attributes.contains(&TcAttribute::Kind("tbf".to_owned())) {
        return None;
    }
    root.attributes.iter().find_map(|attribute| match attribute {
        // The library leaves the options of this discipline as they are.
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Other(nested) => {
                let mut bytes = vec![0; nested.value_len()];
                nested.emit_value(&mut bytes);
                bucket_rate(&bytes)
            }
            _ => None,
        }),
        _ => None,
    })
}

/// The rate in the options of a token bucket.
fn bucket_rate(options: &[u8]) -> Option<Rate> {
    let (mut parameters, mut wide) = (None, None);
    for attribute in NlasIterator::new(options).map_while(Result::ok) {
        match attribute.kind() {
            TBF_PARAMETERS => parameters = Some(attribute.value().to_vec()),
            TBF_RATE_64 => wide = attribute.value().try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
    }
    let parameters = parameters?;
    let bytes_per_second = wide.unwrap_or(u64::from(number_at(&parameters, RATE_AT)?));
    let ticks = u128::from(number_at(&parameters, BUFFER_AT)?);
    let burst_bytes = ticks * u128::from(TICK_NANOSECONDS) * u128::from(bytes_per_second) / 1_000_000_000;
    Some(Rate {
        bits_per_second: bytes_per_second.saturating_mul(8),
        burst_bytes: u32::try_from(burst_bytes).unwrap_or(u32::MAX),
    })
}

/// Four bytes in the machine's order.
fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The link that our filter among these sends everything to: 0 when that is gone, `None` when there is no such filter.
pub(super) fn redirect(filters: &[TcMessage]) -> Option<u32> {
    let ours = filters.iter().filter(|message| message.header.info == filter_place());
    ours.flat_map(|message| &message.attributes).find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::U32(TcFilterU32Option::Action(actions)) => actions.iter().find_map(redirected_to),
            _ => None,
        }),
        _ => None,
    })
}

fn redirected_to(action: &TcAction) -> Option<u32> {
    let options = action.attributes.iter().filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use culvert_core::bandwidth::MAX_BITS_PER_SECOND;
    use netlink_packet_core::{Emitable, Parseable};
    use netlink_packet_route::RouteNetlinkMessage;
    use proptest::prelude::*;

    use super::*;
    use crate::message::Request;
    use crate::message::traffic::{self, Bucket};

    /// A request as the kernel would list it: through its bytes.
    fn listed(request: Request) -> TcMessage {
        let (RouteNetlinkMessage::NewQueueDiscipline(message) | RouteNetlinkMessage::NewTrafficFilter(message)) =
            request.message
        else {
            panic!("not a discipline and not a filter")
        };
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        TcMessage::parse(&bytes[..]).unwrap()
    }

    #[test]
    fn a_bucket_that_was_asked_for_reads_as_its_rate() {
        for rate in [
            Rate { bits_per_second: 8_000_000, burst_bytes: 32_000 },
            Rate { bits_per_second: 40_000_000_000, burst_bytes: 3_200_000 },
        ] {
            let listed = [listed(traffic::ingress(7)), listed(traffic::bucket(7, Bucket::new(rate, 1_400)))];
            assert_eq!(super::rate(&listed, 7), Some(rate));
            assert_eq!(super::rate(&listed, 8), None);
        }
    }

    #[test]
    fn an_open_bucket_reads_as_the_highest_rate() {
        let rate = super::rate(&[listed(traffic::bucket(7, Bucket::open()))], 7).unwrap();
        assert_eq!(rate.bits_per_second, MAX_BITS_PER_SECOND);
    }

    #[test]
    fn only_a_token_bucket_at_the_root_holds_to_a_rate() {
        let mut elsewhere = listed(traffic::bucket(7, Bucket::open()));
        elsewhere.header.parent = TcHandle { major: 67, minor: 1 };
        let mut other = listed(traffic::bucket(7, Bucket::open()));
        other.attributes[0] = TcAttribute::Kind("tbg".to_owned());
        for message in [elsewhere, other, listed(traffic::ingress(7))] {
            assert_eq!(super::rate(&[message], 7), None);
        }
    }

    #[test]
    fn our_redirection_is_read_and_another_filter_is_not() {
        let ours = listed(traffic::redirect(7, 12));
        assert_eq!(redirect(std::slice::from_ref(&ours)), Some(12));
        let mut theirs = ours;
        theirs.header.info += 1 << 16;
        assert_eq!(redirect(&[theirs]), None);
        assert_eq!(redirect(&[]), None);
    }

    proptest! {
        #[test]
        fn a_burst_comes_back_within_a_tick_and_a_byte(
            bits_per_second in 16_000_u64..=MAX_BITS_PER_SECOND,
            burst_bytes in 16_384_u32..=1 << 24,
        ) {
            // Longer bursts than the kernel's number of ticks can say are never set.
            prop_assume!(u64::from(burst_bytes) <= (bits_per_second / 8).max(65_539));
            let asked = Bucket::new(Rate { bits_per_second, burst_bytes }, 1_400);
            let read = super::rate(&[listed(traffic::bucket(7, asked))], 7).unwrap();
            prop_assert_eq!(read.bits_per_second, bits_per_second / 8 * 8);
            let tick_bytes = bits_per_second / 8 * TICK_NANOSECONDS / 1_000_000_000;
            prop_assert!(u64::from(burst_bytes.abs_diff(read.burst_bytes)) <= tick_bytes + 1);
        }

        #[test]
        fn no_options_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = bucket_rate(&bytes);
        }
    }
}
