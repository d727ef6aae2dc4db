//! A watched folder of plugins: one sub-folder a unit, `<name>/policy.wasm` with an optional `settings.json`.
//!
//! Names that start with `.` are ignored, so an author writes `.new-x` in peace and renames it, or exchanges
//! it with the one in use. After a change the folder is left to settle before it is read. A snapshot is
//! sent when what can be read differs from the snapshot before; the same content again sends nothing.

mod read;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::error::TrySendError;

use crate::unit::{Digest, Unit};
use read::{ReadError, Signature};

/// How long the folder must be quiet before it is read: longer than the pauses of a copy.
const SETTLE: Duration = Duration::from_millis(150);

/// How long a folder that never gets quiet is waited for.
const SETTLE_AT_MOST: Duration = Duration::from_secs(2);

/// How often the folder is looked at without an event: some file systems send none.
const RESCAN: Duration = Duration::from_secs(10);

/// How often a folder that is not there is looked for: nothing tells of its return.
const SEARCH: Duration = Duration::from_secs(1);

/// Sub-folders read. A node uses three plugins; what is beyond, by name, is reported as a fault.
const UNITS: usize = 64;

/// Attempts to read a unit that changes while it is read, each after a pause, before it is a fault.
const UNSTEADY_ATTEMPTS: u32 = 3;

/// Snapshots waiting for the receiver. A newer one replaces one that was not fetched in time.
const SNAPSHOTS_WAITING: usize = 1;

/// All that a folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderSnapshot {
    /// What can be read, by name. When the folder itself cannot be read, what it held before.
    pub units: Vec<Unit>,
    /// What cannot, by path.
    pub faults: Vec<UnitFault>,
}

/// Something in the folder that is no unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct UnitFault {
    /// What it is about.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// Why a folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not there, or not readable.
    #[error("the plugin folder {} cannot be read: {source}; make it, or correct the path", folder.display())]
    Unreadable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel gives no watch.
    #[error("the plugin folder {} cannot be watched: {source}; raise fs.inotify.max_user_watches", folder.display())]
    Watch {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// No thread.
    #[error("no thread to watch the plugin folder")]
    Thread(#[source] io::Error),
}

/// Watches a folder until it is dropped.
#[derive(Debug)]
pub struct FolderSource {
    wake: SyncSender<Wake>,
}

/// Why the watching thread wakes up.
enum Wake {
    Changed,
    Stop,
}

impl FolderSource {
    /// Watches `folder`. The first snapshot, of what is there now, is sent at once.
    ///
    /// # Errors
    /// Why it cannot be watched.
    pub fn watch(folder: PathBuf) -> Result<(Self, tokio::sync::mpsc::Receiver<FolderSnapshot>), FolderError> {
        let unreadable = |source| FolderError::Unreadable { folder: folder.clone(), source };
        std::fs::read_dir(&folder).map_err(unreadable)?;
        // One waiting wake-up says all there is to say, so what does not fit is dropped.
        let (wake, woken) = mpsc::sync_channel(1);
        let (sender, receiver) = tokio::sync::mpsc::channel(SNAPSHOTS_WAITING);
        let watch = Watch::start(&folder, wake.clone())?;
        let observer = Observer { folder, watch, sender, known: BTreeMap::new(), sent: None, pending: None };
        thread::Builder::new()
            .name("culvert-folder".to_owned())
            .spawn(move || observer.run(&woken))
            .map_err(FolderError::Thread)?;
        Ok((Self { wake }, receiver))
    }
}

impl Drop for FolderSource {
    fn drop(&mut self) {
        // The thread is never blocked for longer than a look at the folder, so this is soon fetched.
        let _ = self.wake.send(Wake::Stop);
    }
}

/// The kernel's watch on the folder as it was found.
struct Watch {
    watcher: RecommendedWatcher,
    identity: Option<(u64, u64)>,
}

impl Watch {
    fn start(folder: &Path, wake: SyncSender<Wake>) -> Result<Self, FolderError> {
        let fault = |source| FolderError::Watch { folder: folder.to_owned(), source };
        let handler = move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) {
                let _ = wake.try_send(Wake::Changed);
            }
        };
        let mut watcher = notify::recommended_watcher(handler).map_err(fault)?;
        watcher.watch(folder, RecursiveMode::Recursive).map_err(fault)?;
        Ok(Self { watcher, identity: read::identity(folder).ok() })
    }

    /// Watches the folder anew when another one stands in its place.
    fn follow(&mut self, folder: &Path) {
        let now = read::identity(folder).ok();
        if now == self.identity {
            return;
        }
        self.identity = None;
        if now.is_none() {
            return;
        }
        // The old watch ends with the folder it was for; without a new one the folder is still looked at
        // every now and then.
        let _ = self.watcher.unwatch(folder);
        if self.watcher.watch(folder, RecursiveMode::Recursive).is_ok() {
            self.identity = now;
        }
    }
}

/// Reading raises events too; only those that can mean other content count.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

/// What is known of one sub-folder.
struct Known {
    signature: Result<Signature, ReadError>,
    content: Result<Unit, ReadError>,
}

/// The watching thread.
struct Observer {
    folder: PathBuf,
    watch: Watch,
    sender: tokio::sync::mpsc::Sender<FolderSnapshot>,
    known: BTreeMap<OsString, Known>,
    /// The identity of the last snapshot that was sent.
    sent: Option<Identity>,
    /// A snapshot the receiver has no room for yet.
    pending: Option<FolderSnapshot>,
}

