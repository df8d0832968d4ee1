//! Sockets: bound with their mode from the first moment, taken over when stale, removed at the end.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{
        fs::FileTypeExt as _,
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
};

use rustix::{fs::Mode, process::umask};
use tokio::net::UnixListener;

use super::DaemonError;
use crate::config::FileMode;

/// A listening socket that leaves no file behind.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    _file: SocketFile,
}

/// A socket's file, removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Listener {
    /// As [`bind`], within the runtime that is to accept.
    pub(super) fn bind(key: &'static str, path: &Path, mode: FileMode) -> Result<Self, DaemonError> {
        let (socket, file) = bind(key, path, mode)?;
        let listen = |source| DaemonError::Listen { key, path: path.to_owned(), source };
        socket.set_nonblocking(true).map_err(listen)?;
        Ok(Self { socket: UnixListener::from_std(socket).map_err(listen)?, _file: file })
    }
}

/// Listens on the path that a setting names. A socket file that nobody serves any more is taken over.
pub(super) fn bind(
    key: &'static str,
    path: &Path,
    mode: FileMode,
) -> Result<(StdListener, SocketFile), DaemonError> {
    let listen = |source| DaemonError::Listen { key, path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(listen)?;
    }
    clear(key, path)?;
    // Between bind and chmod the file would have the mode of the umask, so the umask is the mode.
    let before = umask(Mode::from_raw_mode(!mode.0 & 0o777));
    let bound = StdListener::bind(path);
    umask(before);
    Ok((bound.map_err(listen)?, SocketFile(path.to_owned())))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.0);
    }
}

fn clear(key: &'static str, path: &Path) -> Result<(), DaemonError> {
    let listen = |source| DaemonError::Listen { key, path: path.to_owned(), source };
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(listen(error)),
    };
    if !kind.is_socket() {
        return Err(DaemonError::NotASocket { key, path: path.to_owned() });
    }
    match StdStream::connect(path) {
        Ok(_) => Err(DaemonError::AlreadyServed { key, path: path.to_owned() }),
        Err(error) if error.kind() != ErrorKind::ConnectionRefused => Err(listen(error)),
        Err(_) => {
            tracing::info!(path = %path.display(), "stale socket taken over");
            fs::remove_file(path).map_err(listen)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_taken_over_and_a_served_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/kasmina.sock");
        let first = Listener::bind("daemon.socket", &path, FileMode(0o600)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(
            Listener::bind("daemon.socket", &path, FileMode(0o600)),
            Err(DaemonError::AlreadyServed { .. })
        ));
        // As after a kill: the file stays, the server is gone.
        let stale = folder.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let second = Listener::bind("daemon.socket", &stale, FileMode(0o660)).unwrap();
        assert_eq!(fs::metadata(&stale).unwrap().permissions().mode() & 0o777, 0o660);
        drop((first, second));
        assert!(!path.exists() && !stale.exists());
        fs::write(&stale, "data").unwrap();
        assert!(matches!(
            Listener::bind("daemon.socket", &stale, FileMode(0o600)),
            Err(DaemonError::NotASocket { .. })
        ));
        assert_eq!(fs::read(&stale).unwrap(), b"data");
    }
}
