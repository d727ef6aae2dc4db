//! Where the programs under test are: one folder, filled by `cargo xtask build`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The environment variable that names another folder.
pub const FOLDER_VARIABLE: &str = "CULVERT_BIN";

/// The programs a lab runs.
#[derive(Clone, Debug)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Finds the folder: `CULVERT_BIN`, else `target/culvert` of the workspace.
    ///
    /// **Errors** a program is not there; the text names it and how to build it.
    pub fn find() -> Result<Self> {
        let built = workspace().join("target/culvert");
        Self::in_folder(std::env::var_os(FOLDER_VARIABLE).map_or(built, PathBuf::from))
    }

    /// Takes the programs of a folder.
    ///
    /// **Errors** as [`Binaries::find`].
    pub fn in_folder(folder: PathBuf) -> Result<Self> {
        for name in ["culvertd", "culvertctl", "culvert-compile", "culvert", "loopback", "lab-probe"] {
            if !folder.join(name).exists() {
                bail!("no {name} in {}: build it with `cargo xtask build`", folder.display());
            }
        }
        Ok(Self { folder })
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of a program, by its name.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The test component of this name.
    ///
    /// **Errors** it was not built.
    pub fn guest(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join("guests").join(format!("{name}.wasm"));
        if !path.is_file() {
            bail!("no component {}: build it with `cargo xtask build`", path.display());
        }
        Ok(path)
    }
}

/// The workspace this library was built in.
#[must_use]
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().and_then(Path::parent).unwrap_or(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_the_command_that_builds_it() {
        let error = Binaries::in_folder("/nowhere".into()).unwrap_err().to_string();
        assert_eq!(error, "no culvertd in /nowhere: build it with `cargo xtask build`");
    }
}
