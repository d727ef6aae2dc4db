//! The shaping of a pod as netlink messages: a token bucket, and the redirection of what comes in by a link to another.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use super::super::way::{BURST_BITS, RATE_BITS};
use super::channel::Flagged;

/// Make it; refuse when it is there.
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// The only handle an ingress discipline can have.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 3;
/// `TCA_TBF_PARMS`: rate, peak rate, limit, buffer, MTU.
const TBF_PARAMETERS: u16 = 1;
/// `TCA_TBF_BURST`: the burst in bytes.
const TBF_BURST: u16 = 6;
/// **Units** nanoseconds, in which the kernel takes times of queueing disciplines.
const TICK_NANOSECONDS: u64 = 64;
/// `TC_LINKLAYER_ETHERNET`.
const LINK_LAYER_ETHERNET: u8 = 1;

/// A token bucket for what a link sends.
pub(super) fn bucket(index: u32) -> Flagged<RouteNetlinkMessage> {
    let rate = RATE_BITS / 8;
    let burst = BURST_BITS / 8;
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes();
    let mut parameters = vec![0, LINK_LAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(narrow(rate));
    parameters.extend([0; 12]);
    parameters.extend(narrow(2 * burst));
    parameters.extend(narrow(burst * 1_000_000_000 / rate / TICK_NANOSECONDS));
    parameters.extend([0; 4]);
    let options = [(TBF_PARAMETERS, parameters), (TBF_BURST, narrow(burst).to_vec())];
    let options = options.into_iter().map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value))).collect();
    let mut message = on(index, TcHandle::ROOT, TcHandle::from(0));
    message.attributes = vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options)];
    (RouteNetlinkMessage::NewQueueDiscipline(message), CREATE)
}

/// The discipline that lets filters see what comes in.
pub(super) fn ingress(index: u32) -> Flagged<RouteNetlinkMessage> {
    let mut message = on(index, TcHandle::INGRESS, INGRESS);
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    (RouteNetlinkMessage::NewQueueDiscipline(message), CREATE)
}

/// Sends everything that comes in by a link out by another.
pub(super) fn redirect(index: u32, to: u32) -> Flagged<RouteNetlinkMessage> {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
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
    let mut message = on(index, INGRESS, TcHandle::from(0));
    message.header.info = 1 << 16 | u32::from(EVERY_PROTOCOL.to_be());
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::U32).collect()),
    ];
    (RouteNetlinkMessage::NewTrafficFilter(message), CREATE)
}

fn on(index: u32, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message.header.handle = handle;
    message
}
