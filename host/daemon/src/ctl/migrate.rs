//! `culvertctl migrate conflist FILE`: the reference's chain in a file becomes the one plugin. Needs no daemon.
//!
//! ```text
//! FILE ─> culvert_cni::migrate ─> the conflist on stdout, what became of its parts on stderr
//!                              └> --in-place: backup, new file in the same folder, rename
//! ```
//!
//! Runtimes watch the folder: they notice a rename inside it, and read only names that end in `.conf`, `.conflist` or
//! `.json`, so neither the backup nor the unfinished file is taken for a network.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use culvert_cni::migrate::{Migration, MigrationError, Note, NoteKind, conflist};
use serde_json::{Value, json};

use super::layout::points;
use super::{Exit, Output, Printed};
use crate::view::SCHEMA;

/// The longest conflist. **Units** bytes. The shim takes no longer configuration either.
const MAX_BYTES: u64 = 1024 * 1024;
/// What the name of a backup ends in.
const BACKUP: &str = "before-culvert";

/// Why a file was not migrated. It is as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum MigrateError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Conflist { path: PathBuf, source: MigrationError },
    #[error("the backup {path} exists already; move it away, or remove it if it is not wanted any more")]
    BackupExists { path: PathBuf },
    #[error("cannot write {path}: {source}; the conflist is as it was")]
    Write { path: PathBuf, source: io::Error },
}

/// Migrates a file and says what became of it.
///
/// **Errors** it cannot be read, is no conflist of a bridge, or cannot be written.
pub(super) fn migrate(file: &Path, in_place: bool, output: Output) -> Result<Printed, MigrateError> {
    let before = read(file)?;
    let refused = |source| MigrateError::Conflist { path: file.to_owned(), source };
    let migration = conflist(&before).map_err(refused)?;
    let backup = if in_place && migration.changed { Some(replace(file, &before, &migration.text)?) } else { None };
    Ok(match output {
        Output::Json => in_json(&migration, backup.as_deref()),
        Output::Text if in_place => {
            let text = format!("{}{}", in_words(file, backup.as_deref()), notes_in_words(&migration.notes));
            Printed { text, aside: String::new(), exit: Exit::Ok }
        }
        Output::Text => Printed { text: migration.text, aside: notes_in_words(&migration.notes), exit: Exit::Ok },
    })
}

fn read(file: &Path) -> Result<String, MigrateError> {
    let read = |source| MigrateError::Read { path: file.to_owned(), source };
    let mut text = String::new();
    let longer = File::open(file).and_then(|open| open.take(MAX_BYTES + 1).read_to_string(&mut text)).map_err(read)?;
    if u64::try_from(longer).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(read(io::Error::other(format!("it is longer than {MAX_BYTES} bytes"))));
    }
    Ok(text)
}

/// Puts the new text in the file's place and returns where the old one is kept.
fn replace(file: &Path, before: &str, after: &str) -> Result<PathBuf, MigrateError> {
    // A link stays a link: what it points at is replaced.
    let place = file.canonicalize().map_err(|source| MigrateError::Read { path: file.to_owned(), source })?;
    let written = |path: &Path, source| MigrateError::Write { path: path.to_owned(), source };
    let metadata = place.metadata().map_err(|source| written(&place, source))?;
    let owner = Owner { permissions: metadata.permissions(), user: metadata.uid(), group: metadata.gid() };
    let backup = beside(&place, "", BACKUP);
    match owner.write_new(&backup, before) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(MigrateError::BackupExists { path: backup });
        }
        Err(error) => return Err(written(&backup, error)),
    }
    let fresh = beside(&place, ".", &format!("{}.new", std::process::id()));
    let renamed = owner.write_new(&fresh, after).and_then(|()| std::fs::rename(&fresh, &place));
    renamed.map_err(|source| {
        // Nothing was replaced: what was made for it goes, as far as it is there.
        let _absent = (std::fs::remove_file(&fresh), std::fs::remove_file(&backup));
        written(&place, source)
    })?;
    // The file is in its place. Unsynced, a power cut now could only bring the old one back.
    let _unsynced = sync_folder(&place);
    Ok(backup)
}

/// Another name in the same folder.
fn beside(place: &Path, begin: &str, end: &str) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!("{begin}{name}.{end}"))
}

/// Whose a file is and who may read it.
struct Owner {
    permissions: Permissions,
    user: u32,
    group: u32,
}

