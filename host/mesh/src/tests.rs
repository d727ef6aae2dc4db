//! Whole meshes in one process, over loopback, with real libp2p.

mod admission;
mod data;
mod hostile;
mod membership;
pub(crate) mod node;
mod paths;
mod relaying;
