//! A stand-in for Urza on one machine and in tests: its REST contract, served from a folder.

mod blob;
mod server;
mod store;

#[cfg(test)]
mod tests;

pub use server::{StandIn, StandInError};
pub(super) use store::{Added, add};
