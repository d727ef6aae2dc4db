//! What the host asks the IPAM and bandwidth policies, in core's own words.
//!
//! The `plugin` crate translates these to and from the WIT records; nothing here knows of Wasm.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bandwidth::Limits;

/// A pod, as far as a policy may know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    /// Its Kubernetes namespace; empty outside Kubernetes.
    pub namespace: String,
    /// Its name; empty when the runtime did not say.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What `pick` is asked: choose among free addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PickRequest {
    /// For whom.
    pub pod: PodView,
    /// Addresses the host would accept, ascending. **Bounds** at most 64.
    pub free: Vec<IpAddr>,
    /// The address asked for, or held by this pod before.
    pub wanted: Option<IpAddr>,
}

/// What `shape` is asked: the rates of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeRequest {
    /// For whom.
    pub pod: PodView,
    /// What the runtime asked for, already parsed.
    pub requested: Limits,
    /// Minutes since Monday 00:00 local time, 0 to 10,079; only for a policy that was granted the clock.
    pub minute_of_week: Option<u16>,
}

/// Why a policy has no answer, in its own words. **Bounds** the text is cut at 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The settings are wrong: the unit is refused and not retried.
    #[error("invalid settings: {0}")]
    InvalidSettings(String),
    /// Input this policy does not handle.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// No address space is left under the constraints given.
    #[error("exhausted: {0}")]
    Exhausted(String),
    /// A defect in the policy.
    #[error("internal: {0}")]
    Internal(String),
}
