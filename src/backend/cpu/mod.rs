//! The CPU backend: vectorised kernels over planned memory, on the caller's thread and a small pool.

mod attention;
mod batch_norm;
mod chain;
mod contraction;
mod conv;
mod depthwise;
mod elementwise;
mod executable;
mod im2col;
mod math;
mod memory;
mod movement;
mod parts;
mod pick;
mod pool;
mod pooling;
mod product;
mod real;
mod reduce;
mod row_norm;
mod softmax;
mod sum;
mod support;
mod taps;
mod walk;
mod winograd;

use std::sync::Arc;

use super::{
    Backend, BuildError, CompileOptions, Executable,
    plan::{plan, widen},
    simd,
};
use crate::graph::Graph;

pub use pool::Pool;
pub use winograd::Winograd;

/// The CPU as a device.
#[derive(Debug)]
pub struct CpuBackend {
    pool: Arc<Pool>,
    winograd: Winograd,
}

impl CpuBackend {
    /// A device of `threads` threads, the caller of a run included; 0 means all that the machine has.
    pub fn new(threads: usize) -> Self {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        Self { pool: Arc::new(Pool::new(threads)), winograd: Winograd::default() }
    }

    /// The same with another choice of when 3×3 convolutions go by Winograd's algorithm.
    pub fn with_winograd(self, winograd: Winograd) -> Self {
        Self { winograd, ..self }
    }

    /// How many threads may work on one run.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        "cpu"
    }

    fn compile(
        &self,
        graph: &Graph,
        options: &CompileOptions<'_>,
    ) -> Result<Arc<dyn Executable>, BuildError> {
        support::check(graph)?;
        let graph = &widen(graph);
        let too_much =
            |needed_bytes| BuildError::TooMuchMemory { needed_bytes, limit_bytes: options.limit_bytes };
        let winograd = self.winograd;
        let plan = plan(graph, &support::Cpu { threads: self.threads(), winograd }, options)?;
        let needed_bytes = plan.needs.workspace_bytes.saturating_add(plan.needs.saved.total_bytes());
        if needed_bytes > options.limit_bytes {
            return Err(too_much(needed_bytes));
        }
        Ok(Arc::new(executable::CpuExecutable::new(plan, Arc::clone(&self.pool), winograd)))
    }
}

#[cfg(test)]
mod tests;
