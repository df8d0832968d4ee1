//! What is wrong with a configuration, said so that it can be mended in one go.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::fault::{ErrorClass, Fault};

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole, or a key that is in neither file nor environment.
    File,
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Variable(String),
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// The key in full, such as `cache.max_bytes`; empty where the file itself is at fault.
    pub key: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Every problem of one configuration, file first and in line order.
///
/// Displayed one problem a line, as `file:line: key: message` or `$VARIABLE: key: message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The file that was read; none when the built-in defaults were used.
    pub file: Option<PathBuf>,
    /// At least one problem.
    pub problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(file: Option<&Path>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match &problem.place {
            Place::File => (0, 0),
            Place::Line(line) => (1, *line),
            Place::Variable(_) => (2, 0),
        });
        Self { file: file.map(Path::to_owned), problems }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or(Path::new("(built-in defaults)")).display();
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match &problem.place {
                Place::File => write!(f, "{file}: ")?,
                Place::Line(line) => write!(f, "{file}:{line}: ")?,
                Place::Variable(name) => write!(f, "${name}: ")?,
            }
            if !problem.key.is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            f.write_str(&problem.message)?;
        }
        Ok(())
    }
}

impl Fault for ConfigErrors {
    fn class(&self) -> ErrorClass {
        ErrorClass::Invalid
    }

    fn code(&self) -> &'static str {
        "config.invalid"
    }
}
