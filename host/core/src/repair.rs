//! What the records say against what is there: the repairs at start, and those at each later look.
//!
//! | record | there | repair |
//! |---|---|---|
//! | intended, deleting | anything | take down |
//! | applied | the runtime keeps a result | acknowledge: it has the answer, only its word was lost |
//! | applied | no result | take down; while the daemon runs, only when it is so twice |
//! | acknowledged | no link | forget |
//! | acknowledged | no namespace and no result | take down, when it is so twice |
//! | acknowledged | no ifb | set the rates again |
//! | none | a link of ours | delete it |
//! | any | other NAT elements than follow from those that stay | set them |

use std::collections::{BTreeMap, BTreeSet};

use crate::attachment::{Attachment, AttachmentKey, AttachmentState, is_attachment_link};
use crate::nat::NatElements;
use crate::plan::Plan;

/// What is there, as far as it can be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The names of the node's links.
    pub links: BTreeSet<String>,
    /// The elements of the NAT table.
    pub elements: NatElements,
    /// Attachments that the runtime keeps a result of.
    pub remembered: BTreeSet<AttachmentKey>,
    /// Attachments whose namespace has no name any more. Empty when the runtime's results cannot be seen: a missing
    /// name proves nothing alone.
    pub nameless: BTreeSet<AttachmentKey>,
}

/// When the repair takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion<'a> {
    /// The daemon starts: nothing is under way.
    Start,
    /// It runs. The attachments that were [suspect](suspects) at the look before.
    Look(&'a BTreeSet<AttachmentKey>),
}

/// One repair, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairAction {
    /// Carry out the delete plan, release its addresses, forget it.
    TakeDown(AttachmentKey),
    /// Its link is gone, after a reboot or by a foreign hand: release its addresses and forget it. Its
    /// delete plan is carried out too, for an ifb that may be left.
    Forget(AttachmentKey),
    /// The runtime has its answer.
    Acknowledge(AttachmentKey),
    /// Its links are there but the ifb of its egress limit is not: set its rates again.
    Reshape(AttachmentKey),
    /// A link of ours that no record names: delete it.
    DeleteLink(String),
    /// Elements of the NAT table are missing, wrong or stray: carry this plan out.
    SetElements(Plan),
}

/// Decides the repairs.
#[must_use]
pub fn recover<'a>(
    records: impl IntoIterator<Item = &'a Attachment>,
    evidence: &Evidence,
    occasion: Occasion<'_>,
) -> Vec<RepairAction> {
    let records: BTreeMap<&AttachmentKey, &Attachment> =
        records.into_iter().map(|record| (&record.key, record)).collect();
    let repairs: Vec<RepairAction> = records.values().filter_map(|record| repair(record, evidence, occasion)).collect();
    let recorded: BTreeSet<&str> = records
        .values()
        .flat_map(|record| [Some(record.host_name.as_str()), record.ifb_name.as_deref()])
        .flatten()
        .collect();
    let strays = evidence.links.iter().filter(|name| is_attachment_link(name) && !recorded.contains(name.as_str()));
    let strays = strays.cloned().map(RepairAction::DeleteLink);
    let goes = |record: &Attachment| {
        let key = &record.key;
        repairs.iter().any(|action| matches!(action, RepairAction::TakeDown(k) | RepairAction::Forget(k) if k == key))
    };
    let staying = records.values().filter(|record| !goes(record)).copied();
    let plan = NatElements::diff(&evidence.elements, &NatElements::of(staying));
    let elements = Some(plan).filter(|plan| !plan.is_empty()).map(RepairAction::SetElements);
    repairs.iter().cloned().chain(strays).chain(elements).collect()
}

/// Attachments that look abandoned. One that still does at the next look is taken down: between the two, an
/// acknowledgement may arrive, or the runtime may write down what it has just been told.
#[must_use]
pub fn suspects<'a>(records: impl IntoIterator<Item = &'a Attachment>, evidence: &Evidence) -> BTreeSet<AttachmentKey> {
    let abandoned = records.into_iter().filter(|record| is_suspect(record, evidence));
    abandoned.map(|record| record.key.clone()).collect()
}

