//! The house rules that a machine can hold: imports point down only, decisions touch nothing, the top level is fixed,
//! and each named library does the work it was chosen for.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The layer of each crate of the host. Crates of one layer never import each other, but for [`WITHIN_A_LAYER`].
const LAYERS: [(&str, u8); 8] = [
    ("culvert-cni", 0),
    ("culvert-core", 1),
    ("culvert-datagram", 1),
    ("culvert-kernel", 2),
    ("culvert-mesh", 2),
    ("culvert-plugin", 2),
    ("culvert-cluster", 2),
    ("culvert-daemon", 3),
];

/// The one import within a layer: the datagram protocol reads packets through the checked views of `core`.
const WITHIN_A_LAYER: (&str, &str) = ("culvert-datagram", "culvert-core");

/// What the top level holds. A name that ends in `?` may be absent.
const TOP_LEVEL: [&str; 19] = [
    "Cargo.toml",
    "Cargo.lock",
    "host",
    "wit",
    "plugins",
    "cni-shim",
    "deploy",
    "tests",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "rust-toolchain.toml",
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".deny.toml",
    ".gitignore",
    ".rustfmt.toml?",
    "target?",
];

/// Libraries and the crate that must use each for its purpose.
const PURPOSES: [(&str, &str); 10] = [
    ("wasmtime", "culvert-plugin"),
    ("wit-bindgen", "culvert-policy-sdk"),
    ("tokio", "culvert-daemon"),
    ("rtnetlink", "culvert-kernel"),
    ("libp2p", "culvert-mesh"),
    ("iptables", "culvert-kernel"),
    ("serde", "culvert-core"),
    ("tracing", "culvert-daemon"),
    ("ipnet", "culvert-core"),
    ("wasmtime", "culvert-compile"),
];

/// What `core` may link: values, hashing, serialization. Nothing that reads a clock, a file or a socket.
const CORE_MAY_LINK: [&str; 6] = ["ipnet", "md-5", "serde", "serde_json", "sha2", "thiserror"];

/// What `datagram` may link: `core`, ciphers, and no clock or socket either. Random numbers come in as arguments.
const DATAGRAM_MAY_LINK: [&str; 5] = ["aws-lc-rs", "culvert-core", "thiserror", "x25519-dalek", "zeroize"];

/// Words that mean the world, or the runtime, reached into a decision.
const WORLDLY: [&str; 14] = [
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::sync::mpsc",
    "std::os",
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "tokio",
    "getrandom",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every package's dependencies (not those of its tests), by name.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(workspace());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().iter().map(dependencies_of).collect()
}

