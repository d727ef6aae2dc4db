//! Control groups that a container runtime left: empty once its processes are gone, and removed by nobody else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// Where the kernel shows them: one tree, or one a controller below it.
const ROOT: &str = "/sys/fs/cgroup";
/// How long killed processes may take to leave a group.
const EMPTY_BOUND: Duration = Duration::from_secs(10);

/// Removes all groups whose names begin with `prefix`, and what is below them.
///
/// **Errors** a process does not leave one, or the caller may not.
pub fn remove(prefix: &str) -> Result<()> {
    for group in list(prefix)? {
        wait::until(&format!("{} to be empty", group.display()), EMPTY_BOUND, || remove_tree(&group))?;
    }
    Ok(())
}

/// The groups whose names begin with `prefix`, in every tree.
///
/// **Errors** a folder cannot be read.
pub fn list(prefix: &str) -> Result<Vec<PathBuf>> {
    let mut trees = vec![PathBuf::from(ROOT)];
    trees.extend(folders(Path::new(ROOT))?);
    let mut found = Vec::new();
    for tree in trees {
        let ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        found.extend(folders(&tree)?.into_iter().filter(ours));
    }
    Ok(found)
}

/// The innermost first: the kernel removes empty ones only, with the files it shows in them.
fn remove_tree(group: &Path) -> Result<()> {
    for inner in folders(group)? {
        remove_tree(&inner)?;
    }
    match std::fs::remove_dir(group) {
        // In two trees that are one, as when controllers are mounted together.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", group.display())),
    }
}

/// The folders in a folder, links to others left out. One that is not there has none.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}
