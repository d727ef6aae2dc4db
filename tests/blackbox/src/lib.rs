//! What the black-box suites share: what a node holds for its pods, the plugins and rates in force, the way that
//! packets take, where they were lost, a client of container runtimes.
//!
//! A suite sees only what an operator or a pod sees: the daemon's answers, its log and metrics, and packets.

pub mod attachments;
pub mod conflist;
pub mod cri;
pub mod links;
pub mod losses;
pub mod plugins;
pub mod rates;
pub mod small_disk;
pub mod ways;
