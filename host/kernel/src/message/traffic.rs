//! Shaping: token buckets, and the redirection of a host end's ingress to an ifb.
//!
//! ```text
//! to the pod:    bridge ──> host end ─[tbf]─> pod end
//! from the pod:  pod end ──> host end [ingress: u32 match all, mirred] ──> ifb ─[tbf]─> bridge
//! ```

use culvert_core::bandwidth::Rate;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use super::{CHANGE, KEEP, REPLACE, Request};

/// Our token bucket's handle. A root discipline with another handle is somebody else's.
const ROOT_HANDLE: TcHandle = TcHandle { major: 0x67, minor: 0 };
/// The only handle an ingress discipline can have.
const INGRESS_HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Our filter's place. Naming both lets a replacement hit the same filter instead of adding a second.
const FILTER_PRIORITY: u16 = 67;
/// The first entry of the first table: what the kernel itself would choose.
const FILTER_HANDLE: u32 = 0x8000_0800;
/// `ETH_P_ALL`: every protocol, ARP included.
const EVERY_PROTOCOL: u16 = 3;

/// How long a packet may wait in a bucket's queue before newer ones are dropped: long enough that TCP keeps
/// the line full, short enough that a ping stays useful. **Units** the share of a second: 1/20 = 50 ms.
const QUEUE_SECOND_SHARE: u64 = 20;
/// A queue holds at least this many full frames beyond the burst, or slow lines could not carry TCP at all.
const QUEUE_FRAMES_MIN: u64 = 8;
/// **Units** bytes. An Ethernet header with a VLAN tag: what a frame has beyond the MTU.
const FRAME_HEADER_BYTES: u32 = 18;
/// **Units** nanoseconds. The clock tick in which the kernel takes times of queueing disciplines.
pub(crate) const TICK_NANOSECONDS: u64 = 64;
/// **Units** bytes/s. A terabit per second: more than any veth carries.
const OPEN_BYTES_PER_SECOND: u64 = 125_000_000_000;
/// **Units** bytes. Many times the largest segment train, so that none is cut up.
const OPEN_BURST_BYTES: u32 = 16 << 20;
/// `TC_LINKLAYER_ETHERNET`: the kernel computes transmission times itself and needs no rate table.
const LINK_LAYER_ETHERNET: u8 = 1;

// Attribute numbers of `TCA_TBF_*`.
pub(crate) const TBF_PARAMETERS: u16 = 1;
pub(crate) const TBF_RATE_64: u16 = 4;
const TBF_BURST: u16 = 6;

/// What a token bucket is made of, computed from a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// **Units** bytes/s, at least 1.
    pub(crate) bytes_per_second: u64,
    /// **Units** bytes; never less than one frame, which could otherwise never pass.
    pub(crate) burst_bytes: u32,
    /// **Units** bytes.
    pub(crate) queue_bytes: u32,
}

impl Bucket {
    /// The bucket for a rate on a link of this MTU.
    pub(crate) fn new(rate: Rate, mtu_bytes: u32) -> Self {
        let frame_bytes = mtu_bytes.saturating_add(FRAME_HEADER_BYTES);
        let bytes_per_second = (rate.bits_per_second / 8).max(1);
        let burst_bytes = rate.burst_bytes.max(frame_bytes);
        let waiting = (bytes_per_second / QUEUE_SECOND_SHARE).max(QUEUE_FRAMES_MIN * u64::from(frame_bytes));
        let queue_bytes = u32::try_from(waiting.saturating_add(u64::from(burst_bytes))).unwrap_or(u32::MAX);
        Self { bytes_per_second, burst_bytes, queue_bytes }
    }

    /// A bucket that never holds anything back: what a host end is born with, so that a limit can come and go by a
    /// change of this discipline. Attaching one to a running link would drop every packet meanwhile.
    pub(crate) fn open() -> Self {
        Self { bytes_per_second: OPEN_BYTES_PER_SECOND, burst_bytes: OPEN_BURST_BYTES, queue_bytes: OPEN_BURST_BYTES }
    }

    /// `struct tc_tbf_qopt`: rate, peak rate (none), limit, buffer, mtu.
    fn parameters(&self) -> Vec<u8> {
        let narrow_rate = u32::try_from(self.bytes_per_second).unwrap_or(u32::MAX);
        let ticks = u64::from(self.burst_bytes) * 1_000_000_000 / self.bytes_per_second / TICK_NANOSECONDS;
        let mut bytes = rate_specification(narrow_rate);
        bytes.extend(rate_specification(0));
        bytes.extend(self.queue_bytes.to_ne_bytes());
        bytes.extend(u32::try_from(ticks).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes
    }

    /// The attributes of the discipline. The burst is given in bytes, so that no rounding to ticks is left.
    fn options(&self) -> Vec<TcOption> {
        let mut options = vec![raw(TBF_PARAMETERS, self.parameters())];
        if u32::try_from(self.bytes_per_second).is_err() {
            options.push(raw(TBF_RATE_64, self.bytes_per_second.to_ne_bytes().to_vec()));
        }
        options.push(raw(TBF_BURST, self.burst_bytes.to_ne_bytes().to_vec()));
        options
    }
}

/// Hold what leaves a link to a rate. A bucket of ours that is there is changed in place and keeps its queue.
pub(crate) fn bucket(index: u32, bucket: Bucket) -> Request {
    let mut message = on(index, TcHandle::ROOT, ROOT_HANDLE);
    message.attributes = vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(bucket.options())];
    Request { message: RouteNetlinkMessage::NewQueueDiscipline(message), flags: REPLACE }
}