impl Owner {
    /// Writes a file that is not there yet, as far as the disk; a part of one does not stay.
    fn write_new(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let write = || {
            file.set_permissions(self.permissions.clone())?;
            chown(path, Some(self.user), Some(self.group))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write_or_remove(path, write)
    }
}

fn write_or_remove(path: &Path, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    write().inspect_err(|_| {
        let _absent = std::fs::remove_file(path);
    })
}

fn sync_folder(place: &Path) -> io::Result<()> {
    File::open(place.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn in_words(file: &Path, backup: Option<&Path>) -> String {
    let file = file.display();
    match backup {
        Some(backup) => format!("✓ {file} now has the one plugin culvert; what it was is in {}\n", backup.display()),
        None => format!("✓ {file} has nothing to migrate and stays as it is\n"),
    }
}

/// What was done, then what an operator must look at.
fn notes_in_words(notes: &[Note]) -> String {
    let (looked_at, done): (Vec<&Note>, Vec<&Note>) = notes.iter().partition(|note| note.kind == NoteKind::Attention);
    let done: Vec<String> = done.iter().map(|note| format!("{}: {}", note.kind, note.text)).collect();
    let looked_at: Vec<String> = looked_at.iter().map(|note| note.text.clone()).collect();
    points("What became of it:", "-", &done) + &points("Look at this:", "!", &looked_at)
}

fn in_json(migration: &Migration, backup: Option<&Path>) -> Printed {
    let notes = migration.notes.iter().map(|note| json!({"kind": note.kind.to_string(), "text": note.text}));
    // The text was made from JSON, or is the JSON that was given.
    let conflist: Value = serde_json::from_str(&migration.text).unwrap_or_default();
    let answer = json!({
        "schema": SCHEMA,
        "conflist": conflist,
        "changed": migration.changed,
        "backup": backup.map(|path| path.display().to_string()),
        "notes": notes.collect::<Vec<_>>(),
    });
    Printed { text: format!("{answer:#}\n"), aside: String::new(), exit: Exit::Ok }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const CHAIN: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [
        {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "subnet": "10.244.1.0/24"}},
        {"type": "portmap", "capabilities": {"portMappings": true}}
    ]}"#;

    /// A folder with the one file.
    fn folder(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("10-net.conflist");
        std::fs::write(&file, text).unwrap();
        (folder, file)
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_conflist_goes_to_one_stream_and_the_notes_to_the_other() {
        let (folder, file) = folder(CHAIN);
        let printed = migrate(&file, false, Output::Text).unwrap();
        let conflist: Value = serde_json::from_str(&printed.text).unwrap();
        assert_eq!(conflist["plugins"][0]["type"], "culvert");
        assert!(
            printed.aside.starts_with("\nWhat became of it:\n  - merged: bridge became culvert"),
            "{}",
            printed.aside
        );
        assert!(printed.aside.contains("\nLook at this:\n  ! pods that run now"), "{}", printed.aside);
        assert_eq!((std::fs::read_to_string(&file).unwrap().as_str(), names(&folder).len()), (CHAIN, 1));
    }

    #[test]
    fn in_place_the_file_is_replaced_and_the_old_one_kept() {
        let (folder, file) = folder(CHAIN);
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let printed = migrate(&file, true, Output::Text).unwrap();
        assert!(printed.text.starts_with(&format!("✓ {} now has the one plugin culvert", file.display())));
        assert_eq!(names(&folder), ["10-net.conflist", "10-net.conflist.before-culvert"]);
        assert_eq!(std::fs::read_to_string(folder.path().join("10-net.conflist.before-culvert")).unwrap(), CHAIN);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        let migrated = std::fs::read_to_string(&file).unwrap();
        assert!(migrated.contains("\"culvert\"") && !migrated.contains("portmap\""), "{migrated}");
        let again = migrate(&file, true, Output::Text).unwrap();
        assert_eq!(again.text, format!("✓ {} has nothing to migrate and stays as it is\n", file.display()));
        assert_eq!((std::fs::read_to_string(&file).unwrap(), names(&folder).len()), (migrated, 2));
    }

    #[test]
    fn a_link_is_followed_and_stays() {
        let (folder, file) = folder(CHAIN);
        let link = folder.path().join("link.conflist");
        symlink("10-net.conflist", &link).unwrap();
        migrate(&link, true, Output::Text).unwrap();
        assert!(link.is_symlink() && std::fs::read_to_string(&file).unwrap().contains("culvert"));
    }

    #[test]
    fn a_backup_is_never_overwritten() {
        let (folder, file) = folder(CHAIN);
        let backup = folder.path().join("10-net.conflist.before-culvert");
        std::fs::write(&backup, "earlier").unwrap();
        let message = migrate(&file, true, Output::Text).unwrap_err().to_string();
        assert!(message.contains("exists already; move it away"), "{message}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), CHAIN);
        assert_eq!((std::fs::read_to_string(&backup).unwrap().as_str(), names(&folder).len()), ("earlier", 2));
    }

    #[test]
    fn what_cannot_be_migrated_stays_untouched_and_is_named() {
        let too_long = " ".repeat(1024 * 1024 + 1);
        let table = [
            ("{", "not valid JSON"),
            (r#"{"name": "net", "plugins": [{"type": "ptp"}]}"#, "no plugin of type bridge"),
            (too_long.as_str(), "longer than 1048576 bytes"),
        ];
        for (text, expected) in table {
            let (folder, file) = folder(text);
            let message = migrate(&file, true, Output::Text).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains(&file.display().to_string()), "{message}");
            assert_eq!((std::fs::read_to_string(&file).unwrap().as_str(), names(&folder).len()), (text, 1));
        }
        let message = migrate(Path::new("/nowhere/x.conflist"), false, Output::Text).unwrap_err().to_string();
        assert!(message.starts_with("cannot read /nowhere/x.conflist: "), "{message}");
    }

    #[test]
    fn programs_get_conflist_notes_and_backup_as_json() {
        let (_folder, file) = folder(CHAIN);
        let read = |in_place| -> Value {
            serde_json::from_str(&migrate(&file, in_place, Output::Json).unwrap().text).unwrap()
        };
        let shown = read(false);
        assert_eq!((&shown["schema"], &shown["changed"], &shown["backup"]), (&json!(1), &json!(true), &Value::Null));
        assert_eq!(shown["conflist"]["plugins"][0]["type"], "culvert");
        let kinds: Vec<&Value> = shown["notes"].as_array().unwrap().iter().map(|note| &note["kind"]).collect();
        assert!(kinds.contains(&&json!("merged")) && kinds.contains(&&json!("attention")), "{kinds:?}");
        let done = read(true);
        assert_eq!(done["backup"], format!("{}.before-culvert", file.display()));
        assert_eq!(read(true)["changed"], false);
    }
}
