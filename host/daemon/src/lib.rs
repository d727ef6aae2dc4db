//! The daemon: the only place that knows the order of steps.

pub mod admin;
pub mod attachments;
pub mod cleanup;
pub mod cluster_owner;
pub mod cni_server;
mod cni_thread;
pub mod config;
pub mod ctl;
pub mod inspect;
pub mod keeper_link;
pub mod metrics;
pub mod node_spec;
pub mod policies;
pub mod printable;
pub mod run;
pub mod store;
pub mod telemetry;
pub mod view;
