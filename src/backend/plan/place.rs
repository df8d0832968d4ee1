//! Places: where a value is found during a run.

use crate::{
    graph::{Sink, Source},
    tensor::{DType, Layout},
};

/// Which block of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Home {
    /// `Bindings::inputs`, by index.
    Input(u32),
    /// `Bindings::outputs`, by index.
    Output(u32),
    /// `Bindings::grad_outputs`, by index.
    GradOutput(u32),
    /// `Bindings::grad_inputs`, by index.
    GradInput(u32),
    /// `Bindings::parameters`.
    Parameters,
    /// `Bindings::grad_parameters`.
    GradParameters,
    /// `Bindings::buffers`.
    Buffers,
    /// `Bindings::buffer_updates`.
    BufferUpdates,
    /// `Bindings::saved`.
    Saved,
    /// `Bindings::workspace`.
    Workspace,
    /// The executable's own constants.
    Constants,
}

/// A value's memory: a block, the bytes before the tensor in it, and the tensor's layout from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The block.
    pub home: Home,
    /// Bytes from the block's start, a multiple of the element's size.
    pub offset_bytes: usize,
    /// The element type.
    pub dtype: DType,
    /// Shape, strides and first element, from `offset_bytes` on.
    pub layout: Layout,
}

impl Place {
    /// One more than the last byte of the block that this place touches.
    pub fn end_bytes(&self) -> usize {
        let elements = self.layout.end().unwrap_or(usize::MAX);
        self.offset_bytes.saturating_add(elements.saturating_mul(self.dtype.size_bytes()))
    }
}

pub(super) fn of_source(source: Source) -> Home {
    match source {
        Source::Input(n) => Home::Input(n),
        Source::Parameter(_) => Home::Parameters,
        Source::Buffer(_) => Home::Buffers,
        Source::Constant(_) => Home::Constants,
        Source::GradOutput(n) => Home::GradOutput(n),
        Source::Saved(_) => Home::Saved,
    }
}

pub(super) fn of_sink(sink: Sink) -> Home {
    match sink {
        Sink::Output(n) => Home::Output(n),
        Sink::BufferUpdate(_) => Home::BufferUpdates,
        Sink::Saved(_) => Home::Saved,
        Sink::GradInput(n) => Home::GradInput(n),
        Sink::GradParameter(_) => Home::GradParameters,
    }
}
