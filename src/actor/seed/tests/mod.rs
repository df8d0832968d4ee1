//! A seed's actor over a real lane, with kernels small enough to fail on purpose.

mod bench;
mod life;
mod recovery;
mod session;
