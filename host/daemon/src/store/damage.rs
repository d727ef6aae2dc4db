//! Whether the state's file is whole, and what to do when it is not.
//!
//! Everything is looked at when it is opened: the tree of pages by SQLite, the definition of the table, and the checksum
//! of every row. A few hundred rows take milliseconds.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, ffi, params};

use super::{Kind, TABLE, checksum};

/// **Units** bytes. The header of a file. **Source** SQLite, file format, section 1.3.
const HEAD_BYTES: usize = 100;
/// The version that files with a write-ahead log have.
const WAL: u8 = 2;

/// Opens or creates a file that is whole.
///
/// **Errors** [`is_damage`] when it is not.
pub(super) fn open_whole(path: &Path) -> rusqlite::Result<Connection> {
    let was_empty = look_at_head(path)?;
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(damaged(&verdict));
    }
    match definitions(&connection)?.as_slice() {
        [] if was_empty => connection.execute_batch(TABLE)?,
        [table] if table.split_whitespace().eq(TABLE.split_whitespace()) => {}
        _ => return Err(damaged("its table is defined otherwise")),
    }
    if let Some(key) = rows(&connection)?.iter().find(|row| !row.is_whole()).map(|row| row.key.clone()) {
        return Err(damaged(&format!("the row {key:?} has a wrong checksum")));
    }
    Ok(connection)
}

/// Whether there is no file yet, or nothing in it.
///
/// **Errors** [`is_damage`] when SQLite would take it for a file of a later version, which it only reads, or, cut short,
/// for an empty one.
fn look_at_head(path: &Path) -> rusqlite::Result<bool> {
    let mut head = [0; HEAD_BYTES];
    // What cannot be read is for SQLite to say.
    let Ok(mut file) = File::open(path) else { return Ok(true) };
    let Ok(metadata) = file.metadata() else { return Ok(true) };
    if metadata.len() == 0 {
        return Ok(true);
    }
    if file.read_exact(&mut head).is_err() {
        return Err(damaged("it is cut short"));
    }
    let [write_version, read_version] = [head[18], head[19]];
    if write_version != WAL || read_version != WAL {
        return Err(damaged("its header is not ours"));
    }
    Ok(false)
}

/// Moves everything from the log into the file.
///
/// **Errors** the disk refuses.
pub(super) fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// Whether an error says that the file is not what we wrote.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    // "Unknown" is SQLite's word for everything else, as for a format of the schema that it does not know.
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, TypeMismatch, Unknown};
    match error.sqlite_error_code() {
        Some(code) => matches!(code, NotADatabase | DatabaseCorrupt | TypeMismatch | Unknown),
        // A value of another type or text that is none: never ours.
        None => !matches!(error, rusqlite::Error::InvalidPath(_)),
    }
}

/// Sets the file aside and makes a new one of its whole rows.
pub(super) fn start_anew(path: &Path) -> rusqlite::Result<Connection> {
    set_aside(path);
    let connection = open_whole(path)?;
    let aside = with_suffix(path, ".damaged");
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut kept = 0;
    let found = Connection::open_with_flags(&aside, flags).and_then(|old| readable_rows(&old));
    for row in found.unwrap_or_default().iter().filter(|row| row.is_whole()) {
        let insert = "INSERT OR REPLACE INTO rows (kind, key, value, checksum) VALUES (?1, ?2, ?3, ?4)";
        kept += connection.execute(insert, params![row.kind, row.key, row.value, row.checksum])?;
    }
    tracing::warn!(kept, file = %aside.display(), "rows of the damaged state that are whole were kept");
    Ok(connection)
}

/// A row as it stands.
struct Row {
    kind: String,
    key: String,
    value: Vec<u8>,
    checksum: Vec<u8>,
}

impl Row {
    fn is_whole(&self) -> bool {
        let kind = Kind::ALL.into_iter().find(|kind| kind.text() == self.kind);
        kind.is_some_and(|kind| checksum(kind, &self.key, &self.value) == self.checksum)
    }
}

const SELECT: &str = "SELECT kind, key, value, checksum FROM rows";

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row { kind: row.get(0)?, key: row.get(1)?, value: row.get(2)?, checksum: row.get(3)? })
}

/// All rows, each readable.
fn rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    connection.prepare(SELECT)?.query_map([], read)?.collect()
}

/// The rows that can be read, up to where the tree itself cannot.
fn readable_rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare(SELECT)?;
    let mut found = statement.query([])?;
    let mut rows = Vec::new();
    while let Ok(Some(row)) = found.next() {
        rows.extend(read(row).ok());
    }
    Ok(rows)
}

fn definitions(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT coalesce(sql, '') FROM sqlite_schema")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

fn damaged(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what.to_owned()))
}

fn set_aside(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(path, &format!(".damaged{suffix}")));
        match std::fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(file = %from.display(), %error, "cannot set the damaged state aside"),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}
