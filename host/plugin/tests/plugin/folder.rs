//! The watched folder, end to end: real files, real events.

use std::fs;
use std::path::Path;
use std::time::Duration;

use culvert_plugin::{FolderSnapshot, FolderSource, Kind};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::sync::mpsc::Receiver;

use crate::guest::Guest;
use crate::host::{Host, topology};

/// Far more than settling takes; reached only when a snapshot never comes.
const PATIENCE: Duration = Duration::from_secs(20);

fn next(receiver: &mut Receiver<FolderSnapshot>) -> FolderSnapshot {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, receiver.recv()).await }).unwrap().unwrap()
}

/// Waits for the snapshot that satisfies `expected`; those before it may differ by how events fell.
fn until(receiver: &mut Receiver<FolderSnapshot>, expected: impl Fn(&FolderSnapshot) -> bool) -> FolderSnapshot {
    loop {
        let snapshot = next(receiver);
        if expected(&snapshot) {
            return snapshot;
        }
    }
}

fn put(folder: &Path, name: &str, component: &[u8], settings: &str) {
    let unit = folder.join(name);
    fs::create_dir_all(&unit).unwrap();
    fs::write(unit.join("policy.wasm"), component).unwrap();
    fs::write(unit.join("settings.json"), settings).unwrap();
}

#[test]
fn an_exchange_of_folders_is_seen_as_one_unit() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "routes", b"one", "{\"n\":1}");
    let (_source, mut receiver) = FolderSource::watch(folder.path().to_owned()).unwrap();
    assert_eq!(next(&mut receiver).units[0].settings, "{\"n\":1}");
    for round in 2..6_u32 {
        put(folder.path(), ".new", round.to_string().as_bytes(), &format!("{{\"n\":{round}}}"));
        let (new, live) = (folder.path().join(".new"), folder.path().join("routes"));
        renameat_with(CWD, &new, CWD, &live, RenameFlags::EXCHANGE).unwrap();
        let snapshot = next(&mut receiver);
        assert_eq!(snapshot.faults, []);
        let [unit] = snapshot.units.try_into().unwrap();
        assert_eq!(unit.name, "routes");
        assert_eq!(&*unit.component, round.to_string().as_bytes());
        assert_eq!(unit.settings, format!("{{\"n\":{round}}}"));
    }
}

#[test]
fn a_torn_component_is_refused_and_the_whole_one_passes() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::new();
    let whole = Guest::new(Kind::Route, "routes").component();
    put(folder.path(), "routes", &whole[..whole.len() / 2], "{}");
    let (_source, mut receiver) = FolderSource::watch(folder.path().to_owned()).unwrap();
    let torn = next(&mut receiver).units.remove(0);
    let message = host.refusal(&torn);
    assert!(message.contains("was the file written completely?"), "{message}");
    put(folder.path(), "routes", &whole, "{}");
    let mended = until(&mut receiver, |snapshot| &*snapshot.units[0].component == whole.as_slice());
    assert_eq!(host.route(&mended.units[0]).plan(&topology(1)), Ok(vec![]));
}

#[test]
fn a_folder_that_comes_back_is_watched_again_and_meanwhile_nothing_is_lost() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, away) = (parent.path().join("plugins"), parent.path().join("away"));
    fs::create_dir(&folder).unwrap();
    put(&folder, "routes", b"one", "{}");
    let (_source, mut receiver) = FolderSource::watch(folder.clone()).unwrap();
    let first = next(&mut receiver);
    fs::rename(&folder, &away).unwrap();
    // Moving the folder raises no event inside it; this does, and the watch still hears it.
    fs::write(away.join("routes/policy.wasm"), b"unseen").unwrap();
    let gone = next(&mut receiver);
    assert_eq!(gone.units, first.units);
    assert_eq!(gone.faults.len(), 1);
    assert!(gone.faults[0].reason.ends_with("make the folder again, what it held stays in use"), "{gone:?}");
    fs::create_dir(&folder).unwrap();
    put(&folder, "routes", b"two", "{}");
    let back = until(&mut receiver, |snapshot| snapshot.faults.is_empty());
    assert_eq!(&*back.units[0].component, b"two");
}

#[test]
fn a_missing_folder_is_named_with_the_remedy() {
    let error = FolderSource::watch("/nonexistent/culvert/plugins".into()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the plugin folder /nonexistent/culvert/plugins cannot be read: No such file or directory (os error 2); make it, or correct the path"
    );
}
