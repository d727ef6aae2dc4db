//! Waiting for a condition with a bound: the one place of the tests that lets time pass.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at: short against everything waited for, long against one look.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `condition` gives a value. `Err` from the condition means "not yet" and is shown when time is up.
///
/// **Errors** the bound passed; the text says what was waited for and why it was not there at the last look.
pub fn until<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(reason) if begun.elapsed() >= bound => {
                bail!("waited {} s for {what}: {reason:#}", bound.as_secs())
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Looks until `condition` holds.
///
/// **Errors** as [`until`].
pub fn until_true(what: &str, bound: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, bound, || if condition()? { Ok(()) } else { bail!("it does not hold yet") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_the_first_success_is_returned() {
        let mut looks = 0;
        let value = until("the third look", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { bail!("look {looks}") }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn the_last_reason_is_shown_when_time_is_up() {
        let error = until::<()>("rain", Duration::ZERO, || bail!("blue sky")).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for rain: blue sky");
    }
}
