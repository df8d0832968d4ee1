//! What a program's variables hold while it is lowered.

use std::sync::Arc;

use crate::tensor::DType;

/// A tensor of the program. What is written to it in place is seen by all who hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TensorRef(pub(super) u32);

/// A list or tuple of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SequenceRef(pub(super) u32);

/// A number whose value is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar {
    Bool(bool),
    Int(i64),
    Float(f64),
}

impl Scalar {
    pub(crate) fn to_f64(self) -> f64 {
        match self {
            Self::Bool(value) => f64::from(u8::from(value)),
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }

    pub(crate) fn to_i64(self) -> Option<i64> {
        match self {
            Self::Bool(value) => Some(value.into()),
            Self::Int(value) => Some(value),
            Self::Float(_) => None,
        }
    }

    /// The number as a tensor of this type holds it.
    pub(crate) fn cast(self, dtype: DType) -> Self {
        let float = self.to_f64();
        match dtype {
            DType::Bool => Self::Bool(float != 0.0),
            DType::F64 => Self::Float(float),
            DType::F32 => Self::Float(f64::from(float as f32)),
            DType::F16 => Self::Float(half::f16::from_f64(float).to_f64()),
            DType::BF16 => Self::Float(half::bf16::from_f64(float).to_f64()),
            DType::I64 | DType::I32 | DType::U8 => {
                let int = self.to_i64().unwrap_or(float as i64);
                Self::Int(match dtype {
                    DType::I32 => i64::from(int as i32),
                    DType::U8 => i64::from(int as u8),
                    _ => int,
                })
            }
        }
    }

    /// The type PyTorch gives a tensor made of such a number.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::Bool(_) => DType::Bool,
            Self::Int(_) => DType::I64,
            Self::Float(_) => DType::F32,
        }
    }
}

/// A tensor without dimensions whose content is known, as traces make of sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Known {
    pub(crate) scalar: Scalar,
    pub(crate) dtype: DType,
    /// It stands among a script's constants, where a trace puts the 2.0 of `x * 2.0`. As the second operand of
    /// +, −, × and ÷ PyTorch's interpreter takes such a tensor for the number it holds.
    pub(crate) literal: bool,
}

/// A value of the program.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Number(Scalar),
    Str(Arc<str>),
    DType(DType),
    /// A device, a layout, a memory format: nothing here depends on them.
    Placement,
    Tensor(TensorRef),
    Known(Known),
    List(SequenceRef),
    Tuple(SequenceRef),
    /// Keys and values in turn.
    Dict(SequenceRef),
    /// A module, by its number in the program.
    Object(u32),
    /// A function of the program, by its number.
    Function(u32),
}

impl Value {
    pub(crate) fn int(value: i64) -> Self {
        Self::Number(Scalar::Int(value))
    }

    pub(crate) fn float(value: f64) -> Self {
        Self::Number(Scalar::Float(value))
    }

    pub(crate) fn bool(value: bool) -> Self {
        Self::Number(Scalar::Bool(value))
    }

    /// A tensor without dimensions that holds a number, as its type can.
    pub(crate) fn known(scalar: Scalar, dtype: DType) -> Self {
        Self::Known(Known { scalar: scalar.cast(dtype), dtype, literal: false })
    }

    /// The number that this value is or holds.
    pub(crate) fn scalar(&self) -> Option<Scalar> {
        match self {
            Self::Number(scalar) => Some(*scalar),
            Self::Known(known) => Some(known.scalar),
            _ => None,
        }
    }

    /// The kind of value, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Number(Scalar::Bool(_)) => "a bool",
            Self::Number(Scalar::Int(_)) => "an int",
            Self::Number(Scalar::Float(_)) => "a float",
            Self::Str(_) => "a str",
            Self::DType(_) => "a dtype",
            Self::Placement => "a device or layout",
            Self::Tensor(_) | Self::Known(..) => "a tensor",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dictionary",
            Self::Object(_) => "a module",
            Self::Function(_) => "a function",
        }
    }
}

/// The type that a number in torch's enumeration of types stands for, as TorchScript writes it.
pub(crate) fn dtype_of_code(code: i64) -> Option<DType> {
    Some(match code {
        0 => DType::U8,
        3 => DType::I32,
        4 => DType::I64,
        5 => DType::F16,
        6 => DType::F32,
        7 => DType::F64,
        11 => DType::Bool,
        15 => DType::BF16,
        _ => return None,
    })
}
