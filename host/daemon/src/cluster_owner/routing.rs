//! From what is known to what the kernel and the packet threads use.
//!
//! ```text
//! topology ──plugin (a job)──> answer ──admit──> routes in force ──> tunnel table, kernel plan
//! ```
//! A failing plugin or a refused answer leaves everything as it is.

use std::sync::Arc;

use culvert_core::decision::AdmittedRoutes;
use culvert_core::membership::View;
use culvert_core::plan::KernelRoute;
use culvert_core::route_plan::{self, BridgeGateways, LocalRouting};
use culvert_core::topology::Topology;
use culvert_core::tunnel_table::TunnelTable;
use culvert_kernel::{NodeSpec, Observed};
use culvert_plugin::{Kind, SlotError};
use ipnet::IpNet;
use std::collections::BTreeMap;

use super::{ClusterOwner, Done};
use crate::attachments::{Bridge, Command as AttachmentCommand};
use crate::node_spec::node_spec;

/// What a planning job brought back.
pub(crate) struct Planned {
    generation: u64,
    decided_by: String,
    answer: Result<AdmittedRoutes, SlotError>,
}

/// The longest time between two questions to a policy that fails.
const LONGEST_RETRY: std::time::Duration = std::time::Duration::from_secs(60);

impl ClusterOwner {
    /// Plans when something changed since the last plan, or brings the kernel back to it.
    pub(super) async fn on_plan_due(&mut self) {
        self.work.plan_due = None;
        if std::mem::take(&mut self.work.reconcile) {
            self.look_at_kernel().await;
        }
        if self.work.planning {
            // The job in flight answers an older question; ask again when it is back.
            self.work.replan = true;
            return;
        }
        let Some(topology) = self.current_topology() else {
            return;
        };
        let changed = self.topology.as_ref().is_none_or(|before| !same_but_generation(before, &topology));
        if std::mem::take(&mut self.work.replan) || changed {
            self.spawn_plan(topology);
        } else {
            self.install().await;
        }
    }

    fn current_topology(&self) -> Option<Topology> {
        let view = View {
            local: &self.parts.config.node.name,
            ready: &self.ready_nodes(),
            reach: &self.reach,
            ledger: &self.ledger,
            generation: self.generation + 1,
        };
        self.directory.topology(&view)
    }

    fn spawn_plan(&mut self, topology: Topology) {
        self.work.planning = true;
        self.generation = topology.generation;
        self.topology = Some(topology.clone());
        self.parts.live.send_replace(self.topology.clone());
        let policies = Arc::clone(&self.parts.policies);
        let generation = topology.generation;
        self.spawn_job(async move {
            let planned = tokio::task::spawn_blocking(move || {
                let answer = policies.plan(&topology);
                Planned { generation, decided_by: policies.decided_by(Kind::Route), answer }
            });
            // A panic inside a plugin call is a defect of the host; it counts as no answer.
            let empty = |_| Planned { generation, decided_by: String::new(), answer: Err(SlotError::Empty) };
            Done::Planned(planned.await.unwrap_or_else(empty))
        });
    }

    /// Puts an admitted answer into force, or keeps what is and asks again later.
    pub(super) async fn on_planned(&mut self, planned: Planned) {
        self.work.planning = false;
        let Planned { generation, decided_by, answer } = planned;
        match answer {
            Ok(admitted) => {
                self.admitted = admitted;
                self.decided_by = decided_by;
                self.refusal = None;
                self.work.failed_plans = 0;
                self.parts.metrics.routes.set_topology_generation(generation);
                self.install().await;
            }
            Err(error) => {
                tracing::error!(%error, "no routes from the policy; those in force stay");
                self.refusal = Some(error.to_string());
                self.retry_plan(&error);
            }
        }
        if self.work.replan {
            self.plan_soon();
        }
    }

    /// At once when another generation was put back; else later and later, so that a failing policy is
    /// taken back after a few tries, or costs next to nothing when there is none to put back.
    fn retry_plan(&mut self, error: &SlotError) {
        self.work.replan = true;
        if matches!(error, SlotError::Failed { back_to: Some(_), .. }) {
            return;
        }
        let delay = super::TICK.saturating_mul(1 << self.work.failed_plans.min(6)).min(LONGEST_RETRY);
        self.work.failed_plans += 1;
        self.work.plan_due = Some(tokio::time::Instant::now() + delay);
    }

