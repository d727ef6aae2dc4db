//! One container on the network: its record, its names, and what each request may do to it.
//!
//! ```text
//!          journal            plan applied          shim acknowledged
//! (none) ──────────> intended ────────────> applied ────────────────> acknowledged
//!    ^                   │                     │                           │ DEL
//!    └───── undone ──────┴──── undone ─────────┘        deleting <─────────┘
//!    └──────────────────────── links seen gone ────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bandwidth::{Limits, Shaping};
use crate::host_port::HostPort;
use crate::nat::NatElements;
use crate::plan::{Plan, PodRoute};
use crate::policy::PodView;

/// The longest interface name Linux takes: IFNAMSIZ without its closing NUL.
pub const MAX_INTERFACE_NAME_BYTES: usize = 15;

const HOST_PREFIX: &str = "cv";
/// `i` is no hexadecimal digit, so no host end is ever mistaken for an ifb.
const IFB_PREFIX: &str = "cvi";

/// What names an attachment: the runtime may attach one container several times.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The network's name from the CNI configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

impl AttachmentKey {
    /// The name of the host end: the same for the same key, on every start of the daemon.
    ///
    /// **Bounds** 15 bytes, `cv` and 52 bits of the key's hash in hexadecimal.
    #[must_use]
    pub fn host_name(&self) -> String {
        self.name_with(HOST_PREFIX)
    }

    /// The name of the ifb that holds the pod's egress to its rate.
    ///
    /// **Bounds** 15 bytes, `cvi` and 48 bits of the key's hash in hexadecimal.
    #[must_use]
    pub fn ifb_name(&self) -> String {
        self.name_with(IFB_PREFIX)
    }

    /// The pod end's hardware address: unicast, locally administered, the same for the same key.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        let digest = self.digest();
        let mut mac = [0; 6];
        // The names use the first eight bytes.
        mac.copy_from_slice(&digest[16..22]);
        mac[0] = (mac[0] & 0b1111_1100) | 0b0000_0010;
        mac
    }

    fn name_with(&self, prefix: &str) -> String {
        let hexadecimal: String = self.digest()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        prefix.chars().chain(hexadecimal.chars()).take(MAX_INTERFACE_NAME_BYTES).collect()
    }

    /// Each part goes in with its length: no two keys give the same bytes.
    fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for part in [&self.network, &self.container_id, &self.ifname] {
            hasher.update(part.len().to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().into()
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.network, self.container_id, self.ifname)
    }
}

/// Whether a link of the host namespace is one of ours, by its name: a host end or an ifb.
#[must_use]
pub fn is_attachment_link(name: &str) -> bool {
    let rest = name.strip_prefix(IFB_PREFIX).or_else(|| name.strip_prefix(HOST_PREFIX));
    let hexadecimal = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    name.len() == MAX_INTERFACE_NAME_BYTES && rest.is_some_and(hexadecimal)
}

/// How far an attachment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentState {
    /// Journalled; the kernel may hold none, some or all of it.
    Intended,
    /// The kernel holds all of it; the answer may not have arrived.
    Applied,
    /// The shim has the answer: it is the runtime's.
    Acknowledged,
    /// Being taken down.
    Deleting,
}

/// The record of an attachment: everything DEL, CHECK and repair need, whatever a request says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its name.
    pub key: AttachmentKey,
    /// CNI_NETNS, verbatim.
    pub netns: String,
    /// The host end.
    pub host_name: String,
    /// The ifb; `None` while the pod's egress is not limited.
    pub ifb_name: Option<String>,
    /// The host end's interface index.
    pub host_index: u32,
    /// The pod end's interface index.
    pub pod_index: u32,
    /// The pod end's hardware address.
    pub mac: [u8; 6],
    /// **Units** bytes.
    pub mtu_bytes: u32,
    /// Whether the pod may reach itself through the bridge.
    pub hairpin: bool,
    /// Its addresses, each with the length of the block it comes from.
    pub addresses: Vec<IpNet>,
    /// The pod, as far as the runtime named it.
    pub pod: PodView,
    /// The pod's uid; empty when the runtime did not say.
    pub pod_uid: String,
    /// Its routes, each with its next hop.
    pub routes: Vec<PodRoute>,
    /// Whether another plugin made its interface: only host ports and rates are ours then.
    pub foreign: bool,
    /// Whether its addresses stay its own when it ends.
    pub sticky: bool,
    /// The rates the runtime asked for.
    pub requested: Limits,
    /// The rates in force.
    pub shaping: Shaping,
    /// How far it has come.
    pub state: AttachmentState,
    /// The order of creation: larger is newer. See [`next_serial`].
    pub serial: u64,
    /// The ports of the node that lead to it, admitted.
    pub host_ports: Vec<HostPort>,
    /// Whether it leaves the cluster under the node's address.
    pub masquerade: bool,
}

