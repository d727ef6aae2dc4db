//! 100,000 answers of a policy that makes them up, into one cluster that lives on between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_core::address::{Family, IpNet, is_assignable, overlap};
use culvert_core::attachment::AttachmentKey;
use culvert_core::bandwidth::{self, Bounds, Limits, Rate, Shaping};
use culvert_core::claim::{ClaimOutcome, ClaimRequest, Ledger, Pool, Standing};
use culvert_core::decision::{Route, Via, admit};
use culvert_core::lease::LeaseTable;
use culvert_core::membership::PeerId;
use culvert_core::plan::{KernelRoute, KernelVia};
use culvert_core::route_plan::{BridgeGateways, Liveness, LocalRouting, desired};
use culvert_core::topology::{Node, Reach, Topology};

use crate::random::Random;

const ANSWERS: u64 = 100_000;
const NODES: usize = 6;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn services() -> Vec<IpNet> {
    vec![net("10.244.14.0/23")]
}

fn pools() -> Vec<Pool> {
    vec![Pool { range: net("10.244.0.0/20"), block_length: 26 }, Pool { range: net("fd10::/56"), block_length: 64 }]
}

struct Member {
    name: String,
    peer: PeerId,
    leases: LeaseTable,
}

/// The cluster, and what was seen of it: a test in which nothing happens proves nothing.
struct Cluster {
    random: Random,
    now_ms: u64,
    keeper: Ledger,
    members: Vec<Member>,
    containers: u64,
    seen: BTreeMap<&'static str, u64>,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let member = |index: usize| Member {
            name: format!("node-{index}"),
            peer: PeerId(format!("peer-{index}")),
            leases: LeaseTable::new(1_000),
        };
        Self {
            random: Random(seed),
            now_ms: 0,
            keeper: Ledger::new(pools(), services()),
            members: (0..NODES).map(member).collect(),
            containers: 0,
            seen: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn blocks_of(&self, member: usize) -> Vec<IpNet> {
        self.keeper.held_by(&self.members[member].peer).map(|claim| claim.block).collect()
    }

    /// Near the pools more often than not, and sometimes anything at all.
    fn prefix(&mut self) -> IpNet {
        let random = &mut self.random;
        let v4 = |bits: u32, length: u8| IpNet::new(IpAddr::V4(bits.into()), length).unwrap();
        let v6 = |bits: u128, length: u8| IpNet::new(IpAddr::V6(bits.into()), length).unwrap();
        let noise = random.next();
        let low = u32::try_from(noise & 0xfff).unwrap();
        match random.below(10) {
            0..5 => v4(0x0af4_0000 | low, 26).trunc(),
            5 => v4(0x0af4_0000 | low, u8::try_from(random.below(33)).unwrap()),
            6 | 7 => v6(0xfd10_u128 << 112 | u128::from(noise & 0xff) << 64, 64),
            8 => v6(u128::from(noise) << 64, u8::try_from(random.below(129)).unwrap()),
            _ => v4(u32::try_from(noise >> 32).unwrap(), u8::try_from(random.below(33)).unwrap()).trunc(),
        }
    }

    fn topology(&mut self) -> Topology {
        let reaches = [Reach::SameLink, Reach::Routed, Reach::TunnelOnly, Reach::Unknown];
        let node = |index: usize, random: &mut Random| Node {
            name: format!("node-{index}"),
            reach: reaches[random.below(reaches.len())],
            addresses: vec![format!("192.168.1.{index}").parse().unwrap(), format!("fd00::{index}").parse().unwrap()],
            ..Node::default()
        };
        let mut nodes: Vec<Node> = (0..NODES).map(|index| node(index, &mut self.random)).collect();
        for (index, node) in nodes.iter_mut().enumerate() {
            node.blocks = self.blocks_of(index);
        }
        Topology {
            generation: 1,
            local: self.random.below(NODES),
            nodes,
            cluster_prefixes: pools().iter().map(|pool| pool.range).collect(),
            service_prefixes: services(),
        }
    }

    fn via(&mut self) -> Via {
        match self.random.below(5) {
            0 => Via::Local,
            1 => {
                let host = self.random.below(NODES + 1);
                let v4 = self.random.chance(50);
                let text = if v4 { format!("192.168.1.{host}") } else { format!("fd00::{host}") };
                Via::Direct(text.parse().unwrap())
            }
            2 => Via::Underlay,
            3 => Via::Tunnel(self.random.below(NODES + 1)),
            _ => Via::Reject,
        }
    }

    /// A made-up answer: mostly short ones, so that some of them pass the door.
    fn routes(&mut self, topology: &Topology) -> Vec<Route> {
        let mut routes = Vec::new();
        for _ in 0..self.random.below(4) {
            let known: Vec<IpNet> = topology.nodes.iter().flat_map(|node| node.blocks.clone()).collect();
            let to = if self.random.chance(70) { self.random.pick(&known).copied() } else { None };
            let to = match to {
                Some(to) => to,
                None => self.prefix(),
            };
            let via = self.via();
            let otherwise = if self.random.chance(30) { Some(self.via()) } else { None };
            routes.push(Route { to, via, otherwise });
        }
        routes
    }

    fn answer_routes(&mut self) {
        let topology = self.topology();
        let routes = self.routes(&topology);
        let Ok(admitted) = admit(&topology, routes, 1) else {
            self.count("routes refused");
            return;
        };
        self.count("routes admitted");
        let own = &topology.nodes[topology.local].blocks;
        let local = LocalRouting { gateways: BridgeGateways::of_blocks(own), ..LocalRouting::default() };
        let alive = |random: &mut Random| random.chance(50);
        let liveness = Liveness {
            direct: (0..NODES)
                .filter(|_| alive(&mut self.random))
                .map(|index| format!("192.168.1.{index}").parse().unwrap())
                .collect(),
            tunnel: (0..NODES).filter(|_| alive(&mut self.random)).map(|index| format!("node-{index}")).collect(),
        };
        let table = desired(&admitted, &topology, &liveness, &local);
        table.values().for_each(|route| check_route(route, &topology));
        for block in own {
            assert_eq!(table[block].via, KernelVia::Bridge, "own block {block}");
        }
        assert!(pools().iter().all(|pool| table.contains_key(&pool.range)));
    }

    fn answer_proposals(&mut self) {
        let member = self.random.below(NODES);
        let family = if self.random.chance(50) { Family::V4 } else { Family::V6 };
        let proposals: Vec<IpNet> = (0..self.random.below(6)).map(|_| self.prefix()).collect();
        let peer = self.members[member].peer.clone();
        let (admitted, refused) = self.keeper.admit_proposals(family, &peer, &proposals);
        if !refused.is_empty() {
            self.count("proposals refused");
        }
        // A faulty host would send everything: the keeper's door holds by itself.
        let wishes = if self.random.chance(50) { proposals } else { admitted };
        for block in wishes {
            let holder = self.members[member].name.clone();
            let request = ClaimRequest { block, holder, peer: peer.clone(), standing: Standing::Final };
            match self.keeper.decide(&request) {
                ClaimOutcome::Granted => self.count("blocks granted"),
                ClaimOutcome::HeldBy(_) => self.count("blocks held by others"),
                ClaimOutcome::Refused(_) => self.count("blocks refused"),
            }
        }
        self.check_blocks();
        let blocks = self.blocks_of(member);
        self.members[member].leases.set_blocks(blocks);
    }

    fn answer_pick(&mut self) {
        let member = self.random.below(NODES);
        let blocks = self.blocks_of(member);
        let Some(block) = self.random.pick(&blocks).copied() else {
            return;
        };
        let (answer, garbage) = (self.random.below(80), self.random.chance(20));
        let answer = if garbage { u32::MAX } else { u32::try_from(answer).unwrap() };
        let answer = self.random.chance(80).then_some(answer);
        let leases = &self.members[member].leases;
        let free = leases.free(&block.into(), 64, self.now_ms, None);
        let pick = leases.admit_pick(&block.into(), &free, answer, self.now_ms);
        if pick.violation.is_some() {
            self.count("picks refused");
        }
        let Some(address) = pick.address else {
            self.count("blocks exhausted");
            return;
        };
        assert!(is_assignable(&block, address), "{address} of {block}");
        let holders = self.members.iter().filter(|member| member.leases.holder(address).is_some()).count();
        assert_eq!(holders, 0, "{address} is in use");
        self.containers += 1;
        let key = AttachmentKey {
            network: "culvert".to_owned(),
            container_id: self.containers.to_string(),
            ifname: "eth0".to_owned(),
        };
        self.members[member].leases.take(address, &key, None).unwrap();
        self.count("addresses given");
    }

    fn answer_shaping(&mut self) {
        let random = &mut self.random;
        let mut rate = || {
            let (bits_per_second, burst) = (random.next() >> (random.next() % 64), random.next() >> 32);
            random.chance(80).then(|| Rate { bits_per_second, burst_bytes: u32::try_from(burst).unwrap() })
        };
        let mut limits = || Limits { ingress: rate(), egress: rate() };
        let asked = Shaping { total: limits(), tunnel: limits() };
        let bounds = Bounds { min_bits_per_second: 64_000, max_bits_per_second: 10_000_000_000, mtu_bytes: 1_500 };
        let admitted = bandwidth::admit(&asked, &bounds);
        let each = |shaping: &Shaping| [shaping.total, shaping.tunnel].map(|limits| [limits.ingress, limits.egress]);
        for (asked, admitted) in each(&asked).iter().flatten().zip(each(&admitted).iter().flatten()) {
            assert_eq!(asked.is_some(), admitted.is_some());
            let fits = |rate: &Rate| {
                (64_000..=10_000_000_000).contains(&rate.bits_per_second)
                    && (1_518..=bandwidth::MAX_BURST_BYTES).contains(&rate.burst_bytes)
            };
            assert!(admitted.iter().all(fits), "{asked:?} became {admitted:?}");
        }
        self.count("shapings admitted");
    }

    /// Pods end, and empty blocks are given back, so that the cluster never comes to rest.
    fn live_on(&mut self) {
        self.now_ms += 50;
        let member = self.random.below(NODES);
        let keys: Vec<AttachmentKey> = self.members[member].leases.held().map(|(_, key)| key.clone()).collect();
        if self.random.chance(22)
            && let Some(key) = self.random.pick(&keys)
        {
            self.members[member].leases.release(key, self.now_ms);
        }
        if self.random.chance(2) {
            self.give_back(member);
        }
    }

    fn give_back(&mut self, member: usize) {
        let blocks = self.blocks_of(member);
        let Some(block) = self.random.pick(&blocks).copied() else {
            return;
        };
        let keys: BTreeSet<AttachmentKey> = self.members[member]
            .leases
            .held()
            .filter(|(address, _)| block.contains(address))
            .map(|(_, key)| key.clone())
            .collect();
        for key in &keys {
            self.members[member].leases.release(key, self.now_ms);
        }
        assert!(self.keeper.release(&block, &self.members[member].peer.clone()));
        let blocks = self.blocks_of(member);
        self.members[member].leases.set_blocks(blocks);
        self.count("blocks given back");
    }

    fn check_blocks(&self) {
        let blocks: Vec<IpNet> = self.keeper.claims().map(|claim| claim.block).collect();
        for (index, block) in blocks.iter().enumerate() {
            assert!(pools().iter().any(|pool| pool.range.contains(block)), "{block} is outside the pools");
            assert!(!services().iter().any(|service| overlap(service, block)), "{block} is a service's");
            assert!(!blocks[..index].iter().any(|other| overlap(other, block)), "{block} overlaps");
        }
    }

    fn check_addresses(&self) {
        let mut holders: BTreeMap<IpAddr, &AttachmentKey> = BTreeMap::new();
        for member in &self.members {
            for (address, key) in member.leases.held() {
                assert_eq!(holders.insert(address, key), None, "{address} was given twice");
            }
        }
    }
}

