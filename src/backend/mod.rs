//! Devices: what turns a graph into something that runs, behind one small trait.
//!
//! A [`Backend`] compiles a graph into an [`Executable`]: fused, with the offset of every buffer known
//! before it runs. Whoever runs one provides all memory through [`Bindings`]; a run allocates nothing.

#[cfg(test)]
mod conformance;
pub mod cpu;
pub mod cuda;
mod executable;
mod memory;
mod offline;
#[cfg(test)]
mod ops_page;
pub mod plan;
mod queue;
#[cfg(test)]
mod random_graphs;
mod region;
mod simd;
#[cfg(test)]
pub(crate) mod test_device;

pub use executable::{
    Backend, Bindings, BuildError, CompileOptions, Executable, MemoryNeeds, RunContext, RunError,
};
pub use memory::{DeviceFile, HostMemory, Lacking, Memory, OwnMemory, Shared, nothing};
pub use offline::{PassBlocks, run_on_host};
pub use queue::{HostQueue, NOTE_BYTES, Queue};
pub use region::Region;
pub(crate) use simd::vectorised;
