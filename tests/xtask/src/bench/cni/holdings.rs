//! What a node holds, counted: before and after, the difference is what was left behind.

use std::path::Path;

use anyhow::{Context, Result};
use culvert_lab::namespace::Place;
use serde::Serialize;
use serde_json::Value;

use super::way::Way;

/// Counts of what an attachment can leave behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Holdings {
    /// Links.
    pub(super) links: usize,
    /// Addresses of links.
    pub(super) addresses: usize,
    /// Firewall rules, those of `iptables` among them.
    pub(super) rules: usize,
    /// Elements of firewall maps and sets.
    pub(super) elements: usize,
    /// Addresses in use by the records.
    pub(super) leases: usize,
}

impl Holdings {
    /// Counts.
    ///
    /// **Errors** a tool fails.
    pub(super) fn of(way: &dyn Way) -> Result<Self> {
        let place = way.place();
        let links = list(&place.ip("-json address show")?)?;
        let addresses = links.iter().filter_map(|link| link["addr_info"].as_array()).map(Vec::len).sum();
        let (rules, elements) = firewall(&ruleset(place)?)?;
        Ok(Self { links: links.len(), addresses, rules, elements, leases: way.leases()? })
    }

    /// What is there beyond `before`.
    pub(super) fn beyond(&self, before: &Self) -> Self {
        Self {
            links: self.links.saturating_sub(before.links),
            addresses: self.addresses.saturating_sub(before.addresses),
            rules: self.rules.saturating_sub(before.rules),
            elements: self.elements.saturating_sub(before.elements),
            leases: self.leases.saturating_sub(before.leases),
        }
    }

    /// All of it, under its names.
    pub(super) fn named(&self) -> [(&'static str, usize); 5] {
        [
            ("links", self.links),
            ("addresses", self.addresses),
            ("rules", self.rules),
            ("map elements", self.elements),
            ("leases", self.leases),
        ]
    }
}

fn list(printed: &str) -> Result<Vec<Value>> {
    serde_json::from_str(printed).with_context(|| format!("`ip` printed {printed:?}"))
}

/// The rules of a node, as JSON. What `nft` has no words for is in standard error, and of no interest here.
fn ruleset(place: &Place) -> Result<String> {
    let mut nft = place.command(Path::new("nft"));
    nft.args(["--json", "list", "ruleset"]);
    culvert_lab::command::finish(nft, &format!("nft --json list ruleset in {}", place.name()))
}

/// How many rules and elements a ruleset of `nft` has.
fn firewall(printed: &str) -> Result<(usize, usize)> {
    let ruleset: Value = serde_json::from_str(printed).context("the ruleset of nft")?;
    let objects = ruleset["nftables"].as_array().cloned().unwrap_or_default();
    let rules = objects.iter().filter(|object| object.get("rule").is_some()).count();
    let held = |object: &Value| ["map", "set"].map(|kind| object[kind]["elem"].as_array().map_or(0, Vec::len));
    Ok((rules, objects.iter().flat_map(held).sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_elements_of_maps_and_sets_are_counted() {
        let printed = r#"{"nftables": [{"metainfo": {}}, {"table": {"name": "t"}}, {"rule": {}}, {"rule": {}},
            {"map": {"name": "m", "elem": [["a", "b"], ["c", "d"], ["e", "f"]]}}, {"set": {"elem": [1]}}, {"set": {}}]}"#;
        assert_eq!(firewall(printed).unwrap(), (2, 4));
        assert!(firewall("").is_err());
    }

    #[test]
    fn only_what_is_there_beyond_counts_as_left() {
        let before = Holdings { links: 3, rules: 9, ..Holdings::default() };
        let after = Holdings { links: 4, rules: 7, leases: 1, ..Holdings::default() };
        assert_eq!(after.beyond(&before), Holdings { links: 1, leases: 1, ..Holdings::default() });
    }
}
