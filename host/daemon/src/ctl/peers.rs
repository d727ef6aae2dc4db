//! Prints `culvertctl peers`.

use super::layout::{NONE, joined, line, mark, or_none, table};
use super::quantity::round_trip;
use crate::view::{Datagrams, Peer, Peers};

/// One line a peer; the mark says whether packets can reach it.
pub(super) fn text(peers: &Peers) -> String {
    if peers.peers.is_empty() {
        return line(
            "no peers yet: this node knows no other. Nodes find each other through the relays of mesh.relayNodes with a key of mesh.preSharedKeys; `culvertctl status` says what is missing.",
        );
    }
    let header = ["", "NODE", "SITE", "ZONE", "PATH", "THROUGH", "RTT", "PACKETS", "REACH", "BLOCKS", "REFUSED"];
    table(header, peers.peers.iter().map(row))
}

fn row(peer: &Peer) -> [String; 11] {
    let reach = match peer.on_link.as_slice() {
        [] => peer.reach.clone(),
        addresses => format!("{} ({})", peer.reach, joined(addresses)),
    };
    [
        mark(peer.path != "none" || peer.datagrams.is_some()).to_owned(),
        peer.node.clone(),
        peer.site_kind.clone(),
        or_none(&peer.zone).to_owned(),
        peer.path.clone(),
        or_none(&peer.through).to_owned(),
        peer.rtt_us.map_or_else(|| NONE.to_owned(), round_trip),
        packets(peer),
        reach,
        joined(&peer.blocks),
        peer.refused_packets.to_string(),
    ]
}

/// By what its packets travel.
fn packets(peer: &Peer) -> String {
    let Some(Datagrams { kind, to, rtt_us, loss_permille, mtu_bytes }) = &peer.datagrams else {
        return if peer.path == "none" { NONE.to_owned() } else { "stream".to_owned() };
    };
    let took = rtt_us.map_or_else(|| NONE.to_owned(), round_trip);
    let lost = if *loss_permille == 0 {
        String::new()
    } else {
        format!(", {}.{} % lost", loss_permille / 10, loss_permille % 10)
    };
    format!("datagrams {kind} {to} ({took}{lost}, MTU {mtu_bytes})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_is_one_line_with_its_path() {
        let peers = vec![
            Peer {
                node: "cloud-1".into(),
                peer_id: "12D3KooWCloud1".into(),
                site_kind: "cloud".into(),
                path: "direct".into(),
                through: "/ip4/203.0.113.7/udp/20006/quic-v1".into(),
                rtt_us: Some(12_340),
                datagrams: Some(Datagrams {
                    kind: "direct".into(),
                    to: "203.0.113.7:20007".into(),
                    rtt_us: Some(11_900),
                    loss_permille: 15,
                    mtu_bytes: 1440,
                }),
                reach: "tunnel-only".into(),
                blocks: vec!["10.244.1.0/24".parse().unwrap()],
                ..Peer::default()
            },
            Peer {
                node: "edge-2".into(),
                peer_id: "12D3KooWEdge2".into(),
                site_kind: "edge".into(),
                zone: "hall-b".into(),
                path: "none".into(),
                reach: "same-link".into(),
                on_link: vec!["192.168.1.5".parse().unwrap()],
                refused_packets: 7,
                ..Peer::default()
            },
        ];
        assert_eq!(
            text(&Peers { schema: 1, peers }),
            "   NODE     SITE   ZONE    PATH    THROUGH                             RTT      PACKETS                                                             REACH                    BLOCKS         REFUSED
✓  cloud-1  cloud  -       direct  /ip4/203.0.113.7/udp/20006/quic-v1  12.3 ms  datagrams direct 203.0.113.7:20007 (11.9 ms, 1.5 % lost, MTU 1440)  tunnel-only              10.244.1.0/24  0
✗  edge-2   edge   hall-b  none    -                                   -        -                                                                   same-link (192.168.1.5)  -              7
"
        );
    }

    #[test]
    fn a_lonely_node_learns_how_peers_are_found() {
        assert!(text(&Peers::default()).starts_with("no peers yet: "));
    }
}
