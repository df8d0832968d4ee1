//! The builder: the only way a graph comes to be, with every shape inferred and every bound kept.

use std::{collections::HashMap, time::Instant};

use smallvec::SmallVec;

use super::{
    Graph, GraphError, Node, Op, Sink, Source, ValueId, ValueInfo,
    ops::{self, Checked as _},
};
use crate::tensor::{DType, HostTensor, Shape};

/// How many nodes there are from one look at the clock to the next.
const NODES_A_LOOK: usize = 64;

/// How many times as large as its forward graph a graph with its gradient may be.
const GRADIENT_RATIO: usize = 4;

/// The most dimensions a value may have. Devices walk tensors with indices of this fixed length.
pub const MAX_RANK: usize = 16;

/// How large a graph may grow. A program from outside decides its size, so the bound is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most nodes.
    pub max_nodes: usize,
    /// The most elements one value may have.
    pub max_value_elements: usize,
    /// The most elements all values may have together.
    pub max_total_elements: usize,
    /// When to give up, whatever the size. Looked at between nodes.
    pub deadline: Option<Instant>,
}

impl Limits {
    /// The bounds of a graph together with its gradient, where these are the forward graph's own. One value
    /// may be as large as before.
    pub fn with_gradient(self) -> Self {
        Self {
            max_nodes: self.max_nodes.saturating_mul(GRADIENT_RATIO),
            max_total_elements: self.max_total_elements.saturating_mul(GRADIENT_RATIO),
            ..self
        }
    }

    /// The same with a deadline, or the earlier of both.
    pub fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(self.deadline.map_or(deadline, |known| known.min(deadline))), ..self }
    }
}

impl Default for Limits {
    /// 10,000 nodes, 2³⁰ elements a value, 2³³ in all, no deadline.
    fn default() -> Self {
        Self { max_nodes: 10_000, max_value_elements: 1 << 30, max_total_elements: 1 << 33, deadline: None }
    }
}

/// Builds a graph node by node.
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    limits: Limits,
    total_elements: usize,
    by_source: HashMap<Source, ValueId>,
}

impl Builder {
    /// An empty graph under the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty graph under limits of the caller's.
    pub fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Goes on building a finished graph.
    pub fn resume(graph: Graph, limits: Limits) -> Self {
        let by_source = graph.sources.iter().copied().collect();
        let total_elements =
            graph.values.iter().map(|info| info.shape.elements()).fold(0, usize::saturating_add);
        Self { graph, limits, total_elements, by_source }
    }

    /// The value of a source. Asked for again, it is the same value.
    ///
    /// # Errors
    /// [`GraphError`] when the source is known with another shape or type, or a limit is passed.
    pub fn source(&mut self, source: Source, shape: Shape, dtype: DType) -> Result<ValueId, GraphError> {
        let asked = ValueInfo { shape, dtype };
        if let Some(&value) = self.by_source.get(&source) {
            let known = self.graph.info(value);
            if *known != asked {
                return Err(GraphError::SourceChanged {
                    source_name: format!("{source:?}"),
                    known: format!("{} {}", known.dtype, known.shape),
                    asked: format!("{} {}", asked.dtype, asked.shape),
                });
            }
            return Ok(value);
        }
        let value = self.value("", asked)?;
        self.graph.sources.push((source, value));
        self.by_source.insert(source, value);
        Ok(value)
    }

    /// A value that is part of the graph itself.
    ///
    /// # Errors
    /// [`GraphError::Limit`] when a limit is passed.
    pub fn constant(&mut self, tensor: HostTensor) -> Result<ValueId, GraphError> {
        let number = u32::try_from(self.graph.constants.len()).unwrap_or(u32::MAX);
        let value = self.source(Source::Constant(number), tensor.shape().clone(), tensor.dtype())?;
        self.graph.constants.push(tensor);
        Ok(value)
    }

    /// Appends an operation and gives its results, in the order the operation states.
    ///
    /// # Errors
    /// [`GraphError`] when operands and attributes do not fit, or a limit is passed.
    pub fn push(&mut self, op: Op, inputs: &[ValueId]) -> Result<SmallVec<[ValueId; 2]>, GraphError> {
        if self.graph.nodes.len() >= self.limits.max_nodes {
            return Err(GraphError::Limit { what: "nodes", limit: self.limits.max_nodes as u64 });
        }
        if self.graph.nodes.len().is_multiple_of(NODES_A_LOOK)
            && self.limits.deadline.is_some_and(|deadline| Instant::now() >= deadline)
        {
            return Err(GraphError::Time { nodes: self.graph.nodes.len() });
        }
        let mut infos: SmallVec<[&ValueInfo; 4]> = SmallVec::new();
        for &value in inputs {
            let info = self.graph.values.get(value.0 as usize).ok_or(GraphError::UnknownValue {
                op: op.name(),
                value: value.0,
                values: self.graph.values.len(),
            })?;
            infos.push(info);
        }
        let results = ops::infer(&op, &infos)?;
        drop(infos);
        let outputs =
            results.into_iter().map(|info| self.value(op.name(), info)).collect::<Result<_, _>>()?;
        let node = Node { op, inputs: SmallVec::from_slice(inputs), outputs };
        let outputs = node.outputs.clone();
        self.graph.nodes.push(node);
        Ok(outputs)
    }

    /// Appends an operation and gives its first result.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn apply(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        Ok(self.push(op, inputs)?[0])
    }

    /// The shape of a value of this graph.
    ///
    /// # Panics
    /// When the value is of another graph.
    pub fn shape(&self, value: ValueId) -> &Shape {
        &self.graph.info(value).shape
    }

    /// The element type of a value of this graph.
    ///
    /// # Panics
    /// When the value is of another graph.
    pub fn dtype(&self, value: ValueId) -> DType {
        self.graph.info(value).dtype
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Sends a value out. A sink that is filled again takes the later value.
    pub fn sink(&mut self, sink: Sink, value: ValueId) {
        match self.graph.sinks.iter_mut().find(|(known, _)| *known == sink) {
            Some(entry) => entry.1 = value,
            None => self.graph.sinks.push((sink, value)),
        }
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    fn value(&mut self, op: &'static str, info: ValueInfo) -> Result<ValueId, GraphError> {
        if info.shape.rank() > MAX_RANK {
            return Err(GraphError::Limit { what: "dimensions in one value", limit: MAX_RANK as u64 });
        }
        let elements = info.shape.checked_elements().named(op)?;
        // An empty tensor costs no memory, but a kernel may still walk its other dimensions.
        if info.shape.checked_extent().named(op)? > self.limits.max_value_elements {
            let limit = self.limits.max_value_elements as u64;
            return Err(GraphError::Limit { what: "elements in one value", limit });
        }
        self.total_elements = self.total_elements.saturating_add(elements);
        if self.total_elements > self.limits.max_total_elements {
            let limit = self.limits.max_total_elements as u64;
            return Err(GraphError::Limit { what: "elements in all values", limit });
        }
        let id = u32::try_from(self.graph.values.len())
            .map_err(|_| GraphError::Limit { what: "values", limit: u32::MAX.into() })?;
        self.graph.values.push(info);
        Ok(ValueId(id))
    }
}
