//! The element types a kernel may use.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An element type, named as PyTorch names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum DType {
    /// `torch.float32`.
    #[serde(rename = "float32")]
    F32 = 1,
    /// `torch.float64`.
    #[serde(rename = "float64")]
    F64 = 2,
    /// `torch.bfloat16`.
    #[serde(rename = "bfloat16")]
    BF16 = 3,
    /// `torch.float16`.
    #[serde(rename = "float16")]
    F16 = 4,
    /// `torch.int64`.
    #[serde(rename = "int64")]
    I64 = 5,
    /// `torch.int32`.
    #[serde(rename = "int32")]
    I32 = 6,
    /// `torch.uint8`.
    #[serde(rename = "uint8")]
    U8 = 7,
    /// `torch.bool`, a byte that is 0 or 1.
    #[serde(rename = "bool")]
    Bool = 8,
}

impl DType {
    /// Every type, in the order of their wire codes.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F64, Self::BF16, Self::F16, Self::I64, Self::I32, Self::U8, Self::Bool];

    /// The number 1, as memory has it.
    pub const fn one(self) -> &'static [u8] {
        match self {
            Self::F32 => &[0, 0, 0x80, 0x3f],
            Self::F64 => &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f],
            Self::BF16 => &[0x80, 0x3f],
            Self::F16 => &[0, 0x3c],
            Self::I64 => &[1, 0, 0, 0, 0, 0, 0, 0],
            Self::I32 => &[1, 0, 0, 0],
            Self::U8 | Self::Bool => &[1],
        }
    }

    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether values are floating-point numbers, the only ones that carry gradients.
    pub const fn is_floating_point(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::BF16 | Self::F16)
    }

    /// The number that stands for this type in a wire descriptor.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The type a wire descriptor's number stands for.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.code() == code)
    }

    /// PyTorch's name without the `torch.` before it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::BF16 => "bfloat16",
            Self::F16 => "float16",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_read_back() {
        for (i, dtype) in DType::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(dtype.code()), i + 1);
            assert_eq!(DType::from_code(dtype.code()), Some(dtype));
        }
        assert_eq!(DType::F32.one(), 1.0f32.to_le_bytes());
        assert_eq!(DType::F64.one(), 1.0f64.to_le_bytes());
        assert_eq!(DType::BF16.one(), half::bf16::ONE.to_le_bytes());
        assert_eq!(DType::F16.one(), half::f16::ONE.to_le_bytes());
        assert!(DType::ALL.iter().all(|dtype| dtype.one().len() == dtype.size_bytes()));
        assert_eq!(DType::from_code(0), None);
        assert_eq!(DType::from_code(9), None);
    }
}
