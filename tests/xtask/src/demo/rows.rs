//! The demo's table: what was shown, whether it held, and the figures.

use anyhow::Result;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};

use crate::screen;

/// What one row found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Whether everything the row promises held.
    pub(crate) holds: bool,
    /// What was measured.
    pub(crate) figures: String,
}

impl Finding {
    /// What a measurement found; an error does not hold, and says why.
    pub(crate) fn of(measured: Result<Self>) -> Self {
        measured.unwrap_or_else(|error| Self { holds: false, figures: format!("{error:#}") })
    }
}

/// The rows so far.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<(String, Finding)>,
}

impl Rows {
    /// Measures one row; an error is a row that does not hold, and shows why.
    pub(crate) fn measure(&mut self, what: &str, measure: impl FnOnce() -> Result<Finding>) {
        let finding = screen::judged_step(what, |_| Finding::of(measure()), |finding| finding.holds);
        self.add(what, finding);
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, what: &str, finding: Finding) {
        self.rows.push((what.to_owned(), finding));
    }

    /// Whether every row holds, and there are any.
    pub(crate) fn all_well(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|(_, finding)| finding.holds)
    }

    /// How many hold.
    pub(crate) fn summary(&self) -> String {
        let well = self.rows.iter().filter(|(_, finding)| finding.holds).count();
        format!("{well} of {} rows hold", self.rows.len())
    }

    /// The table as text.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(screen::width());
        table.set_header(["", "what", "figures"]);
        for (what, finding) in &self.rows {
            table.add_row([if finding.holds { "✓" } else { "✗" }, what, &finding.figures]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_row_that_does_not_hold_and_says_why() {
        let mut rows = Rows::default();
        rows.add("good", Finding { holds: true, figures: "0 lost".into() });
        assert!(rows.all_well());
        rows.add("bad", Finding::of(Err(anyhow::anyhow!("no answer"))));
        assert!(!rows.all_well());
        assert_eq!(rows.summary(), "1 of 2 rows hold");
        let table = rows.table();
        for part in ["✓", "✗", "good", "0 lost", "bad", "no answer"] {
            assert!(table.contains(part), "{table}");
        }
    }

    #[test]
    fn nothing_shown_is_not_well() {
        assert!(!Rows::default().all_well());
    }
}
