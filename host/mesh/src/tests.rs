//! Whole meshes in one process, over loopback, with real libp2p.

mod admission;
mod data;
mod hostile;
mod membership;
mod node;
mod relaying;
