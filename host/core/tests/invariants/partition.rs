//! 10,000 clusters that claim blocks and start pods while they fall apart, and then heal.
//!
//! While apart, a node out of the keeper's reach may claim provisionally, so two nodes may believe
//! in one block. After the heal nobody does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_core::address::{Family, IpNet, overlap};
use culvert_core::attachment::AttachmentKey;
use culvert_core::claim::{
    Claim, ClaimOutcome, ClaimRequest, HeldBlock, HeldBlocks, HeldEvent, Ledger, Pool, Standing,
};
use culvert_core::lease::{LeaseRefusal, LeaseTable};
use culvert_core::membership::PeerId;

use crate::random::Random;

const RUNS: u64 = 10_000;
const STEPS: usize = 60;
/// Node 0 is the keeper.
const KEEPER: usize = 0;
/// Few, so that nodes get in each other's way.
const BLOCKS: usize = 8;
/// After the heal every node talks to the keeper this often; more rounds must change nothing.
const HEAL_ROUNDS: usize = 4;

#[derive(Clone)]
struct Member {
    name: String,
    peer: PeerId,
    may_claim_provisionally: bool,
    ledger: Ledger,
    held: HeldBlocks,
    leases: LeaseTable,
}

struct Cluster {
    random: Random,
    members: Vec<Member>,
    /// The side of the partition each node is on.
    side: Vec<usize>,
    containers: u32,
    lost: u64,
}