    /// Brings tunnel table and kernel to the routes in force under the present liveness.
    async fn install(&mut self) {
        let Some(desired) = self.desired() else { return };
        if let Some(topology) = &self.topology {
            self.parts.table.store(Arc::new(TunnelTable::build(topology, &self.admitted, &self.directory)));
        }
        let observed = match self.parts.kernel.observe().await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::error!(%error, "cannot read the kernel's routes; tried again");
                self.look_soon();
                return;
            }
        };
        let plan = route_plan::diff(&observed.routes, &desired);
        if plan.steps.is_empty() {
            return;
        }
        let steps = plan.steps.len();
        match self.parts.kernel.apply(&plan, None).await {
            Ok(()) => {
                self.parts.metrics.routes.changes.inc_by(steps as u64);
                self.parts.metrics.kernel.planned("applied");
                tracing::info!(steps, generation = self.generation, policy = self.decided_by, "routes changed");
            }
            Err(error) => {
                self.parts.metrics.kernel.planned("undone");
                tracing::error!(%error, "routes could not be changed; the earlier ones stay, tried again");
                self.work.reconcile = true;
                self.work.plan_due = Some(tokio::time::Instant::now() + super::TICK);
            }
        }
        self.count_routes(&desired);
    }

    fn count_routes(&self, desired: &BTreeMap<IpNet, KernelRoute>) {
        let mut counts: BTreeMap<&'static str, u64> =
            ["bridge", "next-hop", "tunnel", "throw", "prohibit"].into_iter().map(|via| (via, 0)).collect();
        for route in desired.values() {
            *counts.entry(super::views::kernel_word(route.via)).or_default() += 1;
        }
        for (via, count) in counts {
            self.parts.metrics.routes.set_installed(via, count);
        }
    }

    /// The kernel routes that should be there; `None` before the first admitted answer.
    pub(super) fn desired(&self) -> Option<BTreeMap<IpNet, KernelRoute>> {
        if self.admitted.generation() == 0 {
            return None;
        }
        let topology = self.topology.as_ref()?;
        let blocks: Vec<IpNet> = self.held.iter().map(|(block, _)| *block).collect();
        let local = LocalRouting {
            gateways: BridgeGateways::of_blocks(&blocks),
            tunnel_mtu_bytes: Some(self.parts.config.network.tunnel_mtu_bytes),
            stranded: self.stranded.clone(),
        };
        Some(route_plan::desired(&self.admitted, topology, &self.liveness(), &local))
    }

    /// Looks at what the kernel holds after somebody changed something, and repairs what is ours.
    async fn look_at_kernel(&mut self) {
        let observed = match self.parts.kernel.observe().await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::error!(%error, "cannot look at the kernel's state");
                return;
            }
        };
        if std::mem::take(&mut self.work.ensure) || !self.node_stands(&observed) {
            self.ensure_node().await;
        }
        if observed.on_link != self.on_link {
            tracing::info!(on_link = ?observed.on_link, "own addresses changed");
            self.on_link = observed.on_link;
            self.publish_record();
            self.look_after_probes();
        }
    }

    /// Whether bridge and TUN are up and the bridge has its gateways.
    fn node_stands(&self, observed: &Observed) -> bool {
        let network = &self.parts.config.network;
        let link = |name: &str| observed.links.iter().find(|link| link.name == name && link.up);
        let spec = self.node_spec();
        let gateways =
            |bridge: &culvert_kernel::Link| spec.gateways.iter().all(|gateway| bridge.addresses.contains(gateway));
        link(&network.bridge).is_some_and(gateways) && link(&network.tun).is_some()
    }

    fn node_spec(&self) -> NodeSpec {
        node_spec(&self.parts.config, self.held.iter().map(|(block, _)| *block), &self.facts.cluster_prefixes())
    }

    /// Makes bridge, TUN, addresses, rules and firewall what they should be.
    pub(super) async fn ensure_node(&mut self) {
        let spec = self.node_spec();
        match self.parts.kernel.ensure_node(&spec).await {
            Ok(links) => {
                self.parts.attachments.set_bridge(Bridge { index: links.bridge_index, mac: links.bridge_mac }).await;
                // Whoever took the rules may have taken the elements with them.
                self.parts.attachments.send(AttachmentCommand::SetElements).await;
            }
            Err(error) => {
                tracing::error!(%error, "the node's interfaces could not be set up; tried again on the next change")
            }
        }
    }
}

fn same_but_generation(left: &Topology, right: &Topology) -> bool {
    let same_head = left.local == right.local && left.nodes == right.nodes;
    same_head && left.cluster_prefixes == right.cluster_prefixes && left.service_prefixes == right.service_prefixes
}
