//! A DEL that was answered while the daemon was away: a file that the shim leaves and the daemon replays.
//!
//! The file holds the call as a [request frame](crate::frame::Request), so it is replayed by the very code that
//! would have served it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Where tombstones lie: beside the daemon's socket, so that shim and daemon agree without further settings.
#[must_use]
pub fn folder(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join("deleted")
}

/// The name of one: the same for the same attachment, so that a repeated DEL leaves one file.
///
/// **Bounds** 16 hexadecimal digits and a suffix, whatever the runtime's names look like. Two attachments with one
/// name are possible in theory; the second then waits for the daemon like any other failed DEL.
#[must_use]
pub fn file_name(network: &str, container_id: &str, ifname: &str) -> String {
    // FNV-1a, with a byte between the parts that none of them can hold.
    let bytes = [network, container_id, ifname].into_iter().flat_map(|part| part.bytes().chain([0xff]));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}.del")
}

/// Whether a file of the folder is a whole tombstone, and not one that is being written.
#[must_use]
pub fn is_tombstone(name: &OsStr) -> bool {
    Path::new(name).extension() == Some(OsStr::new("del"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_differ_and_are_recognised() {
        let name = file_name("net", "c1", "eth0");
        assert_eq!(name, file_name("net", "c1", "eth0"));
        assert_eq!(name.len(), 20);
        assert_ne!(name, file_name("netc", "1", "eth0"));
        assert!(is_tombstone(OsStr::new(&name)));
        assert!(!is_tombstone(OsStr::new(&format!("{name}.new"))));
    }

    #[test]
    fn tombstones_lie_beside_the_socket() {
        assert_eq!(folder(Path::new("/run/culvert/cni.sock")), Path::new("/run/culvert/deleted"));
    }
}
