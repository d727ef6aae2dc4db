//! The gate: a unit becomes a policy only when everything that can be known beforehand is in order.
//!
//! ```text
//! size, settings ─> imports and exports ─> compile (child, cache) ─> link ─> start, configure ─> self-test
//!      ns                 µs                  30 ms once, then 40 µs              30 µs             ms
//! ```

mod canned;
mod self_test;

use std::path::PathBuf;
use std::sync::Arc;

use culvert_core::decision::RouteRefusal;
use culvert_core::topology::Topology;
use wasmtime::component::{Component, Linker};

use crate::cache::{Cache, CacheError};
use crate::compile::{CompileError, Compiler};
use crate::engine::{EngineError, Runtime};
use crate::engine_config::MEMORY_RESERVATION_BYTES;
use crate::fault::Fault;
use crate::guest_log::GuestLog;
use crate::inspect::{self, InspectError};
use crate::instance::{LoadError, Program};
use crate::limits::{Guest, Limits};
use crate::policy::{BandwidthPolicy, Card, IpamPolicy, Loaded, RoutePolicy};
use crate::unit::{Digest, Kind, Unit};
use crate::v0_1::to_guest::Keys;
use crate::v0_1::{self, World};

/// Where the host finds what it needs.
#[derive(Clone, Debug)]
pub struct PluginHostConfig {
    /// The program `culvert-compile`.
    pub compile_program: PathBuf,
    /// The folder of compiled plugins. Made when it is not there; only this user may write it.
    pub cache_folder: PathBuf,
    /// What a plugin may use.
    pub limits: Limits,
}

/// Why there is no plugin host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The runtime does not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The compiler is not there.
    #[error("the compiler {} is not there: {source}; is Culvert installed completely?", program.display())]
    Compiler {
        /// The program looked for.
        program: PathBuf,
        /// Why it cannot be found.
        source: std::io::Error,
    },
    /// More memory than the engine reserves.
    #[error("a plugin cannot be granted {granted} bytes of memory: at most {MEMORY_RESERVATION_BYTES}")]
    Memory {
        /// What was to be granted.
        granted: usize,
    },
}

/// Makes policies of units. One a daemon; may be used from several threads.
pub struct PluginHost {
    runtime: Arc<Runtime>,
    linker: Linker<Guest>,
    compiler: Compiler,
    cache: Cache,
    limits: Limits,
}

/// A unit that passed.
#[derive(Debug)]
pub enum Gated {
    /// A route policy.
    Route(RoutePolicy),
    /// An IPAM policy.
    Ipam(IpamPolicy),
    /// A bandwidth policy.
    Bandwidth(BandwidthPolicy),
}

impl Gated {
    /// What it decides.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Route(_) => Kind::Route,
            Self::Ipam(_) => Kind::Ipam,
            Self::Bandwidth(_) => Kind::Bandwidth,
        }
    }
}

/// A unit that was refused. Nothing changed for any other.
#[derive(Debug, thiserror::Error)]
#[error("plugin {unit} is refused: {reason}")]
pub struct Refusal {
    /// The unit's name.
    pub unit: String,
    /// Why.
    #[source]
    pub reason: Reason,
}

/// Why a unit was refused.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Too large a component.
    #[error(
        "the component has {bytes} bytes, {limit} are allowed: strip it, and leave out what a policy does not need"
    )]
    ComponentSize {
        /// What it has.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
    /// Too large settings.
    #[error("the settings have {bytes} bytes, {limit} are allowed")]
    SettingsSize {
        /// What they have.
        bytes: usize,
        /// What they may have.
        limit: usize,
    },
    /// Settings that are not JSON.
    #[error("the settings are not JSON: {0}")]
    SettingsText(String),
    /// Not a policy.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// Does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The compiled code cannot be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Imports of another shape.
    #[error("its imports are not those of culvert:policy@0.1.0: {0}; build it against wit/ of this release")]
    Imports(String),
    /// Exports of another shape.
    #[error("its exports are not those of culvert:policy@0.1.0: {0}; build it against wit/ of this release")]
    Types(String),
    /// Does not start.
    #[error("configure {0}")]
    Configure(Fault),
    /// Fails in the self-test.
    #[error("{call} on {input} {fault}")]
    SelfTest {
        /// The function.
        call: &'static str,
        /// The input.
        input: String,
        /// What it did.
        fault: Fault,
    },
    /// Answers differently when asked again.
    #[error("{call} on {input} gives another answer when asked again: a policy must not keep state between calls")]
    Unsteady {
        /// The function.
        call: &'static str,
        /// The input.
        input: String,
    },
    /// Routes that the host would not install.
    #[error("plan on {input}: {refusal}")]
    Routes {
        /// The input.
        input: String,
        /// What is wrong with them.
        refusal: RouteRefusal,
    },
}

