//! The driver of a device, as far as the backend calls it.
//!
//! A small trait stands between the backend and CUDA, so that what is launched, in which order and on which memory
//! can be run and checked where no device is. Handles are numbers of the driver's own.

mod calls;
mod handles;
#[cfg(test)]
pub(crate) mod host;
mod products;
mod real;
#[cfg(test)]
pub(crate) mod record;

pub use calls::Driver;
pub use handles::{
    Access, Address, Code, DriverError, Event, Function, Launch, Module, Priority, Properties, Replay,
    SharedBlock, Stream, Touch,
};
pub use products::{Matrices, PlannedProduct, Product, ProductArguments, ProductSpec, Products};
pub use real::{RealDriver, count, open};
