//! The kill test: shim and daemon die at every system call and at every step of a plan, and nothing is left behind.
//!
//! ```text
//! record each scene ──> points ──choose by seed──> lanes (a node each): prepare ─ aim ─ call ─ dead? ─ restart
//!                                                                            aftermath: ADD again, DEL, GC or nothing
//!                                                                            nothing left? no address twice? ──> report
//! ```
//! The programs are the real ones on the real kernel. System calls are hit by `strace`, in the shipped programs; named
//! places by the process itself, in a daemon that was built for that. A point that was not reached is not counted.

pub mod aftermath;
pub mod campaign;
pub mod choice;
pub mod lane;
pub mod ledger;
pub mod point;
pub mod recording;
pub mod remains;
pub mod report;
pub mod scene;

pub use campaign::{Options, run};
pub use report::Report;
