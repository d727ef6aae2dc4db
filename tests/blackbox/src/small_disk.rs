//! A small disk of a test's own, which may be full or read-only.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use culvert_lab::command;

/// A file system in memory. Dropped, it is unmounted.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one on a folder.
    ///
    /// **Errors** the caller may not mount.
    pub fn mount(folder: &Path, mebibytes: u32) -> Result<Self> {
        command::run(&format!("mount -t tmpfs -o size={mebibytes}m,mode=700 tmpfs {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Takes all of its space.
    ///
    /// **Errors** it cannot be filled.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.ballast())?;
        let block = vec![0; 4096];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("cannot fill the disk"),
            }
        }
    }

    /// Gives the space back.
    ///
    /// **Errors** it was not filled.
    pub fn make_room(&self) -> Result<()> {
        std::fs::remove_file(self.ballast()).context("cannot make room")
    }

    /// Lets it be written to, or not; nobody may have a file open for writing then.
    ///
    /// **Errors** somebody has.
    pub fn set_writable(&self, writable: bool) -> Result<()> {
        let mode = if writable { "rw" } else { "ro" };
        command::run(&format!("mount -o remount,{mode} {}", self.folder.display())).map(drop)
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that is still to be ended may have files open.
        if let Err(error) = command::run(&format!("umount --lazy {}", self.folder.display())) {
            culvert_lab::namespace::tell(&format!("{error:#}"));
        }
    }
}
