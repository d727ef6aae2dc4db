//! Everything that was measured of one set-up.

use std::collections::BTreeMap;

use super::holdings::Holdings;
use super::rounds::{Parallel, Serial};
use super::way::{SetUp, Who};

/// What is compared: a call of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// ADD.
    Add,
    /// DEL.
    Del,
}

/// Of one set-up.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Which.
    pub(super) set_up: SetUp,
    /// One after another, on empty nodes.
    pub(super) empty: BTreeMap<Who, Serial>,
    /// One after another, beside a crowd; nothing when none was asked for.
    pub(super) crowded: BTreeMap<Who, Serial>,
    /// At the same time, on empty nodes.
    pub(super) parallel: BTreeMap<Who, Parallel>,
    /// What was left behind.
    pub(super) left: BTreeMap<Who, Holdings>,
    /// What ours does not do of the set-up.
    pub(super) missing: Vec<String>,
}

impl Outcome {
    /// The median of a call on empty nodes. **Units** milliseconds; not a number for a way without times.
    pub(super) fn empty_ms(&self, who: Who, call: Call) -> f64 {
        serial_ms(&self.empty, who, call)
    }

    /// The median beside a crowd. **Units** and absence as [`Self::empty_ms`].
    pub(super) fn crowded_ms(&self, who: Who, call: Call) -> f64 {
        serial_ms(&self.crowded, who, call)
    }

    /// The median of simultaneous calls. **Units** and absence as [`Self::empty_ms`].
    pub(super) fn parallel_ms(&self, who: Who, call: Call) -> f64 {
        self.parallel.get(&who).map_or(f64::NAN, |times| match call {
            Call::Add => times.add.percentile_ms(50),
            Call::Del => times.del.percentile_ms(50),
        })
    }

    /// Processor time of a pair on empty nodes. **Units** and absence as [`Self::empty_ms`].
    pub(super) fn cpu_ms(&self, who: Who) -> f64 {
        self.empty.get(&who).map_or(f64::NAN, Serial::cpu_ms)
    }
}

fn serial_ms(times: &BTreeMap<Who, Serial>, who: Who, call: Call) -> f64 {
    times.get(&who).map_or(f64::NAN, |times| match call {
        Call::Add => times.add.percentile_ms(50),
        Call::Del => times.del.percentile_ms(50),
    })
}
