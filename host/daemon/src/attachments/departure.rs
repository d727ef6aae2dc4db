//! Attachments that go: many at a time, each answered when the kernel reports its links gone.

use std::collections::BTreeMap;

use culvert_core::attachment::{Attachment, AttachmentKey, AttachmentState, DelDecision, on_del};
use culvert_core::attachment_plan::plan_del;
use culvert_core::host_port::PortTable;
use culvert_core::plan::{Plan, Step};
use culvert_kernel::KernelError;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{AttachmentError, AttachmentsOwner, Reply, answer};

/// What is under way.
#[derive(Default)]
pub(super) struct Departures {
    removals: JoinSet<Departed>,
    waiting: BTreeMap<AttachmentKey, Vec<Reply<()>>>,
}

/// The links of an attachment are gone, or could not be removed.
pub(super) struct Departed {
    key: AttachmentKey,
    result: Result<(), KernelError>,
}

impl Departures {
    /// The next that ends. **Cancel safety** nothing is lost. Never ends while nothing is under way.
    pub(super) async fn next(&mut self) -> Departed {
        loop {
            match self.removals.join_next().await {
                Some(Ok(departed)) => return departed,
                // A panic of a removal is a defect; its attachment stays "deleting" and is tried again.
                Some(Err(error)) => tracing::error!(%error, "a removal was lost"),
                None => std::future::pending().await,
            }
        }
    }
}

impl AttachmentsOwner {
    /// Begins to detach from own records alone; `reply` hears when nothing is left.
    pub(super) async fn begin_departure(&mut self, key: &AttachmentKey, reply: Reply<()>) {
        if let Some(waiting) = self.departures.waiting.get_mut(key) {
            waiting.push(reply);
            return;
        }
        let Some(attachment) = self.attachments.get(key) else { return answer(reply, Ok(())) };
        if on_del(Some(attachment)) == DelDecision::Nothing {
            return answer(reply, Ok(()));
        }
        let (rest, links) = split(plan_del(attachment, &PortTable::of(self.attachments.values())));
        let deleting = Attachment { state: AttachmentState::Deleting, ..attachment.clone() };
        // A full disk must not keep a pod's interface alive: the links go in any case.
        if let Err(error) = self.record(&deleting) {
            tracing::warn!(attachment = %key, %error, "the deletion could not be journalled; going on");
        }
        if !rest.steps.is_empty()
            && let Err(error) = self.parts.kernel.apply(&rest, None).await
        {
            return answer(reply, Err(error.into()));
        }
        self.departures.waiting.insert(key.clone(), vec![reply]);
        let (remover, key) = (self.parts.remover.clone(), key.clone());
        self.departures.removals.spawn(async move { Departed { result: remover.remove(links).await, key } });
    }

    /// Takes the end of a departure in: the addresses are free only now.
    pub(super) fn on_departed(&mut self, departed: Departed) {
        let Departed { key, result } = departed;
        if result.is_ok() {
            self.forget(&key);
            self.count_addresses();
        }
        let reason = result.err().map(|error| error.to_string());
        for reply in self.departures.waiting.remove(&key).unwrap_or_default() {
            let failed = |reason: &String| AttachmentError::NotRemoved { key: key.clone(), reason: reason.clone() };
            answer(reply, reason.as_ref().map_or(Ok(()), |reason| Err(failed(reason))));
        }
    }

    /// Detaches, and returns when nothing is left. Others that are under way are taken in meanwhile.
    pub(super) async fn take_down(&mut self, key: &AttachmentKey) -> Result<(), AttachmentError> {
        self.take_down_all([key.clone()]).await
    }

    /// Detaches several as one; goes on after a failure and answers the first.
    pub(super) async fn take_down_all(
        &mut self,
        keys: impl IntoIterator<Item = AttachmentKey>,
    ) -> Result<(), AttachmentError> {
        let mut answers = Vec::new();
        for key in keys {
            let (reply, answer) = oneshot::channel();
            self.begin_departure(&key, reply).await;
            answers.push(answer);
        }
        let mut first = Ok(());
        for mut answer in answers {
            let result = loop {
                match answer.try_recv() {
                    Ok(result) => break result,
                    Err(oneshot::error::TryRecvError::Closed) => break Err(AttachmentError::Stopping),
                    Err(oneshot::error::TryRecvError::Empty) => {
                        let departed = self.departures.next().await;
                        self.on_departed(departed);
                    }
                }
            };
            first = first.and(result);
        }
        first
    }
}

/// The steps that free what others may want, and the links that go after them.
fn split(plan: Plan) -> (Plan, Vec<String>) {
    let mut links = Vec::new();
    let mut rest = Plan::default();
    for step in plan.steps {
        if let Step::DeleteLink { name } = step {
            links.push(name);
        } else {
            rest.steps.push(step);
        }
    }
    (rest, links)
}