fn is_suspect(record: &Attachment, evidence: &Evidence) -> bool {
    let forgotten = !evidence.remembered.contains(&record.key);
    match record.state {
        AttachmentState::Applied => forgotten,
        AttachmentState::Acknowledged => forgotten && evidence.nameless.contains(&record.key),
        AttachmentState::Intended | AttachmentState::Deleting => false,
    }
}

fn repair(record: &Attachment, evidence: &Evidence, occasion: Occasion<'_>) -> Option<RepairAction> {
    let key = || record.key.clone();
    let twice =
        matches!(occasion, Occasion::Look(before) if before.contains(&record.key)) && is_suspect(record, evidence);
    match record.state {
        AttachmentState::Intended | AttachmentState::Deleting => Some(RepairAction::TakeDown(key())),
        AttachmentState::Applied if evidence.remembered.contains(&record.key) => Some(RepairAction::Acknowledge(key())),
        AttachmentState::Applied => (twice || occasion == Occasion::Start).then(|| RepairAction::TakeDown(key())),
        AttachmentState::Acknowledged if !has_link(record, &evidence.links) => Some(RepairAction::Forget(key())),
        AttachmentState::Acknowledged if twice => Some(RepairAction::TakeDown(key())),
        AttachmentState::Acknowledged => {
            let ifb_missing = record.ifb_name.as_ref().is_some_and(|ifb| !evidence.links.contains(ifb));
            ifb_missing.then(|| RepairAction::Reshape(key()))
        }
    }
}

