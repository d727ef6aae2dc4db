//! A laboratory of network namespaces on one machine, for the demo, the black-box tests and the benches.
//!
//! It builds an *internet* segment, sites behind masquerading NAT, nodes that run the real daemon and pods
//! that are attached by the real shim just as a container runtime would, all by `ip` and `iptables`.
//! Whatever was built is removed when its owner is dropped, also after a panic, and on SIGINT or SIGTERM.
//!
//! ```text
//!            internet 198.51.100.0/24 ──┬── cloud-1 .10 (public, relay)
//!                                       ├── router a .21 ─NAT─ 192.168.1.0/24 ── edge-1 .11, edge-2 .12
//!                                       └── router b .22 ─NAT─ 192.168.1.0/24 ── edge-3 .11
//! ```

pub mod binaries;
pub mod cgroup;
pub mod cni;
pub mod command;
pub mod containerd;
pub mod enclosure;
pub mod image;
pub mod lab;
pub mod namespace;
pub mod node;
pub mod node_config;
pub mod pod;
pub mod podman;
pub mod probe;
pub mod report;
pub mod sandbox;
pub mod shared_node;
pub mod single_node;
pub mod site;
pub mod snapshot;
pub mod three_sites;
pub mod two_sides;
pub mod wait;

pub use binaries::Binaries;
pub use containerd::Containerd;
pub use enclosure::Enclosure;
pub use lab::{Host, Lab};
pub use namespace::Namespace;
pub use node::Node;
pub use pod::{Pod, PodSetup};
pub use podman::Podman;
pub use sandbox::Sandbox;
pub use shared_node::SharedNode;
pub use single_node::SingleNode;
pub use site::Site;
pub use snapshot::Snapshot;
pub use three_sites::ThreeSites;
pub use two_sides::TwoSides;
