//! From an artifact's bytes to a graph: reading, and lowering for one input shape and mode.
//!
//! Two formats come in, TorchScript archives and PT2 archives of `torch.export`; both are zip files. Their
//! programs are interpreted with tensors as symbols and everything else concrete, and every tensor
//! operation goes through one table of what is allowed. Nothing of an artifact is ever executed.

mod aten;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod limits;
mod module;
#[cfg(test)]
pub(crate) mod mutation_tests;
mod pickle;
mod pickled;
mod pt2;
mod rewrite;
#[cfg(test)]
mod rewrite_tests;
mod storage;
mod torchscript;
mod zip;

use std::{collections::HashSet, sync::Arc};

#[cfg(test)]
pub(crate) use aten::samples;
pub use error::{ArtifactError, Problem};
pub use limits::ReadLimits;
pub use module::{DeclaredInput, EXPORTERS_FRAME, Format, Mode, Module, ModuleType, NamedTensor, Parameter};
pub use rewrite::{RewriteError, rewrite};

/// Reads an artifact of either format.
///
/// # Errors
/// [`ArtifactError`] naming the file within the archive, what is wrong and what to do.
pub fn read(bytes: Arc<[u8]>, limits: &ReadLimits) -> Result<Module, ArtifactError> {
    locate(&bytes, limits).map(|(module, _)| module)
}

/// The same, with the places where the parameters and buffers lie.
fn locate(bytes: &Arc<[u8]>, limits: &ReadLimits) -> Result<(Module, storage::Places), ArtifactError> {
    let archive = zip::Archive::open(bytes, limits)?;
    let (mut module, places) = if archive.names().any(|name| name.starts_with("models/")) {
        pt2::read(&archive, limits)
    } else if archive.contains("data.pkl") && archive.names().any(|name| name.starts_with("code/")) {
        torchscript::read(&archive, limits)
    } else {
        Err(ArtifactError::rejected(
            "archive",
            "a zip archive that is neither a TorchScript program nor a PT2 program",
            "write it with torch.jit.save or torch.export.save (PyTorch 2.8 or newer); torch.save is not enough",
        ))
    }?;
    check_names(&module)?;
    module.limits.deadline = None;
    module.copied_bytes = module.count_copies();
    Ok((module, places))
}

/// Names reach a trainer's `state_dict`: each stands for one tensor, and can be read.
fn check_names(module: &Module) -> Result<(), ArtifactError> {
    let parameters = module.parameters.iter().map(|parameter| (&parameter.name, &parameter.aliases));
    let buffers = module.buffers.iter().map(|buffer| (&buffer.name, &buffer.aliases));
    let mut seen = HashSet::new();
    for name in parameters.chain(buffers).flat_map(|(name, aliases)| [name].into_iter().chain(aliases)) {
        let wrong = if name.is_empty() {
            "a tensor has an empty name".to_owned()
        } else if name.chars().any(char::is_control) {
            format!("the tensor's name {name:?} has control characters")
        } else if !seen.insert(name) {
            format!("two tensors are named {name:?}")
        } else {
            continue;
        };
        return Err(ArtifactError::malformed("archive", wrong));
    }
    Ok(())
}

/// Whether an operation, named as [`Module::ops`] names it, is on the whitelist.
pub fn is_known_op(name: &str) -> bool {
    name.strip_prefix("aten.").is_some_and(aten::is_known)
}
