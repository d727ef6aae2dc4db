//! The three policies in force: where units come from, which one decides, what operators see of it.
//!
//! ```text
//! folder ──snapshot──> consider ──gate──> slot (active, previous)
//!                         │ refused: reason kept, nothing else changes
//! shipped ────────────────┘ used for a kind that no unit of the folder decides
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use culvert_core::address::Family;
use culvert_core::bandwidth::Shaping;
use culvert_core::claim::Space;
use culvert_core::decision::{AdmittedRoutes, admit};
use culvert_core::policy::{PickRequest, ShapeRequest};
use culvert_core::topology::{Node, Topology};
use culvert_plugin::{
    BandwidthPolicy, Digest, Fault, FaultKind, FolderSnapshot, Gated, GenerationStatus, IpamPolicy, Kind, Origin,
    PluginHost, Policy, Refusal, RoutePolicy, Slot, SlotError, SlotStatus, Unit,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{Durability, Kind as RowKind, Store};
use crate::view;

/// How often a shipped plugin may try to pass the gate: without one of each kind the daemon cannot serve.
const SHIPPED_TRIES: u32 = 5;

/// Why no set of policies could be put together.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A plugin that ships with the daemon does not pass: a broken installation or wrong settings.
    #[error("the shipped plugin {name} cannot be used: {reason}; check plugins.settings.{name} and the installation")]
    Shipped {
        /// The plugin.
        name: String,
        /// What the gate says.
        reason: String,
    },
    /// The configuration names a plugin that does not ship.
    #[error("no plugin {name} ships with this daemon")]
    Unknown {
        /// The name.
        name: String,
    },
}

/// The policies of this node.
pub struct Policies {
    host: PluginHost,
    shipped: BTreeMap<&'static str, Unit>,
    route: Slot<RoutePolicy>,
    ipam: Slot<IpamPolicy>,
    bandwidth: Slot<BandwidthPolicy>,
    refused: Mutex<BTreeMap<String, String>>,
    store: Store,
    metrics: Metrics,
}

/// A unit of the folder as it was last good, so that a node starts with it when the folder is gone.
#[derive(Serialize, Deserialize)]
struct LastGood {
    name: String,
    component: Vec<u8>,
    settings: String,
}

/// A unit that may take a slot.
enum Candidate {
    /// It decides already.
    Active(String),
    /// It passed the gate.
    New(Unit, Box<Gated>),
}

impl Candidate {
    fn name(&self) -> &str {
        match self {
            Self::Active(name) => name,
            Self::New(unit, _) => &unit.name,
        }
    }
}

impl Policies {
    /// Fills all slots: from the folder where it has a good unit, else with what was last good, else with
    /// what ships.
    ///
    /// # Errors
    /// When a shipped plugin is needed and does not pass.
    pub fn start(
        host: PluginHost,
        config: &Config,
        folder: Option<&FolderSnapshot>,
        store: Store,
        metrics: Metrics,
    ) -> Result<Self, PolicyError> {
        let policies = Self {
            host,
            shipped: shipped_units(config)?,
            route: Slot::new(),
            ipam: Slot::new(),
            bandwidth: Slot::new(),
            refused: Mutex::default(),
            store,
            metrics,
        };
        if let Some(snapshot) = folder {
            policies.consider(snapshot, None);
        }
        for kind in Kind::ALL {
            if policies.active(kind).is_none() && !policies.restore(kind, folder) {
                policies.activate_shipped(kind)?;
            }
        }
        Ok(policies)
    }

