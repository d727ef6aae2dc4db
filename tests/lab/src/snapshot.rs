//! What a machine's network looks like, as lines that can be compared: the proof that nothing was left behind.
//!
//! Taken of each namespace: links, addresses, routes, rules, neighbours that were set, queueing disciplines, iptables, ip6tables, nftables. Values that
//! change by themselves (counters, handles, life times, states, carriers) are left out. So are tables that hold nothing but
//! empty built-in chains: once made, `iptables` itself never removes them. Sysctls are not compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;

/// The tables that `iptables` makes by itself.
const IPTABLES_TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// What is shown of a namespace: a section, the command line, and how its output is read.
const TOOLS: [(&str, &str, Reader); 11] = [
    ("links", "ip -json -details link show", json_lines),
    ("addresses", "ip -json address show", json_lines),
    ("routes", "ip -json route show table all", json_lines),
    ("IPv6 routes", "ip -json -6 route show table all", json_lines),
    ("rules", "ip -json rule show", json_lines),
    ("IPv6 rules", "ip -json -6 rule show", json_lines),
    ("neighbours that were set", "ip -json neighbour show nud permanent", json_lines),
    ("queueing", "tc -json qdisc show", json_lines),
    ("iptables-save", "iptables-save", saved_rules),
    ("ip6tables-save", "ip6tables-save", saved_rules),
    ("nftables", "nft --json list ruleset", nft_objects),
];

/// Reads a tool's output.
type Reader = fn(&str) -> Result<BTreeSet<String>>;

/// Printed after each tool.
const NEXT: &str = "-----next-----";

/// Keys of `ip -json` and `tc -json` that change by themselves.
const RESTLESS_KEYS: [&str; 9] = [
    "operstate",
    "handle",
    "expires",
    "valid_life_time",
    "preferred_life_time",
    "stats64",
    "cache",
    "ifindex",
    "link_index",
];

/// Flags that come and go with the carrier of a link, as the state of an empty bridge does.
const RESTLESS_FLAGS: [&str; 4] = ["LOWER_UP", "NO-CARRIER", "linkdown", "dead"];

/// Lines by section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<String, BTreeSet<String>>,
}

impl Snapshot {
    /// Adds a namespace by its name.
    ///
    /// **Errors** a tool fails.
    pub fn add_namespace(&mut self, name: &str) -> Result<()> {
        self.add_place(name, &format!("ip netns exec {name}"))
    }

    /// Adds the namespace this process lives in.
    ///
    /// **Errors** a tool fails.
    pub fn add_own_namespace(&mut self) -> Result<()> {
        self.add_place("own namespace", "")
    }

    /// Adds the paths of all files below a folder; a folder that is not there has none.
    ///
    /// **Errors** a folder cannot be read.
    pub fn add_files(&mut self, folder: &Path) -> Result<()> {
        let mut found = BTreeSet::new();
        if folder.exists() {
            collect_files(folder, &mut found)?;
        }
        self.sections.insert(format!("files in {}", folder.display()), found);
        Ok(())
    }

    fn add_place(&mut self, place: &str, enter: &str) -> Result<()> {
        // One shell for all of it: entering a namespace costs more than most of the tools.
        let script: String = TOOLS.iter().map(|(_, line, _)| format!("{line} || exit; echo {NEXT};")).collect();
        let mut words = enter.split_whitespace().chain(["sh", "-c"]);
        let mut command = std::process::Command::new(words.next().context("no shell")?);
        command.args(words).arg(&script);
        let printed = command::finish(command, &format!("the tools that show {place}"))?;
        let next = format!("{NEXT}\n");
        let parts = printed.split(next.as_str());
        for ((section, line, read), part) in TOOLS.iter().zip(parts) {
            let lines = read(part).with_context(|| format!("`{line}` in {place}"))?;
            self.sections.insert(format!("{place}: {section}"), lines);
        }
        Ok(())
    }

    /// What `later` has more (`+`) or less (`-`), each with its section. Empty when nothing changed.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let sections: BTreeSet<&String> = self.sections.keys().chain(later.sections.keys()).collect();
        let mut lines = Vec::new();
        for section in sections {
            let before = self.sections.get(section).unwrap_or(&none);
            let after = later.sections.get(section).unwrap_or(&none);
            lines.extend(before.difference(after).map(|line| format!("- {section}: {line}")));
            lines.extend(after.difference(before).map(|line| format!("+ {section}: {line}")));
        }
        lines
    }
}

fn collect_files(folder: &Path, into: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        into.insert(path.display().to_string());
        if path.is_dir() && !path.is_symlink() {
            collect_files(&path, into)?;
        }
    }
    Ok(())
}

/// The entries of a JSON array, one a line, without what changes by itself.
fn json_lines(printed: &str) -> Result<BTreeSet<String>> {
    if printed.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let entries: Vec<Value> = serde_json::from_str(printed)?;
    // Anycast entries come and go with the forwarding sysctl.
    let kept = entries.into_iter().filter(|entry| entry["type"] != "anycast");
    Ok(kept.map(|entry| calm(entry).to_string()).collect())
}

