//! What the keeper says of a record when it countersigns it: which of its decisions gave the node its
//! name and each of its blocks.
//!
//! The numbers order the keeper's decisions, so that an old statement that arrives late changes
//! nothing, whichever way it came.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Binding, Directory, MembershipRefusal, NodeRecord, Registered};
use crate::claim::{Decided, Ledger, LedgerRow, MAX_BLOCKS_PER_PEER};

/// The keeper's statement about one record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endorsement {
    /// The decision that gave the name to the record's peer.
    pub name_decision: u64,
    /// The decision that gave each of the record's blocks. **Bounds** at most [`MAX_BLOCKS_PER_PEER`].
    pub blocks: Vec<EndorsedBlock>,
}

/// One block with the decision that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndorsedBlock {
    /// The block.
    pub block: IpNet,
    /// The number of the decision.
    pub decision: u64,
}

impl Endorsement {
    /// The keeper's statement about a record it has registered.
    #[must_use]
    pub fn of(record: &NodeRecord, directory: &Directory, ledger: &Ledger) -> Self {
        let binding = directory.bindings().find(|binding| binding.name == record.name);
        let rows = record.blocks.iter().filter_map(|block| ledger.row(block));
        Self {
            name_decision: binding.map_or(0, |binding| binding.decision),
            blocks: rows.map(|row| EndorsedBlock { block: row.block, decision: row.decision }).collect(),
        }
    }

    /// Takes over the statement and the record it is about.
    ///
    /// # Errors
    /// When the record contradicts a later decision of the keeper; then the name or the blocks in
    /// question stay as they were.
    pub fn accept(
        &self,
        record: &NodeRecord,
        directory: &mut Directory,
        ledger: &mut Ledger,
    ) -> Result<Registered, MembershipRefusal> {
        let known = directory.record(&record.name).filter(|known| known.peer == record.peer);
        if known.is_some_and(|known| known.sequence >= record.sequence) {
            return Ok(Registered::Ignored);
        }
        let (name, peer) = (record.name.clone(), Some(record.peer.clone()));
        directory.merge_binding(&Binding { name, peer, decision: self.name_decision });
        for endorsed in self.blocks.iter().take(MAX_BLOCKS_PER_PEER) {
            let decided = Some(Decided { holder: record.name.clone(), peer: record.peer.clone() });
            let provisional = std::collections::BTreeMap::new();
            let row = LedgerRow { block: endorsed.block, decision: endorsed.decision, decided, provisional };
            let _events = ledger.merge_row(&row);
        }
        directory.register(record, ledger)
    }