    /// Takes a new state of the folder in; answers the kinds whose decisions may differ now.
    pub fn consider(&self, snapshot: &FolderSnapshot, live: Option<&Topology>) -> Vec<Kind> {
        let mut refused = BTreeMap::new();
        for fault in &snapshot.faults {
            refused.insert(fault.path.display().to_string(), fault.reason.clone());
        }
        let mut candidates: BTreeMap<Kind, Vec<Candidate>> = BTreeMap::new();
        for unit in &snapshot.units {
            match self.examine(unit, live) {
                Ok((kind, candidate)) => candidates.entry(kind).or_default().push(candidate),
                Err(reason) => {
                    self.metrics.plugins.refused("unit");
                    tracing::error!(unit = unit.name, reason, "plugin refused; nothing changes");
                    refused.insert(unit.name.clone(), reason);
                }
            }
        }
        let mut changed = Vec::new();
        for kind in Kind::ALL {
            let found = candidates.remove(&kind).unwrap_or_default();
            if self.settle(kind, found, snapshot, &mut refused) {
                changed.push(kind);
            }
        }
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        changed
    }

    fn examine(&self, unit: &Unit, live: Option<&Topology>) -> Result<(Kind, Candidate), String> {
        let digest = unit.digest();
        for kind in Kind::ALL {
            if self.active(kind).is_some_and(|active| active == digest) {
                return Ok((kind, Candidate::Active(unit.name.clone())));
            }
            if let Some(reason) = self.rolled_back(kind, digest) {
                return Err(reason);
            }
        }
        let gated = self.host.gate(unit, live).map_err(|refusal| refusal.reason.to_string())?;
        Ok((gated.kind(), Candidate::New(unit.clone(), Box::new(gated))))
    }

    /// A generation that was taken back stays away until its content changes.
    fn rolled_back(&self, kind: Kind, digest: Digest) -> Option<String> {
        let rolled_back = self.status(kind).rolled_back.filter(|rolled_back| rolled_back.card.digest == digest)?;
        Some(format!("it was taken back because it {}; change it and put it in again", rolled_back.fault))
    }

    /// Puts the one candidate of a kind into its slot; answers whether decisions may differ now.
    fn settle(
        &self,
        kind: Kind,
        mut found: Vec<Candidate>,
        snapshot: &FolderSnapshot,
        refused: &mut BTreeMap<String, String>,
    ) -> bool {
        if found.len() > 1 {
            let names: Vec<String> = found.iter().map(|candidate| candidate.name().to_owned()).collect();
            let reason = format!("units {} all decide {kind}: leave one of them in the folder", names.join(", "));
            tracing::error!(%kind, reason, "plugins refused; nothing changes");
            refused.extend(names.into_iter().map(|name| (name, reason.clone())));
            return false;
        }
        match found.pop() {
            Some(Candidate::Active(_)) => false,
            Some(Candidate::New(unit, gated)) => {
                self.activate(&unit, *gated);
                true
            }
            None => self.fall_back_to_shipped(kind, snapshot, refused),
        }
    }

    /// No unit of the folder decides this kind. A unit that was removed gives way to what ships; one that is
    /// still there but refused does not.
    fn fall_back_to_shipped(&self, kind: Kind, snapshot: &FolderSnapshot, refused: &BTreeMap<String, String>) -> bool {
        let Some(active) = self.status(kind).active else { return false };
        let there = |name: &str| snapshot.units.iter().any(|unit| unit.name == name) || refused.contains_key(name);
        let from_folder = matches!(active.card.origin, Origin::Folder(_));
        if !from_folder || there(&active.card.unit) || !snapshot.faults.is_empty() {
            return false;
        }
        match self.activate_shipped(kind) {
            Ok(()) => {
                if let Err(error) = self.store.remove(RowKind::Policy, kind.label(), Durability::Power) {
                    tracing::error!(%kind, %error, "the last good plugin could not be forgotten");
                }
                true
            }
            Err(error) => {
                tracing::error!(%kind, %error, "the plugin in force stays");
                false
            }
        }
    }

    fn activate(&self, unit: &Unit, gated: Gated) {
        let kind = gated.kind();
        let digest = unit.digest();
        let generation = match gated {
            Gated::Route(policy) => self.route.activate(policy),
            Gated::Ipam(policy) => self.ipam.activate(policy),
            Gated::Bandwidth(policy) => self.bandwidth.activate(policy),
        };
        self.metrics.plugins.swapped(kind.label(), "activated");
        self.metrics.plugins.set_generation(kind.label(), generation);
        tracing::info!(%kind, unit = unit.name, digest = digest.short(), generation, "plugin activated");
        if matches!(unit.origin, Origin::Folder(_)) {
            let (name, settings) = (unit.name.clone(), unit.settings.clone());
            let last_good = LastGood { name, component: unit.component.to_vec(), settings };
            if let Err(error) = self.store.put(RowKind::Policy, kind.label(), &last_good, Durability::Power) {
                tracing::error!(%kind, %error, "the plugin works but could not be recorded for the next start");
            }
        }
    }

