//! How a claim reaches the keeper: decided here when this node is the keeper, asked through the mesh otherwise.

use async_trait::async_trait;
use culvert_cluster::{ClaimError, Keeper};
use culvert_core::claim::{ClaimOutcome, ClaimRequest};
use culvert_core::membership::PeerId;
use culvert_mesh::{Answer, Ask, MeshHandle};
use ipnet::IpNet;
use tokio::sync::watch;

/// The keeper, seen from this node.
pub struct KeeperLink {
    mesh: MeshHandle,
    own: PeerId,
    /// Follows the cluster owner's knowledge; `None` until the keeper showed its identity.
    keeper: watch::Receiver<Option<PeerId>>,
}

impl KeeperLink {
    /// A link to whoever `keeper` names.
    #[must_use]
    pub fn new(mesh: MeshHandle, own: PeerId, keeper: watch::Receiver<Option<PeerId>>) -> Self {
        Self { mesh, own, keeper }
    }

    async fn ask(&self, block: IpNet, ask: Ask) -> Result<Answer, ClaimError> {
        let unreachable = |reason: String| ClaimError::Unreachable { block, reason };
        let keeper = self.keeper.borrow().clone();
        let keeper = keeper.ok_or_else(|| unreachable("the keeper has not been reached yet".to_owned()))?;
        self.mesh.ask(&keeper, ask).await.map_err(|error| unreachable(error.to_string()))
    }
}

#[async_trait]
impl Keeper for KeeperLink {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, ClaimError> {
        if self.keeper.borrow().as_ref() == Some(&self.own) {
            // The owner's ledger is the keeper's: it decides when it takes the grant in.
            return Ok(ClaimOutcome::Granted);
        }
        let (block, standing) = (request.block, request.standing);
        match self.ask(block, Ask::Claim { block, standing }).await? {
            Answer::Claimed(_) => Ok(ClaimOutcome::Granted),
            Answer::Held(claim) => Ok(ClaimOutcome::HeldBy(claim)),
            Answer::Refused { reason } => Err(ClaimError::Unreachable { block, reason }),
            other @ (Answer::Registered(_)
            | Answer::Released
            | Answer::Telling { .. }
            | Answer::Claims { .. }
            | Answer::Unsupported { .. }) => {
                Err(ClaimError::Unreachable { block, reason: format!("the keeper answered something else: {other:?}") })
            }
        }
    }

    async fn release(&self, block: IpNet) -> Result<(), ClaimError> {
        if self.keeper.borrow().as_ref() == Some(&self.own) {
            return Ok(());
        }
        let answer = self.ask(block, Ask::Release { block }).await?;
        if answer == Answer::Released {
            return Ok(());
        }
        Err(ClaimError::Unreachable { block, reason: format!("the keeper does not take it back: {answer:?}") })
    }
}
