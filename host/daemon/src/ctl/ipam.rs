//! Prints `culvertctl ipam`.

use super::layout::{BAD, NONE, line, mark, or_none, points, shortened, table};
use super::quantity::assignable;
use crate::view::{Block, Ipam, Lease};

/// Pools, blocks, this node's leases, and what does not agree.
pub(super) fn text(ipam: &Ipam) -> String {
    let pools = match ipam.pools.as_slice() {
        [] => line("no pools: write the cluster's ranges into cluster.static.pools"),
        pools => line(&format!("pools: {}", pools.join(", "))),
    };
    let blocks = if ipam.blocks.is_empty() {
        line(
            "no blocks yet: a node claims one from the keeper before its first pod. `culvertctl status` says what is missing.",
        )
    } else {
        table(["", "BLOCK", "HOLDER", "STANDING", "IN USE"], ipam.blocks.iter().map(block_row))
    };
    let leases = if ipam.leases.is_empty() {
        line("no leases: no pod of this node has an address.")
    } else {
        table(["ADDRESS", "POD", "CONTAINER", "INTERFACE", "STATE"], ipam.leases.iter().map(lease_row))
    };
    let findings = points("Leases, blocks and kernel disagree:", BAD, &ipam.findings);
    [pools, "\n".to_owned(), blocks, "\n".to_owned(), leases, findings].concat()
}

fn block_row(block: &Block) -> [String; 5] {
    let in_use = match (block.in_use, assignable(&block.block)) {
        (Some(in_use), Some(room)) => format!("{in_use} of {room}"),
        (Some(in_use), None) => in_use.to_string(),
        (None, _) => NONE.to_owned(),
    };
    [
        mark(block.standing == "final").to_owned(),
        block.block.clone(),
        or_none(&block.holder).to_owned(),
        block.standing.clone(),
        in_use,
    ]
}

fn lease_row(lease: &Lease) -> [String; 5] {
    [
        lease.address.clone(),
        or_none(&lease.pod).to_owned(),
        shortened(&lease.container_id),
        lease.ifname.clone(),
        lease.state.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_leases_are_tables_and_findings_follow() {
        let block = |block: &str, holder: &str, standing: &str, in_use| Block {
            block: block.into(),
            holder: holder.into(),
            standing: standing.into(),
            in_use,
        };
        let ipam = Ipam {
            schema: 1,
            pools: vec!["10.244.0.0/16 in /24".into(), "fd00:10:244::/48 in /64".into()],
            blocks: vec![
                block("10.244.1.0/24", "edge-1", "final", Some(1)),
                block("10.244.2.0/24", "edge-2", "provisional", None),
                block("fd00:10:244:1::/64", "edge-1", "final", Some(0)),
            ],
            leases: vec![Lease {
                address: "10.244.1.5".into(),
                container_id: "0123456789abcdef0123".into(),
                ifname: "eth0".into(),
                pod: "default/web-0".into(),
                state: "acknowledged".into(),
            }],
            findings: vec!["10.244.1.5 is leased, but its interface is gone".into()],
        };
        assert_eq!(
            text(&ipam),
            "pools: 10.244.0.0/16 in /24, fd00:10:244::/48 in /64

   BLOCK               HOLDER  STANDING     IN USE
✓  10.244.1.0/24       edge-1  final        1 of 253
✗  10.244.2.0/24       edge-2  provisional  -
✓  fd00:10:244:1::/64  edge-1  final        0

ADDRESS     POD            CONTAINER     INTERFACE  STATE
10.244.1.5  default/web-0  0123456789ab  eth0       acknowledged

Leases, blocks and kernel disagree:
  ✗ 10.244.1.5 is leased, but its interface is gone
"
        );
    }

    #[test]
    fn emptiness_is_explained() {
        assert_eq!(
            text(&Ipam::default()),
            "no pools: write the cluster's ranges into cluster.static.pools

no blocks yet: a node claims one from the keeper before its first pod. `culvertctl status` says what is missing.

no leases: no pod of this node has an address.
"
        );
    }
}
