//! A strict reader of zip archives over bytes in memory.
//!
//! It takes what `torch` writes (stored and deflated files, data descriptors, zip64) and refuses every
//! archive that two readers could understand differently: duplicate names, overlapping files, headers that
//! disagree with the directory, bytes whose checksum is wrong.

mod archive;
mod directory;
mod fields;
mod replace;

pub(super) use archive::Archive;

#[cfg(test)]
mod tests;
#[cfg(any(test, fuzzing))]
pub(super) mod writer;
