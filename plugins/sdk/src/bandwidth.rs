//! Bandwidth policies: the rates of one pod.

use crate::description::Description;
use crate::error::PolicyError;
use crate::labels::Labels;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// **Units** bits/s.
    pub bits_per_second: u64,
    /// **Units** bytes.
    pub burst_bytes: u32,
}

/// Limits by direction, seen from the pod; `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Towards the pod.
    pub ingress: Option<Rate>,
    /// Away from the pod.
    pub egress: Option<Rate>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace; "" outside Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The labels that were asked for and granted.
    pub labels: Labels,
    /// The annotations that were asked for and granted.
    pub annotations: Labels,
    /// What the runtime asked for, already parsed.
    pub requested: Limits,
    /// Minutes since Monday 00:00 in the node's time zone. **Bounds** 0 to 10,079. Present only with
    /// [`crate::description::Want::Clock`], asked for and granted.
    pub minute_of_week: Option<u16>,
}

/// Everything a pod is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shaping {
    /// All traffic of the pod.
    pub total: Limits,
    /// Further limits for the part that goes through the tunnel (a metered uplink, say).
    pub tunnel: Limits,
}

/// Turns a pod into rates.
pub trait BandwidthPolicy: Sized + 'static {
    /// Reads the deployment's settings, JSON text, "{}" when there are none.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] refuses the deployment.
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError>;

    /// The rates of `pod`: a pure function of its argument. The host clamps them to the node's bounds.
    ///
    /// **Bounds** 2 ms.
    ///
    /// # Errors
    /// The rates in force stay; a new pod gets `requested`.
    fn shape(&self, pod: &Pod) -> Result<Shaping, PolicyError>;
}
