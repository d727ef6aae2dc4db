//! The embedded state: one SQLite file in WAL mode, one table of checksummed rows.
//!
//! A commit normally waits for no disk: with `synchronous=NORMAL` it survives the death of the
//! process, which is all a record of a pod's interface needs, because after a reboot no such
//! interface exists. Rows that must survive power loss are put with [`Durability::Power`].

mod damage;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use culvert_kernel::kill_point;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// What a row is about. The text is part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An attachment, by its key.
    Attachment,
    /// When an address was released, by address.
    Released,
    /// A claim of the ledger, by block.
    Claim,
    /// A countersigned node record, by node name.
    Member,
    /// The identity a name is bound to, by name (on the keeper).
    Name,
    /// The identity a relay showed first, by relay name.
    Relay,
    /// What is known of the way to a peer on the link, by identity.
    Reach,
    /// The last good plugin unit, by kind.
    Policy,
    /// Single values, by name.
    Single,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Attachment,
        Self::Released,
        Self::Claim,
        Self::Member,
        Self::Name,
        Self::Relay,
        Self::Reach,
        Self::Policy,
        Self::Single,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Attachment => "attachment",
            Self::Released => "released",
            Self::Claim => "claim",
            Self::Member => "member",
            Self::Name => "name",
            Self::Relay => "relay",
            Self::Reach => "reach",
            Self::Policy => "policy",
            Self::Single => "single",
        }
    }
}

/// What a commit must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The death of this process, by any signal.
    Process,
    /// A power cut: the commit waits for the disk.
    Power,
}

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or is not a database of ours.
    #[error(
        "cannot open the state {path}: {source}; check the folder's permissions, free space, and that the disk is writable"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// The folder cannot be made.
    #[error("cannot make the state folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A statement failed: disk full, read-only, I/O error.
    #[error("cannot {what} the state: {source}; check free space and that the disk is writable")]
    Statement {
        /// `read` or `write`.
        what: &'static str,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// A value cannot be encoded.
    #[error("cannot encode the {kind} row {key}: {source}")]
    Encode {
        /// The row's kind.
        kind: &'static str,
        /// The row's key.
        key: String,
        /// The encoder's answer.
        source: serde_json::Error,
    },
}

/// The rows of a kind, by key, and those of them that are damaged.
pub type Rows<T> = (Vec<(String, T)>, Vec<Damaged>);

/// A row as it is stored: key, value, checksum.
type RawRow = (String, Vec<u8>, Vec<u8>);

/// A row whose checksum or text is wrong. It is set aside, never used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The row's key.
    pub key: String,
}

/// The state. Clones share one connection.
#[derive(Clone)]
pub struct Store(Arc<Mutex<Connection>>);

