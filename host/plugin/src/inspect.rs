//! Reads what a component imports and exports, without compiling it, and says what kind of policy it is.
//!
//! It takes microseconds and refuses nearly everything an author gets wrong with a message that says what
//! to do, before the compiler is started.

use std::collections::BTreeSet;

use wasmparser::{Parser, Payload};

use crate::unit::Kind;

/// The namespace and package of the contract.
const PACKAGE: &str = "culvert:policy/";
/// What versions of the contract start with: 0.1.0 and 0.1.7 are the same types.
const VERSION_PREFIX: &str = "0.1.";
/// The interfaces a policy may import.
const IMPORTS: [&str; 2] = ["types", "log"];

/// Why some bytes are not a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// Nothing there.
    #[error("the component is empty: was the file written completely?")]
    Empty,
    /// Native code.
    #[error(
        "the file is precompiled native code, which is never accepted: give the component itself, Culvert compiles it"
    )]
    Precompiled,
    /// Not WebAssembly.
    #[error("the file is not WebAssembly: expected a component, found bytes that start with {0}")]
    NotWasm(String),
    /// A core module.
    #[error(
        "the file is a core WebAssembly module, not a component: turn it into one (`wasm-tools component new`, or the project's componentize)"
    )]
    CoreModule,
    /// Broken.
    #[error("the component is broken at byte {offset}: {reason}; was the file written completely?")]
    Broken {
        /// Where.
        offset: u64,
        /// Why, as the parser says it.
        reason: String,
    },
    /// A WASI import.
    #[error(
        "the component imports `{0}`, and a policy gets no WASI: build for wasm32-unknown-unknown instead of a wasip target"
    )]
    Wasi(String),
    /// The contract in another version.
    #[error("the component speaks `{0}`, this host speaks culvert:policy 0.1: build it against wit/ of this release")]
    Version(String),
    /// Another import.
    #[error(
        "the component imports `{0}`, which no policy is granted: only culvert:policy/types and culvert:policy/log may be imported"
    )]
    Import(String),
    /// Not a policy.
    #[error(
        "the component exports {found}, which is no policy: build it for the world router-policy, ipam-policy or bandwidth-policy of culvert:policy@0.1.0"
    )]
    NoPolicy {
        /// What it does export.
        found: String,
    },
    /// Without the lifecycle.
    #[error(
        "the component exports no culvert:policy/lifecycle@0.1.0, which every policy must: build it for a whole world of culvert:policy"
    )]
    NoLifecycle,
    /// Several policies.
    #[error("the component exports the interfaces of several policies ({0}): one component is one policy")]
    SeveralPolicies(String),
}

/// The names at the outer level of a component.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    imports: Vec<String>,
    exports: Vec<String>,
}

/// What kind of policy `bytes` are.
///
/// # Errors
/// Everything that makes them no policy for this host.
pub fn inspect(bytes: &[u8]) -> Result<Kind, InspectError> {
    check_preamble(bytes)?;
    let names = read_names(bytes)?;
    names.imports.iter().try_for_each(|name| check_import(name))?;
    kind_of(&names.exports)
}

fn check_preamble(bytes: &[u8]) -> Result<(), InspectError> {
    if bytes.is_empty() {
        return Err(InspectError::Empty);
    }
    if bytes.starts_with(b"\x7fELF") {
        return Err(InspectError::Precompiled);
    }
    if !bytes.starts_with(b"\0asm") {
        let start = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        return Err(InspectError::NotWasm(start));
    }
    if Parser::is_core_wasm(bytes) {
        return Err(InspectError::CoreModule);
    }
    Ok(())
}

fn read_names(bytes: &[u8]) -> Result<Names, InspectError> {
    let mut names = Names::default();
    // Components and modules nest; only the outer level meets the host.
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(broken)?;
        if matches!(payload, Payload::ModuleSection { .. } | Payload::ComponentSection { .. }) {
            depth += 1;
        } else if matches!(payload, Payload::End(_)) {
            depth = depth.saturating_sub(1);
        } else if depth == 0 {
            read_outer(payload, &mut names)?;
        }
    }
    Ok(names)
}

