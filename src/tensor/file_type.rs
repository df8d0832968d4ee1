//! Element types as safetensors files name them.

use safetensors::Dtype;

use super::DType;

/// The type that a file's type stands for, where kernels have it.
pub fn from_file_type(dtype: Dtype) -> Option<DType> {
    DType::ALL.into_iter().find(|&own| to_file_type(own) == dtype)
}

/// The file's type for a type.
pub fn to_file_type(dtype: DType) -> Dtype {
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