impl Reason {
    /// Whether the unit is to blame, and not this node: the same unit would be refused again, so it makes
    /// no sense to try.
    #[must_use]
    pub fn blames_unit(&self) -> bool {
        match self {
            Self::Compile(error) => error.blames_component(),
            Self::Cache(_) => false,
            Self::ComponentSize { .. }
            | Self::SettingsSize { .. }
            | Self::SettingsText(_)
            | Self::Inspect(_)
            | Self::Imports(_)
            | Self::Types(_)
            | Self::Configure(_)
            | Self::SelfTest { .. }
            | Self::Unsteady { .. }
            | Self::Routes { .. } => true,
        }
    }
}

impl PluginHost {
    /// Starts the runtime, and checks that compiler and cache are usable.
    ///
    /// # Errors
    /// What is missing on this node.
    pub fn new(config: PluginHostConfig) -> Result<Self, HostError> {
        let PluginHostConfig { compile_program, cache_folder, limits } = config;
        if limits.memory_bytes as u64 > MEMORY_RESERVATION_BYTES {
            return Err(HostError::Memory { granted: limits.memory_bytes });
        }
        if let Err(source) = std::fs::metadata(&compile_program) {
            return Err(HostError::Compiler { program: compile_program, source });
        }
        let runtime = Arc::new(Runtime::new()?);
        let mut linker = Linker::new(runtime.engine());
        v0_1::link(&mut linker).map_err(|error| EngineError::Engine(format!("{error:#}")))?;
        let compiler = Compiler::new(&compile_program, limits.compile.clone());
        Ok(Self { runtime, linker, compiler, cache: Cache::open(&cache_folder)?, limits })
    }

    /// Takes a unit through the gate. Blocks for milliseconds, or some tens of them when it is compiled.
    ///
    /// `live` is the topology in force, which a route policy must be able to answer.
    ///
    /// # Errors
    /// Why it was refused, with what to do.
    pub fn gate(&self, unit: &Unit, live: Option<&Topology>) -> Result<Gated, Refusal> {
        self.pass(unit, live).map_err(|reason| Refusal { unit: unit.name.clone(), reason })
    }

    fn pass(&self, unit: &Unit, live: Option<&Topology>) -> Result<Gated, Reason> {
        self.check_size(unit)?;
        let kind = inspect::inspect(&unit.component)?;
        let component = self.compiled(&unit.component)?;
        match kind {
            Kind::Route => {
                let policy = RoutePolicy(self.load(unit, &component)?);
                self_test::route(&policy, live)?;
                Ok(Gated::Route(policy))
            }
            Kind::Ipam => {
                let policy = IpamPolicy(self.load(unit, &component)?);
                self_test::ipam(&policy, live)?;
                Ok(Gated::Ipam(policy))
            }
            Kind::Bandwidth => {
                let policy = BandwidthPolicy(self.load(unit, &component)?);
                self_test::bandwidth(&policy)?;
                Ok(Gated::Bandwidth(policy))
            }
        }
    }

    fn check_size(&self, unit: &Unit) -> Result<(), Reason> {
        let (bytes, limit) = (unit.component.len(), self.limits.component_bytes);
        if bytes > limit {
            return Err(Reason::ComponentSize { bytes, limit });
        }
        let (bytes, limit) = (unit.settings.len(), self.limits.settings_bytes);
        if bytes > limit {
            return Err(Reason::SettingsSize { bytes, limit });
        }
        let parsed = serde_json::from_str::<serde::de::IgnoredAny>(&unit.settings);
        parsed.map(|_| ()).map_err(|error| Reason::SettingsText(error.to_string()))
    }

    fn compiled(&self, component: &[u8]) -> Result<Component, Reason> {
        let digest = Digest::of(component);
        if let Some(compiled) = self.cache.load(self.runtime.engine(), digest) {
            return Ok(compiled);
        }
        let code = self.compiler.compile(component)?;
        Ok(self.cache.store(self.runtime.engine(), digest, &code)?)
    }

    fn load<W: World>(&self, unit: &Unit, component: &Component) -> Result<Loaded<W>, Reason> {
        let log = Arc::new(GuestLog::new(&unit.name));
        let loaded = Program::load(&self.runtime, &self.linker, component, &unit.settings, (&self.limits, log));
        let (program, description) = loaded.map_err(|error| match error {
            LoadError::Imports(text) => Reason::Imports(text),
            LoadError::Types(text) => Reason::Types(text),
            LoadError::Fault(fault) => Reason::Configure(fault),
        })?;
        let keys = Keys::wanted_by(&description);
        let card = Card {
            unit: unit.name.clone(),
            origin: unit.origin.clone(),
            kind: W::KIND,
            digest: unit.digest(),
            description,
        };
        Ok(Loaded { program, card, keys })
    }
}
