//! One container on the network: its record, its names, and what each request may do to it.
//!
//! ```text
//!          journal            plan applied          shim acknowledged
//! (none) ──────────> intended ────────────> applied ────────────────> acknowledged
//!    ^                   │                     │                           │ DEL
//!    └───── undone ──────┴──── undone ─────────┘        deleting <─────────┘
//!    └──────────────────────── links seen gone ────────────┘
//! ```

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bandwidth::{Limits, Shaping};
use crate::host_port::HostPort;
use crate::plan::PodRoute;
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
    /// Whether it asked for the bridge to be promiscuous.
    #[serde(default)]
    pub promiscuous_bridge: bool,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

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
}
