//! What can be wrong with a graph.

use super::Op;
use crate::{
    fault::{ErrorClass, Fault},
    tensor::{DType, ShapeError},
};

/// Why a graph cannot be built or differentiated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// Operands do not fit the operation or its attributes.
    #[error("{op} does not take operands {operands}: {reason}")]
    Operands {
        /// The operation, by its short name.
        op: &'static str,
        /// Types and shapes of the operands.
        operands: String,
        /// What is wrong.
        reason: String,
    },
    /// A shape that cannot be.
    #[error("{}{source}", if op.is_empty() { String::new() } else { format!("{op}: ") })]
    Shape {
        /// The operation, by its short name; empty for a source, which whoever asks for it names better.
        op: &'static str,
        /// What is wrong.
        source: ShapeError,
    },
    /// A value id of another graph.
    #[error("{op} reads value %{value}, the graph has only {values}")]
    UnknownValue {
        /// The operation, by its short name.
        op: &'static str,
        /// The id.
        value: u32,
        /// How many values there are.
        values: usize,
    },
    /// The same source was asked for with another shape or type.
    #[error("source {source_name} is {known} already, not {asked}")]
    SourceChanged {
        /// Which source.
        source_name: String,
        /// Type and shape it has.
        known: String,
        /// Type and shape asked for.
        asked: String,
    },
    /// The graph grows past its limits.
    #[error("the graph has more than {limit} {what}: use a smaller kernel")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// The graph is not done in time.
    #[error(
        "the time limit passed when the graph had {nodes} nodes: use a smaller kernel or raise validator.time_limit"
    )]
    Time {
        /// How many nodes there were by then.
        nodes: usize,
    },
    /// An operation without a gradient stands between the output and a value that wants one.
    #[error("{op} has no gradient, and a parameter or the input depends on one through it")]
    NoGradient {
        /// The operation, by its short name.
        op: &'static str,
    },
    /// A gradient was asked for a value of a type that has none.
    #[error("a {dtype} value has no gradient")]
    NotFloating {
        /// The type.
        dtype: DType,
    },
}

impl GraphError {
    /// An [`GraphError::Operands`] for an operation and what it was given.
    pub(super) fn operands(op: &Op, inputs: &[&super::ValueInfo], reason: impl Into<String>) -> Self {
        let operands = inputs.iter().map(|info| format!("{} {}", info.dtype, info.shape)).collect::<Vec<_>>();
        Self::Operands {
            op: op.name(),
            operands: format!("({})", operands.join(", ")),
            reason: reason.into(),
        }
    }
}

impl Fault for GraphError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownValue { .. } => ErrorClass::Bug,
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Operands { .. } | Self::Shape { .. } => "kernel.shape",
            Self::Limit { .. } | Self::Time { .. } | Self::NoGradient { .. } | Self::NotFloating { .. } => {
                "kernel.rejected"
            }
            Self::UnknownValue { .. } | Self::SourceChanged { .. } => "kernel.deserialize",
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        graph::{Builder, Source},
        tensor::{DType, Shape},
    };

    #[test]
    fn a_source_leaves_its_name_to_whoever_asks_for_it() {
        let shape = Shape::from([usize::MAX, 2]);
        let expected = shape.checked_elements().unwrap_err().to_string();
        let error = Builder::default().source(Source::Input(0), shape, DType::F32).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