impl Store {
    /// Opens or creates `state.db` in `folder`.
    ///
    /// A file that is damaged anywhere is renamed aside (`state.db.damaged`) and a new one is made of those of its rows
    /// that are whole: the node starts, and repairs itself from the kernel and the mesh.
    ///
    /// **Errors** when neither works.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder).map_err(|source| StoreError::Folder { path: folder.to_owned(), source })?;
        let path = folder.join("state.db");
        let connection = match damage::open_whole(&path) {
            Ok(connection) => connection,
            Err(error) if damage::is_damage(&error) => {
                tracing::error!(file = %path.display(), %error, "the state is damaged; set aside, its whole rows are kept");
                damage::start_anew(&path).map_err(|source| StoreError::Open { path, source })?
            }
            Err(source) => return Err(StoreError::Open { path, source }),
        };
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Writes a row, replacing the one with this key.
    ///
    /// **Errors** when the disk refuses; then the row is as it was.
    pub fn put<T: Serialize>(
        &self,
        kind: Kind,
        key: &str,
        value: &T,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let encode = |source| StoreError::Encode { kind: kind.text(), key: key.to_owned(), source };
        let value = serde_json::to_vec(value).map_err(encode)?;
        let checksum = checksum(kind, key, &value);
        kill_point(|| format!("before writing {}", kind.text()));
        let written = self.write(durability, |connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO rows (kind, key, value, checksum) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![kind.text(), key, value, checksum])
        });
        kill_point(|| format!("after writing {}", kind.text()));
        written
    }

    /// Removes a row; one that is not there counts as removed.
    ///
    /// **Errors** as [`Store::put`].
    pub fn remove(&self, kind: Kind, key: &str, durability: Durability) -> Result<(), StoreError> {
        kill_point(|| format!("before removing {}", kind.text()));
        let removed = self.write(durability, |connection| {
            connection
                .prepare_cached("DELETE FROM rows WHERE kind = ?1 AND key = ?2")?
                .execute(params![kind.text(), key])
        });
        kill_point(|| format!("after removing {}", kind.text()));
        removed
    }

    /// Moves everything from the log into the file, so that the file alone is the state.
    ///
    /// **Errors** when the disk refuses; then the log stays, and is read at the next start.
    pub fn settle(&self) -> Result<(), StoreError> {
        damage::settle(&self.lock()).map_err(|source| StoreError::Statement { what: "write", source })
    }

    /// Reads a row, if it is there and whole.
    ///
    /// **Errors** when the disk refuses.
    pub fn get<T: DeserializeOwned>(&self, kind: Kind, key: &str) -> Result<Option<T>, StoreError> {
        let row: Option<(Vec<u8>, Vec<u8>)> = self
            .lock()
            .prepare_cached("SELECT value, checksum FROM rows WHERE kind = ?1 AND key = ?2")
            .and_then(|mut statement| {
                statement.query_row(params![kind.text(), key], |row| Ok((row.get(0)?, row.get(1)?))).optional()
            })
            .map_err(|source| StoreError::Statement { what: "read", source })?;
        Ok(row.and_then(|(value, sum)| decode(kind, key, &value, &sum)))
    }

    /// Reads all rows of a kind by key, and names those that are damaged.
    ///
    /// **Errors** when the disk refuses.
    pub fn all<T: DeserializeOwned>(&self, kind: Kind) -> Result<Rows<T>, StoreError> {
        let rows = self.rows(kind).map_err(|source| StoreError::Statement { what: "read", source })?;
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        for (key, value, sum) in rows {
            match decode(kind, &key, &value, &sum) {
                Some(value) => whole.push((key, value)),
                None => damaged.push(Damaged { key }),
            }
        }
        Ok((whole, damaged))
    }

    fn rows(&self, kind: Kind) -> rusqlite::Result<Vec<RawRow>> {
        let connection = self.lock();
        let mut statement =
            connection.prepare_cached("SELECT key, value, checksum FROM rows WHERE kind = ?1 ORDER BY key")?;
        statement.query_map(params![kind.text()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
    }

    fn write(
        &self,
        durability: Durability,
        statement: impl FnOnce(&Connection) -> rusqlite::Result<usize>,
    ) -> Result<(), StoreError> {
        let connection = self.lock();
        let written = match durability {
            Durability::Process => statement(&connection),
            Durability::Power => synchronously(&connection, statement),
        };
        written.map(drop).map_err(|source| StoreError::Statement { what: "write", source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        // A panic elsewhere cannot leave a transaction half done: SQLite rolls it back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn synchronously(
    connection: &Connection,
    statement: impl FnOnce(&Connection) -> rusqlite::Result<usize>,
) -> rusqlite::Result<usize> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    let written = statement(connection);
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    written
}

/// The one table, as its definition stands in the file.
const TABLE: &str = "CREATE TABLE rows (
    kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, checksum BLOB NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID";

fn checksum(kind: Kind, key: &str, value: &[u8]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [kind.text().as_bytes(), key.as_bytes(), value] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..16].to_vec()
}

fn decode<T: DeserializeOwned>(kind: Kind, key: &str, value: &[u8], sum: &[u8]) -> Option<T> {
    if checksum(kind, key, value) != sum {
        tracing::error!(kind = kind.text(), key, "a row of the state has a wrong checksum and is not used");
        return None;
    }
    match serde_json::from_slice(value) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(kind = kind.text(), key, %error, "a row of the state cannot be decoded and is not used");
            None
        }
    }
}

#[cfg(test)]
mod tests;
