//! Compiled components on disk, so that a plugin is compiled once a node.
//!
//! ```text
//! <folder>/<sha256 of the component>-<settings revision>-<sha256 of the compiled code>.cwasm
//! ```
//!
//! Compiled code runs without further checks, so it only ever comes from the own compiler, lies in a folder
//! that nobody else can write, and is compared with the digest in its name before it is mapped. An entry
//! that differs, or that another release of the runtime made, is removed and compiled again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::unit::Digest;

/// Stands for the settings of engine and compiler in the name of an entry, so that code compiled with the
/// settings before is never looked at. The runtime's own release is checked by the runtime.
const REVISION: u32 = 1;

/// Entries kept. A node uses three plugins and the three before them; the rest is room for trying. When it
/// is full the entry unused for longest goes, and is compiled again if it is ever needed.
const ENTRIES: usize = 32;

/// **Units** bytes of all entries together; beyond it the same happens.
const TOTAL_BYTES: u64 = 128 << 20;

/// **Units** bytes of one entry that is read back, far above what the compiler is let write.
const ENTRY_BYTES: u64 = 64 << 20;

/// The ending of an entry's name.
const ENDING: &str = ".cwasm";

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder cannot be made.
    #[error("the folder for compiled plugins {} cannot be made: {source}", folder.display())]
    Create {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder belongs to somebody else, or somebody else may write there.
    #[error("the folder for compiled plugins {} must belong to this user and be writable by nobody else (chown, chmod 0700)", .0.display())]
    Exposed(PathBuf),
    /// An entry cannot be written.
    #[error("compiled code cannot be written to {}: {source}; is the disk full?", path.display())]
    Write {
        /// The entry.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The runtime refuses what the compiler just made.
    #[error("freshly compiled code is not accepted: {0}; are culvertd and culvert-compile of the same release?")]
    Mismatch(String),
}

/// The folder of compiled components.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    /// Tells apart temporary files written at the same time.
    written: AtomicU64,
}

/// An entry as the folder lists it.
struct Entry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Cache {
    /// Opens the folder, making it when it is not there.
    pub(crate) fn open(folder: &Path) -> Result<Self, CacheError> {
        let create = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        create.map_err(|source| CacheError::Create { folder: folder.to_owned(), source })?;
        let found = fs::metadata(folder).map_err(|source| CacheError::Create { folder: folder.to_owned(), source })?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(CacheError::Exposed(folder.to_owned()));
        }
        let cache = Self { folder: folder.to_owned(), written: AtomicU64::new(0) };
        cache.remove_leftovers();
        Ok(cache)
    }

    /// The compiled form of the component with this digest, if there is a sound one.
    pub(crate) fn load(&self, engine: &Engine, component: Digest) -> Option<Component> {
        let prefix = format!("{component}-{REVISION}-");
        for path in self.paths() {
            let Some(expected) = name_of(&path).and_then(|name| name.strip_prefix(prefix.as_str())) else { continue };
            let sound = is_sound(&path, expected.trim_end_matches(ENDING));
            match sound.and_then(|()| map(engine, &path).map_err(|error| error.to_string())) {
                Ok(compiled) => {
                    touch(&path);
                    return Some(compiled);
                }
                Err(reason) => discard(&path, &reason),
            }
        }
        None
    }

    /// Stores compiled code and maps it.
    pub(crate) fn store(&self, engine: &Engine, component: Digest, code: &[u8]) -> Result<Component, CacheError> {
        let path = self.folder.join(format!("{component}-{REVISION}-{}{ENDING}", Digest::of(code)));
        self.write(&path, code).map_err(|source| CacheError::Write { path: path.clone(), source })?;
        let compiled = map(engine, &path).map_err(|error| CacheError::Mismatch(format!("{error:#}")))?;
        self.evict(&path);
        Ok(compiled)
    }

    /// Writes beside and renames, so that a name never stands for half an entry.
    fn write(&self, path: &Path, code: &[u8]) -> io::Result<()> {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let beside = self.folder.join(format!(".writing-{}-{number}", std::process::id()));
        let written = write_file(&beside, code).and_then(|()| fs::rename(&beside, path));
        if written.is_err() {
            // What cannot be removed now is removed when the folder is opened next.
            let _ = fs::remove_file(&beside);
        }
        written
    }

    fn paths(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| name_of(path).is_some_and(|name| name.ends_with(ENDING))).collect()
    }

    fn remove_leftovers(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let leftovers = entries.map(|entry| entry.path());
        for path in leftovers.filter(|path| name_of(path).is_some_and(|name| name.starts_with(".writing-"))) {
            discard(&path, "was never finished");
        }
    }

    /// Keeps the folder within its bounds. A mapped entry stays usable after its name is gone.
    fn evict(&self, keep: &Path) {
        let mut entries: Vec<Entry> = self.paths().into_iter().filter_map(Entry::of).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse((entry.path == keep, entry.used)));
        let mut total_bytes = 0_u64;
        for (position, entry) in entries.iter().enumerate() {
            total_bytes = total_bytes.saturating_add(entry.bytes);
            if position >= ENTRIES || (position > 0 && total_bytes > TOTAL_BYTES) {
                discard(&entry.path, "is the one unused for longest and the cache is full");
            }
        }
    }
}

impl Entry {
    fn of(path: PathBuf) -> Option<Self> {
        let found = fs::symlink_metadata(&path).ok()?;
        Some(Self { path, bytes: found.len(), used: found.modified().ok()? })
    }
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

fn write_file(path: &Path, code: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(code)?;
    file.sync_data()
}

/// Whether the entry is a plain file of ours whose content has the digest in its name.
fn is_sound(path: &Path, expected: &str) -> Result<(), String> {
    let file = open_entry(path).map_err(|error| format!("cannot be read: {error}"))?;
    let found = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    let ours = found.uid() == rustix::process::geteuid().as_raw() && found.permissions().mode() & 0o077 == 0;
    if !found.is_file() || !ours {
        return Err("is not a plain file that only this user can touch".to_owned());
    }
    let mut code = Vec::new();
    file.take(ENTRY_BYTES).read_to_end(&mut code).map_err(|error| format!("cannot be read: {error}"))?;
    if Digest::of(&code).to_string() != expected {
        return Err("does not have the digest in its name".to_owned());
    }
    Ok(())
}

fn open_entry(path: &Path) -> io::Result<File> {
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(no_links).open(path)
}

/// Marks the entry as used now; one that cannot be marked is merely evicted sooner.
fn touch(path: &Path) {
    if let Ok(file) = File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn discard(path: &Path, reason: &str) {
    tracing::debug!(target: "culvert::plugin", path = %path.display(), reason, "removing compiled code");
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(target: "culvert::plugin", path = %path.display(), %error, "compiled code cannot be removed");
    }
}

/// Maps compiled code into this process.
#[expect(unsafe_code, reason = "the runtime cannot check native code; the lines below say why this code is trusted")]
fn map(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was written by this crate from the output of the own compiler, or read back with the
    // digest it was written under, in a folder that only this user can write. Nothing changes it in place:
    // entries are made by rename and removed by unlink, which leaves a mapping as it is.
    unsafe { Component::deserialize_file(engine, path) }
}