fn block(index: usize) -> IpNet {
    format!("10.244.{index}.0/28").parse().unwrap()
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let nodes = 3 + random.below(5);
        let pool = Pool { range: "10.244.0.0/16".parse().unwrap(), block_length: 28 };
        let mut peers: Vec<usize> = (0..nodes).collect();
        random.shuffle(&mut peers);
        let member = |(index, peer): (usize, &usize), random: &mut Random| Member {
            name: format!("node-{index}"),
            peer: PeerId(format!("peer-{peer}")),
            may_claim_provisionally: random.chance(75),
            ledger: Ledger::new(vec![pool], vec![]),
            held: HeldBlocks::default(),
            leases: LeaseTable::new(0),
        };
        let members = peers.iter().enumerate().map(|entry| member(entry, &mut random)).collect();
        Self { random, members, side: vec![0; nodes], containers: 0, lost: 0 }
    }

    fn step(&mut self) {
        let node = self.random.below(self.members.len());
        match self.random.below(10) {
            0 => self.partition(),
            1 | 2 => self.claim(node),
            3 => self.give_back(node),
            4..7 => self.gossip(node),
            7 | 8 => self.start_pod(node),
            _ => self.end_pod(node),
        }
    }

    fn partition(&mut self) {
        let sides = 1 + self.random.below(3);
        for node in 0..self.side.len() {
            self.side[node] = self.random.below(sides);
        }
    }

    fn connected(&self, left: usize, right: usize) -> bool {
        self.side[left] == self.side[right]
    }

    fn claim(&mut self, node: usize) {
        let block = block(self.random.below(BLOCKS));
        if self.connected(node, KEEPER) {
            self.claim_finally(node, block);
        } else if self.members[node].may_claim_provisionally && self.members[node].held.usable(Family::V4).count() == 0
        {
            let request = self.request(node, block, Standing::Provisional);
            self.members[node].ledger.decide(&request);
        }
        self.refresh(node);
    }

    fn request(&self, node: usize, block: IpNet, standing: Standing) -> ClaimRequest {
        let member = &self.members[node];
        ClaimRequest { block, holder: member.name.clone(), peer: member.peer.clone(), standing }
    }

    /// Asks the keeper, which answers with its row.
    fn claim_finally(&mut self, node: usize, block: IpNet) -> ClaimOutcome {
        let request = self.request(node, block, Standing::Final);
        let outcome = self.members[KEEPER].ledger.decide(&request);
        if let Some(row) = self.members[KEEPER].ledger.row(&block).cloned() {
            self.members[node].ledger.merge_row(&row);
        }
        outcome
    }

    /// A node gives a block back that it has no pod in.
    fn give_back(&mut self, node: usize) {
        let blocks: Vec<IpNet> = self.members[node].held.usable(Family::V4).collect();
        let Some(block) = self.random.pick(&blocks).copied() else {
            return;
        };
        if self.members[node].leases.in_use(&block) > 0 {
            return;
        }
        let peer = self.members[node].peer.clone();
        self.members[node].ledger.withdraw(&block, &peer);
        if self.connected(node, KEEPER) {
            self.members[KEEPER].ledger.release(&block, &peer);
            let row = self.members[KEEPER].ledger.row(&block).cloned();
            row.iter().for_each(|row| drop(self.members[node].ledger.merge_row(row)));
        }
        self.refresh(node);
    }

    fn gossip(&mut self, node: usize) {
        let other = self.random.below(self.members.len());
        if self.connected(node, other) && node != other {
            self.pull(node, other);
        }
    }

    fn pull(&mut self, node: usize, from: usize) {
        let theirs = self.members[from].ledger.clone();
        self.members[node].ledger.merge(&theirs);
        assert_eq!(self.members[node].ledger.merge(&theirs), [], "a merge twice is a merge once");
        self.refresh(node);
    }

    fn refresh(&mut self, node: usize) {
        let member = &mut self.members[node];
        let events = member.held.refresh(&member.ledger, &member.peer);
        let lost = events.iter().filter(|event| matches!(event, HeldEvent::Lost { winner: Some(_), .. })).count();
        self.lost += u64::try_from(lost).unwrap();
        member.leases.set_blocks(member.held.usable(Family::V4));
    }

    fn start_pod(&mut self, node: usize) {
        let blocks: Vec<IpNet> = self.members[node].held.usable(Family::V4).collect();
        let Some(block) = self.random.pick(&blocks).copied() else {
            return;
        };
        self.containers += 1;
        let key = AttachmentKey {
            network: "culvert".to_owned(),
            container_id: self.containers.to_string(),
            ifname: "eth0".to_owned(),
        };
        let leases = &mut self.members[node].leases;
        if let Some(address) = leases.longest_unused(&block.into(), 0, None) {
            leases.take(address, &key, None).unwrap();
        }
    }

    fn end_pod(&mut self, node: usize) {
        let keys: Vec<AttachmentKey> = self.members[node].leases.held().map(|(_, key)| key.clone()).collect();
        if let Some(key) = self.random.pick(&keys) {
            self.members[node].leases.release(key, 0);
        }
    }

    /// What every node does once it is connected again, in any order.
    fn heal(&mut self) {
        self.side.fill(0);
        for _ in 0..HEAL_ROUNDS {
            let mut order: Vec<usize> = (0..self.members.len()).collect();
            self.random.shuffle(&mut order);
            for node in order {
                self.pull(KEEPER, node);
                self.settle(node);
                self.pull(node, KEEPER);
            }
        }
    }

    /// Asks for a final claim on what is provisional, and withdraws what was lost or has become final.
    fn settle(&mut self, node: usize) {
        let blocks: Vec<IpNet> = self.members[node].held.iter().map(|(block, _)| *block).collect();
        for block in blocks {
            let state =
                self.members[node].held.iter().find(|(held, _)| **held == block).map(|(_, state)| state.clone());
            if state == Some(HeldBlock::Held(Standing::Provisional)) {
                self.claim_finally(node, block);
            }
            let peer = self.members[node].peer.clone();
            let claim = self.members[node].ledger.claim(&block);
            if claim.is_none_or(|claim| claim.peer != peer || claim.standing == Standing::Final) {
                self.members[node].ledger.withdraw(&block, &peer);
                self.pull(KEEPER, node);
            }
            self.refresh(node);
        }
    }

    fn check_loser_gives_nothing(&self) {
        for member in &self.members {
            for (block, _) in member.held.lost() {
                assert!(!member.held.usable_for_new(&block));
                assert_eq!(member.leases.longest_unused(&block.into(), 0, None), None);
                let address: IpAddr = block.hosts().last().unwrap();
                let key = AttachmentKey {
                    network: "culvert".to_owned(),
                    container_id: "late".to_owned(),
                    ifname: "eth0".to_owned(),
                };
                if member.leases.holder(address).is_none() {
                    let refused = Err(LeaseRefusal::OutsideBlocks { address });
                    assert_eq!(member.leases.clone().take(address, &key, None), refused);
                }
            }
        }
    }

    /// The pods in lost blocks end, as the loser's do in time.
    fn drain_lost(&mut self) {
        for member in &mut self.members {
            let lost: Vec<IpNet> = member.held.lost().map(|(block, _)| block).collect();
            let keys: BTreeSet<AttachmentKey> = member
                .leases
                .held()
                .filter(|(address, _)| lost.iter().any(|block| block.contains(address)))
                .map(|(_, key)| key.clone())
                .collect();
            keys.iter().for_each(|key| drop(member.leases.release(key, 0)));
            lost.iter().for_each(|block| assert!(member.held.forget_lost(block)));
        }
    }

    fn check_healed(&self) {
        let claims: Vec<Claim> = self.members[KEEPER].ledger.claims().collect();
        for (index, claim) in claims.iter().enumerate() {
            assert_eq!(claim.standing, Standing::Final, "{claim:?} was never settled");
            assert!(!claims[..index].iter().any(|other| overlap(&other.block, &claim.block)), "{claim:?} overlaps");
        }
        for member in &self.members {
            assert_eq!(member.ledger, self.members[KEEPER].ledger, "{} sees another cluster", member.name);
            let usable: BTreeSet<IpNet> = member.held.usable(Family::V4).collect();
            let own = claims.iter().filter(|claim| claim.peer == member.peer);
            assert_eq!(usable, own.map(|claim| claim.block).collect(), "{}", member.name);
        }
    }

    fn check_addresses(&self) {
        let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for member in &self.members {
            for (address, _) in member.leases.held() {
                assert_eq!(holders.insert(address, &member.name), None, "{address} is in use twice");
            }
        }
    }

    /// Two orders of merging everything into one ledger.
    fn check_order_is_irrelevant(&mut self) {
        let mut ledgers: Vec<Ledger> = self.members.iter().map(|member| member.ledger.clone()).collect();
        let merged = |ledgers: &[Ledger]| {
            let mut all = ledgers[0].clone();
            ledgers.iter().for_each(|ledger| drop(all.merge(ledger)));
            all
        };
        let forwards = merged(&ledgers);
        self.random.shuffle(&mut ledgers);
        assert_eq!(merged(&ledgers), forwards);
    }
}

