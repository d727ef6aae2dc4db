//! Who holds which host port, from the records alone.
//!
//! Several pods may ask for one port: a runtime starts the new pod before the old one is gone. The newest has
//! it; when that goes, the newest of the others has it again.

use std::collections::BTreeMap;

use super::{PortKey, PortTarget, elements};
use crate::attachment::{Attachment, AttachmentKey, AttachmentState};
use crate::plan::Step;

/// How new a claim is; keys tell apart records that were made before there were serials.
type Age<'a> = (u64, &'a AttachmentKey);

/// Every claim to every host port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortTable<'a> {
    claims: BTreeMap<PortKey, BTreeMap<Age<'a>, PortTarget>>,
}

impl<'a> PortTable<'a> {
    /// The claims of these records. One that is being taken down claims nothing any more.
    #[must_use]
    pub fn of(records: impl IntoIterator<Item = &'a Attachment>) -> Self {
        let mut claims: BTreeMap<PortKey, BTreeMap<Age<'a>, PortTarget>> = BTreeMap::new();
        for record in records.into_iter().filter(|record| record.state != AttachmentState::Deleting) {
            for (key, target) in elements(&record.host_ports, &record.addresses) {
                claims.entry(key).or_default().insert(age(record), target);
            }
        }
        Self { claims }
    }

    /// The attachment that has a port.
    #[must_use]
    pub fn holder(&self, key: &PortKey) -> Option<&'a AttachmentKey> {
        self.claims.get(key)?.last_key_value().map(|((_, holder), _)| *holder)
    }

    /// Every port and where it leads now.
    #[must_use]
    pub fn elements(&self) -> BTreeMap<PortKey, PortTarget> {
        let newest = |claims: &BTreeMap<Age<'a>, PortTarget>| claims.last_key_value().map(|(_, target)| *target);
        self.claims.iter().filter_map(|(key, claims)| Some((*key, newest(claims)?))).collect()
    }

    /// The ports an attachment has, and has not lost to a newer one.
    #[must_use]
    pub fn held_by(&self, attachment: &Attachment) -> BTreeMap<PortKey, PortTarget> {
        let mut held = elements(&attachment.host_ports, &attachment.addresses);
        held.retain(|key, _| self.next(key, attachment).is_none_or(|(other, _)| other < age(attachment)));
        held
    }

    /// The steps that give an attachment its ports, whether or not it is in the table.
    #[must_use]
    pub fn claim(&self, attachment: &Attachment) -> Vec<Step> {
        let set = |(key, target)| {
            let before = self.next(&key, attachment).map(|(_, target)| target);
            Step::SetPort { key, target, before }
        };
        self.held_by(attachment).into_iter().map(set).collect()
    }

    /// The steps that take an attachment's ports away, whether or not it is in the table: each goes back to
    /// the newest of the others, if there is one. What a newer attachment has is left alone.
    #[must_use]
    pub fn release(&self, attachment: &Attachment) -> Vec<Step> {
        let give_back = |(key, own)| match self.next(&key, attachment) {
            Some((_, target)) => Step::SetPort { key, target, before: Some(own) },
            None => Step::RemovePort { key, target: own },
        };
        self.held_by(attachment).into_iter().map(give_back).collect()
    }

    /// The newest claim of others.
    fn next(&self, key: &PortKey, than: &Attachment) -> Option<(Age<'a>, PortTarget)> {
        let others = self.claims.get(key)?.iter().rev();
        others.map(|(age, target)| (*age, *target)).find(|((_, holder), _)| **holder != than.key)
    }
}