/// The serial of the next attachment: newer than all of these.
#[must_use]
pub fn next_serial<'a>(records: impl IntoIterator<Item = &'a Attachment>) -> u64 {
    records.into_iter().map(|record| record.serial).max().unwrap_or(0).saturating_add(1)
}

/// What an ADD may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddDecision {
    /// Nothing is there: go ahead.
    Fresh,
    /// An earlier try was never acknowledged, or a DEL not finished: undo it, then go ahead.
    UndoAndRedo,
    /// The runtime has this attachment already: refuse, and change nothing.
    Refuse,
}

/// What a DEL has to do. It succeeds in either case, any number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelDecision {
    /// No record: done already.
    Nothing,
    /// Mark the record as deleting, carry out its delete plan, release, forget.
    TakeDown,
}

/// Decides an ADD from the record that is there.
#[must_use]
pub fn on_add(existing: Option<&Attachment>) -> AddDecision {
    match existing.map(|attachment| attachment.state) {
        None => AddDecision::Fresh,
        Some(AttachmentState::Intended | AttachmentState::Applied | AttachmentState::Deleting) => {
            AddDecision::UndoAndRedo
        }
        Some(AttachmentState::Acknowledged) => AddDecision::Refuse,
    }
}

/// Decides a DEL from the record that is there.
#[must_use]
pub fn on_del(existing: Option<&Attachment>) -> DelDecision {
    existing.map_or(DelDecision::Nothing, |_| DelDecision::TakeDown)
}

/// One repair at start, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairAction {
    /// The answer never reached the runtime, or a DEL was cut short: carry out the delete plan,
    /// release its addresses, forget it.
    TakeDown(AttachmentKey),
    /// Its link is gone, after a reboot or by a foreign hand: release its addresses and forget it. Its
    /// delete plan is carried out too, for an ifb that may be left.
    Forget(AttachmentKey),
    /// Its links are there but the ifb of its egress limit is not: set its rates again.
    Reshape(AttachmentKey),
    /// A link of ours that no record names: delete it.
    DeleteLink(String),
    /// Elements of the NAT table are missing, wrong or stray: carry this plan out.
    SetElements(Plan),
}

/// Decides the repairs at start from the records, and from the names of the links and the elements of the NAT
/// table that the kernel shows.
#[must_use]
pub fn recover<'a>(
    records: impl IntoIterator<Item = &'a Attachment>,
    links: &BTreeSet<String>,
    elements: &NatElements,
) -> Vec<RepairAction> {
    let records: BTreeMap<&AttachmentKey, &Attachment> =
        records.into_iter().map(|record| (&record.key, record)).collect();
    let repairs = records.values().filter_map(|record| repair(record, links));
    let recorded: BTreeSet<&str> = records
        .values()
        .flat_map(|record| [Some(record.host_name.as_str()), record.ifb_name.as_deref()])
        .flatten()
        .collect();
    let strays = links.iter().filter(|name| is_attachment_link(name) && !recorded.contains(name.as_str()));
    let staying = records.values().filter(|record| stays(record, links)).copied();
    let plan = NatElements::diff(elements, &NatElements::of(staying));
    let elements = Some(plan).filter(|plan| !plan.is_empty()).map(RepairAction::SetElements);
    repairs.chain(strays.cloned().map(RepairAction::DeleteLink)).chain(elements).collect()
}

/// Whether a record outlives the repair.
fn stays(record: &Attachment, links: &BTreeSet<String>) -> bool {
    record.state == AttachmentState::Acknowledged && links.contains(&record.host_name)
}

