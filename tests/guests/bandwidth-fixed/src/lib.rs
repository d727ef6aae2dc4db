//! A test guest: the same rates for every pod.
//!
//! # Settings
//! `ingress` and `egress`, bits a second as whole numbers; no limit where one is absent.

use culvert_policy_sdk::bandwidth::{BandwidthPolicy, Limits, Pod, Rate, Shaping};
use culvert_policy_sdk::description::Description;
use culvert_policy_sdk::error::PolicyError;
use culvert_policy_sdk::settings::Settings;

/// **Units** bytes. Two super-packets of the kernel: small, so that a new rate is seen at once.
const BURST_BYTES: u32 = 131_072;

/// The policy, configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandwidthFixed(Limits);

impl BandwidthPolicy for BandwidthFixed {
    fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
        let mut settings = Settings::parse(settings)?;
        let limits = Limits { ingress: rate(&mut settings, "ingress")?, egress: rate(&mut settings, "egress")? };
        settings.finish()?;
        Ok((Self(limits), Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))))
    }

    fn shape(&self, _pod: &Pod) -> Result<Shaping, PolicyError> {
        Ok(Shaping { total: self.0, tunnel: Limits::default() })
    }
}

fn rate(settings: &mut Settings, key: &'static str) -> Result<Option<Rate>, PolicyError> {
    let bits_per_second = settings.whole_number(key)?;
    Ok(bits_per_second.map(|bits_per_second| Rate { bits_per_second, burst_bytes: BURST_BYTES }))
}

culvert_policy_sdk::export_bandwidth!(BandwidthFixed);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_gets_the_rates_of_the_settings() {
        let (policy, _) = BandwidthFixed::configure(r#"{"ingress": 20000000, "egress": 5000000}"#).unwrap();
        let rate = |bits_per_second| Some(Rate { bits_per_second, burst_bytes: BURST_BYTES });
        let total = Limits { ingress: rate(20_000_000), egress: rate(5_000_000) };
        assert_eq!(policy.shape(&Pod::default()), Ok(Shaping { total, tunnel: Limits::default() }));
    }

    #[test]
    fn a_direction_without_a_rate_is_not_limited() {
        let (policy, _) = BandwidthFixed::configure("{}").unwrap();
        assert_eq!(policy.shape(&Pod::default()), Ok(Shaping::default()));
    }
}
