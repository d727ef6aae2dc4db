//! What a look at a folder finds, and which looks are worth a snapshot. No thread and no clock.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

struct Fixture {
    folder: TempDir,
    observer: Observer,
    receiver: tokio::sync::mpsc::Receiver<FolderSnapshot>,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let (wake, _) = mpsc::sync_channel(1);
    let watch = Watch::start(folder.path(), wake).unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(SNAPSHOTS_WAITING);
    let folder_path = folder.path().to_owned();
    let observer = Observer { folder: folder_path, watch, sender, known: BTreeMap::new(), sent: None, pending: None };
    Fixture { folder, observer, receiver }
}

impl Fixture {
    fn put(&self, name: &str, component: &[u8]) {
        fs::create_dir_all(self.folder.path().join(name)).unwrap();
        fs::write(self.folder.path().join(name).join("policy.wasm"), component).unwrap();
    }

    /// What a look sends.
    fn look(&mut self) -> Option<FolderSnapshot> {
        let snapshot = self.observer.look();
        self.observer.offer(snapshot);
        self.receiver.try_recv().ok()
    }

    /// Names of units, and what is said about the rest.
    fn found(&mut self) -> (Vec<String>, Vec<(String, String)>) {
        let snapshot = self.observer.look();
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let units = snapshot.units.iter().map(|unit| unit.name.clone()).collect();
        (units, snapshot.faults.iter().map(|fault| (name(&fault.path), fault.reason.clone())).collect())
    }
}

#[test]
fn the_same_content_is_sent_once_and_changed_content_each_time() {
    let mut fixture = fixture();
    assert_eq!(fixture.look(), Some(FolderSnapshot::default()));
    assert_eq!(fixture.look(), None);
    fixture.put("a", b"one");
    assert_eq!(fixture.look().map(|snapshot| snapshot.units.len()), Some(1));
    fixture.put("a", b"one");
    assert_eq!(fixture.look(), None);
    fixture.put("a", b"two");
    assert_eq!(fixture.look().map(|snapshot| snapshot.units[0].component.to_vec()), Some(b"two".to_vec()));
    fs::write(fixture.folder.path().join("a/settings.json"), "{\"n\":1}").unwrap();
    assert_eq!(fixture.look().map(|snapshot| snapshot.units[0].settings.clone()), Some("{\"n\":1}".to_owned()));
    fs::remove_dir_all(fixture.folder.path().join("a")).unwrap();
    assert_eq!(fixture.look(), Some(FolderSnapshot::default()));
}

#[test]
fn a_snapshot_without_room_is_replaced_by_the_next_one() {
    let mut fixture = fixture();
    for content in [b"one", b"two", b"ten"] {
        fixture.put("a", content);
        let snapshot = fixture.observer.look();
        fixture.observer.offer(snapshot);
    }
    assert!(fixture.observer.pending.is_some());
    assert_eq!(fixture.receiver.try_recv().unwrap().units[0].component.to_vec(), b"one");
    assert_eq!(fixture.look().map(|snapshot| snapshot.units[0].component.to_vec()), Some(b"ten".to_vec()));
    assert!(fixture.observer.pending.is_none());
}

#[test]
fn hidden_names_and_notes_are_ignored() {
    let mut fixture = fixture();
    fixture.put(".new-a", b"half");
    fs::write(fixture.folder.path().join("README"), "a note").unwrap();
    fixture.put("a", b"whole");
    assert_eq!(fixture.found(), (vec!["a".to_owned()], vec![]));
}

#[test]
fn what_is_no_unit_is_named_with_the_remedy_and_disturbs_no_other() {
    let mut fixture = fixture();
    let root = fixture.folder.path().to_owned();
    fixture.put("good", b"component");
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("loose.wasm"), b"component").unwrap();
    fixture.put("odd name", b"component");
    fs::create_dir_all(root.join("folder/policy.wasm")).unwrap();
    fixture.put("large", &vec![0; (2 << 20) + 1]);
    fixture.put("latin", b"component");
    fs::write(root.join("latin/settings.json"), b"\xff").unwrap();
    fixture.put("wordy", b"component");
    fs::write(root.join("wordy/settings.json"), " ".repeat((64 << 10) + 1)).unwrap();
    let (units, faults) = fixture.found();
    assert_eq!(units, ["good"]);
    let expected = [
        ("empty", "has no policy.wasm: put the component there, or remove the folder"),
        ("folder", "policy.wasm is not a plain file"),
        ("large", "policy.wasm is larger than 2097152 bytes"),
        ("latin", "settings.json is not UTF-8 text"),
        ("loose.wasm", "is not in a folder of its own: move it to <name>/policy.wasm"),
        ("odd name", "the name of a plugin's folder is 1 to 63 letters, digits, '.', '_' or '-': rename it"),
        ("wordy", "settings.json is larger than 65536 bytes"),
    ];
    assert_eq!(faults, expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())));
}

#[test]
fn links_are_followed_inside_the_folder_and_refused_out_of_it() {
    let mut fixture = fixture();
    let root = fixture.folder.path().to_owned();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("policy.wasm"), b"component").unwrap();
    fs::create_dir(root.join("file")).unwrap();
    symlink(outside.path().join("policy.wasm"), root.join("file/policy.wasm")).unwrap();
    symlink(outside.path(), root.join("whole")).unwrap();
    fixture.put(".data", b"component");
    symlink(".data", root.join("inside")).unwrap();
    // The way the cluster mounts a ConfigMap.
    fs::create_dir_all(root.join("mounted/..1")).unwrap();
    fs::write(root.join("mounted/..1/policy.wasm"), b"component").unwrap();
    symlink("..1", root.join("mounted/..data")).unwrap();
    symlink("..data/policy.wasm", root.join("mounted/policy.wasm")).unwrap();
    let (units, faults) = fixture.found();
    assert_eq!(units, ["inside", "mounted"]);
    let expected = [
        ("file", "policy.wasm is a symbolic link that leaves the folder: put the file itself there"),
        ("whole", "the folder is a symbolic link that leaves the folder: put the file itself there"),
    ];
    assert_eq!(faults, expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())));
}

#[test]
fn a_pipe_in_place_of_a_file_does_not_block() {
    let mut fixture = fixture();
    let root = fixture.folder.path().to_owned();
    fs::create_dir(root.join("a")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, root.join("a/policy.wasm"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(fixture.found().1, [("a".to_owned(), "policy.wasm is not a plain file".to_owned())]);
}

#[test]
fn more_folders_than_are_read_are_named() {
    let mut fixture = fixture();
    for number in 0..66 {
        fixture.put(&format!("unit-{number:02}"), b"component");
    }
    let (units, faults) = fixture.found();
    assert_eq!(units.len(), 64);
    assert_eq!(faults.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["unit-64", "unit-65"]);
}
