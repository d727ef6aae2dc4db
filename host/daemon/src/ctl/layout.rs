//! How text answers are laid out: tables, aligned pairs, marks. Foreign text is made printable here,
//! so the commands' files cannot forget it.

use comfy_table::{Table, presets};

use crate::printable::printable;

/// What is well.
pub(super) const GOOD: &str = "✓";
/// What is not.
pub(super) const BAD: &str = "✗";

/// What stands for a value that there is not.
pub(super) const NONE: &str = "-";

/// A mark.
pub(super) fn mark(good: bool) -> &'static str {
    if good { GOOD } else { BAD }
}

/// A text, or what stands for an empty one.
pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

/// Values in one cell, or what stands for none.
pub(super) fn joined<T: ToString>(values: &[T]) -> String {
    match values {
        [] => NONE.to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// The first characters of a digest or container id: enough to tell them apart.
pub(super) fn shortened(id: &str) -> String {
    id.chars().take(12).collect()
}

/// A table without borders, so that lines can be cut with `awk`. Lines end in a newline each.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| printable(&cell).into_owned()));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n", table.trim_fmt())
}

/// Names and values, aligned and indented.
pub(super) fn pairs<'a>(indent: usize, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| (printable(name), value)).collect();
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{:indent$}{name:width$}  {}\n", "", printable(value))).collect()
}

/// One printable line.
pub(super) fn line(text: &str) -> String {
    format!("{}\n", printable(text))
}

/// A heading and its points, or nothing without points.
pub(super) fn points(heading: &str, bullet: &str, points: &[String]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let lines: String = points.iter().map(|point| format!("  {bullet} {}\n", printable(point))).collect();
    format!("\n{heading}\n{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_blanks() {
        let rows = [["a".to_owned(), "10".to_owned()], ["a-long-one".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "N"], rows), "NAME        N\na           10\na-long-one\n");
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        let hostile = "x\n\u{1b}[2Jy".to_owned();
        assert_eq!(table(["NAME"], [[hostile.clone()]]), "NAME\nx\\n\\u{1b}[2Jy\n");
        assert_eq!(pairs(2, [("key", hostile.clone())]), "  key  x\\n\\u{1b}[2Jy\n");
        assert_eq!(line(&hostile), "x\\n\\u{1b}[2Jy\n");
        assert_eq!(points("problems", BAD, &[hostile]), "\nproblems\n  ✗ x\\n\\u{1b}[2Jy\n");
    }

    #[test]
    fn what_is_absent_has_a_sign_of_its_own() {
        assert_eq!(or_none(""), "-");
        assert_eq!(joined::<u8>(&[]), "-");
        assert_eq!(joined(&[1, 2]), "1, 2");
        assert_eq!(points("problems", BAD, &[]), "");
    }
}