fn age(attachment: &Attachment) -> Age<'_> {
    (attachment.serial, &attachment.key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::Family;
    use crate::attachment::next_serial;
    use crate::attachment_plan::{PodNetwork, plan_add, plan_del};
    use crate::bandwidth::{Limits, Shaping};
    use crate::host_port::{HostPort, Transport, admit};
    use crate::nat::NatElements;
    use crate::plan::Plan;
    use crate::policy::PodView;

    fn attachment(number: u8, serial: u64, host_ports: Vec<HostPort>) -> Attachment {
        let key = AttachmentKey {
            network: "culvert".to_owned(),
            container_id: format!("c{number}"),
            ifname: "eth0".to_owned(),
        };
        let addresses = [format!("10.244.1.{number}/24"), format!("fd00::{number}/64")];
        Attachment {
            netns: String::new(),
            host_name: key.host_name(),
            ifb_name: None,
            host_index: 10,
            pod_index: 11,
            mac: key.mac(),
            mtu_bytes: 1_400,
            hairpin: true,
            promiscuous_bridge: false,
            addresses: addresses.map(|address| address.parse().unwrap()).into(),
            pod: PodView::default(),
            pod_uid: String::new(),
            routes: Vec::new(),
            foreign: false,
            sticky: false,
            requested: Limits::default(),
            shaping: Shaping::default(),
            state: AttachmentState::Acknowledged,
            serial,
            host_ports,
            masquerade: !number.is_multiple_of(2),
            key,
        }
    }

    fn tcp(host_ip: Option<&str>) -> HostPort {
        let host_ip = host_ip.map(|host_ip| host_ip.parse().unwrap());
        HostPort { host_ip, host_port: 80, transport: Transport::Tcp, container_port: 8080 }
    }

    #[test]
    fn a_port_of_two_pods_is_the_newers_until_it_goes() {
        let (old, new) = (attachment(2, 7, vec![tcp(None)]), attachment(1, 8, vec![tcp(Some("0.0.0.0"))]));
        let table = PortTable::of([&new, &old]);
        let key = |family| PortKey { family, host_ip: None, transport: Transport::Tcp, port: 80 };
        let target = |address: &str| PortTarget { address: address.parse().unwrap(), port: 8080 };
        assert_eq!(table.holder(&key(Family::V4)), Some(&new.key));
        assert_eq!(table.holder(&key(Family::V6)), Some(&old.key));
        let (v4, v6) = (key(Family::V4), key(Family::V6));
        let (newer, older, older_v6) = (target("10.244.1.1"), target("10.244.1.2"), target("fd00::2"));
        assert_eq!(table.claim(&new), [Step::SetPort { key: v4, target: newer, before: Some(older) }]);
        assert_eq!(table.release(&new), [Step::SetPort { key: v4, target: older, before: Some(newer) }]);
        assert_eq!(table.release(&old), [Step::RemovePort { key: v6, target: older_v6 }]);
        let deleting = Attachment { state: AttachmentState::Deleting, ..new.clone() };
        let table = PortTable::of([&deleting, &old]);
        assert_eq!(table.holder(&v4), Some(&old.key));
        assert_eq!(table.release(&deleting), [Step::SetPort { key: v4, target: older, before: Some(newer) }]);
    }

    #[test]
    fn a_port_of_one_address_and_the_same_of_all_addresses_do_not_meet() {
        let (all, one) = (attachment(1, 1, vec![tcp(Some("0.0.0.0"))]), attachment(2, 2, vec![tcp(Some("192.0.2.1"))]));
        let table = PortTable::of([&all, &one]);
        assert_eq!((table.held_by(&all).len(), table.held_by(&one).len(), table.elements().len()), (1, 1, 2));
    }

    /// What the NAT table holds, and a step that finds it other than it says.
    fn apply(elements: &mut NatElements, step: &Step) {
        match step {
            Step::SetPort { key, target, before } => {
                assert_eq!(elements.ports.insert(*key, *target), *before, "{step:?}");
            }
            Step::RemovePort { key, target } => assert_eq!(elements.ports.remove(key), Some(*target), "{step:?}"),
            Step::Exempt { address } => assert!(elements.unmasqueraded.insert(*address), "{step:?}"),
            Step::Unexempt { address } => assert!(elements.unmasqueraded.remove(address), "{step:?}"),
            Step::CreateVeth(_)
            | Step::DeleteLink { .. }
            | Step::PodLinkUp { .. }
            | Step::PodAddress { .. }
            | Step::PodRoute { .. }
            | Step::ShapeIngress { .. }
            | Step::UnshapeIngress { .. }
            | Step::ShapeEgress { .. }
            | Step::UnshapeEgress { .. }
            | Step::SetRoute { .. }
            | Step::RemoveRoute { .. } => {}
        }
    }

    fn after(elements: &NatElements, steps: &[Step]) -> NatElements {
        let mut elements = elements.clone();
        steps.iter().for_each(|step| apply(&mut elements, step));
        elements
    }

    /// Carry a plan out, after failing at each of its steps in turn and undoing what was done.
    fn carry_out(elements: &mut NatElements, plan: &Plan) {
        for failed in 0..=plan.steps.len() {
            let half = after(elements, &plan.steps[..failed]);
            assert_eq!(after(&half, &plan.undo(failed).steps), *elements, "step {failed} of {plan:?}");
        }
        *elements = after(elements, &plan.steps);
    }

    /// Ports that pods get in each other's way with.
    fn asked() -> impl Strategy<Value = Vec<HostPort>> {
        let host_ip =
            prop::sample::select(vec![None, Some("0.0.0.0"), Some("::"), Some("192.0.2.1"), Some("2001:db8::1")]);
        let transport = prop::sample::select(vec![Transport::Tcp, Transport::Udp, Transport::Sctp]);
        let port = (host_ip, transport, 80_u16..82, 8080_u16..8082).prop_map(|(host_ip, transport, host_port, own)| {
            HostPort { transport, host_port, container_port: own, ..tcp(host_ip) }
        });
        prop::collection::vec(port, 0..6)
    }

    proptest! {
        #[test]
        fn elements_follow_from_the_attachments_that_are_there(
            history in prop::collection::vec((0_u8..6, asked()), 1..40)
        ) {
            let mut records: BTreeMap<u8, Attachment> = BTreeMap::new();
            let mut elements = NatElements::default();
            for (number, asked) in history {
                let plan = if let Some(there) = records.remove(&number) {
                    let others = PortTable::of(records.values());
                    let table = PortTable::of(records.values().chain([&there]));
                    prop_assert_eq!(others.release(&there), table.release(&there));
                    plan_del(&there, &table)
                } else {
                    let mut made = attachment(number, next_serial(records.values()), Vec::new());
                    for port in asked {
                        let mut more = made.host_ports.clone();
                        more.push(port);
                        if admit(&more, &made.addresses).is_ok() {
                            made.host_ports = more;
                        }
                    }
                    let plan = plan_add(&made, &PodNetwork::default(), &PortTable::of(records.values()));
                    records.insert(number, made);
                    plan
                };
                carry_out(&mut elements, &plan);
                prop_assert_eq!(&elements, &NatElements::of(records.values()));
                for (key, target) in &elements.ports {
                    let claimants = records.values().filter(|record| super::elements(&record.host_ports, &record.addresses).contains_key(key));
                    let newest = claimants.max_by_key(|record| record.serial).unwrap();
                    prop_assert!(newest.addresses.iter().any(|address| address.addr() == target.address));
                }
            }
        }

        #[test]
        fn a_difference_leads_from_any_elements_to_any_others(
            one in prop::collection::vec((1_u8..4, asked()), 0..4),
            other in prop::collection::vec((1_u8..4, asked()), 0..4),
        ) {
            let elements = |of: Vec<(u8, Vec<HostPort>)>| {
                let records: BTreeMap<u8, Attachment> =
                    of.into_iter().map(|(number, asked)| (number, attachment(number, u64::from(number), asked))).collect();
                NatElements::of(records.values())
            };
            let (mut present, wanted) = (elements(one), elements(other));
            let plan = NatElements::diff(&present, &wanted);
            prop_assert_eq!(plan.is_empty(), present == wanted);
            carry_out(&mut present, &plan);
            prop_assert_eq!(present, wanted);
        }
    }
}
