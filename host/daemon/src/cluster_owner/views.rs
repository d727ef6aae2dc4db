//! What operators see of this owner's state.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use culvert_core::claim::{HeldBlock, Standing};
use culvert_core::decision::{Route, Via};
use culvert_core::membership::NodeRecord;
use culvert_core::path::Endpoint;
use culvert_core::plan::{KernelRoute, KernelVia};
use culvert_core::topology::{Reach, SiteKind, Topology};
use culvert_mesh::{DatagramStatus, PeerPath};
use ipnet::IpNet;

use super::{ClusterOwner, ClusterStatus};
use crate::view;

impl ClusterOwner {
    pub(super) fn view_status(&self) -> ClusterStatus {
        let mut problems = Vec::new();
        if let Some(refusal) = &self.refusal {
            problems.push(format!("routes: {refusal}"));
        }
        if let Some(refusal) = &self.work.registration_refusal {
            problems.push(format!("membership: {refusal}"));
        }
        for (block, winner) in self.held.lost() {
            problems.push(format!("block {block} was lost to {}", winner.unwrap_or("nobody")));
        }
        if self.keeper.as_ref().is_none_or(|keeper| *keeper != self.own && !self.paths.contains_key(keeper)) {
            problems.push("the keeper is not connected: new blocks and names wait".to_owned());
        }
        ClusterStatus {
            blocks: self
                .held
                .iter()
                .filter(|(_, held)| matches!(held, HeldBlock::Held(_)))
                .map(|(block, _)| *block)
                .collect(),
            members: self.directory.records().count(),
            connected: self.paths.keys().filter(|peer| self.directory.name_of(peer).is_some()).count(),
            generation: self.admitted.generation(),
            problems,
        }
    }

    pub(super) fn view_peers(&self) -> Vec<view::Peer> {
        let others = self.directory.records().filter(|record| record.peer != self.own);
        let statuses = self.parts.mesh.peers();
        others.map(|record| self.view_peer(record, &statuses)).collect()
    }

    fn view_peer(&self, record: &NodeRecord, statuses: &[culvert_mesh::PeerStatus]) -> view::Peer {
        let status = statuses.iter().find(|status| status.peer == record.peer);
        let (path, through) = path_words(self.paths.get(&record.peer), |relay| self.name_of_peer(relay));
        let reach = self.reach.get(&record.name);
        view::Peer {
            node: record.name.clone(),
            peer_id: record.peer.to_string(),
            site_kind: site_word(record.site_kind).to_owned(),
            zone: record.zone.clone(),
            blocks: self.ledger.held_by(&record.peer).map(|claim| claim.block).collect(),
            path,
            through,
            rtt_us: microseconds(status.and_then(|status| status.round_trip)),
            datagrams: status
                .and_then(|status| status.datagrams.as_ref())
                .map(|datagrams| view_datagrams(datagrams, |relay| self.name_of_peer(relay))),
            reach: reach_word(reach.map_or(Reach::Unknown, |reach| reach.reach())).to_owned(),
            on_link: reach.map(|reach| reach.verified().collect()).unwrap_or_default(),
            refused_packets: status.map_or(0, |status| status.refused_packets),
        }
    }

    fn name_of_peer(&self, peer: &culvert_core::membership::PeerId) -> String {
        self.directory.name_of(peer).map_or_else(|| peer.to_string(), str::to_owned)
    }

    pub(super) async fn view_routes(&mut self) -> view::Routes {
        let installed: Vec<KernelRoute> =
            self.parts.kernel.observe().await.map(|observed| observed.routes).unwrap_or_default();
        let desired = self.desired().unwrap_or_default();
        let decided: BTreeMap<IpNet, &Route> = self.admitted.routes().iter().map(|route| (route.to, route)).collect();
        let topology = self.topology.as_ref();
        let routes = desired.values().map(|route| {
            let decision = decided.get(&route.to);
            view::Route {
                to: route.to.to_string(),
                node: topology
                    .and_then(|topology| topology.nodes.get(topology.holder_of(&route.to)?))
                    .map_or_else(String::new, |node| node.name.clone()),
                decision: decision.map_or_else(String::new, |decided| via_words(decided.via, topology)),
                otherwise: decision
                    .and_then(|decided| decided.otherwise)
                    .map_or_else(String::new, |via| via_words(via, topology)),
                kernel: kernel_words(route),
                installed: installed.contains(route),
            }
        });
        view::Routes {
            schema: view::SCHEMA,
            generation: self.admitted.generation(),
            decided_by: self.decided_by.clone(),
            routes: routes.collect(),
            refusal: self.refusal.clone(),
        }
    }

    pub(super) fn view_blocks(&self) -> (Vec<String>, Vec<view::Block>) {
        let pools = self.facts.pools.iter().map(|pool| format!("{} in /{}", pool.range, pool.block_length)).collect();
        let claims = self.ledger.claims().map(|claim| view::Block {
            block: claim.block.to_string(),
            holder: claim.holder,
            standing: match claim.standing {
                Standing::Final => "final",
                Standing::Provisional => "provisional",
            }
            .to_owned(),
            in_use: None,
        });
        (pools, claims.collect())
    }

