//! The rates of pods: asked of the bandwidth policy, brought within bounds, put into force.

use culvert_core::attachment::{Attachment, AttachmentKey, AttachmentState};
use culvert_core::attachment_plan::plan_reshape;
use culvert_core::bandwidth::{Bounds, Limits, Shaping, admit};
use culvert_core::policy::{PodView, ShapeRequest};

use super::AttachmentsOwner;

impl AttachmentsOwner {
    /// The rates of a new pod: the policy's answer, or what was requested while the policy fails.
    pub(super) fn shape_new(&self, pod: &PodView, requested: &Limits) -> Shaping {
        let request = ShapeRequest { pod: pod.clone(), requested: *requested, minute_of_week: None };
        let shaped = self.parts.policies.shape(&request);
        let shaping = shaped.unwrap_or_else(|error| {
            tracing::warn!(%error, pod = pod.name, "no rates from the bandwidth policy; the requested ones are used");
            Shaping { total: *requested, tunnel: Limits::default() }
        });
        admit(&shaping, &self.bounds())
    }

    fn bounds(&self) -> Bounds {
        Bounds { mtu_bytes: self.parts.config.network.mtu_bytes, ..Bounds::default() }
    }

    /// Asks again for every pod and changes what differs. Where the policy fails, rates stay.
    pub(super) async fn reshape_all(&mut self) {
        for key in self.attachments.keys().cloned().collect::<Vec<_>>() {
            let Some(attachment) = self.attachments.get(&key) else { continue };
            if matches!(attachment.state, AttachmentState::Intended | AttachmentState::Deleting) {
                continue;
            }
            let request =
                ShapeRequest { pod: attachment.pod.clone(), requested: attachment.requested, minute_of_week: None };
            match self.parts.policies.shape(&request) {
                Ok(shaping) => {
                    let shaping = admit(&shaping, &self.bounds());
                    self.reshape(&key, shaping).await;
                }
                Err(error) => {
                    tracing::warn!(%error, attachment = %key, "no rates from the bandwidth policy; they stay")
                }
            }
        }
    }

    async fn reshape(&mut self, key: &AttachmentKey, shaping: Shaping) {
        let Some(attachment) = self.attachments.get(key) else { return };
        if attachment.shaping == shaping {
            return;
        }
        let plan = plan_reshape(attachment, &attachment.shaping, &shaping);
        let ifb_name = shaping.total.egress.map(|_| key.ifb_name());
        let reshaped = Attachment { shaping, ifb_name, ..attachment.clone() };
        if let Err(error) = self.parts.kernel.apply(&plan, None).await {
            self.parts.metrics.kernel.planned("undone");
            tracing::error!(attachment = %key, %error, "rates could not be changed; the earlier ones stay");
            return;
        }
        self.parts.metrics.kernel.planned("applied");
        tracing::info!(attachment = %key, ?shaping, "rates changed");
        if let Err(error) = self.record(&reshaped) {
            tracing::error!(attachment = %key, %error, "new rates are in force but could not be recorded");
            self.attachments.insert(key.clone(), reshaped);
        }
    }

    /// Sets the recorded rates of an attachment again, whatever is left of them.
    pub(super) async fn set_rates_again(&mut self, key: &AttachmentKey) {
        let Some(attachment) = self.attachments.get(key) else { return };
        let plan = plan_reshape(attachment, &Shaping::default(), &attachment.shaping);
        if let Err(error) = self.parts.kernel.apply(&plan, None).await {
            tracing::error!(attachment = %key, %error, "lost rates could not be set again");
        }
    }
}
