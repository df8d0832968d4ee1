//! What can be wrong with an artifact.

use crate::{
    fault::{ErrorClass, Fault},
    graph::GraphError,
    tensor::Shape,
};

/// Why an artifact cannot be read or lowered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ArtifactError {
    /// The bytes are not what their format says.
    #[error(
        "{place}: {reason}; the artifact is damaged or was not written by torch.jit.save or torch.export.save"
    )]
    Malformed {
        /// The file within the archive, with a line or an offset where there is one.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A limit is passed.
    #[error("{place}: more than {limit} {what}: {advice}", advice = advice(place, what))]
    Limit {
        /// The file within the archive.
        place: String,
        /// What is counted.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// The artifact uses what no kernel may use, or what is not supported.
    #[error("{place}: {what} is not allowed: {hint}")]
    Rejected {
        /// The file within the archive, with a line or a node.
        place: String,
        /// What it uses.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// An operation of the program does not fit its operands, or cannot be expressed.
    #[error("{place}: {op}: {source}")]
    Operation {
        /// The file and line, or the node.
        place: String,
        /// The operation, as the program names it.
        op: String,
        /// What is wrong.
        source: Problem,
    },
    /// The program itself raised an error.
    #[error("{place}: the kernel raised {message}")]
    Raised {
        /// The file and line.
        place: String,
        /// Its message.
        message: String,
    },
    /// The inputs are not as many as the program takes.
    #[error("the kernel takes {expected} input tensors, {actual} were given")]
    InputCount {
        /// How many it takes.
        expected: usize,
        /// How many were given.
        actual: usize,
    },
    /// An input has a shape that the program was not exported for.
    #[error("input {index} has shape {actual}, the kernel was exported for {expected}: {hint}")]
    InputShape {
        /// Which input, from 0.
        index: usize,
        /// The shape given.
        actual: Shape,
        /// What is expected, free sizes by name.
        expected: String,
        /// What to do.
        hint: String,
    },
    /// The graph refuses a source or a sink.
    #[error("{place}: {source}")]
    Graph {
        /// Where.
        place: String,
        /// What is wrong.
        source: GraphError,
    },
}

impl ArtifactError {
    /// Whether there was no time left: the artifact may be sound.
    pub fn is_late(&self) -> bool {
        match self {
            Self::Limit { what, .. } => is_time(what),
            Self::Graph { source, .. } | Self::Operation { source: Problem::Graph(source), .. } => {
                matches!(source, GraphError::Time { .. })
            }
            _ => false,
        }
    }
}

fn is_time(what: &str) -> bool {
    matches!(what, "milliseconds of reading" | "milliseconds of lowering")
}

/// What to do about a limit: which setting raises it, where one does.
fn advice(place: &str, what: &str) -> String {
    let setting = match what {
        "bytes" if place == "archive" => "max_artifact_bytes",
        "bytes in all tensors" => "max_artifact_bytes",
        "files" => "max_archive_entries",
        "bytes in a file" => "max_entry_bytes",
        what if is_time(what) => "time_limit",
        _ => return "use a smaller kernel, no setting raises this limit".to_owned(),
    };
    format!("use a smaller kernel or raise validator.{setting}")
}

/// What is wrong with one operation.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// No such operation is on the whitelist.
    #[error("this operation is not on the whitelist: write the kernel without it")]
    Unknown,
    /// The operation is known but not in this form.
    #[error("{reason} is not supported: write the kernel without it")]
    Unsupported {
        /// What is not.
        reason: String,
    },
    /// An argument is missing, of the wrong kind or out of range.
    #[error("{reason}")]
    Argument {
        /// What is wrong.
        reason: String,
    },
    /// Operands do not fit.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Problem {
    pub(super) fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported { reason: reason.into() }
    }

    pub(super) fn argument(reason: impl Into<String>) -> Self {
        Self::Argument { reason: reason.into() }
    }
}

impl From<crate::tensor::ShapeError> for Problem {
    fn from(error: crate::tensor::ShapeError) -> Self {
        Self::argument(error.to_string())
    }
}

impl ArtifactError {
    pub(super) fn malformed(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { place: place.into(), reason: reason.into() }
    }

    pub(super) fn limit(place: impl Into<String>, what: &'static str, limit: usize) -> Self {
        Self::Limit { place: place.into(), what, limit: limit as u64 }
    }

    pub(super) fn rejected(
        place: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Rejected { place: place.into(), what: what.into(), hint: hint.into() }
    }
}

impl Fault for ArtifactError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Malformed { .. } => ErrorClass::Corrupt,
            Self::Graph { source, .. } | Self::Operation { source: Problem::Graph(source), .. } => {
                source.class()
            }
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "kernel.deserialize",
            Self::Limit { .. } | Self::Rejected { .. } => "kernel.rejected",
            Self::Raised { .. } | Self::InputCount { .. } | Self::InputShape { .. } => "kernel.shape",
            Self::Graph { source, .. } => source.code(),
            Self::Operation { source, .. } => match source {
                Problem::Unknown | Problem::Unsupported { .. } => "kernel.rejected",
                Problem::Argument { .. } => "kernel.shape",
                Problem::Graph(source) => source.code(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_names_the_setting_that_raises_it() {
        let shipped = include_str!("../../config/kasmina.toml");
        let (_, settings) = shipped.split_once("\n[validator]\n").unwrap();
        for (place, what, setting) in [
            ("archive", "bytes", "max_artifact_bytes"),
            ("data/0", "bytes in all tensors", "max_artifact_bytes"),
            ("archive", "files", "max_archive_entries"),
            ("data/0", "bytes in a file", "max_entry_bytes"),
            ("data.pkl", "milliseconds of reading", "time_limit"),
            ("forward", "milliseconds of lowering", "time_limit"),
        ] {
            let text = ArtifactError::limit(place, what, 7).to_string();
            assert!(text.ends_with(&format!("or raise validator.{setting}")), "{text}");
            assert!(settings.contains(&format!("\n{setting} = ")), "{setting} is a setting");
        }
        let text = ArtifactError::limit("byteorder", "bytes", 64).to_string();
        assert_eq!(text, "byteorder: more than 64 bytes: use a smaller kernel, no setting raises this limit");
    }
}
