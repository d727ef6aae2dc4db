//! Elements of the NAT table's maps and sets: added, removed, listed; its rules listed; and the table's removal.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink grow with the kernel; what we do not know does not concern us"
)]

use culvert_core::address::Family;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, SetElementAttribute, SetElementList,
    SetElementMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};

/// The name of the table, the same in both families.
pub(crate) const TABLE: &str = "culvert";

/// An element of a map, or of a set when it has no data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// The family of its table.
    pub(crate) family: Family,
    /// The map or set.
    pub(crate) set: &'static str,
    /// The parts of the key, each padded to 32 bits.
    pub(crate) key: Vec<u8>,
    /// The parts of what it maps to, likewise.
    pub(crate) data: Option<Vec<u8>>,
}

/// One message of a transaction, and its flags besides "request" and "acknowledge".
pub(crate) type Operation = (NetfilterMessage, u16);

/// Add an element. In a map it must not be there; in a set it may.
pub(crate) fn add(element: &Element) -> Operation {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
    let data = element.data.clone().map(|data| SetElementAttribute::Data(DataAttribute::Value(data)));
    attributes.extend(data);
    let flags = if element.data.is_some() { NLM_F_CREATE | NLM_F_EXCL } else { NLM_F_CREATE };
    (message(element.family, NfTablesMessage::NewSetElement(one(element, attributes))), flags)
}

/// Remove an element, whatever it maps to.
pub(crate) fn remove(element: &Element) -> Operation {
    let attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
    (message(element.family, NfTablesMessage::DeleteSetElement(one(element, attributes))), 0)
}

/// What to ask to list the elements of a map or set.
pub(crate) fn list(family: Family, set: &str) -> NetfilterMessage {
    let attributes = vec![SetElementList::Table(TABLE.into()), SetElementList::Set(set.into())];
    message(family, NfTablesMessage::GetSetElement(SetElementMessage { attributes }))
}

/// The elements in a message of such a list.
pub(crate) fn elements(message: &NetfilterMessage, family: Family, set: &'static str) -> Vec<Element> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(message)) = &message.inner else {
        return Vec::new();
    };
    let lists = message.attributes.iter().filter_map(|attribute| match attribute {
        SetElementList::Elements(elements) => Some(elements),
        _ => None,
    });
    let attributes = lists.flatten().filter_map(|element| match element {
        ListAttribute::Element(attributes) => Some(attributes),
        _ => None,
    });
    attributes.filter_map(|attributes| read(attributes, family, set)).collect()
}

/// What to ask to list the rules of the table.
pub(crate) fn list_rules(family: Family) -> NetfilterMessage {
    message(family, NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.into())] }))
}

/// A rule of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Its chain.
    pub(crate) chain: String,
    /// What whoever made it wrote on it, a comment among it.
    pub(crate) user_data: Vec<u8>,
}

/// The rule in a message of such a list; `None` when it belongs to another table.
pub(crate) fn rule(message: &NetfilterMessage) -> Option<Rule> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(message)) = &message.inner else {
        return None;
    };
    let (mut rule, mut ours) = (Rule::default(), false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(name) => ours = name == TABLE,
            RuleAttribute::Chain(name) => rule.chain.clone_from(name),
            RuleAttribute::UserData(bytes) => rule.user_data.clone_from(bytes),
            _ => {}
        }
    }
    ours.then_some(rule)
}

/// Remove the table of a family with everything in it.
pub(crate) fn remove_table(family: Family) -> Operation {
    let attributes = vec![TableAttribute::Name(TABLE.into())];
    (message(family, NfTablesMessage::DeleteTable(TableMessage { attributes })), 0)
}

/// What opens a transaction.
pub(crate) fn begin() -> NetfilterMessage {
    control(ControlMessage::BatchBegin)
}

/// What commits it.
pub(crate) fn end() -> NetfilterMessage {
    control(ControlMessage::BatchEnd)
}

fn read(attributes: &[SetElementAttribute], family: Family, set: &'static str) -> Option<Element> {
    let (mut key, mut data) = (None, None);
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(bytes)) => key = Some(bytes.clone()),
            SetElementAttribute::Data(DataAttribute::Value(bytes)) => data = Some(bytes.clone()),
            _ => {}
        }
    }
    Some(Element { family, set, key: key?, data })
}

fn one(element: &Element, attributes: Vec<SetElementAttribute>) -> SetElementMessage {
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(TABLE.into()),
            SetElementList::Set(element.set.into()),
            SetElementList::Elements(vec![ListAttribute::Element(attributes)]),
        ],
    }
}

fn message(family: Family, message: NfTablesMessage) -> NetfilterMessage {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn control(message: ControlMessage) -> NetfilterMessage {
    let subsystem = u16::from(u8::from(NetfilterSubsystem::NfTables));
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem), message)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkSerializable;

    use super::*;

    fn bytes(operation: &Operation) -> Vec<u8> {
        let mut bytes = vec![0; operation.0.buffer_len()];
        operation.0.serialize(&mut bytes);
        bytes
    }

    /// An attribute as the kernel reads it: length, type (0x8000 marks a nest), value, padding.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn element() -> Element {
        Element { family: Family::V4, set: "ports", key: vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0], data: Some(vec![9; 8]) }
    }

    #[test]
    fn an_element_is_written_as_the_kernel_reads_it() {
        let names = [attribute(1, b"culvert\0"), attribute(2, b"ports\0")].concat();
        let nested = |attributes: &[u8]| attribute(0x8003, &attribute(0x8001, attributes));
        let key = attribute(0x8001, &attribute(1, &element().key));
        let data = attribute(0x8002, &attribute(1, &[9; 8]));
        let header = [libc::AF_INET as u8, 0, 0, 0];
        let added = [&header[..], &names, &nested(&[key.clone(), data].concat())].concat();
        assert_eq!(bytes(&add(&element())), added);
        let removed = [&header[..], &names, &nested(&key)].concat();
        assert_eq!(bytes(&remove(&element())), removed);
        let types =
            [add(&element()), remove(&element()), remove_table(Family::V6)].map(|(message, _)| message.message_type());
        assert_eq!(types, [0x0a0c, 0x0a0e, 0x0a02]);
        assert_eq!([begin(), end()].map(|message| message.message_type()), [0x10, 0x11]);
        assert_eq!(bytes(&(begin(), 0)), [0, 0, 0, 10]);
    }

    #[test]
    fn what_was_written_is_read_again() {
        let set = Element { family: Family::V6, set: "unmasqueraded", key: vec![1; 16], data: None };
        for element in [element(), set] {
            assert_eq!(elements(&add(&element).0, element.family, element.set), [element]);
        }
    }
}