/// Let filters see what comes in by a link.
pub(crate) fn ingress(index: u32) -> Request {
    let mut message = on(index, TcHandle::INGRESS, INGRESS_HANDLE);
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    Request { message: RouteNetlinkMessage::NewQueueDiscipline(message), flags: KEEP }
}

/// Take our filter away.
pub(crate) fn remove_redirect(index: u32) -> Request {
    let mut message = on(index, INGRESS_HANDLE, TcHandle::from(0));
    message.header.info = filter_place();
    Request { message: RouteNetlinkMessage::DelTrafficFilter(message), flags: CHANGE }
}

/// Priority and protocol, as `tcm_info` holds them.
pub(crate) fn filter_place() -> u32 {
    u32::from(FILTER_PRIORITY) << 16 | u32::from(EVERY_PROTOCOL.to_be())
}

/// Send everything that comes in by a link out through an ifb, from where it goes on as if it had just come in.
pub(crate) fn redirect(index: u32, ifb: u32) -> Request {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = ifb;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut everything = TcU32Selector::default();
    everything.flags = TcU32SelectorFlags::Terminal;
    everything.nkeys = 1;
    everything.keys = vec![TcU32Key::default()];
    let options = [TcFilterU32Option::Selector(everything), TcFilterU32Option::Action(vec![action])];
    let mut message = on(index, INGRESS_HANDLE, TcHandle::from(FILTER_HANDLE));
    message.header.info = filter_place();
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::U32).collect()),
    ];
    Request { message: RouteNetlinkMessage::NewTrafficFilter(message), flags: REPLACE }
}

/// Something on a link.
fn on(index: u32, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

/// `struct tc_ratespec`.
fn rate_specification(bytes_per_second: u32) -> Vec<u8> {
    let link_layer = if bytes_per_second == 0 { 0 } else { LINK_LAYER_ETHERNET };
    let mut bytes = vec![0, link_layer, 0, 0, 0, 0, 0, 0];
    bytes.extend(bytes_per_second.to_ne_bytes());
    bytes
}

/// An attribute the library has no type for.
fn raw(kind: u16, value: Vec<u8>) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_takes_at_least_one_frame_and_queues_fifty_milliseconds() {
        let small = Bucket::new(Rate { bits_per_second: 8_000, burst_bytes: 1 }, 1400);
        assert_eq!(small, Bucket { bytes_per_second: 1_000, burst_bytes: 1_418, queue_bytes: 1_418 + 8 * 1_418 });
        let large = Bucket::new(Rate { bits_per_second: 80_000_000, burst_bytes: 100_000 }, 1400);
        assert_eq!(large, Bucket { bytes_per_second: 10_000_000, burst_bytes: 100_000, queue_bytes: 600_000 });
    }

    #[test]
    fn extreme_rates_neither_divide_by_zero_nor_overflow() {
        let least = Bucket::new(Rate { bits_per_second: 1, burst_bytes: 0 }, 0);
        assert_eq!(least, Bucket { bytes_per_second: 1, burst_bytes: 18, queue_bytes: 18 + 144 });
        let most = Bucket::new(Rate { bits_per_second: u64::MAX, burst_bytes: u32::MAX }, u32::MAX);
        assert_eq!(most, Bucket { bytes_per_second: u64::MAX / 8, burst_bytes: u32::MAX, queue_bytes: u32::MAX });
        assert_eq!(least.parameters().len(), 36);
        assert_eq!(most.parameters().len(), 36);
    }

    #[test]
    fn only_rates_beyond_32_bits_carry_the_wide_attribute() {
        let kinds = |bits_per_second| -> Vec<u16> {
            let options = Bucket::new(Rate { bits_per_second, burst_bytes: 10_000 }, 1500).options();
            options.iter().map(netlink_packet_core::Nla::kind).collect()
        };
        assert_eq!(kinds(8_000_000), [TBF_PARAMETERS, TBF_BURST]);
        assert_eq!(kinds(40_000_000_000), [TBF_PARAMETERS, TBF_RATE_64, TBF_BURST]);
    }
}
