//! Builds a plugin crate of this workspace to a component file.

use std::path::Path;

use anyhow::{Context, Result};
use culvert_componentize::build_component;
use culvert_lab::binaries::workspace;

use crate::screen;

/// Builds and writes the component, and says how large it is.
///
/// # Errors
/// The crate does not build to a component, or the file cannot be written.
pub(crate) fn build(package: &str, out: &Path) -> Result<()> {
    let component = screen::step(&format!("build {package}"), |_| {
        Ok(build_component(workspace(), package, &workspace().join("target/guests"))?)
    })?;
    std::fs::write(out, &component.bytes).with_context(|| format!("cannot write {}", out.display()))?;
    screen::line(&format!(
        "{}: {} bytes, exports {}",
        out.display(),
        component.bytes.len(),
        component.exports.join(", ")
    ));
    Ok(())
}
