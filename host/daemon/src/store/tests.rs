//! The state survives what it must, and says what it lost.

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_row_survives_reopening() {
    let folder = folder();
    let store = Store::open(folder.path()).unwrap();
    store.put(Kind::Claim, "10.244.1.0/24", &"edge-1", Durability::Power).unwrap();
    store.put(Kind::Claim, "10.244.2.0/24", &"edge-2", Durability::Process).unwrap();
    store.remove(Kind::Claim, "10.244.1.0/24", Durability::Process).unwrap();
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    let (rows, damaged) = store.all::<String>(Kind::Claim).unwrap();
    assert_eq!(rows, [("10.244.2.0/24".to_owned(), "edge-2".to_owned())]);
    assert_eq!(damaged, []);
    assert_eq!(store.get::<String>(Kind::Claim, "10.244.1.0/24").unwrap(), None);
}

#[test]
fn a_flipped_row_is_named_and_not_used() {
    let folder = folder();
    let store = Store::open(folder.path()).unwrap();
    store.put(Kind::Member, "edge-1", &7_u32, Durability::Process).unwrap();
    store.0.lock().unwrap().execute("UPDATE rows SET value = CAST('8' AS BLOB)", []).unwrap();
    let (rows, damaged) = store.all::<u32>(Kind::Member).unwrap();
    assert_eq!(rows, []);
    assert_eq!(damaged, [Damaged { key: "edge-1".to_owned() }]);
}

#[test]
fn a_file_that_is_no_database_is_set_aside() {
    let folder = folder();
    std::fs::write(folder.path().join("state.db"), vec![0x55; 8192]).unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.put(Kind::Single, "sequence", &1_u64, Durability::Process).unwrap();
    assert_eq!(store.get::<u64>(Kind::Single, "sequence").unwrap(), Some(1));
    assert!(folder.path().join("state.db.damaged").exists());
}

#[test]
fn a_full_disk_is_an_error_and_the_old_row_stays() {
    let folder = folder();
    let store = Store::open(folder.path()).unwrap();
    store.put(Kind::Single, "sequence", &1_u64, Durability::Process).unwrap();
    store.0.lock().unwrap().pragma_update(None, "query_only", true).unwrap();
    let refused = store.put(Kind::Single, "sequence", &2_u64, Durability::Process);
    assert!(matches!(refused, Err(StoreError::Statement { what: "write", .. })), "{refused:?}");
    assert_eq!(store.get::<u64>(Kind::Single, "sequence").unwrap(), Some(1));
}

/// The rows of a small state, closed cleanly.
fn written(folder: &std::path::Path) -> Vec<(String, String)> {
    let store = Store::open(folder).unwrap();
    let rows: Vec<_> = (0..24).map(|n| (format!("net/pod-{n}/eth0"), format!("{n} {}", "x".repeat(200)))).collect();
    for (key, value) in &rows {
        store.put(Kind::Attachment, key, value, Durability::Process).unwrap();
    }
    store.put(Kind::Claim, "10.244.1.0/24", &"edge-1", Durability::Power).unwrap();
    let mut rows = rows;
    rows.sort();
    rows
}

/// Opens a state whose file holds these bytes, and checks that it gives no row that was never put, and that it was set
/// aside or named rows when it lacks one.
fn expect_detected(bytes: &[u8], rows: &[(String, String)], what: &str) {
    let folder = folder();
    std::fs::write(folder.path().join("state.db"), bytes).unwrap();
    let store = Store::open(folder.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (found, damaged) = store.all::<String>(Kind::Attachment).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(found.iter().all(|row| rows.contains(row)), "{what}: a row that was never put");
    let claim = store.get::<String>(Kind::Claim, "10.244.1.0/24").unwrap();
    let is_complete = found == rows && claim.as_deref() == Some("edge-1");
    let is_said = !damaged.is_empty() || folder.path().join("state.db.damaged").exists();
    assert!(is_complete || is_said, "{what}: {} of {} rows and not a word", found.len(), rows.len());
    store.put(Kind::Single, "after", &1_u64, Durability::Process).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn a_flipped_byte_anywhere_is_detected_and_the_state_opens() {
    let original = folder();
    let rows = written(original.path());
    let bytes = std::fs::read(original.path().join("state.db")).unwrap();
    // Every place of each page's head and of the rows in turn; all of them take minutes.
    for offset in (0..bytes.len()).step_by(7) {
        let mut flipped = bytes.clone();
        flipped[offset] ^= 0x41;
        expect_detected(&flipped, &rows, &format!("byte {offset} of {} flipped", bytes.len()));
    }
}

#[test]
fn a_file_cut_anywhere_is_detected_and_the_state_opens() {
    let original = folder();
    let rows = written(original.path());
    let bytes = std::fs::read(original.path().join("state.db")).unwrap();
    // An empty file is a state that was never written to.
    for length in (1..bytes.len()).step_by(61) {
        expect_detected(&bytes[..length], &rows, &format!("cut to {length} of {}", bytes.len()));
    }
}

#[test]
fn the_whole_rows_of_a_damaged_file_are_kept() {
    let original = folder();
    let rows = written(original.path());
    let path = original.path().join("state.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // Pages that were split keep old copies behind: every one of them.
    let places: Vec<usize> = (0..bytes.len() - 14).filter(|at| &bytes[*at..*at + 14] == b"net/pod-7/eth0").collect();
    places.into_iter().for_each(|place| bytes[place + 4] ^= 1);
    std::fs::write(&path, bytes).unwrap();
    let (found, _) = Store::open(original.path()).unwrap().all::<String>(Kind::Attachment).unwrap();
    assert_eq!(found, rows.into_iter().filter(|(key, _)| key != "net/pod-7/eth0").collect::<Vec<_>>());
}