/// One that another plugin made may have no link on this node that we know of.
fn has_link(record: &Attachment, links: &BTreeSet<String>) -> bool {
    (record.foreign && record.host_name.is_empty()) || links.contains(&record.host_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Family;
    use crate::bandwidth::{Limits, Shaping};
    use crate::host_port::{HostPort, PortKey, PortTarget, Transport};
    use crate::plan::Step;
    use crate::policy::PodView;

    fn key(container_id: &str) -> AttachmentKey {
        AttachmentKey {
            network: "culvert".to_owned(),
            container_id: container_id.to_owned(),
            ifname: "eth0".to_owned(),
        }
    }

    fn attachment(container_id: &str, state: AttachmentState, ifb: bool) -> Attachment {
        let key = key(container_id);
        Attachment {
            netns: "/run/netns/pod".to_owned(),
            host_name: key.host_name(),
            ifb_name: ifb.then(|| key.ifb_name()),
            host_index: 10,
            pod_index: 11,
            mac: key.mac(),
            mtu_bytes: 1_500,
            hairpin: true,
            promiscuous_bridge: false,
            addresses: vec!["10.244.1.2/24".parse().unwrap()],
            pod: PodView::default(),
            pod_uid: String::new(),
            serial: 1,
            host_ports: Vec::new(),
            masquerade: true,
            routes: Vec::new(),
            foreign: false,
            sticky: false,
            requested: Limits::default(),
            shaping: Shaping::default(),
            state,
            key,
        }
    }

    fn with_links<'a>(records: impl IntoIterator<Item = &'a Attachment>) -> Evidence {
        let links = records.into_iter().flat_map(|record| [Some(record.host_name.clone()), record.ifb_name.clone()]);
        Evidence { links: links.flatten().collect(), ..Evidence::default() }
    }

    #[test]
    fn a_start_repairs_what_a_crash_or_a_reboot_left() {
        let (acknowledged, intended, applied) =
            (AttachmentState::Acknowledged, AttachmentState::Intended, AttachmentState::Applied);
        let records = [
            attachment("a-fine", acknowledged, true),
            attachment("b-gone", acknowledged, false),
            attachment("c-intended", intended, false),
            attachment("d-applied", applied, false),
            attachment("e-deleting", AttachmentState::Deleting, false),
            attachment("f-ifb-gone", acknowledged, true),
        ];
        let stray = [key("z").host_name(), key("z").ifb_name()];
        let mut evidence = with_links([&records[0], &records[3]]);
        evidence.links.extend(["cni0", "culvert0", "eth0", "cvmine"].map(str::to_owned));
        evidence.links.extend(stray.iter().cloned());
        evidence.links.insert(key("f-ifb-gone").host_name());
        assert_eq!(
            recover(&records, &evidence, Occasion::Start),
            [
                RepairAction::Forget(key("b-gone")),
                RepairAction::TakeDown(key("c-intended")),
                RepairAction::TakeDown(key("d-applied")),
                RepairAction::TakeDown(key("e-deleting")),
                RepairAction::Reshape(key("f-ifb-gone")),
                RepairAction::DeleteLink(stray[0].clone()),
                RepairAction::DeleteLink(stray[1].clone()),
            ]
        );
    }

    #[test]
    fn an_answer_whose_acknowledgement_was_lost_counts_when_the_runtime_keeps_it() {
        let record = attachment("a", AttachmentState::Applied, false);
        let mut evidence = with_links([&record]);
        evidence.remembered.insert(record.key.clone());
        let acknowledge = [RepairAction::Acknowledge(record.key.clone())];
        assert_eq!(recover([&record], &evidence, Occasion::Start), acknowledge);
        assert_eq!(recover([&record], &evidence, Occasion::Look(&BTreeSet::new())), acknowledge);
        assert_eq!(suspects([&record], &evidence), BTreeSet::new());
    }

    #[test]
    fn what_is_abandoned_goes_when_it_is_so_twice() {
        let unacknowledged = attachment("a", AttachmentState::Applied, false);
        let nameless = attachment("b", AttachmentState::Acknowledged, false);
        let alive = attachment("c", AttachmentState::Acknowledged, false);
        let records = [&unacknowledged, &nameless, &alive];
        let mut evidence = with_links(records);
        evidence.nameless = [nameless.key.clone(), alive.key.clone()].into();
        evidence.remembered.insert(alive.key.clone());
        let suspect = suspects(records, &evidence);
        assert_eq!(suspect, [unacknowledged.key.clone(), nameless.key.clone()].into());
        assert_eq!(recover(records, &evidence, Occasion::Look(&BTreeSet::new())), []);
        let both = [&unacknowledged, &nameless].map(|record| RepairAction::TakeDown(record.key.clone()));
        assert_eq!(recover(records, &evidence, Occasion::Look(&suspect)), both);
        // An acknowledgement that came meanwhile saves it.
        let acknowledged = attachment("a", AttachmentState::Acknowledged, false);
        let evidence = with_links([&acknowledged]);
        assert_eq!(recover([&acknowledged], &evidence, Occasion::Look(&suspect)), []);
    }

    #[test]
    fn what_another_plugin_made_stays_without_a_link_that_is_known() {
        let mut record = attachment("a", AttachmentState::Acknowledged, false);
        (record.foreign, record.host_name) = (true, String::new());
        assert_eq!(recover([&record], &Evidence::default(), Occasion::Start), []);
    }

    #[test]
    fn a_start_sets_missing_elements_again_and_removes_strays() {
        let port = |host_port| HostPort { host_ip: None, host_port, transport: Transport::Udp, container_port: 53 };
        let key = |port| PortKey { family: Family::V4, host_ip: None, transport: Transport::Udp, port };
        let target = |address: &str| PortTarget { address: address.parse().unwrap(), port: 53 };
        let mut stays = attachment("a", AttachmentState::Acknowledged, false);
        stays.host_ports = vec![port(53), port(54), port(55)];
        stays.masquerade = false;
        let mut goes = attachment("b", AttachmentState::Applied, false);
        goes.addresses = vec!["10.244.1.9/24".parse().unwrap()];
        goes.host_ports = vec![port(53)];
        goes.serial = 2;
        let mut evidence = with_links([&stays, &goes]);
        let (own, others, strange) = (target("10.244.1.2"), target("10.244.1.9"), "10.244.1.77".parse().unwrap());
        evidence.elements = NatElements {
            ports: [(key(53), others), (key(54), own), (key(99), others)].into(),
            unmasqueraded: [strange].into(),
        };
        let plan = Plan {
            steps: vec![
                Step::SetPort { key: key(53), target: own, before: Some(others) },
                Step::SetPort { key: key(55), target: own, before: None },
                Step::RemovePort { key: key(99), target: others },
                Step::Exempt { address: own.address },
                Step::Unexempt { address: strange },
            ],
        };
        let expected = [RepairAction::TakeDown(goes.key.clone()), RepairAction::SetElements(plan)];
        assert_eq!(recover([&stays, &goes], &evidence, Occasion::Start), expected);
        assert_eq!(
            recover(
                [&stays],
                &Evidence { elements: NatElements::of([&stays]), ..with_links([&stays]) },
                Occasion::Start
            ),
            []
        );
    }
}
