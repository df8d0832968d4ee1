//! Files that an operator names: regular ones, read up to a limit.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    sync::Arc,
};

use crate::{
    fault::{ErrorClass, Fault},
    origin::read_file,
};

/// Why a file could not be judged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileError {
    #[error("cannot read {path}: {reason}; the daemon reads it as its own user")]
    Read { path: String, reason: String },
    #[error("{path} is no regular file: name the artifact itself, in a file")]
    NotRegular { path: String },
    #[error(
        "{path} has more than {limit} bytes, which is all that is read: raise validator.max_artifact_bytes"
    )]
    TooLarge { path: String, limit: u64 },
}

impl Fault for FileError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Invalid
    }

    fn code(&self) -> &'static str {
        "kernel.deserialize"
    }
}

/// The bytes of a file, where it has no more than `limit`.
pub(super) async fn read_artifact(path: &str, limit: u64) -> Result<Arc<[u8]>, FileError> {
    let name = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_now(&name, limit)).await;
    read.unwrap_or_else(|error| Err(failed(path, &io::Error::other(error))))
}

fn failed(path: &str, error: &io::Error) -> FileError {
    FileError::Read { path: path.to_owned(), reason: error.to_string() }
}

fn read_now(path: &str, limit: u64) -> Result<Arc<[u8]>, FileError> {
    let failed = |error: io::Error| failed(path, &error);
    let regular = |about: &fs::Metadata| match about.is_file() {
        true => Ok(()),
        false => Err(FileError::NotRegular { path: path.to_owned() }),
    };
    let too_large = || FileError::TooLarge { path: path.to_owned(), limit };
    // Looked at first, because opening alone does something to a device, and again once it is open, because the name
    // may lead elsewhere by then. Opening does not wait for a pipe's other end.
    regular(&fs::metadata(path).map_err(failed)?)?;
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    regular(&about)?;
    if about.len() > limit {
        return Err(too_large());
    }
    let bytes = read_file(file, limit).map_err(failed)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn regular_files_are_read_up_to_the_limit_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("file"), [7; 100]).unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for name in ["file", "link"] {
            assert_eq!(read_artifact(&path(name), 100).await.unwrap().len(), 100);
        }
        let large = read_artifact(&path("file"), 99).await;
        assert_eq!(large, Err(FileError::TooLarge { path: path("file"), limit: 99 }));
        for endless in [path("pipe"), "/dev/zero".to_owned(), folder.path().display().to_string()] {
            let refused = read_artifact(&endless, 100).await;
            assert_eq!(refused, Err(FileError::NotRegular { path: endless }));
        }
        // The kernel gives such a file a size of 0.
        assert!(matches!(read_artifact("/proc/self/maps", 100).await, Err(FileError::TooLarge { .. })));
        let absent = read_artifact(&path("absent"), 100).await.unwrap_err();
        assert!(absent.to_string().contains("as its own user"), "{absent}");
    }
}
