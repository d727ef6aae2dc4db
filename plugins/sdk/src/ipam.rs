//! IPAM policies: which blocks a node would like, which free address a pod gets, which blocks may go back.

mod pool;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::description::Description;
use crate::error::PolicyError;
use crate::labels::Labels;
use crate::topology::{Family, Node, Topology};

pub use pool::{Pool, Taken};

/// **Bounds** blocks that the host reads of one answer.
pub const MOST_WISHES: usize = 64;

/// A block somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The block.
    pub block: IpNet,
    /// The holder's node name.
    pub holder: String,
    /// Addresses in use inside the block, as last reported.
    pub in_use: u32,
}

/// The address space and who holds which part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// What may be handed out.
    pub pools: Vec<Pool>,
    /// Sorted by address.
    pub claims: Vec<Claim>,
}

impl Space {
    /// The pools of one family, in the order of the configuration.
    pub fn pools_of(&self, family: Family) -> impl Iterator<Item = &Pool> {
        self.pools.iter().filter(move |pool| pool.family() == family)
    }

    /// Which slots of `pool` are claimed by anybody.
    #[must_use]
    pub fn taken_in(&self, pool: &Pool) -> Taken {
        Taken::of(pool, self.claims.iter().map(|claim| &claim.block))
    }
}

/// What [`IpamPolicy::pick`] is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PickRequest {
    /// The pod's namespace; "" outside Kubernetes.
    pub pod_namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The labels that were asked for and granted.
    pub labels: Labels,
    /// The annotations that were asked for and granted.
    pub annotations: Labels,
    /// Free addresses the host would accept, ascending. **Bounds** at most 64.
    pub free: Vec<IpAddr>,
    /// The address asked for in an annotation, or held by this pod before.
    pub wanted: Option<IpAddr>,
}

impl PickRequest {
    /// The position of the wanted address, if it is free.
    #[must_use]
    pub fn wanted_position(&self) -> Option<usize> {
        let wanted = self.wanted?;
        self.free.iter().position(|free| *free == wanted)
    }
}

/// Chooses addresses. It never owns them: uniqueness is the host's invariant, and an answer is a wish.
pub trait IpamPolicy: Sized + 'static {
    /// Reads the deployment's settings, JSON text, "{}" when there are none.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] refuses the deployment.
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError>;

    /// Blocks of one family that `node` would like next, best first: a pure function of its arguments.
    ///
    /// **Bounds** 100 ms; the host reads [`MOST_WISHES`].
    ///
    /// # Errors
    /// The node claims nothing and keeps the blocks it holds.
    fn propose(&self, node: &Node, family: Family, space: &Space) -> Result<Vec<IpNet>, PolicyError>;

    /// A position in `request.free`, or none to leave the choice to the host (the longest unused address). Unless
    /// overridden: the wanted address if it is free.
    ///
    /// **Bounds** 2 ms: it is on the path of every pod start.
    ///
    /// # Errors
    /// The host chooses.
    fn pick(&self, request: &PickRequest) -> Result<Option<usize>, PolicyError> {
        Ok(request.wanted_position())
    }

    /// Claims that may be given back. Unless overridden: none.
    ///
    /// **Bounds** 100 ms.
    ///
    /// # Errors
    /// Nothing is given back.
    fn reclaim(&self, _topology: &Topology, _space: &Space) -> Result<Vec<IpNet>, PolicyError> {
        Ok(Vec::new())
    }
}