fn dependencies_of(package: &Value) -> (String, BTreeSet<String>) {
    let listed = package["dependencies"].as_array().unwrap().iter();
    let linked = listed.filter(|dependency| dependency["kind"].is_null());
    let names = linked.map(|dependency| dependency["name"].as_str().unwrap().to_owned());
    (package["name"].as_str().unwrap().to_owned(), names.collect())
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn all_rust_files() -> Vec<PathBuf> {
    ["host", "plugins", "cni-shim", "tests"].iter().flat_map(|folder| rust_files(&workspace().join(folder))).collect()
}

/// The lines before the tests, without comments.
fn code_of(path: &Path) -> Vec<(usize, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().enumerate().take_while(|(_, line)| *line != "#[cfg(test)]");
    let code = lines.filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.map(|(index, line)| (index + 1, line.to_owned())).collect()
}

/// The faults in `dependencies` against the layers.
fn layer_faults(dependencies: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let layers: BTreeMap<&str, u8> = LAYERS.into_iter().collect();
    let mut faults = Vec::new();
    for (package, names) in dependencies {
        for name in names.iter().filter(|name| layers.contains_key(name.as_str())) {
            let (to, from) = (layers[name.as_str()], layers.get(package.as_str()));
            let is_granted = WITHIN_A_LAYER == (package.as_str(), name.as_str());
            if !is_granted && from.is_some_and(|from| to >= *from) {
                faults.push(format!("{package} imports {name}"));
            }
        }
    }
    faults
}

#[test]
fn imports_of_the_host_point_down_only() {
    let dependencies = dependencies();
    for (name, _) in LAYERS {
        assert!(dependencies.contains_key(name), "{name} is not in the workspace");
    }
    assert_eq!(layer_faults(&dependencies), Vec::<String>::new());
}

#[test]
fn an_import_upwards_or_sideways_is_seen() {
    let sets = |pairs: &[(&str, &str)]| -> BTreeMap<String, BTreeSet<String>> {
        pairs.iter().map(|(from, to)| ((*from).to_owned(), BTreeSet::from([(*to).to_owned()]))).collect()
    };
    assert_eq!(layer_faults(&sets(&[("culvert-core", "culvert-mesh")])), ["culvert-core imports culvert-mesh"]);
    assert_eq!(layer_faults(&sets(&[("culvert-mesh", "culvert-kernel")])), ["culvert-mesh imports culvert-kernel"]);
    assert_eq!(layer_faults(&sets(&[("culvert-core", "culvert-datagram")])), ["culvert-core imports culvert-datagram"]);
    assert_eq!(layer_faults(&sets(&[("culvert-daemon", "culvert-mesh")])), Vec::<String>::new());
    assert_eq!(layer_faults(&sets(&[("culvert-datagram", "culvert-core")])), Vec::<String>::new());
}

#[test]
fn plugins_and_the_shim_link_nothing_of_the_host_but_the_words_of_cni() {
    for (package, names) in dependencies() {
        let is_outside =
            !LAYERS.iter().any(|(name, _)| *name == package) && !["culvert-compile"].contains(&package.as_str());
        let host = |name: &&String| LAYERS.iter().any(|(layer, _)| layer == *name) && name.as_str() != "culvert-cni";
        let imported: Vec<&String> = names.iter().filter(host).collect();
        assert!(!is_outside || imported.is_empty(), "{package} imports {imported:?}");
    }
}

#[test]
fn the_first_layer_links_no_runtime_and_no_adapter() {
    let dependencies = dependencies();
    for (package, listed) in [("culvert-core", &CORE_MAY_LINK[..]), ("culvert-datagram", &DATAGRAM_MAY_LINK[..])] {
        let allowed: BTreeSet<String> = listed.iter().map(|name| (*name).to_owned()).collect();
        let linked: Vec<&String> = dependencies[package].difference(&allowed).collect();
        assert!(linked.is_empty(), "{package} links {linked:?}");
    }
}

#[test]
fn the_first_layer_reads_no_clock_and_does_no_input_or_output() {
    let mut found = Vec::new();
    let folders = ["host/core/src", "host/datagram/src"].map(|folder| workspace().join(folder));
    for path in folders.iter().flat_map(|folder| rust_files(folder)) {
        for (number, line) in code_of(&path) {
            found.extend(
                WORLDLY
                    .iter()
                    .filter(|word| line.contains(**word))
                    .map(|word| format!("{}:{number} names {word}", path.display())),
            );
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn the_top_level_is_fixed() {
    let there: BTreeSet<String> = std::fs::read_dir(workspace())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".git")
        .collect();
    let known: BTreeSet<String> = TOP_LEVEL.iter().map(|name| name.trim_end_matches('?').to_owned()).collect();
    let required: BTreeSet<String> =
        TOP_LEVEL.iter().filter(|name| !name.ends_with('?')).map(|name| (*name).to_owned()).collect();
    assert_eq!(there.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new(), "unknown at the top");
    assert_eq!(required.difference(&there).collect::<Vec<_>>(), Vec::<&String>::new(), "missing at the top");
}

#[test]
fn every_named_library_does_the_work_it_was_chosen_for() {
    let dependencies = dependencies();
    for (library, package) in PURPOSES {
        assert!(dependencies[package].contains(library), "{package} does not use {library}");
    }
    assert!(!dependencies["culvert-shim"].contains("tokio") && !dependencies["culvert-shim"].contains("serde"));
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let silent: Vec<PathBuf> = all_rust_files()
        .into_iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            !text.starts_with("//! ") || text.starts_with("//! (to be written)")
        })
        .collect();
    assert_eq!(silent, Vec::<PathBuf>::new());
}

#[test]
fn files_are_named_for_what_they_hold() {
    const VAGUE: [&str; 8] =
        ["mod.rs", "util.rs", "utils.rs", "helper.rs", "helpers.rs", "common.rs", "manager.rs", "misc.rs"];
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let vague: Vec<PathBuf> =
        all_rust_files().into_iter().filter(|path| VAGUE.contains(&name(path).as_str())).collect();
    assert_eq!(vague, Vec::<PathBuf>::new());
}

#[test]
fn files_hold_at_most_500_lines_of_code() {
    const MOST: usize = 500;
    let long: Vec<String> = all_rust_files()
        .into_iter()
        .filter_map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
            (lines > MOST).then(|| format!("{}: {lines}", path.display()))
        })
        .collect();
    assert_eq!(long, Vec::<String>::new());
}
