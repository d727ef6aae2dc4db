//! The admin socket's file: made so that nobody else can ever open it, and removed again.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::AdminError;

/// **Bounds** connections that wait to be accepted; when full, a client's connect waits too.
const BACKLOG: i32 = 128;

/// The socket file, bound and listening. Dropping it removes the file.
#[derive(Debug)]
pub struct AdminSocket {
    descriptor: OwnedFd,
    path: PathBuf,
    /// Device and inode of our file: a successor's file at the same path is not ours to remove.
    identity: (u64, u64),
}

impl AdminSocket {
    /// Makes the socket, mode 0600 from its first moment, in a folder that only its owner writes
    /// to; a folder that is missing is made with mode 0700. A file that a dead daemon left is
    /// replaced.
    ///
    /// **Errors** when a daemon is alive on it, when anything but a socket is there, when others may
    /// write to the folder, or when the system refuses.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        prepare_folder(path)?;
        clear(path)?;
        let descriptor = stream_socket().map_err(|error| failed("open a socket for", path)(error.into()))?;
        let listening = listen(&descriptor, path).map_err(|error| failed("listen on", path)(error.into()));
        let metadata = listening.and_then(|()| path.symlink_metadata().map_err(failed("look at", path)))?;
        Ok(Self { descriptor, path: path.to_owned(), identity: identity_of(&metadata) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listening end, for a runtime.
    pub(crate) fn listener(&self) -> Result<UnixListener, AdminError> {
        let copy = self.descriptor.try_clone().map_err(failed("copy the descriptor of", &self.path))?;
        UnixListener::from_std(copy.into()).map_err(failed("watch", &self.path))
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let ours = self.path.symlink_metadata().is_ok_and(|metadata| identity_of(&metadata) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "cannot remove the admin socket");
        }
    }
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> AdminError + 'a {
    move |source| AdminError::Socket { step, path: path.to_owned(), source }
}

fn identity_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn prepare_folder(path: &Path) -> Result<(), AdminError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make folder", folder))?;
    let mode = folder.metadata().map_err(failed("look at folder", folder))?.mode();
    if is_open_to_others(mode) {
        return Err(AdminError::OpenFolder { path: folder.to_owned() });
    }
    Ok(())
}

/// Whether others may put files there. In a sticky folder (`/tmp`) they may, but cannot move ours.
fn is_open_to_others(mode: u32) -> bool {
    mode & 0o022 != 0 && mode & 0o1000 == 0
}

/// Removes what a dead daemon left, and nothing else.
fn clear(path: &Path) -> Result<(), AdminError> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(AdminError::NotASocket { path: path.to_owned() });
    }
    match try_connect(path) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed("remove the stale socket", path)),
        // A full backlog: somebody listens and is busy.
        Ok(()) | Err(Errno::AGAIN) => Err(AdminError::Live { path: path.to_owned() }),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("find out who owns", path)(error.into())),
    }
}

fn try_connect(path: &Path) -> Result<(), Errno> {
    rustix::net::connect(stream_socket()?, &SocketAddrUnix::new(path)?)
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    // Non-blocking: a hung daemon with a full backlog must not hang us, and the runtime needs it.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn listen(descriptor: &OwnedFd, path: &Path) -> Result<(), Errno> {
    // Linux gives the file the mode of the socket it is bound from, so there is no moment at which
    // the file exists with a wider one. The second call is for a filesystem that thinks otherwise,
    // and still comes before anybody could connect.
    let owner_only = Mode::RUSR | Mode::WUSR;
    rustix::fs::fchmod(descriptor, owner_only)?;
    rustix::net::bind(descriptor, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, owner_only)?;
    rustix::net::listen(descriptor, BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn the_socket_is_for_its_owner_alone_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/admin.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(mode_of(path.parent().unwrap()), 0o700);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_daemon_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = AdminSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(socket);
    }

    #[test]
    fn a_live_daemon_keeps_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let first = AdminSocket::bind(&path).unwrap();
        let error = AdminSocket::bind(&path).unwrap_err();
        assert!(matches!(&error, AdminError::Live { path: at } if *at == path), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(first);
    }

    #[test]
    fn a_busy_daemon_with_a_full_backlog_counts_as_live() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let first = AdminSocket::bind(&path).unwrap();
        let address = SocketAddrUnix::new(&path).unwrap();
        let mut waiting = Vec::new();
        loop {
            let client = stream_socket().unwrap();
            match rustix::net::connect(&client, &address) {
                Ok(()) => waiting.push(client),
                Err(error) => break assert_eq!(error, Errno::AGAIN),
            }
            assert!(waiting.len() < 1000, "the backlog never fills");
        }
        let error = AdminSocket::bind(&path).unwrap_err();
        assert!(matches!(error, AdminError::Live { .. }), "{error}");
        drop(first);
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = AdminSocket::bind(&path).unwrap_err();
        assert!(matches!(error, AdminError::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_folder_that_others_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = AdminSocket::bind(&folder.path().join("admin.sock")).unwrap_err();
        assert!(matches!(error, AdminError::OpenFolder { .. }), "{error}");
        assert!(!is_open_to_others(0o1777));
        assert!(!is_open_to_others(0o755));
        assert!(is_open_to_others(0o775));
    }

    #[test]
    fn a_successors_socket_at_the_same_path_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let first = AdminSocket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }
}
