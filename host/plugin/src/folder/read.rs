//! Reads one unit from its sub-folder, as one thing.
//!
//! The sub-folder is opened once and both files are opened inside it, so a folder that is exchanged in
//! between is read whole, old or new. What was read counts only when the files are the same afterwards.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::unit::{Origin, Unit};

/// The component's file name in a unit's sub-folder.
pub(super) const COMPONENT_FILE: &str = "policy.wasm";
/// The settings' file name.
pub(super) const SETTINGS_FILE: &str = "settings.json";

/// **Units** bytes of a component; the gate's own limit, so that what it would refuse is not read.
const COMPONENT_BYTES: u64 = 2 << 20;
/// **Units** bytes of settings.
const SETTINGS_BYTES: u64 = 64 << 10;

/// Why a sub-folder is no unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the name of a plugin's folder is 1 to 63 letters, digits, '.', '_' or '-': rename it")]
    Name,
    #[error("is not in a folder of its own: move it to <name>/{COMPONENT_FILE}")]
    Stray,
    #[error("has no {COMPONENT_FILE}: put the component there, or remove the folder")]
    NoComponent,
    #[error("{file} cannot be read: {reason}; check that it is readable for the daemon's user")]
    Unreadable { file: &'static str, reason: String },
    #[error("{file} is a symbolic link that leaves the folder: put the file itself there")]
    Leaves { file: &'static str },
    #[error("{file} is not a plain file")]
    NotPlain { file: &'static str },
    #[error("{file} is larger than {limit} bytes")]
    TooLarge { file: &'static str, limit: u64 },
    #[error("{SETTINGS_FILE} is not UTF-8 text")]
    NotText,
    #[error("keeps changing while it is read: write to a folder whose name starts with '.', then rename it")]
    Unsteady,
}

/// What tells one content of a unit from another without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signature {
    component: Option<FileSignature>,
    settings: Option<FileSignature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileSignature {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The two files of a unit, open.
struct OpenUnit {
    component: Option<(File, FileSignature)>,
    settings: Option<(File, FileSignature)>,
}

impl OpenUnit {
    fn signature(&self) -> Signature {
        Signature {
            component: self.component.as_ref().map(|(_, signature)| signature.clone()),
            settings: self.settings.as_ref().map(|(_, signature)| signature.clone()),
        }
    }
}

/// The signature of the unit in `folder/name`, or why there is none.
pub(super) fn signature(folder: &Path, name: &OsStr) -> Result<Signature, ReadError> {
    open(folder, name).map(|unit| unit.signature())
}

/// Reads the unit in `folder/name`, with its signature.
pub(super) fn read(folder: &Path, name: &OsStr) -> Result<(Unit, Signature), ReadError> {
    let text = valid_name(name).ok_or(ReadError::Name)?;
    let before = open(folder, name)?;
    let signature = before.signature();
    let component = before.component.ok_or(ReadError::NoComponent)?;
    let component = read_file(component.0, COMPONENT_FILE, COMPONENT_BYTES)?;
    let settings = match before.settings {
        Some((file, _)) => text_of(read_file(file, SETTINGS_FILE, SETTINGS_BYTES)?)?,
        None => "{}".to_owned(),
    };
    if open(folder, name)?.signature() != signature {
        return Err(ReadError::Unsteady);
    }
    let unit = Unit {
        name: text.to_owned(),
        component: Arc::from(component),
        settings,
        origin: Origin::Folder(folder.join(name)),
    };
    Ok((unit, signature))
}

fn valid_name(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    (plain && (1..=63).contains(&name.len())).then_some(name)
}

fn open(folder: &Path, name: &OsStr) -> Result<OpenUnit, ReadError> {
    let file = COMPONENT_FILE;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, directory, Mode::empty()).map_err(|errno| unreadable(file, errno))?;
    let inside = rustix::fs::openat2(&root, Path::new(name), directory, Mode::empty(), BENEATH);
    let unit = match inside {
        Ok(unit) => unit,
        Err(Errno::XDEV) => return Err(ReadError::Leaves { file: "the folder" }),
        Err(errno) => return Err(unreadable(file, errno)),
    };
    Ok(OpenUnit { component: open_file(&unit, COMPONENT_FILE)?, settings: open_file(&unit, SETTINGS_FILE)? })
}

/// Symbolic links are followed inside the folder (volumes of the cluster are made of them), never out of it.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

fn open_file(unit: &OwnedFd, file: &'static str) -> Result<Option<(File, FileSignature)>, ReadError> {
    // A pipe would block an open without NONBLOCK.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = match rustix::fs::openat2(unit, file, flags, Mode::empty(), BENEATH) {
        Ok(opened) => opened,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::XDEV) => return Err(ReadError::Leaves { file }),
        Err(errno) => return Err(unreadable(file, errno)),
    };
    let found = rustix::fs::fstat(&opened).map_err(|errno| unreadable(file, errno))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(ReadError::NotPlain { file });
    }
    Ok(Some((File::from(opened), file_signature(&found))))
}

fn file_signature(found: &Stat) -> FileSignature {
    FileSignature {
        device: found.st_dev,
        inode: found.st_ino,
        size: found.st_size,
        modified: (found.st_mtime, found.st_mtime_nsec.cast_signed()),
        changed: (found.st_ctime, found.st_ctime_nsec.cast_signed()),
    }
}

fn read_file(file: File, name: &'static str, limit: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let read: io::Result<usize> = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| ReadError::Unreadable { file: name, reason: error.to_string() })?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge { file: name, limit });
    }
    Ok(bytes)
}

fn text_of(bytes: Vec<u8>) -> Result<String, ReadError> {
    String::from_utf8(bytes).map_err(|_| ReadError::NotText)
}

fn unreadable(file: &'static str, errno: Errno) -> ReadError {
    ReadError::Unreadable { file, reason: io::Error::from(errno).to_string() }
}

/// The device and inode of a folder, to notice that it was replaced.
pub(super) fn identity(folder: &Path) -> io::Result<(u64, u64)> {
    let found = rustix::fs::statat(CWD, folder, rustix::fs::AtFlags::empty())?;
    Ok((found.st_dev, found.st_ino))
}