/// One whole history; answers the final ledger, what is in use, and how many blocks were lost.
fn run(seed: u64) -> (Ledger, Vec<(IpAddr, AttachmentKey)>, u64) {
    let mut cluster = Cluster::new(seed);
    for _ in 0..STEPS {
        cluster.step();
        cluster.check_loser_gives_nothing();
    }
    cluster.check_order_is_irrelevant();
    cluster.heal();
    cluster.check_loser_gives_nothing();
    cluster.drain_lost();
    cluster.check_healed();
    cluster.check_addresses();
    for _ in 0..10 {
        let node = cluster.random.below(cluster.members.len());
        cluster.claim(node);
        cluster.start_pod(node);
        cluster.check_addresses();
    }
    let members = cluster.members.iter();
    let in_use = members.flat_map(|member| member.leases.held().map(|(address, key)| (address, key.clone())));
    (cluster.members[KEEPER].ledger.clone(), in_use.collect(), cluster.lost)
}

#[test]
fn after_every_heal_each_block_and_address_has_one_holder() {
    let mut lost = 0;
    let mut in_use = 0;
    for seed in 0..RUNS {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let (_, addresses, blocks) = outcome.unwrap_or_else(|_| panic!("seed {seed} breaks an invariant"));
        lost += blocks;
        in_use += addresses.len();
    }
    println!("{RUNS} runs: {lost} blocks were lost to others, {in_use} addresses in use at the end");
    assert!(lost > 1_000 && in_use > 10_000, "lost {lost}, in use {in_use}: the test has lost its teeth");
}

#[test]
fn the_same_history_always_ends_the_same() {
    for seed in 0..200 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
