//! The part of PyTorch's export schema (major version 8) that a kernel needs.
//!
//! Source: `torch/_export/serde/schema.py`. Fields that are not named here are passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::tensor::DType;

#[derive(Debug, Deserialize)]
pub(super) struct ExportedProgram {
    pub(super) graph_module: GraphModule,
    #[serde(default)]
    pub(super) range_constraints: BTreeMap<String, Range>,
    /// Conditions on the inputs' sizes under which the program is what the module computes.
    #[serde(default)]
    pub(super) guards_code: Vec<String>,
}

/// Read before the rest, which another version may have changed.
#[derive(Debug, Deserialize)]
pub(super) struct Versioned {
    pub(super) schema_version: Version,
}

#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub(super) major: u64,
    pub(super) minor: u64,
}

#[derive(Debug, Deserialize, Clone, Copy)]
pub(super) struct Range {
    pub(super) min_val: Option<i64>,
    pub(super) max_val: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct GraphModule {
    pub(super) graph: Graph,
    pub(super) signature: Signature,
}

#[derive(Debug, Deserialize)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) tensor_values: BTreeMap<String, TensorMeta>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Node {
    pub(super) target: String,
    pub(super) inputs: Vec<NamedArgument>,
    pub(super) outputs: Vec<Argument>,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NamedArgument {
    #[serde(default)]
    pub(super) name: String,
    pub(super) arg: Argument,
}

#[derive(Debug, Deserialize)]
pub(super) struct Name {
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SymInt {
    AsName(String),
    AsInt(i64),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OptionalTensor {
    AsTensor(Name),
    AsNone(serde::de::IgnoredAny),
}

#[derive(Debug, Deserialize)]
pub(super) enum SymNumber {
    #[serde(rename = "as_name")]
    Name(String),
    #[serde(rename = "as_float")]
    Float(Float),
    #[serde(rename = "as_bool")]
    Bool(bool),
}

/// An argument of a node. The last ones are taken by no whitelisted operation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the schema's own names")]
pub(super) enum Argument {
    AsNone(serde::de::IgnoredAny),
    AsTensor(Name),
    AsTensors(Vec<Name>),
    AsOptionalTensor(OptionalTensor),
    AsOptionalTensors(Vec<OptionalTensor>),
    AsInt(i64),
    AsInts(Vec<i64>),
    AsFloat(Float),
    AsFloats(Vec<Float>),
    AsBool(bool),
    AsBools(Vec<bool>),
    AsString(String),
    AsSymInt(SymInt),
    AsSymInts(Vec<SymInt>),
    AsSymFloat(SymNumber),
    AsSymBool(SymNumber),
    AsScalarType(u64),
    AsMemoryFormat(serde::de::IgnoredAny),
    AsLayout(serde::de::IgnoredAny),
    AsDevice(serde::de::IgnoredAny),
    AsStrings(serde::de::IgnoredAny),
    AsSymFloats(serde::de::IgnoredAny),
    AsSymBools(serde::de::IgnoredAny),
    AsComplex(serde::de::IgnoredAny),
    AsGraph(serde::de::IgnoredAny),
    AsCustomObj(serde::de::IgnoredAny),
    AsOperator(serde::de::IgnoredAny),
    AsNestedTensors(serde::de::IgnoredAny),
    AsIntLists(serde::de::IgnoredAny),
}

/// A float, which JSON cannot hold where it is not finite: PyTorch writes those as text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Float(pub(super) f64);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(f64),
            Text(String),
        }
        Ok(Self(match Raw::deserialize(deserializer)? {
            Raw::Number(value) => value,
            Raw::Text(text) => match text.as_str() {
                "Infinity" => f64::INFINITY,
                "-Infinity" => f64::NEG_INFINITY,
                "NaN" => f64::NAN,
                _ => return Err(D::Error::custom(format!("{text:?} is no float"))),
            },
        }))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Expression {
    pub(super) expr_str: String,
}

/// A size: a number, or an expression over symbols.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Size {
    AsInt(i64),
    AsExpr(Expression),
}

impl Size {
    pub(super) fn fixed(&self) -> Option<usize> {
        match self {
            Self::AsInt(size) => usize::try_from(*size).ok(),
            Self::AsExpr(_) => None,
        }
    }

    /// The symbol that this size is, where it is nothing more than one.
    pub(super) fn symbol(&self) -> Option<&str> {
        match self {
            Self::AsInt(_) => None,
            Self::AsExpr(expression) => {
                let text = expression.expr_str.trim();
                match text.strip_prefix("Symbol('") {
                    Some(rest) => {
                        let (name, attributes) = rest.split_once('\'')?;
                        (attributes.ends_with(')') && !attributes.contains('(')).then_some(name)
                    }
                    None => text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then_some(text),
                }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct TensorMeta {
    pub(super) dtype: u64,
    pub(super) sizes: Vec<Size>,
    #[serde(default)]
    pub(super) requires_grad: bool,
    pub(super) strides: Vec<Size>,
    pub(super) storage_offset: Size,
}

impl TensorMeta {
    pub(super) fn dtype(&self) -> Option<DType> {
        dtype(self.dtype)
    }
}

/// The schema's own numbering of types.
pub(super) fn dtype(code: u64) -> Option<DType> {
    Some(match code {
        1 => DType::U8,
        4 => DType::I32,
        5 => DType::I64,
        6 => DType::F16,
        7 => DType::F32,
        8 => DType::F64,
        12 => DType::Bool,
        13 => DType::BF16,
        _ => return None,
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct Signature {
    pub(super) input_specs: Vec<InputSpec>,
    pub(super) output_specs: Vec<OutputSpec>,
}

#[derive(Debug, Deserialize)]
pub(super) struct UserArgument {
    pub(super) arg: Argument,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum InputSpec {
    Parameter {
        arg: Name,
        parameter_name: String,
    },
    Buffer {
        arg: Name,
        buffer_name: String,
        #[serde(default = "yes")]
        persistent: bool,
    },
    TensorConstant {
        arg: Name,
        tensor_constant_name: String,
    },
    UserInput(UserArgument),
    ConstantInput(serde::de::IgnoredAny),
    CustomObj(serde::de::IgnoredAny),
    Token(serde::de::IgnoredAny),
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OutputSpec {
    UserOutput(UserArgument),
    LossOutput(serde::de::IgnoredAny),
    BufferMutation { arg: Name, buffer_name: String },
    ParameterMutation(serde::de::IgnoredAny),
    GradientToParameter(serde::de::IgnoredAny),
    GradientToUserInput(serde::de::IgnoredAny),
    UserInputMutation(serde::de::IgnoredAny),
    Token(serde::de::IgnoredAny),
}

/// `data/weights/*_weights_config.json` and its sibling for constants.
#[derive(Debug, Deserialize)]
pub(super) struct PayloadConfig {
    pub(super) config: BTreeMap<String, Payload>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Payload {
    pub(super) path_name: String,
    #[serde(default)]
    pub(super) use_pickle: bool,
    pub(super) tensor_meta: Option<TensorMeta>,
}
