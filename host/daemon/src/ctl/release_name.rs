//! Prints `culvertctl release-name`.

use super::layout::{GOOD, line};
use crate::view::Released;

/// What happens next.
pub(super) fn text(released: &Released) -> String {
    line(&format!(
        "{GOOD} {} is free: the next identity that asks the keeper for it gets it, and no other",
        released.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_reads_who_gets_the_name() {
        let released = Released { schema: 1, name: "edge-1".into() };
        assert_eq!(
            text(&released),
            "✓ edge-1 is free: the next identity that asks the keeper for it gets it, and no other\n"
        );
    }
}
