//! Turns the reference's chain of a conflist into the one plugin `culvert`. Pure: text in, text and notes out.
//!
//! ```text
//! bridge + host-local ┐
//! portmap             ├─> culvert      tuning, firewall, … stay, in their order
//! bandwidth           ┘
//! ```
//!
//! The configuration of the new plugin is read by the decoder that will read it for every pod, and refused here rather
//! than there.
//!
//! **Source** the configuration fields of the reference's plugins; conflists as KubeEdge's guides print them.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::fields::{FieldError, Fields};
use crate::head::{self, HeadError};
use crate::ipam::AddressRange;
use crate::netconf::{ConfigError, NetConf, unsupported};
use crate::version::{SpecVersion, Verb};

/// The version that every runtime in use speaks.
const VERSION: SpecVersion = SpecVersion::V1_0_0;
/// The bridge of a node whose configuration names none.
const BRIDGE: &str = "cni0";
/// The most blocks that a range of a conflist may take.
const MAX_BLOCKS: u128 = 16;
/// What the plugin can be asked for one pod.
const CAPABILITIES: [&str; 7] =
    ["portMappings", "bandwidth", "ips", "mac", "ipRanges", "dns", "io.kubernetes.cri.pod-annotations"];
/// The settings of the bandwidth plugin that limit every pod.
const RATES: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

type Object = Map<String, Value>;

/// A conflist with the one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The conflist; the given text itself when there was nothing to change.
    pub text: String,
    /// Whether it says something else than before.
    pub changed: bool,
    /// What became of each part, in the order of the file; what to look at comes last. Only that when nothing changed.
    pub notes: Vec<Note>,
}

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// In one word.
    pub kind: NoteKind,
    /// In a sentence.
    pub text: String,
}

/// What became of a part, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// It is as it was.
    Kept,
    /// It is part of the one plugin now.
    Merged,
    /// It is gone, and nothing is missing.
    Dropped,
    /// An operator must look at it.
    Attention,
}

impl fmt::Display for NoteKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kept => "kept",
            Self::Merged => "merged",
            Self::Dropped => "dropped",
            Self::Attention => "attention",
        })
    }
}

