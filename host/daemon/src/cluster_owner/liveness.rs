//! Which ways to a peer work: its path through the mesh, its place on the link, its next hop.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_core::decision::Via;
use culvert_core::membership::PeerId;
use culvert_core::reach::{Connection, ReachEvent, candidates};
use culvert_core::route_plan::Liveness;
use culvert_kernel::Neighbour;
use culvert_mesh::PeerPath;
use ipnet::IpNet;
use tokio::time::Instant;

use super::{ClusterOwner, Done, PROBE_INTERVAL};
use crate::store::{Durability, Kind};

/// A probe's outcome.
pub(crate) struct Probed {
    node: String,
    address: IpAddr,
    reached: bool,
}

impl ClusterOwner {
    /// Notes how a peer is connected now.
    pub(super) fn note_path(&mut self, peer: &PeerId, path: Option<PeerPath>) {
        let connection = match &path {
            None => Connection::None,
            Some(PeerPath::Direct { .. }) => Connection::Direct,
            Some(PeerPath::Relayed { .. }) => Connection::Relayed,
        };
        match path {
            Some(path) => drop(self.paths.insert(peer.clone(), path)),
            None => drop(self.paths.remove(peer)),
        }
        let relayed = self.paths.values().filter(|path| matches!(path, PeerPath::Relayed { .. })).count();
        self.parts.metrics.members.set_connected("direct", (self.paths.len() - relayed) as u64);
        self.parts.metrics.members.set_connected("relayed", relayed as u64);
        if let Some(name) = self.directory.name_of(peer).map(str::to_owned) {
            self.observe_reach(&name, &ReachEvent::Connected(connection));
            // A peer that comes back may have moved: probe soon.
            self.work.next_probe = None;
        }
        self.look_after_probes();
        self.plan_soon();
    }

    fn observe_reach(&mut self, node: &str, event: &ReachEvent) {
        let reach = self.reach.entry(node.to_owned()).or_default();
        if !reach.observe(event) {
            return;
        }
        tracing::info!(node, ?event, reach = ?reach.reach(), "way to a node changed");
        if let Err(error) = self.parts.store.put(Kind::Reach, node, reach, Durability::Process) {
            tracing::error!(node, %error, "the way to a node could not be recorded");
        }
        self.plan_soon();
    }

    /// Keeps the candidates of every peer true and probes those that are due.
    pub(super) fn look_after_probes(&mut self) {
        let own: Vec<IpNet> = self.on_link.iter().filter_map(own_interface).collect();
        let others: Vec<(String, Vec<IpAddr>, u16, PeerId)> = self
            .directory
            .records()
            .filter(|record| record.peer != self.own)
            .map(|record| (record.name.clone(), candidates(&own, &record.addresses), record.port, record.peer.clone()))
            .collect();
        let due = self.work.next_probe.is_none_or(|next| next <= Instant::now());
        for (name, found, port, peer) in others {
            let known: BTreeSet<IpAddr> =
                self.reach.get(&name).map(|reach| reach.to_probe().collect()).unwrap_or_default();
            let fresh = found.iter().any(|address| !known.contains(address));
            self.observe_reach(&name, &ReachEvent::Candidates(found.clone()));
            if due || fresh {
                for address in found {
                    self.probe(&name, &peer, address, port);
                }
            }
        }
        if due {
            self.work.next_probe = Some(Instant::now() + PROBE_INTERVAL);
        }
    }

    fn probe(&mut self, node: &str, peer: &PeerId, address: IpAddr, port: u16) {
        if !self.work.probing.insert((node.to_owned(), address)) {
            return;
        }
        let (mesh, node, peer) = (self.parts.mesh.clone(), node.to_owned(), peer.clone());
        self.spawn_job(async move {
            let reached = mesh.probe_on_link(&peer, (address, port).into()).await;
            Done::Probed(Probed { node, address, reached })
        });
    }

    /// Takes a probe's outcome in.
    pub(super) fn on_probed(&mut self, probed: &Probed) {
        self.work.probing.remove(&(probed.node.clone(), probed.address));
        let event =
            if probed.reached { ReachEvent::Verified(probed.address) } else { ReachEvent::Failed(probed.address) };
        self.observe_reach(&probed.node, &event);
    }

    /// Asks the kernel whether the next hops in use still answer.
    pub(super) async fn look_after_next_hops(&mut self) {
        let mut failed = BTreeSet::new();
        for next_hop in self.next_hops() {
            match self.parts.kernel.neighbour_state(next_hop).await {
                Ok(Neighbour::Failed) => drop(failed.insert(next_hop)),
                Ok(Neighbour::Alive | Neighbour::Unknown) => {}
                Err(error) => tracing::warn!(%next_hop, %error, "cannot ask for a neighbour's state"),
            }
        }
        if failed != self.failed_next_hops {
            tracing::warn!(?failed, before = ?self.failed_next_hops, "next hops that do not answer changed");
            self.failed_next_hops = failed;
            self.plan_soon();
        }
    }

    fn next_hops(&self) -> BTreeSet<IpAddr> {
        let ways = self.admitted.routes().iter().flat_map(|route| [Some(route.via), route.otherwise]);
        ways.flatten()
            .filter_map(|via| match via {
                Via::Direct(next_hop) => Some(next_hop),
                Via::Local | Via::Underlay | Via::Tunnel(_) | Via::Reject => None,
            })
            .collect()
    }

    /// What works right now.
    pub(super) fn liveness(&self) -> Liveness {
        let verified = self.reach.values().flat_map(|reach| reach.verified().collect::<Vec<_>>());
        Liveness {
            direct: verified.filter(|address| !self.failed_next_hops.contains(address)).collect(),
            tunnel: self.ready_nodes(),
        }
    }

    /// The nodes that a path of the mesh leads to.
    pub(super) fn ready_nodes(&self) -> BTreeSet<String> {
        self.paths.keys().filter_map(|peer| self.directory.name_of(peer).map(str::to_owned)).collect()
    }
}

fn own_interface(on_link: &culvert_kernel::OnLink) -> Option<IpNet> {
    IpNet::new(on_link.address, on_link.subnet.prefix_len()).ok()
}
