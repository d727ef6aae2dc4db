//! Every decision Culvert makes, and nothing else: no I/O, no clock, no randomness, no runtime.
//!
//! The adapters bring the world in as arguments and carry the answers out. Foreign values pass one
//! door each (`admit`, `decode`, `parse`) into a type that proves they were checked.
//!
//! ```text
//! membership ─┐
//! claim ──────┼─> topology ─> [route plugin] ─> decision::admit ─> route_plan ─> plan ─> kernel
//! reach ──────┘                                        └────────> tunnel_table ────────> mesh
//! attachment + lease + bandwidth <─ [ipam, bandwidth plugins] ──> attachment_plan ─> plan ─> kernel
//! attachment + host_port + nat ────────────────────────────────────────┘
//! attachment + what the kernel shows ──> attachment_check ─> what a CHECK finds
//! ```

pub mod address;
pub mod allocation;
pub mod attachment;
pub mod attachment_check;
pub mod attachment_plan;
pub mod bandwidth;
pub mod claim;
pub mod config;
pub mod decision;
pub mod hardware_address;
pub mod host_port;
pub mod lease;
pub mod membership;
pub mod nat;
pub mod packet;
pub mod path;
pub mod plan;
pub mod policy;
pub mod prefix_table;
pub mod reach;
pub mod repair;
pub mod route_plan;
pub mod swap;
pub mod topology;
pub mod tunnel_table;
