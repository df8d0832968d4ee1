//! Tensors in safetensors files.

use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::CliError;
use crate::tensor::{DType, HostTensor};

fn from_file_type(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

fn to_file_type(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

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
