//! What every origin must do; each implementation runs this suite.

use super::{Origin, OriginError};
use crate::{digest::Digest, fault::Fault, id::KernelId};

/// What the suite expects to find published.
pub(super) struct Published {
    /// A kernel in status `validated`, with checksum and shapes.
    pub(super) good: (&'static str, Vec<u8>),
    /// A kernel in status `invalid`.
    pub(super) invalid: &'static str,
    /// A kernel in status `testing`, which is not accepted.
    pub(super) testing: &'static str,
    /// A kernel whose bytes are not those its checksum is of.
    pub(super) damaged: &'static str,
    /// A kernel larger than accepted.
    pub(super) large: &'static str,
    /// A kernel whose entry is no entry.
    pub(super) malformed: &'static str,
    /// A kernel whose reference leads where it may not.
    pub(super) escaping: &'static str,
    /// A name under which nothing is published.
    pub(super) absent: &'static str,
}

pub(super) async fn every_origin(origin: &dyn Origin, published: &Published) {
    let (name, bytes) = &published.good;
    let metadata = origin.metadata(&id(name)).await.unwrap();
    assert_eq!(metadata.id, id(name));
    assert_eq!(metadata.checksum, Some(Digest::of(bytes)));
    assert!(metadata.input_shape.is_some() && metadata.output_shape.is_some());
    let blob = origin.artifact(&metadata).await.unwrap();
    assert_eq!((&blob.bytes[..], blob.digest), (&bytes[..], Digest::of(bytes)));

    let failures = [
        (published.invalid, "kernel.rejected", "status invalid"),
        (published.testing, "kernel.rejected", "status testing"),
        (published.damaged, "kernel.checksum", "SHA-256"),
        (published.large, "kernel.rejected", "larger than"),
        (published.malformed, "kernel.rejected", "malformed"),
        (published.escaping, "kernel.rejected", "refers to"),
        (published.absent, "kernel.not_found", "no kernel"),
    ];
    for (name, code, text) in failures {
        let error = fetch(origin, name).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(text) && error.to_string().contains(name), "{error}");
        assert!(!error.class().is_retryable(), "{error}");
    }
}

pub(super) async fn fetch(origin: &dyn Origin, name: &str) -> Result<Vec<u8>, OriginError> {
    let metadata = origin.metadata(&id(name)).await?;
    Ok(origin.artifact(&metadata).await?.bytes.to_vec())
}

pub(super) fn id(name: &str) -> KernelId {
    name.parse().unwrap()
}
