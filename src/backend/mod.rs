//! Devices: what turns a graph into something that runs, behind one small trait.
//!
//! A [`Backend`] compiles a graph into an [`Executable`]: fused, with the offset of every buffer known
//! before it runs. Whoever runs one provides all memory through [`Bindings`]; a run allocates nothing.

#[cfg(test)]
mod conformance;
pub mod cpu;
mod executable;
mod memory;
mod offline;
#[cfg(test)]
mod ops_page;
pub mod plan;
#[cfg(test)]
mod random_graphs;
mod region;

pub use executable::{
    Backend, Bindings, BuildError, CompileOptions, Executable, MemoryNeeds, RunContext, RunError,
};
pub use memory::{HostMemory, Memory};
pub use offline::{HostBlocks, run_on_host};
pub use region::Region;
