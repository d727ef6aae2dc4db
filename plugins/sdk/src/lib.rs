//! What an author of a Culvert policy writes against: plain Rust values, one trait a kind of policy, one macro.
//!
//! A policy is a library that implements [`route::RoutePolicy`], [`ipam::IpamPolicy`] or
//! [`bandwidth::BandwidthPolicy`] and names its type once in [`export_route!`], [`export_ipam!`] or
//! [`export_bandwidth!`]. For `wasm32` the macro makes it a guest of `culvert:policy@0.1.0`; for the machine at hand
//! it does nothing, so the policy is an ordinary library whose vectors run as `#[test]`s.
//!
//! ```
//! use culvert_policy_sdk::description::Description;
//! use culvert_policy_sdk::error::PolicyError;
//! use culvert_policy_sdk::route::{Route, RoutePolicy, Via};
//! use culvert_policy_sdk::settings;
//! use culvert_policy_sdk::topology::Topology;
//!
//! /// Sends everything through the tunnel.
//! struct TunnelAll;
//!
//! impl RoutePolicy for TunnelAll {
//!     fn configure(settings: &str) -> Result<(Self, Description), PolicyError> {
//!         settings::none(settings)?;
//!         Ok((Self, Description::new("tunnel-all", "0.1.0")))
//!     }
//!
//!     fn plan(&self, topology: &Topology) -> Result<Vec<Route>, PolicyError> {
//!         let blocks = topology.peers().flat_map(|(index, peer)| peer.blocks.iter().map(move |block| (index, *block)));
//!         Ok(blocks.map(|(index, block)| Route::new(block, Via::Tunnel(index))).collect())
//!     }
//! }
//!
//! culvert_policy_sdk::export_route!(TunnelAll);
//! ```
//!
//! A panic ends the instance; its text reaches the host's log. Nothing here asks for a clock, randomness or I/O,
//! because a guest has none.

pub mod bandwidth;
#[doc(hidden)]
pub mod bindings;
pub mod description;
pub mod error;
#[doc(hidden)]
pub mod export;
pub mod ipam;
pub mod labels;
pub mod log;
pub mod prefix;
pub mod route;
pub mod settings;
pub mod topology;
mod wire;

pub use ipnet;

/// The memory of every guest. The allocator of Rust's own library takes 9 KiB of a policy, this one 2; and it takes the
/// same time for each request, which suits a guest with a deadline.
#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ALLOCATOR: rlsf::SmallGlobalTlsf = rlsf::SmallGlobalTlsf::new();
