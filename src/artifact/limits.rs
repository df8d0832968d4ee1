//! How much an artifact may ask of its reader.

use std::time::{Duration, Instant};

use super::ArtifactError;

/// The most tensors a program may give; a seed takes one.
pub(super) const MAX_OUTPUTS: usize = 1000;

/// The most bytes that one text or name of a program may have. Comparing, printing and copying texts costs a
/// program one step however long they are.
pub(super) const MAX_TEXT_BYTES: usize = 4096;

/// Bounds on everything that an artifact's bytes decide while they are read and lowered.
///
/// Depths are bounded so that recursive descent stays within a thread's stack; counts and sizes so that
/// memory and time stay within the daemon's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Bytes of the whole archive.
    pub archive_bytes: usize,
    /// Files in the archive.
    pub entries: usize,
    /// Bytes of one file, unpacked.
    pub entry_bytes: usize,
    /// Bytes that all compressed files together may unpack to, as a multiple of the archive's own.
    pub inflate_ratio: usize,
    /// Bytes of a file's name.
    pub name_bytes: usize,
    /// Bytes of one pickle. Tensors lie beside it; what stands in it are names and numbers.
    pub pickle_bytes: usize,
    /// Instructions of one pickle.
    pub pickle_steps: usize,
    /// Values that one pickle may have on its stack at a time.
    pub pickle_stack: usize,
    /// Values that one pickle may remember.
    pub pickle_memo: usize,
    /// Bytes of a JSON file. Its depth is bounded by the JSON reader itself, at 128.
    pub json_bytes: usize,
    /// Bytes of all source files of a program together.
    pub code_bytes: usize,
    /// How deep expressions, blocks, calls and modules may nest.
    pub nesting: usize,
    /// Statements, expressions and loop turns that lowering a program may take.
    pub fuel: u64,
    /// How long lowering a program may take, whatever its steps.
    pub time_limit: Duration,
    /// When reading ends, done or not; looked at between parts, so that it is passed by one part's time at most.
    /// A module that was read does not keep it: each lowering has a time of its own.
    pub deadline: Option<Instant>,
}

impl ReadLimits {
    /// The same with a deadline, or the earlier of both.
    pub fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(self.deadline.map_or(deadline, |known| known.min(deadline))), ..self }
    }

    /// Refuses to go on after the deadline; `place` is what would be read next.
    pub(super) fn check_time(&self, place: &str) -> Result<(), ArtifactError> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let limit_ms = usize::try_from(self.time_limit.as_millis()).unwrap_or(usize::MAX);
            return Err(ArtifactError::limit(place, "milliseconds of reading", limit_ms));
        }
        Ok(())
    }
}

impl Default for ReadLimits {
    /// 256 MiB of archive, 10,000 files, 64 times its size unpacked, 1 million steps, no deadline.
    fn default() -> Self {
        Self {
            archive_bytes: 256 << 20,
            entries: 10_000,
            entry_bytes: 256 << 20,
            inflate_ratio: 64,
            name_bytes: 1024,
            pickle_bytes: 16 << 20,
            pickle_steps: 1_000_000,
            pickle_stack: 100_000,
            pickle_memo: 200_000,
            json_bytes: 16 << 20,
            code_bytes: 2 << 20,
            nesting: 100,
            fuel: 1_000_000,
            time_limit: Duration::from_secs(10),
            deadline: None,
        }
    }
}