fn check_route(route: &KernelRoute, topology: &Topology) {
    let to = route.to;
    assert!(topology.cluster_prefixes.iter().any(|cluster| cluster.contains(&to)), "{to} leaves the cluster");
    let holder = topology.holder_of(&to);
    match route.via {
        KernelVia::Bridge => assert_eq!(holder, Some(topology.local), "{to} on the bridge"),
        KernelVia::NextHop(next_hop) => {
            let holder = &topology.nodes[holder.unwrap()];
            assert_eq!(holder.reach, Reach::SameLink, "{to} by {next_hop}");
            assert!(holder.addresses.contains(&next_hop), "{to} by {next_hop}");
        }
        KernelVia::Tunnel => assert!(holder.is_some_and(|holder| holder != topology.local), "{to} in the tunnel"),
        KernelVia::Throw | KernelVia::Prohibit => {}
    }
    if route.via != KernelVia::Prohibit {
        assert!(!topology.service_prefixes.iter().any(|service| overlap(service, &to)), "{to} is a service's");
    }
}

#[test]
fn no_answer_of_a_random_policy_breaks_an_invariant() {
    let mut cluster = Cluster::new(0x6375_6c76_6572_7431);
    for answer in 0..ANSWERS {
        match cluster.random.below(4) {
            0 => cluster.answer_routes(),
            1 => cluster.answer_proposals(),
            2 => cluster.answer_pick(),
            _ => cluster.answer_shaping(),
        }
        cluster.live_on();
        if answer % 50 == 0 {
            cluster.check_addresses();
        }
    }
    cluster.check_addresses();
    println!("{:?}", cluster.seen);
    for (what, least) in [
        ("routes admitted", 1_000),
        ("routes refused", 1_000),
        ("proposals refused", 1_000),
        ("blocks granted", 1_000),
        ("blocks held by others", 1_000),
        ("blocks refused", 1_000),
        ("blocks given back", 100),
        ("addresses given", 1_000),
        ("picks refused", 1_000),
        ("shapings admitted", 1_000),
    ] {
        let seen = cluster.seen.get(what).copied().unwrap_or(0);
        assert!(seen >= least, "only {seen} {what}: the test has lost its teeth");
    }
}
