//! Tests of the engine over real graphs.

mod equivalence;
mod fallback;
mod fixture;
mod interleaving;
mod kernels;
mod on_cuda;
mod plain;
mod products;
mod recomputation;
mod roles;
mod tickets;
mod whole;