    /// Frees the blocks that an earlier record of this node named and this one, which was just accepted, does
    /// not. Answers which.
    ///
    /// Only for a record that came as news from another node: one that was stored may be older than the claims
    /// stored beside it, and the keeper and the holder know of a claim before any record names it.
    pub fn free_unnamed(record: &NodeRecord, ledger: &mut Ledger) -> Vec<IpNet> {
        let named: BTreeSet<IpNet> = record.blocks.iter().copied().collect();
        let decided = |row: &&LedgerRow| row.decided.as_ref().is_some_and(|decided| decided.peer == record.peer);
        let unnamed: Vec<IpNet> =
            ledger.rows().filter(decided).map(|row| row.block).filter(|block| !named.contains(block)).collect();
        unnamed.into_iter().filter(|block| ledger.release(block, &record.peer)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::{ClaimOutcome, ClaimRequest, Pool, Standing};
    use crate::membership::PeerId;
    use crate::topology::SiteKind;

    fn block(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ledger() -> Ledger {
        Ledger::new(vec![Pool { range: block("10.244.0.0/16"), block_length: 24 }], Vec::new())
    }

    fn record(name: &str, peer: &str, sequence: u64, blocks: &[&str]) -> NodeRecord {
        NodeRecord {
            name: name.into(),
            peer: PeerId(peer.into()),
            sequence,
            addresses: Vec::new(),
            port: 20_006,
            blocks: blocks.iter().map(|text| block(text)).collect(),
            site_kind: SiteKind::Edge,
            zone: String::new(),
            labels: std::collections::BTreeMap::new(),
        }
    }

    struct Keeper {
        directory: Directory,
        ledger: Ledger,
    }

    impl Keeper {
        fn endorse(&mut self, record: &NodeRecord) -> Endorsement {
            for block in &record.blocks {
                let request = ClaimRequest {
                    block: *block,
                    holder: record.name.clone(),
                    peer: record.peer.clone(),
                    standing: Standing::Final,
                };
                assert_eq!(self.ledger.decide(&request), ClaimOutcome::Granted);
            }
            self.directory.register(record, &self.ledger).unwrap();
            Endorsement::of(record, &self.directory, &self.ledger)
        }
    }

    fn keeper() -> Keeper {
        Keeper { directory: Directory::default(), ledger: ledger() }
    }

    #[test]
    fn an_endorsed_record_brings_its_name_and_blocks_to_another_node() {
        let mut keeper = keeper();
        let edge = record("edge-1", "A", 1, &["10.244.7.0/24"]);
        let endorsement = keeper.endorse(&edge);
        let (mut directory, mut ledger) = (Directory::default(), ledger());
        assert_eq!(endorsement.accept(&edge, &mut directory, &mut ledger), Ok(Registered::New));
        assert_eq!(directory.peer_of("edge-1"), Some(&PeerId("A".into())));
        assert_eq!(ledger.claim(&block("10.244.7.0/24")), keeper.ledger.claim(&block("10.244.7.0/24")));
    }

    #[test]
    fn a_released_name_goes_to_the_next_and_the_old_statement_changes_nothing() {
        let mut keeper = keeper();
        let old = record("edge-1", "A", 9, &[]);
        let old_endorsement = keeper.endorse(&old);
        keeper.directory.release("edge-1");
        let new = record("edge-1", "B", 1, &[]);
        let new_endorsement = keeper.endorse(&new);
        let (mut directory, mut ledger) = (Directory::default(), ledger());
        old_endorsement.accept(&old, &mut directory, &mut ledger).unwrap();
        assert_eq!(new_endorsement.accept(&new, &mut directory, &mut ledger), Ok(Registered::New));
        let late = record("edge-1", "A", 10, &[]);
        let refused = old_endorsement.accept(&late, &mut directory, &mut ledger);
        assert!(matches!(refused, Err(MembershipRefusal::NameTaken { .. })), "{refused:?}");
        assert_eq!(directory.peer_of("edge-1"), Some(&PeerId("B".into())));
    }

    #[test]
    fn a_block_that_a_newer_record_leaves_out_is_free_again() {
        let mut keeper = keeper();
        let first = record("edge-1", "A", 1, &["10.244.7.0/24", "10.244.8.0/24"]);
        let endorsement = keeper.endorse(&first);
        let (mut directory, mut ledger) = (Directory::default(), ledger());
        endorsement.accept(&first, &mut directory, &mut ledger).unwrap();
        keeper.ledger.release(&block("10.244.8.0/24"), &PeerId("A".into()));
        let second = record("edge-1", "A", 2, &["10.244.7.0/24"]);
        let endorsement = keeper.endorse(&second);
        assert_eq!(endorsement.accept(&second, &mut directory, &mut ledger), Ok(Registered::Updated));
        assert!(ledger.claim(&block("10.244.8.0/24")).is_some(), "a record alone frees nothing");
        assert_eq!(Endorsement::free_unnamed(&second, &mut ledger), [block("10.244.8.0/24")]);
        assert_eq!(ledger.claim(&block("10.244.8.0/24")), None);
        assert!(ledger.claim(&block("10.244.7.0/24")).is_some());
    }

    #[test]
    fn a_block_of_another_node_cannot_be_taken_by_an_older_decision() {
        let mut keeper = keeper();
        let first = record("edge-1", "A", 1, &["10.244.7.0/24"]);
        let stale = keeper.endorse(&first);
        keeper.ledger.release(&block("10.244.7.0/24"), &PeerId("A".into()));
        let second = record("edge-2", "B", 1, &["10.244.7.0/24"]);
        let fresh = keeper.endorse(&second);
        let (mut directory, mut ledger) = (Directory::default(), ledger());
        fresh.accept(&second, &mut directory, &mut ledger).unwrap();
        let refused = stale.accept(&first, &mut directory, &mut ledger);
        assert!(matches!(refused, Err(MembershipRefusal::BlockNotHeld { .. })), "{refused:?}");
        assert_eq!(ledger.claim(&block("10.244.7.0/24")).map(|claim| claim.holder), Some("edge-2".to_owned()));
    }
}
