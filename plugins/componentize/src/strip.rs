//! Drops what a node never reads from a component: names and the records of the tools that made it.
//!
//! They cost 1 to 4 KiB a component, and the tool records would make the digest of the same policy differ from one
//! compiler release to the next. Custom sections that nobody here knows stay: they may be an author's metadata.

use crate::sections::{self, Malformed};

/// A custom section, in modules and in components.
const CUSTOM: u8 = 0;

/// **Source** component model, Binary.md: a core module inside a component.
const NESTED_MODULE: u8 = 1;

/// **Source** component model, Binary.md: a component inside a component.
const NESTED_COMPONENT: u8 = 4;

/// What is dropped, besides DWARF.
const DROPPED: [&str; 4] = ["name", "component-name", "producers", "target_features"];

/// **Bounds** components inside components. The encoder makes one level; deeper ones are not ours.
const DEEPEST: usize = 4;

/// Why bytes cannot be stripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StripError {
    /// They are no sequence of sections.
    #[error("the bytes are no WebAssembly: the section at byte {offset} of its module or component makes no sense")]
    Malformed {
        /// **Units** bytes from the start of the module or component at fault.
        offset: usize,
    },
    /// Components inside components inside components.
    #[error("components are nested more than {DEEPEST} deep")]
    TooDeep,
}

impl From<Malformed> for StripError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed { offset: malformed.offset }
    }
}

/// The same module or component without names, tool records and DWARF, also in the modules inside it.
///
/// # Errors
/// [`StripError`] when `bytes` are no WebAssembly.
pub fn strip(bytes: &[u8]) -> Result<Vec<u8>, StripError> {
    strip_to_depth(bytes, DEEPEST)
}

fn strip_to_depth(bytes: &[u8], depth: usize) -> Result<Vec<u8>, StripError> {
    let depth = depth.checked_sub(1).ok_or(StripError::TooDeep)?;
    let (header, all) = sections::split(bytes)?;
    let is_component = header.get(6) == Some(&1);
    let mut kept = header.to_vec();
    for section in all {
        match section.id {
            CUSTOM if is_dropped(section.payload) => {}
            NESTED_MODULE | NESTED_COMPONENT if is_component => {
                sections::push(&mut kept, section.id, &strip_to_depth(section.payload, depth)?);
            }
            id => sections::push(&mut kept, id, section.payload),
        }
    }
    Ok(kept)
}

fn is_dropped(payload: &[u8]) -> bool {
    sections::custom_name(payload).is_some_and(|name| DROPPED.contains(&name) || name.starts_with(".debug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(sections: &[(u8, &[u8])]) -> Vec<u8> {
        with_header(b"\0asm\x01\0\0\0", sections)
    }

    fn component(sections: &[(u8, &[u8])]) -> Vec<u8> {
        with_header(b"\0asm\x0d\0\x01\0", sections)
    }

    fn with_header(header: &[u8], all: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        for (id, payload) in all {
            sections::push(&mut bytes, *id, payload);
        }
        bytes
    }

    #[test]
    fn names_tool_records_and_dwarf_go_and_an_author_s_metadata_stays() {
        let full = module(&[
            (0, b"\x04name\x01"),
            (1, b"\0"),
            (0, b"\x09producers\0"),
            (0, b"\x0b.debug_info\0"),
            (0, b"\x0eculvert.plugin{}"),
        ]);
        assert_eq!(strip(&full), Ok(module(&[(1, b"\0"), (0, b"\x0eculvert.plugin{}")])));
    }

    #[test]
    fn a_module_inside_a_component_is_stripped_too() {
        let inner = module(&[(0, b"\x0ftarget_features\0"), (1, b"\0")]);
        let full = component(&[(1, &inner), (0, b"\x0ecomponent-name\0"), (8, b"\0")]);
        let inner_stripped = module(&[(1, b"\0")]);
        assert_eq!(strip(&full), Ok(component(&[(1, &inner_stripped), (8, b"\0")])));
    }

    #[test]
    fn the_type_section_of_a_module_is_not_taken_for_a_nested_module() {
        let plain = module(&[(1, b"\0"), (4, b"\0")]);
        assert_eq!(strip(&plain), Ok(plain));
    }

    #[test]
    fn bytes_that_are_no_webassembly_are_refused() {
        assert_eq!(strip(b"\x7fELF\0\0\0\0"), Err(StripError::Malformed { offset: 0 }));
    }

    #[test]
    fn nesting_beyond_the_bound_is_refused() {
        let mut nested = component(&[]);
        for _ in 0..DEEPEST {
            nested = component(&[(4, &nested)]);
        }
        assert_eq!(strip(&nested), Err(StripError::TooDeep));
    }
}
