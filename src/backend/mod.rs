//! Devices: what turns a graph into something that runs, behind one small trait.
//!
//! A [`Backend`] compiles a graph into an [`Executable`]: fused, with the offset of every buffer known
//! before it runs. Whoever runs one provides all memory through [`Bindings`]; a run allocates nothing.

mod executable;
mod memory;
mod region;

pub use executable::{
    Backend, Bindings, BuildError, CompileOptions, Executable, MemoryNeeds, RunContext, RunError,
};
pub use memory::{HostMemory, Memory};
pub use region::Region;
