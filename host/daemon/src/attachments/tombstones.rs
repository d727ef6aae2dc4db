//! DELs that the shim answered while no daemon was there: carried out before anything else of that attachment.

use std::path::{Path, PathBuf};

use culvert_cni::frame;
use culvert_cni::request::Request;
use culvert_cni::tombstone::{folder, is_tombstone};
use culvert_core::attachment::AttachmentKey;
use culvert_kernel::kill_point;

use super::AttachmentsOwner;

/// One that waits.
struct Tombstone {
    path: PathBuf,
    key: AttachmentKey,
}

impl AttachmentsOwner {
    /// Carries out what was answered without us. What fails stays for the next time.
    pub(super) async fn replay_tombstones(&mut self) {
        let found = read_all(&folder(&self.parts.config.cni_socket));
        if found.is_empty() {
            return;
        }
        let keys: Vec<AttachmentKey> = found.iter().map(|tombstone| tombstone.key.clone()).collect();
        if let Err(error) = self.take_down_all(keys).await {
            tracing::error!(%error, "a pod that was deleted while the daemon was away could not be taken down; tried again");
        }
        for tombstone in found {
            kill_point(|| "note carried out".to_owned());
            if !self.attachments.contains_key(&tombstone.key) {
                tracing::info!(attachment = %tombstone.key, "deleted while the daemon was away; the rest is freed now");
                remove(&tombstone.path);
            }
        }
    }
}

/// The readable ones. Others are set aside: reading them again would not help.
fn read_all(folder: &Path) -> Vec<Tombstone> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(folder = %folder.display(), %error, "cannot see what was deleted while the daemon was away");
            return Vec::new();
        }
    };
    let names = entries.filter_map(Result::ok).filter(|entry| is_tombstone(&entry.file_name()));
    names.filter_map(|entry| read(entry.path())).collect()
}

fn read(path: PathBuf) -> Option<Tombstone> {
    let bytes = std::fs::read(&path).ok()?;
    let request = frame::Request::decode(&bytes).map_err(|error| error.to_string());
    let request = request.and_then(|request| Request::decode(&request).map_err(|error| error.message));
    match request {
        Ok(Request { config, container_id, ifname, .. }) => {
            Some(Tombstone { key: AttachmentKey { network: config.name, container_id, ifname }, path })
        }
        Err(reason) => {
            tracing::error!(file = %path.display(), reason, "a note of a deleted pod cannot be read; it is set aside");
            // Should it stay, it is set aside the next time.
            let _ = std::fs::rename(&path, path.with_extension("unreadable"));
            None
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(file = %path.display(), %error, "a note of a deleted pod could not be removed; it is replayed again");
    }
}
