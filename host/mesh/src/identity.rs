//! A node's identity: a random ed25519 key kept in one file, and the peer id that follows from it.
//!
//! The key never derives from the node's name, so knowing a name helps nobody to take it over.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use culvert_core::membership;
use libp2p::identity::Keypair;

use crate::hex;

/// The first word of a key file. A later format gets another word.
const FORMAT: &str = "culvert-node-key-1";

/// A key file is one short line; a longer file is something else. **Units** bytes.
const LONGEST_KEY_FILE: u64 = 256;

/// A node's private key.
#[derive(Clone)]
pub struct NodeKey {
    pair: Keypair,
}

/// Why a node's key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read.
    #[error(
        "cannot read the node key {path}: {source}; make it readable to this user, or remove it to get a new identity"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be made.
    #[error("cannot create the node key {path}: {source}; make its folder writable to this user")]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the owner may read or write the file.
    #[error("the node key {path} has mode {mode:04o}, which lets others at it; run `chmod 600 {path}`")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else than a key.
    #[error("{path} does not hold a node key; restore it from a backup, or remove it to get a new identity")]
    Garbage {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("no random bytes for the node key {path}: {source}")]
    Random {
        /// The file that was to be made.
        path: PathBuf,
        /// What the system said.
        source: getrandom::Error,
    },
}

impl NodeKey {
    /// The key kept in `path`; made and stored there (mode 0600) when there is none yet.
    ///
    /// Two processes that start at once end up with the same key: the file appears whole or not at all.
    ///
    /// # Errors
    /// [`KeyError`], each naming the file and what to do.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match read(path) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => create(path),
            other => other,
        }
    }

    /// The peer id that this key proves.
    #[must_use]
    pub fn peer_id(&self) -> membership::PeerId {
        to_core(&self.pair.public().to_peer_id())
    }

    /// The key in libp2p's form.
    pub(crate) fn pair(&self) -> &Keypair {
        &self.pair
    }

    /// A key from its 32 secret bytes.
    fn from_seed(mut seed: [u8; 32]) -> Option<Self> {
        Keypair::ed25519_from_bytes(&mut seed).ok().map(|pair| Self { pair })
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "NodeKey({})", self.peer_id())
    }
}

/// Core's form of a peer id.
pub(crate) fn to_core(peer: &libp2p::PeerId) -> membership::PeerId {
    membership::PeerId(peer.to_base58())
}

/// libp2p's form of a peer id, or `None` when the text is no peer id.
pub(crate) fn from_core(peer: &membership::PeerId) -> Option<libp2p::PeerId> {
    peer.0.parse().ok()
}

fn read(path: &Path) -> Result<NodeKey, KeyError> {
    let read_error = |source| KeyError::Read { path: path.to_owned(), source };
    let garbage = || KeyError::Garbage { path: path.to_owned() };
    let file = File::open(path).map_err(read_error)?;
    let metadata = file.metadata().map_err(read_error)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Vec::new();
    file.take(LONGEST_KEY_FILE).read_to_end(&mut text).map_err(read_error)?;
    let text = String::from_utf8(text).map_err(|_| garbage())?;
    let (format, digits) = text.trim_end().split_once(' ').ok_or_else(garbage)?;
    let seed = hex::decode(digits).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    match seed {
        Some(seed) if format == FORMAT => NodeKey::from_seed(seed).ok_or_else(garbage),
        Some(_) | None => Err(garbage()),
    }
}

fn create(path: &Path) -> Result<NodeKey, KeyError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|source| KeyError::Random { path: path.to_owned(), source })?;
    match store(path, &seed) {
        Ok(()) => read(path),
        // Another process was first: its key is the node's key.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(source) => Err(KeyError::Create { path: path.to_owned(), source }),
    }
}

/// Writes the key beside its place and links it there, which fails when the place is taken.
fn store(path: &Path, seed: &[u8; 32]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(io::Error::other)?;
    let draft = folder.join(format!(".node-key-{}", hex::encode(&suffix)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let linked = writeln!(file, "{FORMAT} {}", hex::encode(seed))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    linked?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::{KeyError, NodeKey};

    #[test]
    fn a_key_is_made_once_and_then_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let first = NodeKey::load_or_create(&path).unwrap().peer_id();
        assert_eq!(NodeKey::load_or_create(&path).unwrap().peer_id(), first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["node.key"]);
    }

    #[test]
    fn two_nodes_get_different_keys() {
        let folder = tempfile::tempdir().unwrap();
        let one = NodeKey::load_or_create(&folder.path().join("one")).unwrap();
        let two = NodeKey::load_or_create(&folder.path().join("two")).unwrap();
        assert_ne!(one.peer_id(), two.peer_id());
    }

    #[test]
    fn processes_that_start_at_once_share_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let peers: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..8).map(|_| scope.spawn(|| NodeKey::load_or_create(&path).unwrap().peer_id())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(peers.iter().all(|peer| *peer == peers[0]), "{peers:?}");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_its_name_and_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        NodeKey::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = NodeKey::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o640, .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains(&format!("chmod 600 {}", path.display())), "{message}");
    }

    #[test]
    fn a_file_that_holds_something_else_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        for content in ["", "hello", "culvert-node-key-1 abcd\n", "other-key-1 00\n", "\u{0}\u{ff}"] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = NodeKey::load_or_create(&path).unwrap_err();
            assert!(matches!(error, KeyError::Garbage { .. }), "{content:?}: {error:?}");
            assert_eq!(fs::read(&path).unwrap(), content.as_bytes());
        }
    }

    #[test]
    fn printing_a_key_shows_the_peer_id_alone() {
        let folder = tempfile::tempdir().unwrap();
        let key = NodeKey::load_or_create(&folder.path().join("node.key")).unwrap();
        assert_eq!(format!("{key:?}"), format!("NodeKey({})", key.peer_id()));
    }
}
