//! Colours for a terminal, put onto finished text: marks, and the header lines of tables.

use super::layout::{BAD, GOOD};

const GREEN: &str = "\u{1b}[32m";
const RED: &str = "\u{1b}[31m";
const BOLD: &str = "\u{1b}[1m";
const PLAIN: &str = "\u{1b}[0m";

/// The same text with colours.
pub(super) fn paint(text: &str) -> String {
    text.split_inclusive('\n').map(paint_line).collect()
}

fn paint_line(line: &str) -> String {
    let content = line.trim_end_matches('\n');
    if is_header(content) {
        return format!("{BOLD}{content}{PLAIN}\n");
    }
    line.replace(GOOD, &format!("{GREEN}{GOOD}{PLAIN}")).replace(BAD, &format!("{RED}{BAD}{PLAIN}"))
}

/// Headers of tables are the only lines without a single small letter or digit.
fn is_header(content: &str) -> bool {
    let in_capitals = |character: char| character.is_ascii_uppercase() || character == ' ';
    !content.trim().is_empty() && content.chars().all(in_capitals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_headers_get_colours_and_the_rest_stays() {
        let painted = paint("   NODE  PATH\n✓  edge-1  direct\n✗  edge-2  -\n\nplain\n");
        assert_eq!(
            painted,
            "\u{1b}[1m   NODE  PATH\u{1b}[0m\n\u{1b}[32m✓\u{1b}[0m  edge-1  direct\n\u{1b}[31m✗\u{1b}[0m  edge-2  -\n\nplain\n"
        );
    }
}
