//! What the black-box suites share: the plugins and rates in force, the way that packets take, a client of container
//! runtimes.
//!
//! A suite sees only what an operator or a pod sees: the daemon's answers, its log and metrics, and packets.

pub mod cri;
pub mod plugins;
pub mod rates;
pub mod ways;
