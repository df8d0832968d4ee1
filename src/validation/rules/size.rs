//! `archive.limits`, as far as the size alone decides it: before anything is read, hashed or held to a signature.

use crate::validation::Policy;

/// Holds an artifact's size to the limit.
pub(in crate::validation) fn size_limited(size_bytes: u64, policy: &Policy) -> Result<(), String> {
    let limit = policy.read.archive_bytes as u64;
    if size_bytes > limit {
        return Err(format!(
            "the archive has more than {limit} bytes: use a smaller kernel or raise validator.max_artifact_bytes"
        ));
    }
    Ok(())
}
