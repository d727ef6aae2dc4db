//! What a plugin may use, and the meter the runtime asks before it gives more.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::ResourceLimiter;

use crate::guest_log::GuestLog;

/// What a plugin may use. The defaults are the documented contract (`wit/README.md`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// **Units** bytes of a component. 2 MiB holds any policy compiled from Rust or C many times over and
    /// stays far from what would take seconds to compile.
    pub component_bytes: usize,
    /// **Units** bytes of settings.
    pub settings_bytes: usize,
    /// **Units** bytes of one guest memory. **Bounds** at most 16 MiB: what the engine reserves.
    pub memory_bytes: usize,
    /// For making an instance and `configure`, together.
    pub configure: Duration,
    /// For `plan`, `propose` and `reclaim`: they run beside the traffic, not in front of it.
    pub plan: Duration,
    /// For `shape` and `pick`: a pod is waiting.
    pub quick: Duration,
    /// For `shape` and `pick` while a plugin is being checked. Nobody waits then, and a node that is busy
    /// starting must not refuse a good plugin for one page fault.
    pub quick_in_gate: Duration,
    /// What the compiler may use.
    pub compile: CompileLimits,
}

/// What the compile child may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// **Units** bytes of address space. Common policies need 12 MiB.
    pub memory_bytes: u64,
    /// **Units** s of processor time. Common policies need 30 ms.
    pub cpu_seconds: u64,
    /// Until the child is killed. Longer than the processor time, because the child runs at low priority.
    pub wall: Duration,
    /// **Units** bytes of compiled code. Compiled code is about three times the component.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            component_bytes: 2 << 20,
            settings_bytes: 64 << 10,
            memory_bytes: 16 << 20,
            configure: Duration::from_millis(50),
            plan: Duration::from_millis(100),
            quick: Duration::from_millis(2),
            quick_in_gate: Duration::from_millis(50),
            compile: CompileLimits::default(),
        }
    }
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, cpu_seconds: 5, wall: Duration::from_secs(30), output_bytes: 32 << 20 }
    }
}

/// Tables in one component. Components use two or three; their elements are host memory.
const TABLES: usize = 8;
/// **Units** elements of one table, 8 bytes each.
const TABLE_ELEMENTS: usize = 10_000;
/// Core instances in one component. Those of interpreters use about ten.
const INSTANCES: usize = 64;
/// Memories in one component. A component has one; the limit multiplies with the size of each.
const MEMORIES: usize = 1;

/// The state of one guest instance: its log and its meter.
#[derive(Debug)]
pub(crate) struct Guest {
    pub log: Arc<GuestLog>,
    pub memory_bytes: usize,
    /// Whether it asked for more memory than it may have.
    pub memory_refused: bool,
}

impl ResourceLimiter for Guest {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let granted = desired <= self.memory_bytes;
        self.memory_refused |= !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}