    /// How packets from this node reach an address, and why.
    pub(super) async fn explain(&mut self, to: IpAddr) -> Result<view::Explanation, String> {
        let topology = self.topology.as_ref().ok_or("no topology yet: the node has not planned its routes")?;
        let address = IpNet::from(to);
        let holder = topology.holder_of(&address).and_then(|index| topology.nodes.get(index));
        let holder = holder.ok_or_else(|| format!("no node holds a block with {to}: is it a pod's address?"))?.clone();
        let block = holder.blocks.iter().filter(|block| block.contains(&to)).max_by_key(|block| block.prefix_len());
        let block = *block.ok_or_else(|| format!("no block contains {to}"))?;
        let route = self.admitted.routes().iter().filter(|route| route.to.contains(&to));
        let route = route.max_by_key(|route| route.to.prefix_len()).copied();
        let decision =
            route.map_or_else(|| "none: the host's own rule".to_owned(), |route| via_words(route.via, Some(topology)));
        let desired = self.desired().unwrap_or_default();
        let kernel = desired.values().filter(|route| route.to.contains(&to)).max_by_key(|route| route.to.prefix_len());
        let kernel = kernel.copied();
        let installed = match self.parts.kernel.observe().await {
            Ok(observed) => kernel.is_some_and(|kernel| observed.routes.contains(&kernel)),
            Err(error) => return Err(format!("cannot read the kernel's routes: {error}")),
        };
        let peer = self.directory.peer_of(&holder.name);
        let (path, through) = path_words(peer.and_then(|peer| self.paths.get(peer)), |relay| self.name_of_peer(relay));
        let path = if through.is_empty() { path } else { format!("{path} by {through}") };
        let kernel_text = kernel.as_ref().map_or_else(|| "none".to_owned(), kernel_words);
        let inputs = BTreeMap::from([
            ("reach".to_owned(), reach_word(holder.reach).to_owned()),
            ("ready".to_owned(), holder.ready.to_string()),
            ("zone".to_owned(), holder.zone.clone()),
            ("site kind".to_owned(), site_word(holder.site_kind).to_owned()),
            ("addresses".to_owned(), holder.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
            ("topology generation".to_owned(), self.admitted.generation().to_string()),
        ]);
        let steps = vec![
            format!("{to} lies in block {block}, held by node {}", holder.name),
            format!("the route policy {} decided: {decision}", self.decided_by),
            format!("the kernel route in force is: {kernel_text}{}", if installed { "" } else { " (not installed)" }),
            format!("the tunnel's path to {} is: {path}", holder.name),
        ];
        Ok(view::Explanation {
            schema: view::SCHEMA,
            from: String::new(),
            to: to.to_string(),
            node: holder.name,
            block: block.to_string(),
            decided_by: self.decided_by.clone(),
            decision,
            kernel: kernel_text,
            path,
            inputs,
            steps,
        })
    }
}

fn microseconds(duration: Option<Duration>) -> Option<u64> {
    u64::try_from(duration?.as_micros()).ok()
}

fn view_datagrams(
    status: &DatagramStatus,
    name_of: impl Fn(&culvert_core::membership::PeerId) -> String,
) -> view::Datagrams {
    let (kind, to) = match &status.endpoint {
        Endpoint::Direct(remote) => ("direct", remote.to_string()),
        Endpoint::Relayed { relay, .. } => ("relayed", name_of(relay)),
    };
    view::Datagrams {
        kind: kind.to_owned(),
        to,
        rtt_us: microseconds(status.round_trip),
        loss_permille: status.loss_permille,
        mtu_bytes: status.mtu_bytes,
    }
}

fn path_words(
    path: Option<&PeerPath>,
    name_of: impl Fn(&culvert_core::membership::PeerId) -> String,
) -> (String, String) {
    match path {
        None => ("none".to_owned(), String::new()),
        Some(PeerPath::Direct { remote }) => ("direct".to_owned(), remote.to_string()),
        Some(PeerPath::Relayed { relay }) => ("relayed".to_owned(), name_of(relay)),
    }
}

fn via_words(via: Via, topology: Option<&Topology>) -> String {
    match via {
        Via::Local => "local".to_owned(),
        Via::Direct(next_hop) => format!("direct via {next_hop}"),
        Via::Underlay => "underlay".to_owned(),
        Via::Tunnel(index) => {
            let node = topology.and_then(|topology| topology.nodes.get(index));
            format!("tunnel to {}", node.map_or("an unknown node", |node| node.name.as_str()))
        }
        Via::Reject => "reject".to_owned(),
    }
}

/// One word for a kind of kernel route.
pub(super) fn kernel_word(via: KernelVia) -> &'static str {
    match via {
        KernelVia::Bridge => "bridge",
        KernelVia::NextHop(_) => "next-hop",
        KernelVia::Tunnel => "tunnel",
        KernelVia::Throw => "throw",
        KernelVia::Prohibit => "prohibit",
    }
}

fn kernel_words(route: &KernelRoute) -> String {
    let via = match route.via {
        KernelVia::NextHop(next_hop) => format!("via {next_hop}"),
        KernelVia::Bridge | KernelVia::Tunnel | KernelVia::Throw | KernelVia::Prohibit => {
            kernel_word(route.via).to_owned()
        }
    };
    let source = route.source.map(|source| format!(" src {source}")).unwrap_or_default();
    let mtu = route.mtu_bytes.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
    format!("{} {via}{source}{mtu}", route.to)
}

fn reach_word(reach: Reach) -> &'static str {
    match reach {
        Reach::SameLink => "same-link",
        Reach::Routed => "routed",
        Reach::TunnelOnly => "tunnel-only",
        Reach::Unknown => "unknown",
    }
}

fn site_word(site_kind: SiteKind) -> &'static str {
    match site_kind {
        SiteKind::Cloud => "cloud",
        SiteKind::Edge => "edge",
    }
}
