//! Which events are logged: a bare level is for Culvert, directives are for whoever they name.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::TelemetryError;

/// Reads a level or directives.
pub(super) fn filter_of(given: &str) -> Result<EnvFilter, TelemetryError> {
    let failed = |reason: String| TelemetryError::Filter { given: given.to_owned(), reason };
    let directives = directives_of(given.trim()).map_err(|reason| failed(reason.to_owned()))?;
    EnvFilter::try_new(directives).map_err(|error| failed(error.to_string()))
}

/// Libraries at debug write a line a packet, so a bare level leaves them at warn, or below it.
///
/// A bare word that is no level is refused: the directive syntax would take it for the name of a
/// module, and a misspelt level would silence everything else.
fn directives_of(given: &str) -> Result<String, &'static str> {
    if !given.chars().all(|character| character.is_ascii_alphabetic()) {
        return Ok(given.to_owned());
    }
    match given.parse::<LevelFilter>() {
        Ok(level) if !given.is_empty() => Ok(format!("{},culvert={level}", level.min(LevelFilter::WARN))),
        Ok(_) | Err(_) => Err("it is not a level"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_leaves_libraries_at_warn() {
        assert_eq!(directives_of("debug").unwrap(), "warn,culvert=debug");
        assert_eq!(directives_of("INFO").unwrap(), "warn,culvert=info");
        assert_eq!(directives_of("error").unwrap(), "error,culvert=error");
        assert_eq!(directives_of("off").unwrap(), "off,culvert=off");
    }

    #[test]
    fn directives_stand_as_given() {
        assert_eq!(directives_of("info,libp2p_swarm=trace").unwrap(), "info,libp2p_swarm=trace");
    }

    #[test]
    fn nothing_is_not_a_level() {
        assert!(matches!(filter_of("  "), Err(TelemetryError::Filter { .. })));
    }

    #[test]
    fn a_level_misspelt_is_refused() {
        assert!(matches!(filter_of("info,culvert=loud"), Err(TelemetryError::Filter { .. })));
        assert!(matches!(filter_of("inof"), Err(TelemetryError::Filter { .. })));
    }
}
