//! Where kernels come from: a port, its implementations, and the guard through which they are asked.

mod directory;
mod error;
mod file;
mod guarded;
mod port;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod directory_tests;
#[cfg(test)]
mod guarded_tests;

pub use directory::{DirectoryOptions, DirectoryOrigin};
pub use error::OriginError;
pub use file::read_file;
pub use guarded::{GuardPolicy, Guarded};
pub use port::Origin;