    /// Starts from what was last good, when the folder cannot say: it is not there, or holds a broken unit.
    fn restore(&self, kind: Kind, folder: Option<&FolderSnapshot>) -> bool {
        let Some(snapshot) = folder else { return false };
        let Ok(Some(last_good)) = self.store.get::<LastGood>(RowKind::Policy, kind.label()) else { return false };
        let refused = !self.refused.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if !refused && snapshot.faults.is_empty() {
            return false;
        }
        let LastGood { name, component, settings } = last_good;
        let unit = Unit { origin: Origin::Folder(name.clone().into()), name, component: component.into(), settings };
        match self.host.gate(&unit, None) {
            Ok(gated) if gated.kind() == kind => {
                self.activate(&unit, gated);
                true
            }
            Ok(_) => false,
            Err(refusal) => {
                tracing::error!(%kind, %refusal, "the last good plugin does not pass any more");
                false
            }
        }
    }

    fn activate_shipped(&self, kind: Kind) -> Result<(), PolicyError> {
        let unit = self.shipped.get(kind.label()).ok_or_else(|| PolicyError::Unknown { name: kind.label().into() })?;
        let shipped = |reason: String| PolicyError::Shipped { name: unit.name.clone(), reason };
        let gated = self.gate_shipped(unit).map_err(|refusal| shipped(refusal.reason.to_string()))?;
        if gated.kind() != kind {
            return Err(shipped(format!("it decides {}, not {kind}", gated.kind())));
        }
        self.activate(unit, gated);
        Ok(())
    }

    /// A shipped plugin is the one that was tested: when it fails, as by missing a deadline, it is most often the machine
    /// that is too busy at the daemon's start, and the next try passes.
    fn gate_shipped(&self, unit: &Unit) -> Result<Gated, Refusal> {
        let mut gated = self.host.gate(unit, None);
        for _ in 1..SHIPPED_TRIES {
            match &gated {
                Ok(_) => break,
                Err(refusal) => tracing::warn!(%refusal, "a shipped plugin does not pass; tried again"),
            }
            gated = self.host.gate(unit, None);
        }
        gated
    }

    fn status(&self, kind: Kind) -> SlotStatus {
        match kind {
            Kind::Route => self.route.status(),
            Kind::Ipam => self.ipam.status(),
            Kind::Bandwidth => self.bandwidth.status(),
        }
    }

    fn active(&self, kind: Kind) -> Option<Digest> {
        match kind {
            Kind::Route => self.route.active().map(|policy| policy.digest()),
            Kind::Ipam => self.ipam.active().map(|policy| policy.digest()),
            Kind::Bandwidth => self.bandwidth.active().map(|policy| policy.digest()),
        }
    }

    /// Asks for the routes of a topology. An answer that the host refuses counts as a fault of the plugin,
    /// so that a bad one is taken back.
    ///
    /// # Errors
    /// Why there is no answer; routes in force stay.
    pub fn plan(&self, topology: &Topology) -> Result<AdmittedRoutes, SlotError> {
        self.count(
            Kind::Route,
            self.route.call(|policy| {
                let routes = policy.plan(topology)?;
                admit(topology, routes, topology.generation).map_err(|refusal| {
                    self.metrics.routes.refusals.inc();
                    Fault::Invalid(refusal.to_string())
                })
            }),
        )
    }

