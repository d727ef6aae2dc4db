//! What holds for each shipped component, read from its bytes.

use std::collections::BTreeSet;

use wasmparser::{Parser, Payload};

use super::*;

/// The names of the sections that a component imports from or exports at its own level.
fn interfaces(component: &[u8]) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut imports, mut exports) = (BTreeSet::new(), BTreeSet::new());
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.unwrap();
        if matches!(payload, Payload::ModuleSection { .. } | Payload::ComponentSection { .. }) {
            depth += 1;
        } else if matches!(payload, Payload::End(_)) {
            depth = depth.saturating_sub(1);
        } else if depth > 0 {
            continue;
        } else if let Payload::ComponentImportSection(reader) = payload {
            imports.extend(reader.into_iter().map(|import| import.unwrap().name.name.to_owned()));
        } else if let Payload::ComponentExportSection(reader) = payload {
            exports.extend(reader.into_iter().map(|export| export.unwrap().name.name.to_owned()));
        }
    }
    (imports, exports)
}

fn names(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn each_exports_the_interfaces_of_its_world() {
    for shipped in all() {
        let own = match shipped.kind {
            Kind::Route => "culvert:policy/router@0.1.0",
            Kind::Ipam => "culvert:policy/ipam@0.1.0",
            Kind::Bandwidth => "culvert:policy/bandwidth@0.1.0",
        };
        let (_, exports) = interfaces(shipped.bytes);
        assert_eq!(exports, names(&["culvert:policy/lifecycle@0.1.0", own]), "{}", shipped.name);
    }
}

#[test]
fn each_imports_the_types_and_the_log_and_nothing_else() {
    for shipped in all() {
        let (imports, _) = interfaces(shipped.bytes);
        assert_eq!(imports, names(&["culvert:policy/log@0.1.0", "culvert:policy/types@0.1.0"]), "{}", shipped.name);
    }
}

#[test]
fn each_is_valid_and_starts_with_four_pages_of_memory_at_most() {
    for shipped in all() {
        wasmparser::Validator::new().validate_all(shipped.bytes).unwrap();
        for payload in Parser::new(0).parse_all(shipped.bytes) {
            if let Payload::MemorySection(memories) = payload.unwrap() {
                for memory in memories {
                    assert!(memory.unwrap().initial <= 4, "{}", shipped.name);
                }
            }
        }
    }
}

#[test]
fn none_carries_names_or_tool_records() {
    for shipped in all() {
        for payload in Parser::new(0).parse_all(shipped.bytes) {
            if let Payload::CustomSection(section) = payload.unwrap() {
                panic!("{} carries a section `{}`", shipped.name, section.name());
            }
        }
    }
}

/// A ConfigMap holds 1 MiB, and an edge node pulls policies over a metered line.
#[test]
fn each_is_less_than_64_kib() {
    for shipped in all() {
        assert!(shipped.bytes.len() < 64 * 1_024, "{} has {} bytes", shipped.name, shipped.bytes.len());
    }
}

#[test]
fn each_is_found_by_its_name() {
    for shipped in all() {
        assert_eq!(by_name(shipped.name), Some(shipped));
    }
    assert_eq!(by_name("route-site"), None);
}
