//! Tests of the engine over real graphs on the CPU.

mod equivalence;
mod fallback;
mod fixture;
mod interleaving;
mod kernels;
mod plain;
mod recomputation;
mod roles;
mod tickets;