/// What makes two snapshots the same.
type Identity = (Vec<(String, Digest)>, Vec<UnitFault>);

impl Observer {
    fn run(mut self, woken: &Receiver<Wake>) {
        loop {
            self.watch.follow(&self.folder);
            let Some(snapshot) = self.look_until_steady(woken) else { return };
            self.offer(snapshot);
            if self.sender.is_closed() || !self.wait(woken) {
                return;
            }
        }
    }

    /// Waits for a change that has settled, or for the time to look anyway. False means stop.
    fn wait(&mut self, woken: &Receiver<Wake>) -> bool {
        let patience = match (&self.pending, self.watch.identity) {
            (Some(_), _) => SETTLE,
            (None, Some(_)) => RESCAN,
            (None, None) => SEARCH,
        };
        match woken.recv_timeout(patience) {
            Ok(Wake::Changed) => settle(woken),
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => true,
        }
    }

    /// Looks at the folder; a unit that changes meanwhile is given some more time. None means stop.
    fn look_until_steady(&mut self, woken: &Receiver<Wake>) -> Option<FolderSnapshot> {
        for _ in 1..UNSTEADY_ATTEMPTS {
            let snapshot = self.look();
            if !self.known.values().any(|known| matches!(known.content, Err(ReadError::Unsteady))) {
                return Some(snapshot);
            }
            if !settle(woken) {
                return None;
            }
        }
        Some(self.look())
    }

    fn look(&mut self) -> FolderSnapshot {
        let names = match names(&self.folder) {
            Ok(names) => names,
            Err(error) => return self.folder_fault(&error),
        };
        let mut faults = beyond_the_limit(&self.folder, &names);
        let names = &names[..names.len().min(UNITS)];
        self.known.retain(|name, _| names.contains(name));
        for name in names {
            self.look_at(name);
        }
        let mut units = Vec::new();
        for (name, known) in &self.known {
            match &known.content {
                Ok(unit) => units.push(unit.clone()),
                Err(error) => {
                    faults.push(UnitFault { path: self.folder.join(name), reason: error.to_string() });
                }
            }
        }
        FolderSnapshot { units, faults }
    }

    /// Reads one sub-folder unless it is as it was.
    fn look_at(&mut self, name: &OsString) {
        let found = read::signature(&self.folder, name);
        let unsteady = |known: &Known| matches!(known.content, Err(ReadError::Unsteady));
        if self.known.get(name).is_some_and(|known| known.signature == found && !unsteady(known)) {
            return;
        }
        let known = match read_entry(&self.folder, name) {
            Ok((unit, signature)) => Known { signature: Ok(signature), content: Ok(unit) },
            Err(error) => Known { signature: found, content: Err(error) },
        };
        self.known.insert(name.clone(), known);
    }

    fn folder_fault(&self, error: &io::Error) -> FolderSnapshot {
        let units = self.known.values().filter_map(|known| known.content.as_ref().ok().cloned()).collect();
        let reason = format!("cannot be read: {error}; make the folder again, what it held stays in use");
        FolderSnapshot { units, faults: vec![UnitFault { path: self.folder.clone(), reason }] }
    }

    /// Sends a snapshot that differs from the last one, or keeps it until there is room.
    fn offer(&mut self, snapshot: FolderSnapshot) {
        let identity = identity(&snapshot);
        if self.sent.as_ref() == Some(&identity) {
            self.pending = None;
            return;
        }
        match self.sender.try_send(snapshot) {
            Ok(()) | Err(TrySendError::Closed(_)) => {
                self.sent = Some(identity);
                self.pending = None;
            }
            Err(TrySendError::Full(snapshot)) => self.pending = Some(snapshot),
        }
    }
}

/// Waits until nothing has changed for a while. False means stop.
fn settle(woken: &Receiver<Wake>) -> bool {
    let start = Instant::now();
    while start.elapsed() < SETTLE_AT_MOST {
        match woken.recv_timeout(SETTLE) {
            Ok(Wake::Changed) => {}
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => return true,
        }
    }
    true
}

fn identity(snapshot: &FolderSnapshot) -> Identity {
    let units = snapshot.units.iter().map(|unit| (unit.name.clone(), unit.digest()));
    (units.collect(), snapshot.faults.clone())
}

/// The names in the folder that may be units, sorted. Hidden ones are an author's own.
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        // Other plain files (a note, say) are nobody's mistake.
        let unit_or_stray = || folder.join(&name).is_dir() || is_stray(&name);
        if !hidden && unit_or_stray() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn is_stray(name: &OsString) -> bool {
    let name = Path::new(name);
    name.extension().is_some_and(|extension| extension == "wasm") || name == Path::new(read::SETTINGS_FILE)
}

fn read_entry(folder: &Path, name: &OsString) -> Result<(Unit, Signature), ReadError> {
    if !folder.join(name).is_dir() {
        return Err(ReadError::Stray);
    }
    read::read(folder, name)
}

fn beyond_the_limit(folder: &Path, names: &[OsString]) -> Vec<UnitFault> {
    let beyond = names.iter().skip(UNITS);
    let reason = format!("is one of more than {UNITS} plugins and is not read: remove those not needed");
    beyond.map(|name| UnitFault { path: folder.join(name), reason: reason.clone() }).collect()
}

#[cfg(test)]
mod tests;
