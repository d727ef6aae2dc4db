//! Runs plugins: WebAssembly components that decide routes, addresses and rates, and can do nothing else.
//!
//! ```text
//! folder, shipped ─> Unit ─> gate ─> policy ─> Slot ─> the daemon's calls
//!                             │ compile child, cache     │ faults: previous generation back
//! ```
//!
//! The daemon takes a [`Unit`] through [`PluginHost::gate`], puts the policy into a [`Slot`] and asks it
//! there. Every call has a deadline, a memory limit and a bound on what it may hand over, and gives a
//! [`Fault`] when one is hit; nothing a guest does ends the daemon or another call. Whether an answer is
//! carried out is decided in `culvert-core`, not here.

mod cache;
mod compile;
mod engine;
mod engine_config;
mod fault;
mod folder;
mod gate;
mod guest_log;
mod inspect;
mod instance;
mod limits;
mod policy;
mod slot;
mod text;
mod unit;
mod v0_1;

pub use cache::CacheError;
pub use compile::CompileError;
pub use engine::EngineError;
pub use fault::{Fault, FaultKind};
pub use folder::{FolderError, FolderSnapshot, FolderSource, UnitFault};
pub use gate::{Gated, HostError, PluginHost, PluginHostConfig, Reason, Refusal};
pub use inspect::{InspectError, inspect};
pub use limits::{CompileLimits, Limits};
pub use policy::{BandwidthPolicy, Card, IpamPolicy, PROPOSALS, Policy, RoutePolicy};
pub use slot::{GenerationStatus, RolledBack, Slot, SlotError, SlotStatus};
pub use unit::{Description, Digest, Kind, Origin, Unit, WANTS, Want};
