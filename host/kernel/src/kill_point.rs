//! Places at which a kill test may end the process, by name: only in the test build with the feature `kill-points`.
//!
//! ```text
//! CULVERT_KILL_POINTS=FOLDER   `passed` in it gets the name of every place that is passed, one a line
//!                              `target` in it, once it is there, says `NAME ORDINAL`: die at the ORDINALth passing of NAME
//! ```
//! In every other build nothing of this is there: the names are not even made.

/// Passes a place.
#[cfg(not(feature = "kill-points"))]
#[inline(always)]
pub fn kill_point(_name: impl FnOnce() -> String) {}

/// Passes a place: notes it, and ends the process by SIGKILL when the test asked for that here.
#[cfg(feature = "kill-points")]
pub fn kill_point(name: impl FnOnce() -> String) {
    let Some(folder) = std::env::var_os(armed::VARIABLE) else { return };
    armed::pass(std::path::Path::new(&folder), &name());
}

/// Whether requests are sent one by one, so that a test can end the process between any two of them.
pub(crate) const ONE_BY_ONE: bool = cfg!(feature = "kill-points");

#[cfg(feature = "kill-points")]
mod armed {
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;
    use std::path::Path;
    use std::sync::{Mutex, PoisonError};

    use rustix::process::{Signal, getpid, kill_process};

    /// The variable that names the folder.
    pub(super) const VARIABLE: &str = "CULVERT_KILL_POINTS";

    /// What is to be hit, and how often its name was passed since that was said.
    #[derive(Default)]
    struct Aim {
        target: String,
        passed: u64,
    }

    static AIM: Mutex<Option<Aim>> = Mutex::new(None);

    pub(super) fn pass(folder: &Path, name: &str) {
        let mut held = AIM.lock().unwrap_or_else(PoisonError::into_inner);
        note(folder, name);
        let Ok(target) = fs::read_to_string(folder.join("target")) else { return };
        let aim = held.get_or_insert_with(Aim::default);
        if aim.target != target {
            *aim = Aim { target, passed: 0 };
        }
        let Some((wanted, ordinal)) = aim.target.trim().rsplit_once(' ') else { return };
        if wanted != name {
            return;
        }
        aim.passed += 1;
        if ordinal.parse() == Ok(aim.passed) {
            // It does not return; whoever else runs ends with the process.
            let _ = kill_process(getpid(), Signal::KILL);
            std::thread::park();
        }
    }

    /// A test that cannot read what was passed fails by itself.
    fn note(folder: &Path, name: &str) {
        let opened = OpenOptions::new().create(true).append(true).open(folder.join("passed"));
        let _ = opened.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()));
    }
}
