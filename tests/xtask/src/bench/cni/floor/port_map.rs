//! Host ports as elements of one nftables map, and the masquerade of all pods.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use culvert_lab::namespace::Place;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList, SetElementMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::super::way::{CONTAINER_PORT, host_port};
use super::channel::Flagged;

/// The table.
const TABLE: &str = "floor";
/// The map in it.
const MAP: &str = "ports";
/// `NFNL_SUBSYS_NFTABLES`: whose batch it is.
const SUBSYSTEM: u16 = 10;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// Makes the table, by `nft`: once a node.
///
/// **Errors** `nft` refuses.
pub(super) fn make(node: &Place, folder: &Path, pods: &str) -> Result<()> {
    let rules = format!(
        "table ip {TABLE} {{
            map {MAP} {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                fib daddr type local dnat ip to meta l4proto . th dport map @{MAP}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ip saddr {pods} oifname != \"cni0\" masquerade
            }}
        }}"
    );
    let file = folder.join("floor.nft");
    std::fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    node.run(&format!("nft --file {}", file.display())).map(drop)
}

/// One host port of one pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element {
    /// The pod's number, from which its port follows.
    pub(super) number: u16,
    /// The pod's address.
    pub(super) address: Ipv4Addr,
}

impl Element {
    /// Leads the port to the pod.
    pub(super) fn add(&self) -> Vec<Flagged<NetfilterMessage>> {
        let element = in_map(vec![self.key(), self.data()]);
        batch(NfTablesMessage::NewSetElement(element), NLM_F_CREATE | NLM_F_ACK)
    }

    /// Leads it nowhere.
    pub(super) fn remove(&self) -> Vec<Flagged<NetfilterMessage>> {
        batch(NfTablesMessage::DeleteSetElement(in_map(vec![self.key()])), NLM_F_ACK)
    }

    /// Protocol and port, each in four bytes.
    fn key(&self) -> SetElementAttribute {
        let [high, low] = host_port(self.number).to_be_bytes();
        SetElementAttribute::Key(DataAttribute::Value(vec![TCP, 0, 0, 0, high, low, 0, 0]))
    }

    /// Address and port, each in four bytes.
    fn data(&self) -> SetElementAttribute {
        let mut value = self.address.octets().to_vec();
        value.extend(CONTAINER_PORT.to_be_bytes());
        value.extend([0, 0]);
        SetElementAttribute::Data(DataAttribute::Value(value))
    }
}

fn in_map(element: Vec<SetElementAttribute>) -> SetElementMessage {
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(MAP.to_owned()),
            SetElementList::Elements(vec![ListAttribute::Element(element)]),
        ],
    }
}

/// nftables takes changes in batches alone.
fn batch(message: NfTablesMessage, flags: u16) -> Vec<Flagged<NetfilterMessage>> {
    let bound = |end| NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), end);
    let change = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), message);
    vec![(bound(ControlMessage::BatchBegin), 0), (change, flags), (bound(ControlMessage::BatchEnd), 0)]
}
