//! `cargo xtask demo`: three sites behind NAT become one pod network, with plugins swapped and daemons killed while
//! the traffic flows. Everything is the real thing: daemon, shim, plugins, kernel.

mod connectivity;
mod kept;
mod restarts;
mod rows;
mod stage;
mod swaps;

use std::time::Instant;

use anyhow::Result;

use crate::{build, prerequisites, screen};
pub(crate) use kept::take_down;
use rows::Rows;
use stage::Stage;

/// Builds and shows, and returns whether every row is ✓.
///
/// # Errors
/// A prerequisite is missing, or the stage cannot be set up.
pub(crate) fn run(keep: bool) -> Result<bool> {
    prerequisites::ensure()?;
    build::everything()?;
    let begun = Instant::now();
    let (stage, mut rows) = play()?;
    if keep {
        show(&rows, begun);
        kept::keep(stage)?;
    } else {
        stage.tear_down(&mut rows);
        show(&rows, begun);
    }
    Ok(rows.all_well())
}

fn show(rows: &Rows, begun: Instant) {
    screen::line(&rows.table());
    screen::line(&format!("{} in {:.0} s after the build", rows.summary(), begun.elapsed().as_secs_f64()));
}

/// Plays the whole demo on what is built, and takes it down.
///
/// # Errors
/// The stage cannot be set up.
pub(crate) fn play_and_tear_down() -> Result<Rows> {
    let (stage, mut rows) = play()?;
    stage.tear_down(&mut rows);
    Ok(rows)
}

fn play() -> Result<(Stage, Rows)> {
    let mut rows = Rows::default();
    let mut stage = Stage::set_up()?;
    connectivity::show(&stage, &mut rows);
    swaps::show(&stage, &mut rows);
    restarts::show(&mut stage, &mut rows);
    Ok((stage, rows))
}
