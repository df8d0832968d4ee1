//! Kernels in a local folder.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;

use super::{Blob, Origin, OriginError, folder::open, port::accept_status, read_file};
use crate::{config, id::KernelId, validation::Metadata};

const NAME: &str = "directory";

/// File endings that an artifact without a catalogue entry may have, in the order they are tried.
const ENDINGS: [&str; 2] = ["pt2", "pt"];

/// The largest file that a signature is looked for in.
const MAX_SIGNATURE_BYTES: u64 = 4096;

/// Which folder, and what of it is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryOptions {
    /// The folder.
    pub path: PathBuf,
    /// Whether kernels in status `testing` are given.
    pub accept_testing: bool,
    /// The largest artifact, in bytes.
    pub max_artifact_bytes: u64,
    /// The largest catalogue entry, in bytes.
    pub max_entry_bytes: u64,
}

impl DirectoryOptions {
    /// No testing kernels, artifacts up to 256 MiB, entries up to 1 MiB.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            accept_testing: false,
            max_artifact_bytes: 256 << 20,
            max_entry_bytes: 1 << 20,
        }
    }
}

impl From<&config::Config> for DirectoryOptions {
    fn from(settings: &config::Config) -> Self {
        Self {
            accept_testing: settings.origin.accept_testing,
            max_artifact_bytes: settings.validator.max_artifact_bytes.0,
            ..Self::new(&settings.origin.path)
        }
    }
}

/// Kernels in a folder: for each a catalogue entry `{id}.json` whose `kernel_binary_ref` is a file within the
/// folder, or just the artifact, `{id}.pt2` or `{id}.pt`. A signature stands in the entry or beside the artifact, in a file
/// with `.sig` after the artifact's name.
///
/// Whoever can write to the folder decides what is in it, but no entry leads out of it: absolute references,
/// `..` and links that end outside are refused. The folder may appear, and change, while the daemon runs.
#[derive(Clone, Debug)]
pub struct DirectoryOrigin {
    options: Arc<DirectoryOptions>,
}

impl DirectoryOrigin {
    /// Nothing is opened before the first kernel is asked for.
    pub fn new(options: DirectoryOptions) -> Self {
        Self { options: Arc::new(options) }
    }

    fn read_metadata(&self, id: &KernelId) -> Result<Metadata, OriginError> {
        let entry =
            self.read(id, &format!("{id}.json"), "the catalogue entry", self.options.max_entry_bytes)?;
        let mut metadata = match entry {
            None => Metadata::bare(id.clone()),
            Some(json) => Metadata::from_json(&json).map_err(|source| OriginError::Entry {
                origin: NAME.to_owned(),
                id: id.clone(),
                source,
            })?,
        };
        if metadata.id != *id {
            let (origin, id) = (NAME.to_owned(), id.clone());
            return Err(OriginError::OtherKernel { origin, id, found: metadata.id });
        }
        accept_status(&metadata, self.options.accept_testing)?;
        let reference = match &metadata.kernel_binary_ref {
            Some(reference) => reference.clone(),
            None => self.bare_artifact(id)?,
        };
        if metadata.signature.is_none() {
            metadata.signature = self.read_signature(id, &reference)?;
        }
        metadata.kernel_binary_ref = Some(reference);
        Ok(metadata)
    }

    /// The signature that lies beside an artifact, as `kasmina sign` writes it.
    fn read_signature(&self, id: &KernelId, artifact: &str) -> Result<Option<String>, OriginError> {
        let name = format!("{artifact}.sig");
        let text = self.read(id, &name, "the signature", MAX_SIGNATURE_BYTES)?;
        // What is no text is no signature: the validator says so.
        Ok(text.map(|text| String::from_utf8_lossy(&text).trim().to_owned()))
    }

    /// The file that stands for a kernel without a reference of its own.
    fn bare_artifact(&self, id: &KernelId) -> Result<String, OriginError> {
        for ending in ENDINGS {
            let name = format!("{id}.{ending}");
            let path = self.options.path.join(&name);
            match path.symlink_metadata() {
                Ok(_) => return Ok(name),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(unavailable(&path, &error)),
            }
        }
        // A folder that is not there is a failure; a folder without the file is an answer.
        self.root()?;
        Err(OriginError::NotFound { origin: NAME.to_owned(), id: id.clone(), here_only: true })
    }

    fn read_artifact(&self, metadata: &Metadata) -> Result<Blob, OriginError> {
        let id = &metadata.id;
        let reference = metadata.kernel_binary_ref.as_deref().unwrap_or_default();
        let bytes = self.read(id, reference, "the artifact", self.options.max_artifact_bytes)?;
        let bytes = bytes.ok_or_else(|| OriginError::NoBlob {
            id: id.clone(),
            reference: reference.into(),
            reason: "there is no such file in the folder",
            here_only: true,
        })?;
        Blob::hashed(bytes).checked(metadata)
    }

    fn root(&self) -> Result<PathBuf, OriginError> {
        self.options.path.canonicalize().map_err(|error| unavailable(&self.options.path, &error))
    }

    /// Reads a file of the folder; `None` where there is none of that name.
    fn read(
        &self,
        id: &KernelId,
        name: &str,
        what: &'static str,
        limit_bytes: u64,
    ) -> Result<Option<Arc<[u8]>>, OriginError> {
        let refused = |reason: &str| OriginError::Reference {
            id: id.clone(),
            reference: name.into(),
            reason: reason.to_owned(),
        };
        if name.is_empty() || name.contains("://") || Path::new(name).is_absolute() {
            return Err(refused("give the name of a file within the folder"));
        }
        if name.contains('\0') {
            return Err(refused("a file's name has no zero byte"));
        }
        let root = self.root()?;
        let path = match root.join(name).canonicalize() {
            Ok(path) => path,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(unavailable(&root.join(name), &error)),
        };
        if !path.starts_with(&root) {
            return Err(refused("it leads out of the folder"));
        }
        let file = match open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unavailable(&path, &error)),
        };
        let about = file.metadata().map_err(|error| unavailable(&path, &error))?;
        if !about.is_file() {
            return Err(refused("it is not a regular file"));
        }
        let too_large = || OriginError::TooLarge { id: id.clone(), what, limit_bytes };
        if about.len() > limit_bytes {
            return Err(too_large());
        }
        let bytes = read_file(file, limit_bytes).map_err(|error| unavailable(&path, &error))?;
        if bytes.len() as u64 > limit_bytes {
            return Err(too_large());
        }
        Ok(Some(bytes))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, OriginError> + Send + 'static,
    ) -> Result<T, OriginError> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        done.unwrap_or_else(|error| Err(unavailable(&self.options.path, &io::Error::other(error))))
    }
}

impl Origin for DirectoryOrigin {
    fn name(&self) -> &str {
        NAME
    }

    fn metadata<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, OriginError>> {
        let id = id.clone();
        Box::pin(self.blocking(move |this| this.read_metadata(&id)))
    }

    fn artifact<'a>(&'a self, metadata: &'a Metadata) -> BoxFuture<'a, Result<Blob, OriginError>> {
        let metadata = metadata.clone();
        Box::pin(self.blocking(move |this| this.read_artifact(&metadata)))
    }
}

fn unavailable(place: &Path, error: &io::Error) -> OriginError {
    OriginError::Unavailable { origin: NAME.to_owned(), place: place.into(), reason: error.to_string() }
}
