//! The driver of a device, as far as the backend calls it.
//!
//! A small trait stands between the backend and CUDA, so that what is launched, in which order and on which memory
//! can be run and checked where no device is. Handles are numbers of the driver's own.

mod calls;
mod convolutions;
mod handles;
#[cfg(test)]
pub(crate) mod host;
mod products;
mod real;
#[cfg(test)]
pub(crate) mod record;
mod routines;

pub use calls::Driver;
pub use convolutions::{ConvolutionSpec, Direction};
pub use handles::{
    Access, Address, Code, DriverError, Event, Function, Launch, Module, Priority, Properties, Replay,
    SharedBlock, Stream, Touch,
};
pub use products::{Matrices, ProductSpec};
pub use real::{RealDriver, count, open};
pub use routines::{MOST_ALIGNMENT_BYTES, PlannedRoutine, Routine, RoutineArguments, RoutineSpec, Routines};
