//! Programs: what a kernel lowers to a graph for each input it meets.

use std::{fmt, sync::Arc};

use super::PlanKey;
use crate::{
    artifact::{Mode, Module},
    fault::Fault,
    graph::{Graph, Limits},
};

/// What lowers a kernel's program for one input.
pub trait Program: Send + Sync + fmt::Debug {
    /// The program as a graph over the kernel's own parameters and buffers.
    ///
    /// # Errors
    /// What stands in the way, with a stable code.
    fn lower(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>>;

    /// Bytes that the kernel's weights are parts of and that stay in memory with it.
    fn held_bytes(&self) -> usize {
        0
    }

    /// The artifact that it was read from, where there is one.
    fn module(&self) -> Option<&Module> {
        None
    }
}

impl Program for Arc<Module> {
    fn lower(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let mode = if key.train { Mode::Train } else { Mode::Eval };
        let input = (key.input_shape.clone(), key.dtype);
        Module::lower(self, &[input], mode, limits).map_err(|error| Box::new(error) as _)
    }

    fn held_bytes(&self) -> usize {
        Module::held_bytes(self)
    }

    fn module(&self) -> Option<&Module> {
        Some(self)
    }
}
