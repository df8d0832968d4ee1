//! Records of passes that failed: all that a pass was given, in one file, so that it can be run again elsewhere.
//!
//! A [`Record`] is a safetensors file with the tensors, the artifact's bytes and a [`Header`]. A [`Recorder`] writes
//! them on a thread of its own, within bounds. Knows nothing of how a pass runs.

mod allowance;
mod error;
mod file;
mod folder;
mod header;
#[cfg(test)]
mod mutation_tests;
mod recorder;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

pub use error::RecordError;
pub use file::{MAX_BYTES, MAX_FILE_BYTES, Record};
pub use folder::stamp;
pub use header::{Direction, Header, Settings, VERSION};
pub use recorder::{Counts, Dropped, Place, Recorder, RecorderOptions};
