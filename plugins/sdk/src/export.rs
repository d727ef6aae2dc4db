//! What the export macros expand to, and the calls they pass on. Not for authors.

use std::cell::OnceCell;

use crate::bandwidth::BandwidthPolicy;
use crate::bindings::lifecycle::exports::culvert::policy::lifecycle;
use crate::description::Description;
use crate::error::PolicyError;
use crate::ipam::{IpamPolicy, Space};
use crate::route::RoutePolicy;
use crate::topology::Topology;
use crate::{bandwidth, ipam, wire};

pub use crate::bindings::bandwidth::exports::culvert::policy::bandwidth as bandwidth_wire;
pub use crate::bindings::ipam::exports::culvert::policy::ipam as ipam_wire;
pub use crate::bindings::lifecycle::culvert::policy::types as types_wire;
pub use crate::bindings::lifecycle::exports::culvert::policy::lifecycle as lifecycle_wire;
pub use crate::bindings::router::exports::culvert::policy::router as router_wire;

/// Runs `configure` and keeps the policy for the calls that follow.
pub fn configure<P>(
    held: &OnceCell<P>,
    settings: &str,
    configure: fn(&str) -> Result<(P, Description), PolicyError>,
) -> Result<lifecycle::Description, types_wire::PolicyError> {
    report_panics();
    let (policy, description) = configure(settings)?;
    if held.set(policy).is_err() {
        return Err(PolicyError::internal("configured twice; an instance is configured once").into());
    }
    Ok(description.into())
}

/// A guest has no standard error: without this the text of a panic would be lost and the host would see a bare trap.
fn report_panics() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| crate::log::error(&panic.to_string())));
}

fn configured<P>(held: &OnceCell<P>) -> Result<&P, PolicyError> {
    held.get().ok_or_else(|| PolicyError::internal("asked before it was configured"))
}

/// `router.plan`.
pub fn plan<P: RoutePolicy>(
    held: &OnceCell<P>,
    topology: types_wire::Topology,
) -> Result<Vec<router_wire::Route>, types_wire::PolicyError> {
    let routes = configured(held)?.plan(&Topology::try_from(topology)?)?;
    Ok(routes.into_iter().map(router_wire::Route::from).collect())
}

/// `ipam.propose`.
pub fn propose<P: IpamPolicy>(
    held: &OnceCell<P>,
    node: types_wire::Node,
    family: types_wire::IpFamily,
    space: ipam_wire::Space,
) -> Result<Vec<types_wire::Prefix>, types_wire::PolicyError> {
    let blocks = configured(held)?.propose(&node.try_into()?, family.into(), &Space::try_from(space)?)?;
    Ok(blocks.into_iter().map(types_wire::Prefix::from).collect())
}

/// `ipam.pick`.
pub fn pick<P: IpamPolicy>(
    held: &OnceCell<P>,
    request: ipam_wire::Request,
) -> Result<Option<u32>, types_wire::PolicyError> {
    let position = configured(held)?.pick(&ipam::PickRequest::from(request))?;
    Ok(position.map(wire::index))
}

/// `ipam.reclaim`.
pub fn reclaim<P: IpamPolicy>(
    held: &OnceCell<P>,
    topology: types_wire::Topology,
    space: ipam_wire::Space,
) -> Result<Vec<types_wire::Prefix>, types_wire::PolicyError> {
    let blocks = configured(held)?.reclaim(&Topology::try_from(topology)?, &Space::try_from(space)?)?;
    Ok(blocks.into_iter().map(types_wire::Prefix::from).collect())
}

/// `bandwidth.shape`.
pub fn shape<P: BandwidthPolicy>(
    held: &OnceCell<P>,
    pod: bandwidth_wire::Pod,
) -> Result<bandwidth_wire::Shaping, types_wire::PolicyError> {
    let shaping = configured(held)?.shape(&bandwidth::Pod::from(pod))?;
    Ok(shaping.into())
}

/// Makes a type that implements [`RoutePolicy`] the route policy of this crate.
#[macro_export]
macro_rules! export_route {
    ($policy:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::export_lifecycle_of!($policy, $crate::route::RoutePolicy);

            impl $crate::export::router_wire::Guest for Guest {
                fn plan(
                    topology: $crate::export::types_wire::Topology,
                ) -> Result<Vec<$crate::export::router_wire::Route>, $crate::export::types_wire::PolicyError> {
                    POLICY.with(|held| $crate::export::plan(held, topology))
                }
            }

    $crate::bindings::router::export_router!(Guest with_types_in $crate::bindings::router);
        };
    };
}

/// Makes a type that implements [`IpamPolicy`] the IPAM policy of this crate.
#[macro_export]
macro_rules! export_ipam {
    ($policy:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::export_lifecycle_of!($policy, $crate::ipam::IpamPolicy);

            impl $crate::export::ipam_wire::Guest for Guest {
                fn propose(
                    node: $crate::export::types_wire::Node,
                    family: $crate::export::types_wire::IpFamily,
                    space: $crate::export::ipam_wire::Space,
                ) -> Result<Vec<$crate::export::types_wire::Prefix>, $crate::export::types_wire::PolicyError> {
                    POLICY.with(|held| $crate::export::propose(held, node, family, space))
                }

                fn pick(
                    request: $crate::export::ipam_wire::Request,
                ) -> Result<Option<u32>, $crate::export::types_wire::PolicyError> {
                    POLICY.with(|held| $crate::export::pick(held, request))
                }

                fn reclaim(
                    topology: $crate::export::types_wire::Topology,
                    space: $crate::export::ipam_wire::Space,
                ) -> Result<Vec<$crate::export::types_wire::Prefix>, $crate::export::types_wire::PolicyError> {
                    POLICY.with(|held| $crate::export::reclaim(held, topology, space))
                }
            }

    $crate::bindings::ipam::export_ipam!(Guest with_types_in $crate::bindings::ipam);
        };
    };
}

/// Makes a type that implements [`BandwidthPolicy`] the bandwidth policy of this crate.
#[macro_export]
macro_rules! export_bandwidth {
    ($policy:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::export_lifecycle_of!($policy, $crate::bandwidth::BandwidthPolicy);

            impl $crate::export::bandwidth_wire::Guest for Guest {
                fn shape(
                    pod: $crate::export::bandwidth_wire::Pod,
                ) -> Result<$crate::export::bandwidth_wire::Shaping, $crate::export::types_wire::PolicyError> {
                    POLICY.with(|held| $crate::export::shape(held, pod))
                }
            }

    $crate::bindings::bandwidth::export_bandwidth!(Guest with_types_in $crate::bindings::bandwidth);
        };
    };
}

/// The part that all kinds share: `Guest`, the policy it holds, and `lifecycle`.
#[doc(hidden)]
#[macro_export]
macro_rules! export_lifecycle_of {
    ($policy:ty, $kind:path) => {
        struct Guest;

        ::std::thread_local! {
            static POLICY: ::std::cell::OnceCell<$policy> = const { ::std::cell::OnceCell::new() };
        }

        impl $crate::export::lifecycle_wire::Guest for Guest {
            fn configure(
                settings: ::std::string::String,
            ) -> Result<$crate::export::lifecycle_wire::Description, $crate::export::types_wire::PolicyError> {
                POLICY.with(|held| $crate::export::configure(held, &settings, <$policy as $kind>::configure))
            }
        }

        $crate::bindings::lifecycle::export_lifecycle!(Guest with_types_in $crate::bindings::lifecycle);
    };
}