/// A value without the keys that change by themselves, timers of bridges among them.
fn calm(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let restless = |key: &str| RESTLESS_KEYS.contains(&key) || key.ends_with("_timer");
            Value::Object(
                map.into_iter().filter(|(key, _)| !restless(key)).map(|(key, value)| (key, calm(value))).collect(),
            )
        }
        Value::Array(values) => {
            let restless = |value: &Value| value.as_str().is_some_and(|text| RESTLESS_FLAGS.contains(&text));
            Value::Array(values.into_iter().filter(|value| !restless(value)).map(calm).collect())
        }
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => plain,
    }
}

/// The rules and own chains of `iptables-save`, each under its table.
#[expect(clippy::unnecessary_wraps, reason = "one of several readers")]
fn saved_rules(printed: &str) -> Result<BTreeSet<String>> {
    let mut table = "";
    let mut rules = BTreeSet::new();
    for line in printed.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let untouched = chain.split_whitespace().nth(1) == Some("ACCEPT");
            if !untouched {
                let without_counters = chain.split(" [").next().unwrap_or(chain);
                rules.insert(format!("{table} chain {without_counters}"));
            }
        } else if line.starts_with("-A") {
            rules.insert(format!("{table} {line}"));
        }
    }
    Ok(rules)
}

/// The objects of `nft --json list ruleset`, without handles and counters.
fn nft_objects(printed: &str) -> Result<BTreeSet<String>> {
    let ruleset: Value = serde_json::from_str(printed).context("the ruleset of nft")?;
    let objects = ruleset["nftables"].as_array().cloned().unwrap_or_default();
    let kept = objects.into_iter().filter(|object| object.get("metainfo").is_none() && !is_empty_builtin(object));
    Ok(kept.map(|object| without_counts(calm(object)).to_string()).collect())
}

/// A table of `iptables`, or an accepting base chain in one: their rules are objects of their own.
fn is_empty_builtin(object: &Value) -> bool {
    let table = object["table"]["name"].as_str().or(object["chain"]["table"].as_str());
    let named = table.is_some_and(|name| IPTABLES_TABLES.contains(&name));
    let is_table = object.get("table").is_some();
    named && (is_table || object["chain"]["policy"] == "accept")
}

fn without_counts(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| key != "packets" && key != "bytes");
            Value::Object(kept.map(|(key, value)| (key, without_counts(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_counts).collect()),
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lines: &[&str]) -> BTreeSet<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn what_changes_by_itself_is_left_out() {
        let printed = r#"[{"ifname":"a","ifindex":7,"operstate":"UP","flags":["UP","LOWER_UP"],"linkinfo":{"info_data":{"gc_timer":3.2,"ageing_time":1}}}]"#;
        let expected = set(&[r#"{"flags":["UP"],"ifname":"a","linkinfo":{"info_data":{"ageing_time":1}}}"#]);
        assert_eq!(json_lines(printed).unwrap(), expected);
        assert_eq!(json_lines(" \n").unwrap(), BTreeSet::new());
        assert_eq!(json_lines(r#"[{"type":"anycast","dst":"fd01::"}]"#).unwrap(), BTreeSet::new());
    }

    #[test]
    fn rules_and_own_chains_count_and_untouched_builtin_chains_do_not() {
        let printed =
            "*nat\n:PREROUTING ACCEPT [5:300]\n:OURS - [0:0]\n:INPUT DROP [1:2]\n-A POSTROUTING -j OURS\nCOMMIT\n";
        let expected = set(&["nat chain OURS -", "nat chain INPUT DROP", "nat -A POSTROUTING -j OURS"]);
        assert_eq!(saved_rules(printed).unwrap(), expected);
    }

    #[test]
    fn a_rule_is_seen_and_an_empty_table_of_iptables_is_not() {
        let printed = r#"{"nftables":[{"metainfo":{"version":"1"}},
            {"table":{"family":"ip","name":"nat","handle":1}},
            {"chain":{"family":"ip","table":"nat","name":"POSTROUTING","handle":1,"hook":"postrouting","policy":"accept"}},
            {"table":{"family":"inet","name":"ours","handle":2}},
            {"rule":{"family":"inet","table":"ours","chain":"c","handle":9,"expr":[{"counter":{"packets":1,"bytes":2}}]}}]}"#;
        let expected = set(&[
            r#"{"table":{"family":"inet","name":"ours"}}"#,
            r#"{"rule":{"chain":"c","expr":[{"counter":{}}],"family":"inet","table":"ours"}}"#,
        ]);
        assert_eq!(nft_objects(printed).unwrap(), expected);
    }

    #[test]
    fn the_difference_says_what_came_and_what_went() {
        let mut before = Snapshot::default();
        before.sections.insert("links".into(), set(&["a", "b"]));
        let mut after = before.clone();
        assert_eq!(before.difference(&after), Vec::<String>::new());
        after.sections.insert("links".into(), set(&["b", "c"]));
        after.sections.insert("rules".into(), set(&["r"]));
        assert_eq!(before.difference(&after), ["- links: a", "+ links: c", "+ rules: r"]);
    }
}
