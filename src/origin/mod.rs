//! Where kernels come from: a port, its implementations, and the guard through which they are asked.
//!
//! [`DirectoryOrigin`] is a folder. [`UrzaOrigin`] is a REST catalogue whose entries refer to blobs by
//! `s3://`, `https://`, `http://` or `file://`; what they may refer to is on lists (docs/origin.md).

mod address;
mod blobs;
mod catalogue;
mod directory;
mod error;
mod file;
mod filling;
mod folder;
mod guarded;
mod http;
mod place;
mod port;
mod publish;
mod reference;
mod s3;
mod service;
mod stand_in;
mod urza;
mod want;
mod web;

#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod directory_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod guarded_tests;
#[cfg(test)]
mod servers;
#[cfg(test)]
mod tls_tests;
#[cfg(test)]
mod urza_tests;

pub use directory::{DirectoryOptions, DirectoryOrigin};
pub use error::OriginError;
pub use file::read_file;
pub use guarded::{GuardPolicy, Guarded};
pub use place::Place;
pub use port::{Blob, Origin};
pub use publish::{Destination, Publication, PublishError, Published, publish_to_folder, publish_to_urza};
pub use s3::S3Options;
pub use stand_in::{StandIn, StandInError};
pub use urza::{UrzaOptions, UrzaOrigin};
