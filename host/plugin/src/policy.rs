//! The three policies as the daemon calls them: core's words in, core's words or a fault out.
//!
//! All calls block until the guest answers or its deadline is over. `plan`, `propose` and `reclaim` run in
//! a fresh instance each, so a policy cannot remember; `pick` and `shape`, which a pod waits for, use a
//! warm one.

use std::time::Duration;

use culvert_core::address::{Family, IpNet};
use culvert_core::bandwidth::Shaping;
use culvert_core::claim::Space;
use culvert_core::decision::{Route, route_limit};
use culvert_core::policy::{PickRequest, ShapeRequest};
use culvert_core::topology::{Node, Topology};

use crate::fault::Fault;
use crate::instance::{Budget, Instance, Program, TEXT_TRANSFER_BYTES};
use crate::unit::{Description, Digest, Kind, Origin};
use crate::v0_1::to_guest::{self, Keys};
use crate::v0_1::{World, bandwidth, from_guest, ipam, route, types};

/// Wishes of a `propose` that the host reads. Beyond the best few the host asks again, with newer claims.
pub const PROPOSALS: usize = 64;

/// What is known of a loaded policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The unit's name.
    pub unit: String,
    /// Where the unit came from.
    pub origin: Origin,
    /// What it decides.
    pub kind: Kind,
    /// The identity of component and settings.
    pub digest: Digest,
    /// What it says of itself.
    pub description: Description,
}

/// What the three policies have in common.
pub trait Policy: Send + Sync + 'static {
    /// What is known of it.
    fn card(&self) -> &Card;

    /// Lines of its log that were dropped since it was loaded.
    fn log_lines_dropped(&self) -> u64;

    /// What it says of itself.
    fn description(&self) -> &Description {
        &self.card().description
    }

    /// The identity of component and settings.
    fn digest(&self) -> Digest {
        self.card().digest
    }

    /// What it decides.
    fn kind(&self) -> Kind {
        self.card().kind
    }
}

/// A program with its card.
pub(crate) struct Loaded<W: World> {
    pub program: Program<W>,
    pub card: Card,
    pub keys: Keys,
}

/// Decides the routes of a node.
pub struct RoutePolicy(pub(crate) Loaded<route::RouterPolicy>);
/// Decides blocks and addresses.
pub struct IpamPolicy(pub(crate) Loaded<ipam::IpamPolicy>);
/// Decides rates.
pub struct BandwidthPolicy(pub(crate) Loaded<bandwidth::BandwidthPolicy>);

macro_rules! policy {
    ($name:ident) => {
        impl Policy for $name {
            fn card(&self) -> &Card {
                &self.0.card
            }

            fn log_lines_dropped(&self) -> u64 {
                self.0.program.log_lines_dropped()
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.debug_tuple(stringify!($name)).field(&self.0.card).finish()
            }
        }
    };
}

policy!(RoutePolicy);
policy!(IpamPolicy);
policy!(BandwidthPolicy);

impl RoutePolicy {
    /// The routes of `topology.local`. They still have to pass `decision::admit`.
    ///
    /// # Errors
    /// Why there is no answer; the routes in force stay.
    pub fn plan(&self, topology: &Topology) -> Result<Vec<Route>, Fault> {
        use route::exports::culvert::policy::router;

        let limit = route_limit(topology.nodes.len());
        let budget = Budget::for_list::<router::Route>(self.0.program.limits().plan, limit);
        let shown = self.0.keys.topology(topology);
        let routes = self
            .0
            .program
            .fresh()?
            .call(budget, |world, store| world.culvert_policy_router().call_plan(store, &shown))?;
        from_guest::routes(&routes).map_err(Fault::Invalid)
    }
}

impl IpamPolicy {
    /// Blocks `node` would like next, best first. **Bounds** at most [`PROPOSALS`].
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn propose(&self, node: &Node, family: Family, space: &Space) -> Result<Vec<IpNet>, Fault> {
        let budget = Budget::for_list::<types::Prefix>(self.0.program.limits().plan, PROPOSALS);
        let (node, space) = (self.0.keys.node(node), to_guest::space(space));
        let blocks = self.0.program.fresh()?.call(budget, |world, store| {
            world.culvert_policy_ipam().call_propose(store, &node, to_guest::family(family), &space)
        })?;
        from_guest::blocks_of(family, &blocks, PROPOSALS).map_err(Fault::Invalid)
    }

    /// A position in `request.free`, or none to leave the choice to the host.
    ///
    /// # Errors
    /// Why there is no answer; the host then takes the longest unused address.
    pub fn pick(&self, request: &PickRequest) -> Result<Option<u32>, Fault> {
        let time = self.0.program.limits().quick;
        self.0.program.on_warm(|instance| self.pick_on(instance, request, time))
    }

    pub(crate) fn pick_on(
        &self,
        instance: &mut Instance<ipam::IpamPolicy>,
        request: &PickRequest,
        time: Duration,
    ) -> Result<Option<u32>, Fault> {
        let shown = self.0.keys.pick_request(request);
        let budget = Budget { time, transfer_bytes: TEXT_TRANSFER_BYTES };
        let index = instance.call(budget, |world, store| world.culvert_policy_ipam().call_pick(store, &shown))?;
        from_guest::position(index, request.free.len()).map_err(Fault::Invalid)
    }

    /// Claims that may be given back. **Bounds** at most as many as there are claims.
    ///
    /// # Errors
    /// Why there is no answer; nothing is given back then.
    pub fn reclaim(&self, topology: &Topology, space: &Space) -> Result<Vec<IpNet>, Fault> {
        let limit = space.claims.len();
        let budget = Budget::for_list::<types::Prefix>(self.0.program.limits().plan, limit);
        let (topology, shown) = (self.0.keys.topology(topology), to_guest::space(space));
        let blocks = self
            .0
            .program
            .fresh()?
            .call(budget, |world, store| world.culvert_policy_ipam().call_reclaim(store, &topology, &shown))?;
        if blocks.len() > limit {
            let text = format!("{} blocks to give back, there are {limit} claims", blocks.len());
            return Err(Fault::Invalid(text));
        }
        from_guest::blocks(&blocks, limit).map_err(Fault::Invalid)
    }
}

impl BandwidthPolicy {
    /// The rates of a pod, before the node's bounds.
    ///
    /// # Errors
    /// Why there is no answer; the rates in force stay, and a new pod gets what it requested.
    pub fn shape(&self, request: &ShapeRequest) -> Result<Shaping, Fault> {
        let time = self.0.program.limits().quick;
        self.0.program.on_warm(|instance| self.shape_on(instance, request, time))
    }

    pub(crate) fn shape_on(
        &self,
        instance: &mut Instance<bandwidth::BandwidthPolicy>,
        request: &ShapeRequest,
        time: Duration,
    ) -> Result<Shaping, Fault> {
        let shown = self.0.keys.pod(request);
        let budget = Budget { time, transfer_bytes: TEXT_TRANSFER_BYTES };
        let shaping =
            instance.call(budget, |world, store| world.culvert_policy_bandwidth().call_shape(store, &shown))?;
        from_guest::shaping(shaping).map_err(Fault::Invalid)
    }
}
