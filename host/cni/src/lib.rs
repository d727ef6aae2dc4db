//! The words of the Container Network Interface: requests, results of every version, error codes,
//! and the frames in which the shim carries them to the daemon.
//!
//! ```text
//! runtime ── env + stdin ──> shim ── frame::Request (+ 2 descriptors) ──> daemon: request::Request::decode
//! runtime <── stdout, exit ── shim <── frame::Reply ── daemon: result::AddResult or error::CniError
//! ```
//!
//! With the feature `serde` off only what the shim needs is left: [`frame`], [`environment`],
//! [`head`], [`version`] and [`code`], which depend on the standard library alone.
//!
//! **Source** CNI specification 1.1.0 (`SPEC.md`, `CONVENTIONS.md`).

pub mod code;
pub mod environment;
pub mod frame;
pub mod head;
pub mod tombstone;
pub mod version;

#[cfg(feature = "serde")]
pub mod arguments;
#[cfg(feature = "serde")]
pub mod error;
#[cfg(feature = "serde")]
pub mod fields;
#[cfg(feature = "serde")]
pub mod ipam;
#[cfg(feature = "serde")]
pub mod mac;
#[cfg(feature = "serde")]
pub mod migrate;
#[cfg(feature = "serde")]
pub mod netconf;
#[cfg(feature = "serde")]
pub mod request;
#[cfg(feature = "serde")]
pub mod result;
#[cfg(feature = "serde")]
pub mod route;
#[cfg(feature = "serde")]
pub mod runtime_config;
