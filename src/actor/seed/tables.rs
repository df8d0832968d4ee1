//! What lies where in a seed's memory file.

use crate::{
    engine::{Kernel, Weight},
    tensor::{PackedLayout, Slot},
    wire::TensorEntry,
};

/// A kernel's parameters and buffers, as a trainer is told of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) parameters: Vec<TensorEntry>,
    pub(super) buffers: Vec<TensorEntry>,
    pub(super) buffers_offset: u64,
    /// Bytes of the block of parameters, and so of their gradients.
    pub(super) gradient_bytes: u64,
}

impl Tables {
    pub(super) fn of(kernel: &Kernel) -> Self {
        let buffers_offset = kernel.buffers_offset() as u64;
        Self {
            parameters: entries(kernel.parameters(), kernel.parameter_layout(), 0, false),
            buffers: entries(kernel.buffers(), kernel.buffer_layout(), buffers_offset, true),
            buffers_offset,
            gradient_bytes: kernel.parameter_layout().total_bytes() as u64,
        }
    }
}

fn entries(weights: &[Weight], layout: &PackedLayout, start: u64, buffers: bool) -> Vec<TensorEntry> {
    let with_slots = weights.iter().zip(layout.slots());
    let entry = |(weight, slot): (&Weight, &Slot)| TensorEntry {
        name: weight.name.clone(),
        dtype: slot.dtype,
        shape: slot.shape.clone(),
        offset: start + slot.offset_bytes as u64,
        requires_grad: weight.requires_grad && !buffers,
        aliases: weight.aliases.clone(),
        persistent: weight.persistent,
    };
    with_slots.map(entry).collect()
}
