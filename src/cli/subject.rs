//! An artifact with what is known about it: what `validate` and `inspect` judge.

use std::{
    ffi::OsString,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::CliError;
use crate::{
    config::Config,
    id::KernelId,
    origin::read_file,
    tensor::Shape,
    validation::{self, Metadata, Policy, Verdict},
};

/// The largest catalogue entry that is read.
pub(super) const MAX_ENTRY_BYTES: u64 = 1 << 20;

/// The largest file that a signature is looked for in.
const MAX_SIGNATURE_BYTES: u64 = 4096;

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
    /// Absent where there are more than may be read.
    pub(super) bytes: Option<Arc<[u8]>>,
    size_bytes: u64,
    pub(super) metadata: Metadata,
    /// Whether the metadata is a catalogue's entry.
    entered: bool,
    accept_testing: bool,
}

impl Subject {
    /// Reads the artifact, its entry, and the signature, which is the entry's or else in `FILE.sig`, as the
    /// directory origin does.
    pub(super) fn open(options: &SubjectOptions) -> Result<Self, CliError> {
        let limit_bytes = options.config.validator.max_artifact_bytes.0;
        let opened = std::fs::File::open(&options.file);
        let read = opened.and_then(|file| {
            let about = file.metadata()?;
            if about.is_file() && about.len() > limit_bytes {
                return Ok((None, about.len()));
            }
            let bytes = read_file(file, limit_bytes)?;
            let size_bytes = bytes.len() as u64;
            Ok((Some(bytes).filter(|_| size_bytes <= limit_bytes), size_bytes))
        });
        let (bytes, size_bytes) = read.map_err(CliError::file(&options.file))?;
        let mut metadata = match &options.entry {
            None => Metadata::bare(id_of(&options.file)),
            Some(path) => {
                let opened = std::fs::File::open(path);
                let text = opened.and_then(|file| read_file(file, MAX_ENTRY_BYTES));
                let text = text.map_err(CliError::file(path))?;
                if text.len() as u64 > MAX_ENTRY_BYTES {
                    let reason = format!("a catalogue entry has at most {MAX_ENTRY_BYTES} bytes");
                    return Err(CliError::usage(format!("{}: {reason}", path.display())));
                }
                let entry = Metadata::from_json(&text);
                entry.map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?
            }
        };
        if let Some(sizes) = &options.input_shape {
            metadata.input_shape = Some(Shape::from(&sizes[..]));
        }
        if metadata.signature.is_none() {
            let path = signature_path(&options.file);
            let opened = std::fs::File::open(&path);
            match opened.and_then(|file| read_file(file, MAX_SIGNATURE_BYTES)) {
                // What is no text, or too long, is no signature: the validator says so.
                Ok(text) => metadata.signature = Some(String::from_utf8_lossy(&text).trim().to_owned()),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(CliError::file(&path)(error)),
            }
        }
        let (entered, accept_testing) = (options.entry.is_some(), options.config.origin.accept_testing);
        Ok(Self { bytes, size_bytes, metadata, entered, accept_testing })
    }

    /// The verdict, by the validator's rules and by the entry where there is one.
    pub(super) fn judge(&self, policy: &Policy) -> Verdict {
        let mut verdict = match &self.bytes {
            Some(bytes) => validation::validate(bytes.clone(), Some(&self.metadata), policy).verdict,
            None => {
                let limit = policy.read.archive_bytes as u64;
                validation::too_large(self.size_bytes.max(limit.saturating_add(1)), policy)
                    .expect("one byte more than allowed is too large")
            }
        };
        if self.entered {
            verdict.hold_to_entry(&self.metadata, self.accept_testing);
        }
        verdict
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
