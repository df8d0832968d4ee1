//! Graphs: values, nodes, and how both meet the outside.

use smallvec::SmallVec;

use super::Op;
use crate::tensor::{DType, HostTensor, Shape};

/// A value of a graph: what one node gives and others read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// What is known of a value before anything runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// The sizes.
    pub shape: Shape,
    /// The element type.
    pub dtype: DType,
}

/// Where a value that no node computes comes from. Numbers index the kernel's own lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The n-th input of the pass.
    Input(u32),
    /// The n-th parameter.
    Parameter(u32),
    /// The n-th buffer, as it was before the pass.
    Buffer(u32),
    /// The n-th constant of this graph.
    Constant(u32),
    /// In a backward graph: the gradient of the n-th output.
    GradOutput(u32),
    /// In a backward graph: the n-th value that the forward graph saved.
    Saved(u32),
}

/// Where a value that leaves the graph goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sink {
    /// The n-th output of the pass.
    Output(u32),
    /// The n-th buffer's new content, to be committed once the pass has succeeded.
    BufferUpdate(u32),
    /// In a forward graph: the n-th value that its backward graph will read.
    Saved(u32),
    /// In a backward graph: the gradient of the n-th input.
    GradInput(u32),
    /// In a backward graph: the gradient of the n-th parameter.
    GradParameter(u32),
}

/// One operation in place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// The operands, in the order the operation states.
    pub inputs: SmallVec<[ValueId; 4]>,
    /// The results, in the order the operation states.
    pub outputs: SmallVec<[ValueId; 2]>,
}

/// A program in SSA form: each value is given once, by a source or a node, before it is read.
///
/// One type serves forward and backward; they differ in the sources and sinks they use. A value may go to
/// several sinks, and a source may go straight to a sink.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// What is known of each value, by [`ValueId`].
    pub values: Vec<ValueInfo>,
    /// Values from outside.
    pub sources: Vec<(Source, ValueId)>,
    /// The operations, in an order in which they may run.
    pub nodes: Vec<Node>,
    /// Values to outside.
    pub sinks: Vec<(Sink, ValueId)>,
    /// Constants, by the number in [`Source::Constant`].
    pub constants: Vec<HostTensor>,
}

impl Graph {
    /// What is known of a value.
    ///
    /// # Panics
    /// When the value is of another graph.
    pub fn info(&self, value: ValueId) -> &ValueInfo {
        &self.values[value.0 as usize]
    }

    /// The value a source gives, where the graph reads that source.
    pub fn source(&self, source: Source) -> Option<ValueId> {
        self.sources.iter().find(|(s, _)| *s == source).map(|&(_, value)| value)
    }

    /// The value that goes to a sink, where the graph fills that sink.
    pub fn sink(&self, sink: Sink) -> Option<ValueId> {
        self.sinks.iter().find(|(s, _)| *s == sink).map(|&(_, value)| value)
    }
}
