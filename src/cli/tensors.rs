//! Tensors in safetensors files.

use std::path::Path;

use safetensors::{SafeTensors, tensor::TensorView};

use super::CliError;
use crate::tensor::{HostTensor, from_file_type, to_file_type};

/// Reads the tensor of a name.
pub(super) fn read(path: &Path, name: &str) -> Result<HostTensor, CliError> {
    let wrong = |reason: String| CliError::Tensors { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(CliError::file(path))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| wrong(format!("no safetensors file: {error}")))?;
    let view = file.tensor(name).map_err(|_| {
        let names: Vec<_> = file.names().into_iter().map(|name| name.to_string()).collect();
        wrong(format!("there is no tensor {name:?} in it, only: {}", names.join(", ")))
    })?;
    let dtype = from_file_type(view.dtype()).ok_or_else(|| {
        wrong(format!("tensor {name:?} is of type {:?}, which is not supported", view.dtype()))
    })?;
    HostTensor::new(view.shape().into(), dtype, view.data()).map_err(CliError::from)
}

/// Writes tensors by name.
pub(super) fn write(path: &Path, tensors: &[(String, HostTensor)]) -> Result<(), CliError> {
    let wrong = |reason: String| CliError::Tensors { path: path.to_owned(), reason };
    let views: Result<Vec<(&str, TensorView<'_>)>, CliError> = tensors
        .iter()
        .map(|(name, tensor)| {
            let view = TensorView::new(to_file_type(tensor.dtype()), tensor.shape().to_vec(), tensor.bytes());
            Ok((name.as_str(), view.map_err(|error| wrong(error.to_string()))?))
        })
        .collect();
    let bytes = safetensors::serialize(views?, None).map_err(|error| wrong(error.to_string()))?;
    std::fs::write(path, bytes).map_err(CliError::file(path))
}