    /// Asks which blocks this node would like.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn propose(&self, node: &Node, family: Family, space: &Space) -> Result<Vec<IpNet>, SlotError> {
        self.count(Kind::Ipam, self.ipam.call(|policy| policy.propose(node, family, space)))
    }

    /// Asks which of the free addresses a pod gets.
    ///
    /// # Errors
    /// Why there is no answer; the host chooses.
    pub fn pick(&self, request: &PickRequest) -> Result<Option<u32>, SlotError> {
        self.count(Kind::Ipam, self.ipam.call(|policy| policy.pick(request)))
    }

    /// Asks for a pod's rates.
    ///
    /// # Errors
    /// Why there is no answer; rates in force stay, a new pod gets those it requested.
    pub fn shape(&self, request: &ShapeRequest) -> Result<Shaping, SlotError> {
        self.count(Kind::Bandwidth, self.bandwidth.call(|policy| policy.shape(request)))
    }

    fn count<T>(&self, kind: Kind, answer: Result<T, SlotError>) -> Result<T, SlotError> {
        self.metrics.plugins.called(kind.label());
        if let Err(SlotError::Failed { unit, fault, back_to }) = &answer {
            self.metrics.plugins.faulted(kind.label(), fault.kind().label());
            if let Some(generation) = back_to {
                self.metrics.plugins.swapped(kind.label(), "rolled-back");
                self.metrics.plugins.set_generation(kind.label(), *generation);
                tracing::error!(%kind, unit, %fault, generation, "plugin taken back; the previous one decides again");
            }
        }
        answer
    }

    /// Who decides a kind now, for people.
    #[must_use]
    pub fn decided_by(&self, kind: Kind) -> String {
        self.status(kind).active.map_or_else(String::new, |active| {
            let card = active.card;
            let (name, version) = (&card.description.name, &card.description.version);
            format!("{name} {version} ({}, generation {})", card.digest.short(), active.number)
        })
    }

    /// What the admin API shows.
    #[must_use]
    pub fn view(&self) -> view::Plugins {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let refused =
            refused.iter().map(|(unit, reason)| view::RefusedUnit { unit: unit.clone(), reason: reason.clone() });
        view::Plugins {
            schema: view::SCHEMA,
            plugins: Kind::ALL.into_iter().map(|kind| view_of(kind, &self.status(kind))).collect(),
            refused: refused.collect(),
        }
    }
}

fn shipped_units(config: &Config) -> Result<BTreeMap<&'static str, Unit>, PolicyError> {
    let names = [
        (Kind::Route, "route-sites"),
        (Kind::Ipam, config.ipam.policy.as_str()),
        (Kind::Bandwidth, "bandwidth-annotations"),
    ];
    let units = names.into_iter().map(|(kind, name)| {
        let shipped =
            culvert_shipped_plugins::by_name(name).ok_or_else(|| PolicyError::Unknown { name: name.to_owned() })?;
        let settings = config.plugins.settings.get(name).map_or_else(|| "{}".to_owned(), ToString::to_string);
        let unit = Unit { name: name.to_owned(), component: shipped.bytes.into(), settings, origin: Origin::Shipped };
        Ok((kind.label(), unit))
    });
    units.collect()
}

fn view_of(kind: Kind, status: &SlotStatus) -> view::Plugin {
    let active = status.active.as_ref();
    let faults = active.map(|active| {
        let counted = FaultKind::ALL.into_iter().map(|fault| (fault.label().to_owned(), active.faults_of(fault)));
        counted.filter(|(_, count)| *count > 0).collect()
    });
    view::Plugin {
        kind: kind.label().to_owned(),
        active: active.map(view_of_generation).unwrap_or_default(),
        previous: status.previous.as_ref().map(view_of_generation),
        rolled_back: status.rolled_back.is_some(),
        calls: active.map_or(0, |active| active.calls),
        faults: faults.unwrap_or_default(),
        last_fault: status.last_fault.clone(),
    }
}

fn view_of_generation(generation: &GenerationStatus) -> view::PluginGeneration {
    view::PluginGeneration {
        unit: generation.card.unit.clone(),
        name: generation.card.description.name.clone(),
        version: generation.card.description.version.clone(),
        digest: generation.card.digest.to_string(),
        generation: generation.number,
    }
}
