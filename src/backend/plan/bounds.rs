//! What a plan needs of the blocks that a run is given.

use super::{Home, Plan};
use crate::{
    backend::{Bindings, Region, RunError},
    tensor::ALIGNMENT_BYTES,
};

/// How much of each block a plan touches, and how it must be aligned.
#[derive(Debug)]
pub struct Bounds(Vec<(Home, usize, usize)>);

impl Bounds {
    /// Those of a plan.
    pub fn of(plan: &Plan) -> Self {
        let mut bounds: Vec<(Home, usize, usize)> =
            vec![(Home::Workspace, plan.needs.workspace_bytes, ALIGNMENT_BYTES)];
        let places = plan.steps.iter().flat_map(|step| step.inputs.iter().chain(&step.outputs));
        for place in places.filter(|place| place.home != Home::Constants) {
            // A view of nothing may begin behind the end of its block, and nobody reads it.
            if place.layout.shape().contains(&0) {
                continue;
            }
            let (end, align) = (place.end_bytes(), place.dtype.size_bytes());
            match bounds.iter_mut().find(|(home, _, _)| *home == place.home) {
                Some((_, bytes, alignment)) => {
                    *bytes = (*bytes).max(end);
                    *alignment = (*alignment).max(align);
                }
                None => bounds.push((place.home, end, align)),
            }
        }
        Self(bounds)
    }

    /// Has a block that the plan touches begin on a multiple of so many bytes.
    pub fn align(&mut self, home: Home, alignment_bytes: usize) {
        for (_, _, alignment) in self.0.iter_mut().filter(|(known, ..)| *known == home) {
            *alignment = (*alignment).max(alignment_bytes);
        }
    }

    /// Bytes of memory that they take.
    pub fn held_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(Home, usize, usize)>()
    }

    /// Checks every block that the plan touches. `is_host` says where `device` has its memory.
    ///
    /// # Errors
    /// [`RunError::RegionTooSmall`], [`RunError::Misaligned`] and [`RunError::WrongDevice`].
    pub fn check<'a>(
        &self,
        device: &str,
        is_host: bool,
        block: impl Fn(Home) -> Region<'a>,
    ) -> Result<(), RunError> {
        for &(home, needed_bytes, alignment) in &self.0 {
            let region = block(home);
            if region.len_bytes() < needed_bytes {
                let actual_bytes = region.len_bytes();
                return Err(RunError::RegionTooSmall {
                    name: format!("{home:?}"),
                    needed_bytes,
                    actual_bytes,
                });
            }
            if needed_bytes > 0 && region.is_host() != is_host {
                let device = device.to_owned();
                return Err(RunError::WrongDevice { name: format!("{home:?}"), device });
            }
            if needed_bytes > 0 && !region.start().addr().is_multiple_of(alignment) {
                return Err(RunError::Misaligned { name: format!("{home:?}"), needed_bytes: alignment });
            }
        }
        Ok(())
    }
}

/// The block that a run is given for a home; constants are the executable's own and give an empty one.
pub fn block<'a>(bindings: &Bindings<'a>, home: Home) -> Region<'a> {
    let at = |regions: &'a [Region<'a>], n: u32| regions.get(n as usize).copied().unwrap_or(Region::EMPTY);
    match home {
        Home::Input(n) => at(bindings.inputs, n),
        Home::Output(n) => at(bindings.outputs, n),
        Home::GradOutput(n) => at(bindings.grad_outputs, n),
        Home::GradInput(n) => at(bindings.grad_inputs, n),
        Home::Parameters => bindings.parameters,
        Home::GradParameters => bindings.grad_parameters,
        Home::Buffers => bindings.buffers,
        Home::BufferUpdates => bindings.buffer_updates,
        Home::Saved => bindings.saved,
        Home::Workspace => bindings.workspace,
        Home::Constants => Region::EMPTY,
    }
}
