//! Makes foreign text safe to show: names, labels and errors come from other nodes, guests and
//! containers, and a terminal obeys control characters.
//!
//! Logs and `culvertctl` both pass foreign text through here.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Whether a character could steer a terminal or make text look like other text: controls, line
/// separators and the marks that change the direction of writing.
#[must_use]
pub fn steers_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text with each steering character written as its escape (`\n`, `\u{1b}`).
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers_terminal) {
        return Cow::Borrowed(text);
    }
    let escape = |character: char| match steers_terminal(character) {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// JSON text with the steering characters that JSON allows inside strings written as `\u00XX`.
///
/// The characters below U+0020 stay: outside strings they are layout, and inside strings a JSON
/// writer has escaped them already.
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let steers = |character: char| character >= '\u{7f}' && steers_terminal(character);
    if !json.chars().any(steers) {
        return Cow::Borrowed(json);
    }
    let escape = |character: char| match steers(character) {
        true => format!("\\u{:04x}", u32::from(character)),
        false => character.to_string(),
    };
    Cow::Owned(json.chars().map(escape).collect())
}

/// Writes on with steering characters escaped, up to a number of bytes.
pub struct PrintableWriter<'a> {
    writer: &'a mut dyn Write,
    room: usize,
}

impl<'a> PrintableWriter<'a> {
    /// Starts a text of at most `room` bytes, the escapes counted; what is longer is cut and ends
    /// in `…`.
    pub fn new(writer: &'a mut dyn Write, room: usize) -> Self {
        Self { writer, room }
    }

    fn put(&mut self, piece: &str) -> fmt::Result {
        if self.room == 0 {
            return Ok(());
        }
        match self.room.checked_sub(piece.len()) {
            Some(left) if left > 0 => {
                self.room = left;
                self.writer.write_str(piece)
            }
            Some(_) | None => {
                self.room = 0;
                self.writer.write_char('…')
            }
        }
    }
}

impl Write for PrintableWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut encoded = [0; 4];
        for character in text.chars() {
            if steers_terminal(character) {
                self.put(&character.escape_default().to_string())?;
            } else {
                self.put(character.encode_utf8(&mut encoded))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_of_any_script_passes_as_it_is() {
        assert_eq!(printable("edge-1 边缘 ✓ naïve"), "edge-1 边缘 ✓ naïve");
        assert!(matches!(printable("edge-1"), Cow::Borrowed("edge-1")));
    }

    #[test]
    fn characters_that_steer_a_terminal_become_visible() {
        assert_eq!(printable("a\nb\r\tc"), "a\\nb\\r\\tc");
        assert_eq!(printable("\u{1b}[31mred\u{7}"), "\\u{1b}[31mred\\u{7}");
        assert_eq!(printable("\u{9b}2J\u{7f}"), "\\u{9b}2J\\u{7f}");
        assert_eq!(printable("evil\u{202e}txt.exe"), "evil\\u{202e}txt.exe");
    }

    #[test]
    fn json_keeps_its_layout_and_its_meaning() {
        let value = serde_json::json!({ "name": "a\u{9b}b\u{7f}c\u{1b}d" });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let safe = printable_json(&text);
        assert_eq!(safe, "{\n  \"name\": \"a\\u009bb\\u007fc\\u001bd\"\n}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }

    #[test]
    fn a_long_text_is_cut_and_marked() {
        let mut out = String::new();
        write!(PrintableWriter::new(&mut out, 8), "abcdefghijkl").unwrap();
        assert_eq!(out, "abcdefg…");
        let mut out = String::new();
        write!(PrintableWriter::new(&mut out, 8), "ab\u{1b}c").unwrap();
        assert_eq!(out, "ab…");
        let mut out = String::new();
        PrintableWriter::new(&mut out, 100).write_str("ab\u{1b}c").unwrap();
        assert_eq!(out, "ab\\u{1b}c");
    }
}
