//! What a trained kernel comes from: `FILE.parent`, which the export of a seed writes beside the artifact.

use std::{
    ffi::OsString,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{CliError, subject::MAX_ENTRY_BYTES};
use crate::{digest::Digest, fault::shortened, origin::read_file, validation::Metadata};

/// What stands in the file.
#[derive(Debug, Deserialize)]
struct Written {
    /// SHA-256 of the artifact that it is about.
    checksum: String,
    /// The entry of the kernel that was grafted.
    parent: Metadata,
}

/// The entry of the kernel that an artifact was made of by training, where a file beside it tells.
///
/// # Errors
/// [`CliError`] where the file is of other bytes, or cannot be read.
pub(super) fn parent_of(file: &Path, digest: &Digest) -> Result<Option<Metadata>, CliError> {
    let path = parent_path(file);
    let text = match std::fs::File::open(&path).and_then(|file| read_file(file, MAX_ENTRY_BYTES)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::file(&path)(error)),
    };
    let wrong = |reason: String| {
        CliError::usage(format!("{}: {reason}: export the seed again, or remove that file", path.display()))
    };
    if text.len() as u64 > MAX_ENTRY_BYTES {
        return Err(wrong(format!("it has more than {MAX_ENTRY_BYTES} bytes")));
    }
    let written: Written = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    if written.checksum != digest.to_string() {
        return Err(wrong(format!(
            "it is about an artifact of SHA-256 {}, and {} has {digest}",
            shortened(&written.checksum),
            file.display()
        )));
    }
    Ok(Some(written.parent))
}

/// What is known of a trained kernel: what is said of it, else what was said of its parent.
///
/// Nothing is taken over that is about the parent's own bytes: checksum, signature, reference, report, dates; and no
/// output's shape where the new kernel is for another input.
pub(super) fn inherit(own: Metadata, parent: Metadata) -> Metadata {
    let is_alike = own.input_shape.is_none() || own.input_shape == parent.input_shape;
    Metadata {
        blueprint_id: own.blueprint_id.or(parent.blueprint_id),
        name: own.name.or(parent.name),
        input_shape: own.input_shape.or(parent.input_shape),
        output_shape: own.output_shape.or(parent.output_shape.filter(|_| is_alike)),
        device_requirements: own.device_requirements.or(parent.device_requirements),
        memory_footprint_mb: own.memory_footprint_mb.or(parent.memory_footprint_mb),
        compilation_target: own.compilation_target.or(parent.compilation_target),
        compatibility_version: own.compatibility_version.or(parent.compatibility_version),
        parent_kernel_id: Some(parent.id.into()),
        parent_checksum: parent.checksum.map(|digest| digest.to_string()),
        ..own
    }
}

fn parent_path(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".parent");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"id": "conv-a1", "status": "deployed", "blueprint_id": "conv",
        "metadata": {"input_shape": [3, 8, 8], "output_shape": [3, 8, 8], "name": "a convolution", "checksum": "CHECKSUM", "signature": "ab"}}"#;

    fn parent() -> Metadata {
        let checksum = Digest::of(b"parent").to_string();
        Metadata::from_json(ENTRY.replace("CHECKSUM", &checksum).as_bytes()).unwrap()
    }

    #[test]
    fn what_is_about_the_parents_bytes_is_not_taken_over() {
        let own = Metadata { input_shape: Some([3, 4, 4].into()), ..Metadata::bare("b1".parse().unwrap()) };
        let child = inherit(own, parent());
        assert_eq!((child.id.as_str(), child.blueprint_id.as_deref()), ("b1", Some("conv")));
        assert_eq!(child.input_shape, Some([3, 4, 4].into()), "what is said of itself wins");
        assert_eq!(child.output_shape, None, "the parent's is that of another input");
        assert_eq!(child.name.as_deref(), Some("a convolution"));
        assert_eq!((child.checksum, &child.signature), (None, &None));
        assert_eq!(child.parent_kernel_id.as_deref(), Some("conv-a1"));
        assert_eq!(child.parent_checksum, Some(Digest::of(b"parent").to_string()));
        assert_eq!(Metadata::from_json(child.to_json().as_bytes()).unwrap(), child);
        let shapes = |own: Option<[usize; 3]>, output: Option<[usize; 3]>| {
            let (input_shape, output_shape) = (own.map(Into::into), output.map(Into::into));
            let own = Metadata { input_shape, output_shape, ..Metadata::bare("b1".parse().unwrap()) };
            inherit(own, parent()).output_shape
        };
        assert_eq!(shapes(None, None), Some([3, 8, 8].into()));
        assert_eq!(shapes(Some([3, 8, 8]), None), Some([3, 8, 8].into()));
        assert_eq!(shapes(Some([3, 4, 4]), Some([3, 2, 2])), Some([3, 2, 2].into()));
    }

    #[test]
    fn a_file_of_other_bytes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("k.pt2");
        let digest = Digest::of(b"child");
        assert_eq!(parent_of(&file, &digest).unwrap(), None);
        let entry: serde_json::Value = serde_json::from_str(&parent().to_json()).unwrap();
        let written = serde_json::json!({"checksum": digest.to_string(), "parent": entry});
        std::fs::write(folder.path().join("k.pt2.parent"), written.to_string()).unwrap();
        assert_eq!(parent_of(&file, &digest).unwrap(), Some(parent()));
        let error = parent_of(&file, &Digest::of(b"other")).unwrap_err().to_string();
        assert!(error.contains("is about an artifact of SHA-256"), "{error}");
        std::fs::write(folder.path().join("k.pt2.parent"), "{").unwrap();
        assert!(parent_of(&file, &digest).unwrap_err().to_string().contains("export the seed again"));
    }
}
