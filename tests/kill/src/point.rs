//! Where a process dies: in which scene, which process, at which system call or named place, and at which passing of it.

use std::fmt;

use serde::Serialize;

use crate::scene::Scene;

/// The process that dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// The plugin that the runtime executes.
    Shim,
    /// The daemon.
    Daemon,
}

/// What it was about to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A system call, by its name.
    SystemCall(String),
    /// A place that the test build names, as `step create-veth`.
    Named(String),
}

/// A place in a scene, whatever the passing: what must be covered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Spot {
    /// What happens meanwhile.
    pub scene: Scene,
    /// Who dies.
    pub victim: Victim,
    /// Where.
    pub place: Place,
}

/// One point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Point {
    /// Where.
    pub spot: Spot,
    /// At which passing of the place, from 1 on.
    pub ordinal: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spot { scene, victim, place } = &self.spot;
        let victim = match victim {
            Victim::Shim => "shim",
            Victim::Daemon => "daemon",
        };
        match place {
            Place::SystemCall(name) => write!(formatter, "{scene:?}: {victim} at {name}() {}", self.ordinal),
            Place::Named(name) => write!(formatter, "{scene:?}: {victim} at \"{name}\" {}", self.ordinal),
        }
    }
}
