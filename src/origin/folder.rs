//! Blobs as files, within the folders that are allowed.

use std::{
    fs::{File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{Blob, OriginError, read_file, want::Want};

/// Reads a file after every link of its path was followed, and only from within one of `folders`. Blocking.
pub(super) fn read(want: &Want<'_>, path: &Path, folders: &[PathBuf]) -> Result<Blob, OriginError> {
    let says = |error: std::io::Error| want.failed(error.to_string());
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(want.absent("there is no such file", true));
        }
        Err(error) => return Err(says(error)),
    };
    // A folder that is not there holds nothing.
    let within = folders.iter().filter_map(|folder| folder.canonicalize().ok()).any(|f| real.starts_with(f));
    if !within {
        return Err(want.refused("it is in none of origin.blob.allowed_folders"));
    }
    let file = open(&real).map_err(says)?;
    let about = file.metadata().map_err(says)?;
    if !about.is_file() {
        return Err(want.refused("it is not a regular file"));
    }
    if about.len() > want.limit_bytes {
        return Err(want.too_large());
    }
    let bytes = read_file(file, want.limit_bytes).map_err(says)?;
    if bytes.len() as u64 > want.limit_bytes {
        return Err(want.too_large());
    }
    Ok(Blob::hashed(bytes))
}

/// Opens without following a link put there since the path was resolved, and without waiting for a pipe's
/// other end.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}
