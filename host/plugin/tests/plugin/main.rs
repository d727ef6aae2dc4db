//! The plugin host against guests that behave, and guests that do everything else.
//!
//! The guests are core modules written by hand, with the canonical ABI spelled out, because no compiler
//! would produce most of them.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made is a failed test")]

mod compiling;
mod faults;
mod folder;
mod gate;
mod guest;
mod host;
mod shipped;
mod swap;
