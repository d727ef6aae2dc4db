//! Flows that the kernel tracks: listed by their port, and forgotten.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use std::net::IpAddr;

use culvert_core::address::Family;
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, Nla};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, ConntrackMessageType, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

/// Attribute: the original direction. **Source** `linux/netfilter/nfnetlink_conntrack.h`.
const TUPLE_ORIGINAL: u16 = 1;
/// Attribute: the zone a flow is tracked in.
const ZONE: u16 = 18;
/// Attribute: what of the given tuple a listed flow must match.
const FILTER: u16 = 25;
/// Attribute in [`FILTER`]: which parts of the original direction.
const FILTER_ORIGINAL: u16 = 1;
/// Attribute in [`FILTER`]: which parts of the reply direction.
const FILTER_REPLY: u16 = 2;
/// The parts: protocol and destination port.
const PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// A tracked UDP flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Where its first packet was sent to.
    pub(crate) to: (IpAddr, u16),
    /// Who answers: the same, unless its destination was translated.
    pub(crate) answered_by: (IpAddr, u16),
    /// What names it to the kernel.
    pub(crate) identity: Vec<ConntrackAttribute>,
}

/// What to ask to list the UDP flows to a port. Kernels before 5.8 list every flow of the family.
pub(crate) fn list_udp(family: Family, port: u16) -> NetfilterMessage {
    let number = |kind: u16, value: u32| DefaultNla::new(kind, value.to_ne_bytes().to_vec());
    let ends = Tuple::Proto(vec![ProtoTuple::Protocol(Protocol::Udp), ProtoTuple::DestinationPort(port)]);
    let filter = [number(FILTER_ORIGINAL, PROTOCOL_AND_PORT), number(FILTER_REPLY, 0)];
    // As the library's own attributes they would lose the mark of a nest, without which the kernel refuses them.
    let attributes = vec![nest(TUPLE_ORIGINAL, &[ends]), nest(FILTER, &filter)];
    message(family, ConntrackMessage::Other { message_type: ConntrackMessageType::Get.into(), attributes })
}

/// Attributes inside an attribute.
fn nest(kind: u16, inner: &[impl Nla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// Forget a flow.
pub(crate) fn forget(family: Family, flow: &Flow) -> NetfilterMessage {
    message(family, ConntrackMessage::Delete(flow.identity.clone()))
}

/// The UDP flow in a message of a list; `None` for anything else.
pub(crate) fn udp_flow(message: &NetfilterMessage) -> Option<Flow> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &message.inner else {
        return None;
    };
    let (mut original, mut reply, mut identity) = (None, None, Vec::new());
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => {
                original = Some(tuple);
                identity.push(attribute.clone());
            }
            ConntrackAttribute::CtaTupleReply(tuple) => reply = Some(tuple),
            ConntrackAttribute::Other(other) if other.kind() == ZONE => {
                identity.push(attribute.clone());
            }
            _ => {}
        }
    }
    let (original, reply) = (ends(original?), ends(reply?));
    let to = (original.destination?, original.destination_port?);
    let answered_by = (reply.source?, reply.source_port?);
    (original.protocol == Some(Protocol::Udp)).then_some(Flow { to, answered_by, identity })
}

/// One direction of a flow, as far as it is given.
#[derive(Default)]
struct Ends {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<Protocol>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
}

fn ends(tuple: &[Tuple]) -> Ends {
    let mut ends = Ends::default();
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(address) => ends.source = Some(*address),
                IPTuple::DestinationAddress(address) => ends.destination = Some(*address),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(protocol) => ends.protocol = Some(*protocol),
                ProtoTuple::SourcePort(port) => ends.source_port = Some(*port),
                ProtoTuple::DestinationPort(port) => ends.destination_port = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    ends
}

fn message(family: Family, message: ConntrackMessage) -> NetfilterMessage {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkSerializable;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn tuple(protocol: Protocol, from: (&str, u16), to: (&str, u16)) -> Vec<Tuple> {
        vec![
            Tuple::Ip(vec![IPTuple::SourceAddress(address(from.0)), IPTuple::DestinationAddress(address(to.0))]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(protocol),
                ProtoTuple::SourcePort(from.1),
                ProtoTuple::DestinationPort(to.1),
            ]),
        ]
    }

    #[test]
    fn the_list_is_asked_for_as_the_kernel_reads_it() {
        let message = list_udp(Family::V4, 8080);
        let mut bytes = vec![0; Emitable::buffer_len(&message)];
        message.emit(&mut bytes);
        let expected: [&[u8]; 5] = [
            &[2, 0, 0, 0],
            &[24, 0, 1, 0x80, 20, 0, 2, 0x80],
            &[5, 0, 1, 0, 17, 0, 0, 0, 6, 0, 3, 0, 0x1f, 0x90, 0, 0],
            &[20, 0, 25, 0x80],
            &[8, 0, 1, 0, 0x28, 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0],
        ];
        assert_eq!((message.message_type(), bytes), (0x0101, expected.concat()));
    }

    #[test]
    fn a_flow_is_forgotten_by_its_original_direction_and_zone() {
        let original = ConntrackAttribute::CtaTupleOrig(tuple(Protocol::Udp, ("192.0.2.2", 5000), ("192.0.2.1", 53)));
        let reply = ConntrackAttribute::CtaTupleReply(tuple(Protocol::Udp, ("10.244.1.5", 5353), ("192.0.2.2", 5000)));
        let zone = ConntrackAttribute::Other(DefaultNla::new(ZONE, vec![0, 7]));
        let timeout = ConntrackAttribute::CtaTimeout(30);
        let listed = ConntrackMessage::New(vec![original.clone(), reply.clone(), timeout, zone.clone()]);
        let flow = udp_flow(&message(Family::V4, listed)).unwrap();
        assert_eq!((flow.to, flow.answered_by), ((address("192.0.2.1"), 53), (address("10.244.1.5"), 5353)));
        let forgotten = message(Family::V4, ConntrackMessage::Delete(vec![original, zone]));
        assert_eq!(forget(Family::V4, &flow), forgotten);
        let tcp = ConntrackAttribute::CtaTupleOrig(tuple(Protocol::Tcp, ("192.0.2.2", 5000), ("192.0.2.1", 53)));
        assert_eq!(udp_flow(&message(Family::V4, ConntrackMessage::New(vec![tcp, reply]))), None);
    }
}
