//! The shipped bandwidth policy: Kubernetes' annotations, with defaults and caps.
//!
//! Each of the four rates (towards and away from the pod; in all, and through the tunnel) is the first of these:
//!
//! 1. the pod's annotation,
//! 2. what the runtime asked for (the rates in all only),
//! 3. the default of the settings,
//! 4. no limit;
//!
//! and never more than its cap. A rate that was asked for by the runtime and not capped keeps the burst asked for; any
//! other gets 50 ms of the rate, at least 64 KiB.
//!
//! | annotation | limits |
//! |---|---|
//! | `kubernetes.io/ingress-bandwidth`, `kubernetes.io/egress-bandwidth` | all traffic of the pod |
//! | `culvert.dev/tunnel-ingress-bandwidth`, `culvert.dev/tunnel-egress-bandwidth` | the part through the tunnel |
//!
//! The values are Kubernetes quantities in bits a second, `10M` say, from 1k to 1P as the kubelet demands. An annotation
//! that is none is ignored with a line in the log that names the pod: refusing the whole answer would take from the pod
//! the limits that are well written.
//!
//! # Settings
//! ```json
//! {
//!   "defaults": { "ingress": "100M", "egress": "20M" },
//!   "caps": { "ingress": "1G", "egress": "1G" },
//!   "tunnel": { "defaults": { "egress": "5M" }, "caps": { "ingress": "50M", "egress": "10M" } }
//! }
//! ```
//! All of them may be absent. A rate is a quantity as in an annotation.

mod quantity;
mod rates;

use culvert_policy_sdk::bandwidth::{BandwidthPolicy, Limits, Pod, Rate, Shaping};
use culvert_policy_sdk::description::{Description, Want};
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::log;
use culvert_policy_sdk::settings::Settings;

use crate::quantity::parse_bits_per_second;
use crate::rates::{Bounds, Direction};

/// Kubernetes' own annotations, as the kubelet reads them.
const TOTAL: Direction<&str> =
    Direction { ingress: "kubernetes.io/ingress-bandwidth", egress: "kubernetes.io/egress-bandwidth" };

/// Culvert's, for the part of the traffic that goes through the tunnel.
const TUNNEL: Direction<&str> =
    Direction { ingress: "culvert.dev/tunnel-ingress-bandwidth", egress: "culvert.dev/tunnel-egress-bandwidth" };

/// The policy, configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BandwidthAnnotations {
    total: Bounds,
    tunnel: Bounds,
}

impl BandwidthPolicy for BandwidthAnnotations {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        let mut settings = Settings::parse(settings)?;
        let total = Bounds::read(&mut settings)?;
        let mut tunnel_settings = settings.object("tunnel")?;
        let tunnel = Bounds::read(&mut tunnel_settings)?;
        tunnel_settings.finish()?;
        settings.finish()?;
        let mut description = Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        for key in [TOTAL.ingress, TOTAL.egress, TUNNEL.ingress, TUNNEL.egress] {
            description = description.wanting(Want::PodAnnotation(key.to_owned()));
        }
        Ok((Self { total, tunnel }, description))
    }

    fn shape(&self, pod: &Pod) -> Result<Shaping, PolicyError> {
        Ok(Shaping {
            total: limits(pod, &TOTAL, &pod.requested, &self.total),
            tunnel: limits(pod, &TUNNEL, &Limits::default(), &self.tunnel),
        })
    }
}

fn limits(pod: &Pod, annotations: &Direction<&str>, requested: &Limits, bounds: &Bounds) -> Limits {
    let annotated = |key| annotated_rate(pod, key);
    Limits {
        ingress: rates::decide(
            annotated(annotations.ingress),
            requested.ingress,
            bounds.defaults.ingress,
            bounds.caps.ingress,
        ),
        egress: rates::decide(
            annotated(annotations.egress),
            requested.egress,
            bounds.defaults.egress,
            bounds.caps.egress,
        ),
    }
}

fn annotated_rate(pod: &Pod, key: &str) -> Option<Rate> {
    let value = pod.annotations.get(key)?;
    match parse_bits_per_second(value) {
        Ok(bits_per_second) => Some(rates::with_usual_burst(bits_per_second)),
        Err(reason) => {
            let Pod { namespace, name, .. } = pod;
            log::warn(&format!("pod {namespace}/{name}: ignoring {key}={value}: {reason}"));
            None
        }
    }
}

culvert_policy_sdk::export_bandwidth!(BandwidthAnnotations);

#[cfg(test)]
mod tests;
