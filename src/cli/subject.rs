//! An artifact with what is known about it: what `validate` and `inspect` judge.

use std::{
    ffi::OsString,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::CliError;
use crate::{config::Config, id::KernelId, origin::read_file, tensor::Shape, validation::Metadata};

/// The artifact and what is said of it beside.
#[derive(Debug)]
pub struct SubjectOptions {
    /// The artifact.
    pub file: PathBuf,
    /// Its catalogue entry, a JSON file.
    pub entry: Option<PathBuf>,
    /// Its input's sizes without the batch, which win over the entry's.
    pub input_shape: Option<Vec<usize>>,
    /// The settings whose `[validator]` section decides.
    pub config: Config,
}

/// What was read.
pub(super) struct Subject {
    pub(super) bytes: Arc<[u8]>,
    pub(super) metadata: Metadata,
}

impl Subject {
    /// Reads the artifact, its entry, and the signature beside it, which is `FILE.sig`.
    pub(super) fn open(options: &SubjectOptions) -> Result<Self, CliError> {
        let limit_bytes = options.config.validator.max_artifact_bytes.0;
        let opened = std::fs::File::open(&options.file);
        let bytes = opened.and_then(|file| read_file(file, limit_bytes));
        let bytes = bytes.map_err(CliError::file(&options.file))?;
        let mut metadata = match &options.entry {
            None => Metadata::bare(id_of(&options.file)),
            Some(path) => {
                let text = std::fs::read(path).map_err(CliError::file(path))?;
                let entry = Metadata::from_json(&text);
                entry.map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?
            }
        };
        if let Some(sizes) = &options.input_shape {
            metadata.input_shape = Some(Shape::from(&sizes[..]));
        }
        let path = signature_path(&options.file);
        match std::fs::read_to_string(&path) {
            Ok(signature) => metadata.signature = Some(signature.trim().to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(CliError::file(&path)(error)),
        }
        Ok(Self { bytes, metadata })
    }
}

/// Where the signature of a file lies.
pub(super) fn signature_path(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".sig");
    name.into()
}

/// The kernel that a file's name stands for, as the directory origin reads it.
fn id_of(file: &Path) -> KernelId {
    let stem = file.file_stem().and_then(|stem| stem.to_str());
    let id = stem.and_then(|stem| stem.parse().ok());
    id.unwrap_or_else(|| "artifact".parse().expect("letters are a kernel's name"))
}
