//! Reads a configuration tree and reports every fault at once, each with its key path.
//!
//! A [`Section`] is a mapping of the tree. Each accessor takes one key out of it; what is left when
//! the section is [finished](Section::finish) is an unknown key, which is a fault too. Accessors
//! that fail note a [`Fault`] and answer a harmless value, so that reading goes on to the next key.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

use serde_json::Value;

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: `mesh.relayNodes[0].advertiseAddress`.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.message)
    }
}

/// The faults of one tree, shared by its sections.
#[derive(Clone, Debug, Default)]
pub struct Faults(Rc<RefCell<Vec<Fault>>>);

impl Faults {
    /// Notes a fault.
    pub fn note(&self, path: &str, message: impl Into<String>) {
        self.0.borrow_mut().push(Fault { path: path.to_owned(), message: message.into() });
    }

    /// All faults so far, in the order they were found.
    #[must_use]
    pub fn all(&self) -> Vec<Fault> {
        self.0.borrow().clone()
    }
}

/// One mapping of the tree, being read.
#[derive(Debug)]
pub struct Section {
    path: String,
    known: Vec<&'static str>,
    rest: BTreeMap<String, Value>,
    faults: Faults,
}

impl Section {
    /// Opens `value` as a mapping; anything else is a fault and reads as an empty one.
    #[must_use]
    pub fn open(path: &str, value: Value, faults: &Faults) -> Self {
        let rest = match value {
            Value::Object(entries) => entries.into_iter().collect(),
            Value::Null => BTreeMap::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                faults.note(if path.is_empty() { "(top)" } else { path }, "write a mapping of keys to values");
                BTreeMap::new()
            }
        };
        Self { path: path.to_owned(), known: Vec::new(), rest, faults: faults.clone() }
    }

    /// The full path of a key of this section.
    #[must_use]
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a fault at a key of this section.
    pub fn fault(&self, key: &str, message: impl Into<String>) {
        self.faults.note(&self.path_of(key), message);
    }

    /// Takes a raw value out; an explicit null counts as absent.
    pub fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.rest.remove(key).filter(|value| !value.is_null())
    }

    /// Takes a sub-section out; an absent one reads as empty.
    pub fn section(&mut self, key: &'static str) -> Section {
        let value = self.take(key).unwrap_or(Value::Null);
        Section::open(&self.path_of(key), value, &self.faults)
    }

    /// Takes a sub-section out, if it is there.
    pub fn optional_section(&mut self, key: &'static str) -> Option<Section> {
        let value = self.take(key)?;
        Some(Section::open(&self.path_of(key), value, &self.faults))
    }

    /// Takes a list of sub-sections out; an absent one is empty.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section> {
        self.list(key).into_iter().map(|(path, value)| Section::open(&path, value, &self.faults)).collect()
    }

    /// Takes a text, if it is there.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.take(key)?;
        if let Value::String(text) = value {
            return Some(text);
        }
        self.fault(key, format!("write a text, not {}", kind_of(&value)));
        None
    }

    /// Takes a text that must be there.
    pub fn required_text(&mut self, key: &'static str) -> String {
        let absent = !self.rest.contains_key(key);
        if absent {
            self.fault(key, "is required");
        }
        self.text(key).unwrap_or_default()
    }

    /// Takes a boolean, or `default`.
    pub fn flag(&mut self, key: &'static str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(other) => {
                self.fault(key, format!("write true or false, not {}", kind_of(&other)));
                default
            }
        }
    }

    /// Takes a whole number between `bounds`, or `default`.
    pub fn number(&mut self, key: &'static str, default: u64, bounds: std::ops::RangeInclusive<u64>) -> u64 {
        let Some(value) = self.take(key) else {
            return default;
        };
        match value.as_u64() {
            Some(number) if bounds.contains(&number) => number,
            _ => {
                self.fault(
                    key,
                    format!("write a whole number from {} to {}, not {value}", bounds.start(), bounds.end()),
                );
                default
            }
        }
    }

    /// Takes a text and parses it, if it is there. `meaning` completes "write …".
    pub fn parsed<T: FromStr>(&mut self, key: &'static str, meaning: &str) -> Option<T> {
        let text = self.text(key)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.fault(key, format!("write {meaning}, not {text:?}"));
        }
        parsed
    }

    /// Takes a list of texts and parses each; an absent list is empty.
    pub fn parsed_list<T: FromStr>(&mut self, key: &'static str, meaning: &str) -> Vec<T> {
        let mut parsed = Vec::new();
        for (path, value) in self.list(key) {
            match value.as_str().and_then(|text| text.parse().ok()) {
                Some(item) => parsed.push(item),
                None => self.faults.note(&path, format!("write {meaning}, not {value}")),
            }
        }
        parsed
    }

    /// Takes a mapping of texts to texts; an absent one is empty.
    pub fn texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let mut section = self.section(key);
        let entries = std::mem::take(&mut section.rest);
        let mut texts = BTreeMap::new();
        for (name, value) in entries {
            if let Value::String(text) = value {
                texts.insert(name, text);
            } else {
                section.fault(&name, format!("write a text, not {}", kind_of(&value)));
            }
        }
        texts
    }

    /// Takes a mapping of names to trees that somebody else reads; an absent one is empty.
    pub fn trees(&mut self, key: &'static str) -> BTreeMap<String, Value> {
        std::mem::take(&mut self.section(key).rest)
    }

    /// Ends the reading: every key nobody took is unknown.
    pub fn finish(self) {
        for key in self.rest.keys() {
            self.fault(key, format!("is not a known key; known here: {}", self.known.join(", ")));
        }
    }

    fn list(&mut self, key: &'static str) -> Vec<(String, Value)> {
        let path = self.path_of(key);
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => {
                items.into_iter().enumerate().map(|(index, item)| (format!("{path}[{index}]"), item)).collect()
            }
            Some(other) => {
                self.fault(key, format!("write a list, not {}", kind_of(&other)));
                Vec::new()
            }
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_fault_is_reported_with_its_path() {
        let faults = Faults::default();
        let tree = json!({
            "mesh": { "port": 70_000, "relayNodes": [{ "nodeName": 5 }], "colour": "blue" },
            "node": [],
        });
        let mut top = Section::open("", tree, &faults);
        let mut mesh = top.section("mesh");
        assert_eq!(mesh.number("port", 20_006, 1..=65_535), 20_006);
        for mut relay in mesh.sections("relayNodes") {
            relay.required_text("nodeName");
            relay.required_text("address");
            relay.finish();
        }
        mesh.finish();
        top.section("node").finish();
        top.finish();
        let found: Vec<String> = faults.all().iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "mesh.port: write a whole number from 1 to 65535, not 70000",
                "mesh.relayNodes[0].nodeName: write a text, not a number",
                "mesh.relayNodes[0].address: is required",
                "mesh.colour: is not a known key; known here: port, relayNodes",
                "node: write a mapping of keys to values",
            ]
        );
    }

    #[test]
    fn an_absent_section_reads_as_its_defaults() {
        let faults = Faults::default();
        let mut top = Section::open("", json!({}), &faults);
        let mut network = top.section("network");
        assert_eq!(network.number("mtu", 1500, 1280..=65_535), 1500);
        assert!(network.flag("masquerade", true));
        assert_eq!(network.text("bridge"), None);
        network.finish();
        top.finish();
        assert_eq!(faults.all(), []);
    }
}
