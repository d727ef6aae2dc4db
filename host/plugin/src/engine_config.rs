//! The engine settings that the compiler and the daemon must share.
//!
//! This file is compiled into both `culvert-plugin` and `culvert-compile`, because compiled code only
//! loads into an engine with the same settings. It must not use anything that needs a compiler. With any
//! change here, or of what the compiler adds, raise `REVISION` in `cache.rs`.

use wasmtime::{Config, WasmFeatures};

/// **Units** bytes of native stack a guest may use. It is taken from the calling thread, whose own
/// stack must be larger (2 MiB, the default of Rust's threads, is plenty).
pub const GUEST_STACK_BYTES: usize = 256 << 10;

/// **Units** bytes of address space reserved for a guest memory. Equal to the largest memory a guest may
/// have, so that a memory never moves; small, so that 100 instances do not reserve terabytes.
pub const MEMORY_RESERVATION_BYTES: u64 = 16 << 20;

/// Features a policy has no use for. Each one off is code of the runtime that no guest can reach, and
/// relaxed SIMD would make answers depend on the processor.
const REFUSED_FEATURES: WasmFeatures = WasmFeatures::THREADS
    .union(WasmFeatures::SHARED_EVERYTHING_THREADS)
    .union(WasmFeatures::GC)
    .union(WasmFeatures::FUNCTION_REFERENCES)
    .union(WasmFeatures::EXCEPTIONS)
    .union(WasmFeatures::MEMORY64)
    .union(WasmFeatures::RELAXED_SIMD);

/// The settings.
#[must_use]
pub fn engine_config() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    config.consume_fuel(false);
    // On by default, yet an error without the async feature, which synchronous policies do not need.
    config.concurrency_support(false);
    config.max_wasm_stack(GUEST_STACK_BYTES);
    config.memory_reservation(MEMORY_RESERVATION_BYTES);
    // Bounds are checked in code: a guard of 4 GiB a memory is more address space than an edge box with
    // strict overcommit has.
    config.memory_guard_size(0);
    for feature in REFUSED_FEATURES.iter() {
        config.wasm_features(feature, false);
    }
    config
}