fn read_outer(payload: Payload<'_>, names: &mut Names) -> Result<(), InspectError> {
    if let Payload::ComponentImportSection(section) = payload {
        for import in section {
            names.imports.push(import.map_err(broken)?.name.full_name().into_owned());
        }
    } else if let Payload::ComponentExportSection(section) = payload {
        for export in section {
            names.exports.push(export.map_err(broken)?.name.full_name().into_owned());
        }
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err, which passes by value")]
fn broken(error: wasmparser::BinaryReaderError) -> InspectError {
    InspectError::Broken { offset: error.offset(), reason: crate::text::cut(error.message()) }
}

fn check_import(name: &str) -> Result<(), InspectError> {
    if name.starts_with("wasi:") {
        return Err(InspectError::Wasi(crate::text::cut(name)));
    }
    match ours(name) {
        Some((interface, version)) if IMPORTS.contains(&interface) && !version.starts_with(VERSION_PREFIX) => {
            Err(InspectError::Version(crate::text::cut(name)))
        }
        Some((interface, _)) if IMPORTS.contains(&interface) => Ok(()),
        Some(_) | None => Err(InspectError::Import(crate::text::cut(name))),
    }
}

/// The interface and version of a name of the contract: `culvert:policy/log@0.1.0` is `("log", "0.1.0")`.
fn ours(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(PACKAGE).and_then(|rest| rest.split_once('@'))
}

fn kind_of(exports: &[String]) -> Result<Kind, InspectError> {
    let policies = exports.iter().filter_map(|name| ours(name).map(|(interface, version)| (name, interface, version)));
    let mut interfaces = BTreeSet::new();
    for (name, interface, version) in policies {
        if !version.starts_with(VERSION_PREFIX) {
            return Err(InspectError::Version(crate::text::cut(name)));
        }
        interfaces.insert(interface);
    }
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| interfaces.contains(kind.interface())).collect();
    match kinds.as_slice() {
        [] => Err(InspectError::NoPolicy { found: listed(exports) }),
        [_] if !interfaces.contains("lifecycle") => Err(InspectError::NoLifecycle),
        [kind] => Ok(*kind),
        several => {
            let labels = several.iter().map(|kind| kind.interface()).collect::<Vec<_>>();
            Err(InspectError::SeveralPolicies(labels.join(", ")))
        }
    }
}

fn listed(exports: &[String]) -> String {
    if exports.is_empty() {
        return "nothing".to_owned();
    }
    crate::text::cut(&exports.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(exports: &[&str]) -> Result<Kind, InspectError> {
        kind_of(&exports.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_kind_is_found_from_the_exports_in_any_patch_version() {
        let lifecycle = "culvert:policy/lifecycle@0.1.0";
        assert_eq!(kind(&[lifecycle, "culvert:policy/router@0.1.0"]), Ok(Kind::Route));
        assert_eq!(kind(&[lifecycle, "culvert:policy/ipam@0.1.9"]), Ok(Kind::Ipam));
        assert_eq!(kind(&["culvert:policy/bandwidth@0.1.0", lifecycle, "extra"]), Ok(Kind::Bandwidth));
    }

    #[test]
    fn what_is_no_single_policy_is_named() {
        let lifecycle = "culvert:policy/lifecycle@0.1.0";
        let (router, ipam) = ("culvert:policy/router@0.1.0", "culvert:policy/ipam@0.1.0");
        assert_eq!(kind(&[]), Err(InspectError::NoPolicy { found: "nothing".to_owned() }));
        assert_eq!(kind(&["run", "x"]), Err(InspectError::NoPolicy { found: "run, x".to_owned() }));
        assert_eq!(kind(&[router]), Err(InspectError::NoLifecycle));
        assert_eq!(kind(&[lifecycle, ipam, router]), Err(InspectError::SeveralPolicies("router, ipam".to_owned())));
        let next = "culvert:policy/router@0.2.0";
        assert_eq!(kind(&[lifecycle, next]), Err(InspectError::Version(next.to_owned())));
    }

    #[test]
    fn only_types_and_log_may_be_imported() {
        assert_eq!(check_import("culvert:policy/types@0.1.0"), Ok(()));
        assert_eq!(check_import("culvert:policy/log@0.1.3"), Ok(()));
        for name in ["culvert:policy/store@0.1.0", "culvert:policy/log", "env", "acme:thing/log@0.1.0"] {
            assert_eq!(check_import(name), Err(InspectError::Import(name.to_owned())));
        }
        let wasi = "wasi:io/poll@0.2.6";
        assert_eq!(check_import(wasi), Err(InspectError::Wasi(wasi.to_owned())));
        let next = "culvert:policy/log@0.2.0";
        assert_eq!(check_import(next), Err(InspectError::Version(next.to_owned())));
    }

    #[test]
    fn bytes_that_are_no_component_are_refused_by_what_they_are() {
        assert_eq!(inspect(b""), Err(InspectError::Empty));
        assert_eq!(inspect(b"\x7fELF\x02\x01"), Err(InspectError::Precompiled));
        assert_eq!(inspect(b"hello"), Err(InspectError::NotWasm("68 65 6c 6c".to_owned())));
        assert_eq!(inspect(b"\0asm\x01\0\0\0"), Err(InspectError::CoreModule));
        assert!(matches!(inspect(b"\0asm\x0d\0\x01\0\x0b"), Err(InspectError::Broken { .. })));
    }
}
