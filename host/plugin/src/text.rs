//! Text that came from a guest, made fit for logs and messages.

/// **Units** bytes kept of a text. Long enough for a reason with a name and an address in it; a guest
/// that writes more is cut.
pub(crate) const TEXT_BYTES: usize = 512;

/// The text without control characters (they would let a guest forge lines of the log), cut at
/// [`TEXT_BYTES`] on a character boundary.
pub(crate) fn cut(text: &str) -> String {
    let mut kept = String::with_capacity(text.len().min(TEXT_BYTES));
    for character in text.chars() {
        let before = kept.len();
        if character.is_control() {
            kept.extend(character.escape_default());
        } else {
            kept.push(character);
        }
        if kept.len() > TEXT_BYTES {
            kept.truncate(before);
            break;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_others_kept() {
        assert_eq!(cut("a\nb\u{1b}[31m é 中"), "a\\nb\\u{1b}[31m é 中");
    }

    #[test]
    fn a_long_text_is_cut_on_a_character_boundary() {
        assert_eq!(cut(&"é".repeat(400)), "é".repeat(256));
        assert_eq!(cut(&format!("{}\n", "a".repeat(511))), "a".repeat(511));
    }
}
