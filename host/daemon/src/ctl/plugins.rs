//! Prints `culvertctl plugins`.

use super::layout::{BAD, line, mark, points, shortened, table};
use crate::view::{Plugin, PluginGeneration, Plugins};

/// One line a policy, what there is to know beyond it, and the units that were refused.
pub(super) fn text(plugins: &Plugins) -> String {
    let policies = if plugins.plugins.is_empty() {
        line(
            "no policy is in force yet: the shipped ones start with the daemon; `culvertctl status` says what is missing.",
        )
    } else {
        let header = ["", "KIND", "PLUGIN", "VERSION", "UNIT", "DIGEST", "GENERATION", "CALLS", "FAULTS"];
        table(header, plugins.plugins.iter().map(row))
    };
    let notes: Vec<String> = plugins.plugins.iter().flat_map(notes).collect();
    let refused: Vec<String> =
        plugins.refused.iter().map(|refused| format!("{}: {}", refused.unit, refused.reason)).collect();
    [policies, points("Notes:", "-", &notes), points("Refused units:", BAD, &refused)].concat()
}

fn row(plugin: &Plugin) -> [String; 9] {
    let active = &plugin.active;
    [
        mark(!plugin.rolled_back && plugin.last_fault.is_none()).to_owned(),
        plugin.kind.clone(),
        active.name.clone(),
        active.version.clone(),
        active.unit.clone(),
        shortened(&active.digest),
        active.generation.to_string(),
        plugin.calls.to_string(),
        faults(plugin),
    ]
}

/// `3 (2 timeout, 1 trap)`
fn faults(plugin: &Plugin) -> String {
    let all: u64 = plugin.faults.values().sum();
    let kinds: Vec<String> = plugin
        .faults
        .iter()
        .filter(|(_, number)| **number > 0)
        .map(|(kind, number)| format!("{number} {kind}"))
        .collect();
    if kinds.is_empty() { all.to_string() } else { format!("{all} ({})", kinds.join(", ")) }
}

fn notes(plugin: &Plugin) -> Vec<String> {
    let kind = &plugin.kind;
    let rolled_back = plugin.rolled_back.then(|| format!("{kind}: a newer unit failed, so this one came back"));
    let previous = plugin
        .previous
        .as_ref()
        .map(|previous| format!("{kind}: {} would come back on repeated traps", named(previous)));
    let fault = plugin.last_fault.as_ref().map(|fault| format!("{kind}: the newest fault: {fault}"));
    [rolled_back, previous, fault].into_iter().flatten().collect()
}

fn named(generation: &PluginGeneration) -> String {
    let PluginGeneration { unit, name, version, digest, generation } = generation;
    format!("{name} {version} of {unit} ({}, generation {generation})", shortened(digest))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::view::RefusedUnit;

    fn generation(unit: &str, version: &str, generation: u64) -> PluginGeneration {
        PluginGeneration {
            unit: unit.into(),
            name: "route-sites".into(),
            version: version.into(),
            digest: format!("{generation}23456789abcdef0123456789abcdef"),
            generation,
        }
    }

    #[test]
    fn policies_notes_and_refusals_follow_each_other() {
        let plugins = Plugins {
            schema: 1,
            plugins: vec![
                Plugin {
                    kind: "ipam".into(),
                    active: PluginGeneration { name: "ipam-hash".into(), ..generation("ipam-hash", "0.1.0", 1) },
                    calls: 40,
                    ..Plugin::default()
                },
                Plugin {
                    kind: "route".into(),
                    active: generation("route-sites", "0.1.0", 3),
                    previous: Some(generation("mine", "0.2.0", 2)),
                    rolled_back: true,
                    calls: 9,
                    faults: BTreeMap::from([("timeout".into(), 2), ("memory".into(), 0), ("trap".into(), 1)]),
                    last_fault: Some("stopped: no answer within 50 ms".into()),
                },
            ],
            refused: vec![RefusedUnit {
                unit: "wasi-thing".into(),
                reason: "imports wasi:cli/environment: build it without WASI".into(),
            }],
        };
        assert_eq!(
            text(&plugins),
            "   KIND   PLUGIN       VERSION  UNIT         DIGEST        GENERATION  CALLS  FAULTS
✓  ipam   ipam-hash    0.1.0    ipam-hash    123456789abc  1           40     0
✗  route  route-sites  0.1.0    route-sites  323456789abc  3           9      3 (2 timeout, 1 trap)

Notes:
  - route: a newer unit failed, so this one came back
  - route: route-sites 0.2.0 of mine (223456789abc, generation 2) would come back on repeated traps
  - route: the newest fault: stopped: no answer within 50 ms

Refused units:
  ✗ wasi-thing: imports wasi:cli/environment: build it without WASI
"
        );
    }

    #[test]
    fn emptiness_is_explained() {
        assert!(text(&Plugins::default()).starts_with("no policy is in force yet: "));
    }
}