/// Why a text cannot be migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// Not JSON.
    #[error("the conflist is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// One plugin without a list.
    #[error(
        "this is the configuration of one plugin, not a list: write {{\"cniVersion\": …, \"name\": …, \"plugins\": [ … ]}} around it first"
    )]
    OnePlugin,
    /// A field has the wrong type, or is missing.
    #[error("the conflist cannot be read: {0}")]
    Field(#[from] FieldError),
    /// The name or the version is not one.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// There is nothing that Culvert could take the place of.
    #[error("the conflist has no plugin of type bridge that culvert could take the place of; it has {0}")]
    NoBridge(String),
    /// More than one plugin makes the pod's interface.
    #[error("the conflist has {0} plugins of type bridge or culvert; leave one")]
    SeveralBridges(usize),
    /// The new plugin's configuration would be refused for every pod.
    #[error("culvert would refuse what the conflist says of bridge and ipam: {0}")]
    Refused(#[source] ConfigError),
}

/// Migrates a conflist. One that was migrated before stays as it is.
///
/// **Errors** the text is no conflist, has no bridge plugin, or asks for what could be given to no pod.
pub fn conflist(text: &str) -> Result<Migration, MigrationError> {
    let document: Value = serde_json::from_str(text)?;
    let fields = Fields::of("the document", &document)?;
    if fields.value("plugins").is_none() && fields.value("type").is_some() {
        return Err(MigrationError::OnePlugin);
    }
    let name = head::check_name(fields.text("name")?)?;
    let version = head::check_version(fields.text("cniVersion")?, Verb::Add)?;
    let listed = fields.texts("cniVersions")?;
    let plugins = read_plugins(&fields)?;
    check_main(&plugins)?;

    let mut draft = Draft::default();
    plugins.into_iter().for_each(|plugin| draft.take_in(plugin));
    draft.declare_capabilities();
    draft.look_at_ranges(name)?;
    let mut list = fields.into_map();
    draft.set_versions(&mut list, version, &listed);
    Ok(draft.finish(list, &document, text))
}

/// A plugin of the list, without what every plugin has.
struct Plugin {
    kind: String,
    capabilities: Object,
    map: Object,
}

fn read_plugins(list: &Fields<'_>) -> Result<Vec<Plugin>, FieldError> {
    let read = |(path, value): (String, &Value)| {
        let fields = Fields::of(path, value)?;
        let kind = fields.required("type", "the name of a plugin")?;
        let capabilities = fields.map("capabilities")?.cloned().unwrap_or_default();
        fields.map("ipam")?;
        Ok(Plugin { kind, capabilities, map: fields.into_map() })
    };
    list.list("plugins")?.into_iter().map(read).collect()
}

/// Culvert takes the place of exactly one plugin; itself counts, so that a migrated conflist stays as it is.
fn check_main(plugins: &[Plugin]) -> Result<(), MigrationError> {
    let count = plugins.iter().filter(|plugin| matches!(plugin.kind.as_str(), "bridge" | "culvert")).count();
    let kinds = || plugins.iter().map(|plugin| plugin.kind.as_str()).collect::<Vec<_>>().join(", ");
    match count {
        0 if plugins.is_empty() => Err(MigrationError::NoBridge("no plugins at all".to_owned())),
        0 => Err(MigrationError::NoBridge(kinds())),
        1 => Ok(()),
        several => Err(MigrationError::SeveralBridges(several)),
    }
}

/// The list as it becomes.
#[derive(Default)]
struct Draft {
    /// The one plugin.
    culvert: Object,
    /// Its place among the others.
    place: usize,
    others: Vec<Value>,
    notes: Vec<Note>,
    capabilities: Object,
}

impl Draft {
    fn note(&mut self, kind: NoteKind, text: impl Into<String>) {
        self.notes.push(Note { kind, text: text.into() });
    }

    fn take_in(&mut self, plugin: Plugin) {
        let Plugin { kind, capabilities, mut map } = plugin;
        if !matches!(kind.as_str(), "bridge" | "culvert" | "portmap" | "bandwidth") {
            self.note(NoteKind::Kept, format!("{kind} stays where it was among the plugins"));
            self.others.push(Value::Object(map));
            return;
        }
        self.capabilities.extend(capabilities);
        take(&mut map, "type");
        take(&mut map, "capabilities");
        self.drop_unsupported(&kind, &mut map);
        match kind.as_str() {
            "portmap" => self.take_port_map(&map),
            "bandwidth" => self.take_bandwidth(map),
            _ => self.take_main(&kind, map),
        }
    }

    /// Removes what Culvert would refuse, since the file would then attach no pod at all.
    fn drop_unsupported(&mut self, kind: &str, map: &mut Object) {
        for (key, value) in std::mem::take(map) {
            match unsupported::reason(&key, &value) {
                Some(why) => self.note(NoteKind::Attention, format!("{kind}: {key} {value} is gone, because {why}")),
                None => drop(map.insert(key, value)),
            }
        }
    }

    fn take_main(&mut self, kind: &str, mut map: Object) {
        self.place = self.others.len();
        let name = map.get("bridge").and_then(Value::as_str).unwrap_or(BRIDGE).to_owned();
        if kind == "bridge" {
            self.note(NoteKind::Merged, "bridge became culvert, with its settings");
            let text = format!(
                "pods that run now were attached by the bridge plugin, and Culvert has no record of them: drain the node \
                 before the new conflist takes effect, then remove the bridge that it made (ip link delete {name})"
            );
            self.note(NoteKind::Attention, text);
        }
        if name != BRIDGE {
            let text = format!(
                "the bridge {name:?} is not the {BRIDGE} that nodes have by default: set network.bridge of culvertd's \
                 configuration to it, or leave it away here"
            );
            self.note(NoteKind::Attention, text);
        }
        match take(&mut map, "ipam") {
            Some(Value::Object(ipam)) if !ipam.is_empty() => self.take_ipam(ipam),
            _ if kind == "bridge" => self.note(
                NoteKind::Attention,
                "the bridge plugin gave pods no address; now each gets one of Culvert's own allocator",
            ),
            _ => {}
        }
        self.culvert.extend(map);
    }

    fn take_ipam(&mut self, mut ipam: Object) {
        match ipam.get("type").and_then(Value::as_str).unwrap_or_default() {
            "" | "culvert" => {}
            "static" => self.note(NoteKind::Merged, "static: its addresses are given by Culvert's own allocator"),
            "host-local" => {
                self.note(
                    NoteKind::Merged,
                    "host-local: its ranges now limit Culvert's own allocator, which claims the blocks that cover them; \
                     one outside the pool, or held by another node, is refused",
                );
                for key in ["dataDir", "resolvConf"] {
                    if take(&mut ipam, key).is_some() {
                        self.note(NoteKind::Dropped, format!("host-local: {key}, a file that Culvert does not use"));
                    }
                }
            }
            other => {
                let text = format!(
                    "the ipam plugin {other:?} is not asked any more: pods get addresses of Culvert's pool; write \
                     host-local with ranges to limit them"
                );
                self.note(NoteKind::Attention, text);
                return;
            }
        }
        self.culvert.insert("ipam".to_owned(), Value::Object(ipam));
    }

    fn take_port_map(&mut self, map: &Object) {
        self.note(NoteKind::Merged, "portmap: host ports are part of culvert");
        for key in map.keys() {
            self.note(NoteKind::Dropped, format!("portmap: {key}, which Culvert's own rules have no use for"));
        }
    }

    fn take_bandwidth(&mut self, mut map: Object) {
        self.note(NoteKind::Merged, "bandwidth: limits are part of culvert");
        for key in RATES {
            if let Some(rate) = take(&mut map, key) {
                set(&mut self.culvert, key, rate);
            }
        }
        for key in map.keys() {
            self.note(NoteKind::Dropped, format!("bandwidth: {key}, which Culvert's limits have no use for"));
        }
    }

    /// Everything that the runtime can hand over, unless the conflist said no to it.
    fn declare_capabilities(&mut self) {
        let missing = CAPABILITIES.into_iter().filter(|key| !self.capabilities.contains_key(*key));
        let missing: Vec<&str> = missing.collect();
        self.capabilities.extend(missing.iter().map(|key| ((*key).to_owned(), Value::Bool(true))));
        if !missing.is_empty() {
            self.note(NoteKind::Merged, format!("capabilities: {} came in addition", missing.join(", ")));
        }
        let capabilities = Value::Object(std::mem::take(&mut self.capabilities));
        self.culvert.insert("capabilities".to_owned(), capabilities);
        self.culvert.insert("type".to_owned(), "culvert".into());
    }

    /// Reads the plugin's configuration as it will be read for every pod.
    ///
    /// **Errors** it would be refused.
    fn look_at_ranges(&mut self, name: &str) -> Result<(), MigrationError> {
        let mut config = self.culvert.clone();
        set(&mut config, "name", name.into());
        set(&mut config, "cniVersion", VERSION.as_str().into());
        let config = NetConf::decode(Value::Object(config).to_string().as_bytes(), Verb::Add);
        let config = config.map_err(MigrationError::Refused)?;
        for range in config.sets.iter().flatten().filter(|range| blocks(range) > MAX_BLOCKS) {
            let text = format!(
                "the range {range} covers {} blocks (of /24 or /64, as pools have by default), and a node may claim \
                 {MAX_BLOCKS} for it: give each node a range of its own, or leave ipam away",
                blocks(range)
            );
            self.note(NoteKind::Attention, text);
        }
        Ok(())
    }

    /// Old runtimes read `cniVersion` alone. Newer ones take the newest of `cniVersions` that they speak, and call every
    /// plugin of the list in it: so it is there only when all plugins are known to speak it.
    fn set_versions(&mut self, list: &mut Object, before: SpecVersion, listed: &[String]) {
        let (version, latest) = (VERSION.as_str(), SpecVersion::LATEST.as_str());
        let speaks_latest = before == SpecVersion::LATEST || listed.iter().any(|listed| listed == latest);
        take(list, "cniVersions");
        set(list, "cniVersion", version.into());
        if self.others.is_empty() || speaks_latest {
            set(list, "cniVersions", json!([version, latest]));
            self.note(
                NoteKind::Merged,
                format!("versions: {version} for old runtimes, {latest} for those that speak it"),
            );
        } else if before < VERSION {
            let text = format!("cniVersion {before} became {version}: see that the plugins that stay speak it");
            self.note(NoteKind::Attention, text);
        }
    }

    fn finish(mut self, mut list: Object, before: &Value, text: &str) -> Migration {
        self.others.insert(self.place, Value::Object(self.culvert));
        set(&mut list, "plugins", Value::Array(self.others));
        let list = Value::Object(list);
        let changed = list != *before;
        let (looked_at, done): (Vec<Note>, Vec<Note>) =
            self.notes.into_iter().partition(|note| note.kind == NoteKind::Attention);
        if !changed {
            return Migration { text: text.to_owned(), changed, notes: looked_at };
        }
        Migration { text: format!("{list:#}\n"), changed, notes: [done, looked_at].concat() }
    }
}

/// How many blocks of the usual size a range touches.
fn blocks(range: &AddressRange) -> u128 {
    match (range.first, range.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => u128::from((last.to_bits() >> 8) - (first.to_bits() >> 8)) + 1,
        (IpAddr::V6(first), IpAddr::V6(last)) => (last.to_bits() >> 64) - (first.to_bits() >> 64) + 1,
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    }
}

/// Removes a member, whatever its case.
fn take(map: &mut Object, key: &str) -> Option<Value> {
    let inexact = || map.keys().find(|name| name.eq_ignore_ascii_case(key)).cloned();
    let name = if map.contains_key(key) { Some(key.to_owned()) } else { inexact() };
    map.remove(&name?)
}

/// Sets a member in place of those of any case.
fn set(map: &mut Object, key: &str, value: Value) {
    while take(map, key).is_some() {}
    map.insert(key.to_owned(), value);
}

#[cfg(test)]
mod tests;
