//! Walks the sections of a module or a component without understanding them: a number, a length, that many bytes.

/// **Source** WebAssembly core specification, "Binary format", modules: magic and version.
const HEADER_BYTES: usize = 8;

/// Bytes that are no sequence of sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// **Units** bytes from the start of the module that was walked.
    pub(crate) offset: usize,
}

/// One section.
pub(crate) struct Section<'a> {
    /// Which kind; what a number means differs between modules and components.
    pub(crate) id: u8,
    /// Its content.
    pub(crate) payload: &'a [u8],
}

/// Splits `bytes` into its header and its sections.
pub(crate) fn split(bytes: &[u8]) -> Result<(&[u8], Vec<Section<'_>>), Malformed> {
    let header = bytes.get(..HEADER_BYTES).ok_or(Malformed { offset: 0 })?;
    if !header.starts_with(b"\0asm") {
        return Err(Malformed { offset: 0 });
    }
    let mut sections = Vec::new();
    let mut offset = HEADER_BYTES;
    while offset < bytes.len() {
        let malformed = Malformed { offset };
        let id = *bytes.get(offset).ok_or(malformed)?;
        let (payload, after) = sized(bytes, offset + 1).ok_or(malformed)?;
        sections.push(Section { id, payload });
        offset = after;
    }
    Ok((header, sections))
}

/// The name that a custom section opens with.
pub(crate) fn custom_name(payload: &[u8]) -> Option<&str> {
    sized(payload, 0).and_then(|(name, _)| std::str::from_utf8(name).ok())
}

/// Appends a section.
pub(crate) fn push(output: &mut Vec<u8>, id: u8, payload: &[u8]) {
    output.push(id);
    let mut length = payload.len();
    while length >= 0x80 {
        output.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    output.push(length as u8);
    output.extend_from_slice(payload);
}

/// A length and that many bytes at `offset`, and the offset behind them.
fn sized(bytes: &[u8], offset: usize) -> Option<(&[u8], usize)> {
    let (length, start) = unsigned_leb128(bytes, offset)?;
    let end = start.checked_add(length)?;
    Some((bytes.get(start..end)?, end))
}

/// **Source** WebAssembly core specification, "Binary format", integers: a u32 has at most 5 bytes.
fn unsigned_leb128(bytes: &[u8], offset: usize) -> Option<(usize, usize)> {
    let mut value: u64 = 0;
    for (position, byte) in bytes.get(offset..)?.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return u32::try_from(value).ok().map(|value| (value as usize, offset + position + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_section_longer_than_the_file_is_malformed_at_its_start() {
        let malformed = split(b"\0asm\x01\0\0\0\x01\x05\0").err();
        assert_eq!(malformed, Some(Malformed { offset: 8 }));
    }

    #[test]
    fn a_length_of_more_than_32_bits_is_malformed() {
        let malformed = split(b"\0asm\x01\0\0\0\x01\xff\xff\xff\xff\x7f").err();
        assert_eq!(malformed, Some(Malformed { offset: 8 }));
    }

    proptest! {
        #[test]
        fn sections_come_back_as_they_were_pushed(
            written in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..8)
        ) {
            let mut bytes = b"\0asm\x01\0\0\0".to_vec();
            for (id, payload) in &written {
                push(&mut bytes, *id, payload);
            }
            let (header, sections) = split(&bytes).map_err(|malformed| TestCaseError::fail(format!("{malformed:?}")))?;
            prop_assert_eq!(header, b"\0asm\x01\0\0\0");
            let read: Vec<_> = sections.iter().map(|section| (section.id, section.payload.to_vec())).collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut module = b"\0asm\x01\0\0\0".to_vec();
            module.extend(bytes);
            if let Ok((_, sections)) = split(&module) {
                let total: usize = sections.iter().map(|section| section.payload.len()).sum();
                prop_assert!(total <= module.len());
            }
        }
    }
}