fn repair(record: &Attachment, links: &BTreeSet<String>) -> Option<RepairAction> {
    let key = || record.key.clone();
    match record.state {
        AttachmentState::Intended | AttachmentState::Applied | AttachmentState::Deleting => {
            Some(RepairAction::TakeDown(key()))
        }
        AttachmentState::Acknowledged if !stays(record, links) => Some(RepairAction::Forget(key())),
        AttachmentState::Acknowledged => {
            let ifb_missing = record.ifb_name.as_ref().is_some_and(|ifb| !links.contains(ifb));
            ifb_missing.then(|| RepairAction::Reshape(key()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Family;
    use crate::host_port::{PortKey, PortTarget, Transport};
    use crate::plan::Step;

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
            addresses: vec!["10.244.1.2/24".parse().unwrap()],
            pod: PodView::default(),
            pod_uid: String::new(),
            routes: Vec::new(),
            foreign: false,
            sticky: false,
            requested: Limits::default(),
            shaping: Shaping::default(),
            state,
            serial: 1,
            host_ports: Vec::new(),
            masquerade: true,
            key,
        }
    }

    const STATES: [AttachmentState; 4] =
        [AttachmentState::Intended, AttachmentState::Applied, AttachmentState::Acknowledged, AttachmentState::Deleting];

    #[test]
    fn only_an_acknowledged_attachment_refuses_an_add() {
        assert_eq!(on_add(None), AddDecision::Fresh);
        let decisions = STATES.map(|state| on_add(Some(&attachment("a", state, false))));
        let redo = AddDecision::UndoAndRedo;
        assert_eq!(decisions, [redo, redo, AddDecision::Refuse, redo]);
    }

    #[test]
    fn a_del_works_in_every_state_and_without_a_record() {
        assert_eq!(on_del(None), DelDecision::Nothing);
        let decisions = STATES.map(|state| on_del(Some(&attachment("a", state, false))));
        assert_eq!(decisions, [DelDecision::TakeDown; 4]);
    }

    #[test]
    fn names_are_stable_and_fit_an_interface() {
        let key = key("0123456789abcdef");
        assert_eq!((key.host_name().len(), key.ifb_name().len()), (15, 15));
        assert_eq!(key.host_name(), key.clone().host_name());
        assert_eq!(key.host_name()[2..14], key.ifb_name()[3..]);
        assert!(is_attachment_link(&key.host_name()) && is_attachment_link(&key.ifb_name()));
        for foreign in ["cni0", "culvert0", "cv", "cvnotours", "cv0123456789abg", "cv0123456789ABC", "veth0123456789a"]
        {
            assert!(!is_attachment_link(foreign), "{foreign}");
        }
    }

    #[test]
    fn parts_of_a_key_do_not_run_into_each_other() {
        let key = |network: &str, container_id: &str| AttachmentKey {
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            ifname: "eth0".to_owned(),
        };
        assert_ne!(key("ab", "c").host_name(), key("a", "bc").host_name());
    }

    #[test]
    fn ten_thousand_attachments_have_names_and_macs_of_their_own() {
        let keys: Vec<AttachmentKey> = (0..10_000).map(|container| key(&container.to_string())).collect();
        let names: BTreeSet<String> = keys.iter().map(AttachmentKey::host_name).collect();
        let macs: BTreeSet<[u8; 6]> = keys.iter().map(AttachmentKey::mac).collect();
        assert_eq!((names.len(), macs.len()), (10_000, 10_000));
        assert!(macs.iter().all(|mac| mac[0] & 0b11 == 0b10));
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
        let mut links: BTreeSet<String> = ["cni0", "culvert0", "eth0", "cvmine"].map(str::to_owned).into();
        links.extend(stray.iter().cloned());
        links.extend([
            key("a-fine").host_name(),
            key("a-fine").ifb_name(),
            key("d-applied").host_name(),
            key("f-ifb-gone").host_name(),
        ]);
        assert_eq!(
            recover(&records, &links, &NatElements::default()),
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
        let links = BTreeSet::from([stays.host_name.clone(), goes.host_name.clone()]);
        let (own, others, strange) = (target("10.244.1.2"), target("10.244.1.9"), "10.244.1.77".parse().unwrap());
        let present = NatElements {
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
        assert_eq!(recover([&stays, &goes], &links, &present), expected);
        let links = BTreeSet::from([stays.host_name.clone()]);
        assert_eq!(recover([&stays], &links, &NatElements::of([&stays])), []);
    }
}
