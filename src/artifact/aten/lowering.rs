//! The state of one lowering: the graph that grows, and what the program's tensors are at the moment.

use std::collections::BTreeSet;

use super::value::{Scalar, SequenceRef, TensorRef, Value};
use crate::{
    artifact::{ArtifactError, Mode, NamedTensor, Parameter, Problem},
    graph::{Builder, Graph, GraphError, Limits, Op, Sink, Source, ValueId},
    tensor::{DType, HostTensor, Shape},
};

/// Where the memory behind a tensor comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Computed,
    Input,
    Parameter,
    Constant,
    Buffer(u32),
}

/// A tensor of the program: the value it has now, and the memory it shares with its views.
#[derive(Clone, Copy, Debug)]
struct Cell {
    value: ValueId,
    memory: u32,
    /// Handles of one alias are the same tensor: a write through one is a write to all.
    alias: u32,
    /// Written through another view since: what it holds now is not tracked.
    stale: bool,
}

/// A finished lowering.
pub(crate) struct Ready {
    pub(crate) graph: Graph,
}

/// One lowering.
pub(crate) struct Lowering<'a> {
    pub(super) builder: Builder,
    pub(super) mode: Mode,
    parameters: &'a [Parameter],
    buffers: &'a [NamedTensor],
    cells: Vec<Cell>,
    memories: Vec<(Memory, Vec<u32>)>,
    sequences: Vec<Vec<Value>>,
    parameter_cells: Vec<Option<TensorRef>>,
    buffer_cells: Vec<Option<TensorRef>>,
    dropout_sites: u32,
    /// Buffers that hold running means which batch norm has used.
    running_means: BTreeSet<u32>,
    fuel: u64,
    fuel_limit: u64,
}

fn graph_error(place: &str) -> impl FnOnce(GraphError) -> ArtifactError {
    move |source| ArtifactError::Graph { place: place.to_owned(), source }
}

impl<'a> Lowering<'a> {
    pub(crate) fn new(
        parameters: &'a [Parameter],
        buffers: &'a [NamedTensor],
        mode: Mode,
        limits: Limits,
        fuel: u64,
    ) -> Self {
        Self {
            builder: Builder::with_limits(limits),
            mode,
            parameters,
            buffers,
            cells: Vec::new(),
            memories: Vec::new(),
            sequences: Vec::new(),
            parameter_cells: vec![None; parameters.len()],
            buffer_cells: vec![None; buffers.len()],
            dropout_sites: 0,
            running_means: BTreeSet::new(),
            fuel,
            fuel_limit: fuel,
        }
    }

    /// The mode that is lowered for.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Burns one unit of the program's fuel.
    pub(crate) fn burn(&mut self, units: u64, place: impl Fn() -> String) -> Result<(), ArtifactError> {
        match self.fuel.checked_sub(units) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => Err(ArtifactError::limit(place(), "program steps", self.fuel_limit as usize)),
        }
    }

    /// The n-th input of the pass.
    pub(crate) fn input(&mut self, index: usize, shape: Shape, dtype: DType) -> Result<Value, ArtifactError> {
        let value = self
            .builder
            .source(Source::Input(index as u32), shape, dtype)
            .map_err(graph_error(&format!("input {index}")))?;
        Ok(self.cell(value, Memory::Input))
    }

    /// The n-th parameter; the same tensor each time.
    pub(crate) fn parameter(&mut self, index: usize) -> Result<Value, ArtifactError> {
        if let Some(known) = self.parameter_cells[index] {
            return Ok(Value::Tensor(known));
        }
        let parameter = &self.parameters[index];
        let (shape, dtype) = (parameter.tensor.shape().clone(), parameter.tensor.dtype());
        let value = self
            .builder
            .source(Source::Parameter(index as u32), shape, dtype)
            .map_err(graph_error(&parameter.name))?;
        let cell = self.cell(value, Memory::Parameter);
        self.parameter_cells[index] = self.tensor_ref(&cell);
        Ok(cell)
    }

    /// The n-th buffer; the same tensor each time.
    pub(crate) fn buffer(&mut self, index: usize) -> Result<Value, ArtifactError> {
        if let Some(known) = self.buffer_cells[index] {
            return Ok(Value::Tensor(known));
        }
        let buffer = &self.buffers[index];
        let (shape, dtype) = (buffer.tensor.shape().clone(), buffer.tensor.dtype());
        let value = self
            .builder
            .source(Source::Buffer(index as u32), shape, dtype)
            .map_err(graph_error(&buffer.name))?;
        let cell = self.cell(value, Memory::Buffer(index as u32));
        self.buffer_cells[index] = self.tensor_ref(&cell);
        Ok(cell)
    }

    /// A constant; one without dimensions is a known number.
    pub(crate) fn constant(&mut self, name: &str, tensor: &HostTensor) -> Result<Value, ArtifactError> {
        if tensor.shape().rank() == 0 {
            let value = tensor.to_f64()[0];
            let scalar = match tensor.dtype() {
                DType::Bool => Scalar::Bool(value != 0.0),
                DType::I64 => Scalar::Int(tensor.to_values::<i64>().map_or(value as i64, |v| v[0])),
                dtype if dtype.is_floating_point() => Scalar::Float(value),
                _ => Scalar::Int(value as i64),
            };
            return Ok(Value::Known(scalar, tensor.dtype()));
        }
        let value = self.builder.constant(tensor.clone()).map_err(graph_error(name))?;
        Ok(self.cell(value, Memory::Constant))
    }

    fn tensor_ref(&self, value: &Value) -> Option<TensorRef> {
        match value {
            Value::Tensor(tensor) => Some(*tensor),
            _ => None,
        }
    }

    fn cell(&mut self, value: ValueId, memory: Memory) -> Value {
        self.memories.push((memory, Vec::new()));
        let memory = self.memories.len() as u32 - 1;
        let alias = self.cells.len() as u32;
        self.add(Cell { value, memory, alias, stale: false })
    }

    fn add(&mut self, cell: Cell) -> Value {
        let index = self.cells.len() as u32;
        self.memories[cell.memory as usize].1.push(index);
        self.cells.push(cell);
        Value::Tensor(TensorRef(index))
    }

    /// A tensor in memory of its own.
    pub(super) fn fresh(&mut self, value: ValueId) -> Value {
        self.cell(value, Memory::Computed)
    }

    /// A tensor that may share its memory with `base`.
    pub(super) fn view_of(&mut self, base: TensorRef, value: ValueId) -> Value {
        let base = self.cells[base.0 as usize];
        let alias = self.cells.len() as u32;
        self.add(Cell { value, alias, ..base })
    }

    /// The value that a tensor has now.
    pub(crate) fn value(&self, tensor: TensorRef) -> Result<ValueId, Problem> {
        let cell = self.cells[tensor.0 as usize];
        if cell.stale {
            return Err(Problem::unsupported(
                "reading a tensor after a view that shares its memory was written in place",
            ));
        }
        Ok(cell.value)
    }

    /// Writes a tensor in place. Whoever else looks at the same memory may not be read any more, since how
    /// the two overlap is not tracked.
    pub(super) fn write(&mut self, tensor: TensorRef, value: ValueId) -> Result<(), Problem> {
        let cell = self.cells[tensor.0 as usize];
        let (memory, handles) = &self.memories[cell.memory as usize];
        match memory {
            Memory::Parameter => return Err(Problem::unsupported("writing a parameter in place")),
            Memory::Constant => return Err(Problem::unsupported("writing a constant in place")),
            Memory::Computed | Memory::Input | Memory::Buffer(_) => {}
        }
        for &index in handles {
            let other = &mut self.cells[index as usize];
            if other.alias == cell.alias {
                other.value = value;
            } else {
                other.stale = true;
            }
        }
        // The walk is paid for, so that many views and many writes cannot cost quadratic time.
        let walked = handles.len() as u64;
        self.charge(walked)
    }

    /// Burns fuel for a walk over a list; where it runs out, the next step is refused.
    pub(crate) fn spend(&mut self, units: usize) {
        self.fuel = self.fuel.saturating_sub(units as u64);
    }

    /// Burns fuel for work that grows with the program.
    pub(super) fn charge(&mut self, units: u64) -> Result<(), Problem> {
        match self.fuel.checked_sub(units) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => Err(Problem::argument(format!(
                "more than {} program steps: use a smaller kernel or raise the limit",
                self.fuel_limit
            ))),
        }
    }

    /// Makes a tensor hold what another holds, as an assignment to a buffer does.
    pub(crate) fn assign(&mut self, target: &Value, value: &Value) -> Result<(), Problem> {
        let Value::Tensor(target) = *target else { return Err(Problem::argument("it takes a tensor")) };
        let (old, new) = (self.value(target)?, self.materialise(value)?);
        if self.builder.graph().info(old) != self.builder.graph().info(new) {
            return Err(Problem::argument("the new content has another shape or type"));
        }
        if old == new { Ok(()) } else { self.write(target, new) }
    }

    /// A buffer's name.
    pub(crate) fn buffer_name(&self, index: usize) -> &str {
        &self.buffers[index].name
    }

    /// The number of the buffer a tensor is, where it is one.
    pub(super) fn buffer_of(&self, tensor: TensorRef) -> Option<u32> {
        match self.memories[self.cells[tensor.0 as usize].memory as usize].0 {
            Memory::Buffer(index) => Some(index),
            _ => None,
        }
    }

    /// Notes that batch norm counts its batches beside this running mean.
    pub(super) fn note_running_mean(&mut self, tensor: TensorRef) {
        if let Some(index) = self.buffer_of(tensor) {
            self.running_means.insert(index);
        }
    }

    /// A number that no other dropout of this graph has.
    pub(super) fn dropout_site(&mut self) -> u32 {
        self.dropout_sites += 1;
        self.dropout_sites - 1
    }

    /// A new list's or tuple's elements.
    pub(crate) fn sequence(&mut self, items: Vec<Value>) -> SequenceRef {
        self.spend(items.len());
        self.sequences.push(items);
        SequenceRef(self.sequences.len() as u32 - 1)
    }

    /// A new list.
    pub(crate) fn list(&mut self, items: Vec<Value>) -> Value {
        Value::List(self.sequence(items))
    }

    /// A new tuple.
    pub(crate) fn tuple(&mut self, items: Vec<Value>) -> Value {
        Value::Tuple(self.sequence(items))
    }

    /// The elements of a list or tuple.
    pub(crate) fn items(&self, sequence: SequenceRef) -> &[Value] {
        &self.sequences[sequence.0 as usize]
    }

    /// The elements of a list, to change.
    pub(crate) fn items_mut(&mut self, sequence: SequenceRef) -> &mut Vec<Value> {
        &mut self.sequences[sequence.0 as usize]
    }

    /// The value of a tensor argument; a known number becomes a constant of the graph.
    pub(crate) fn materialise(&mut self, value: &Value) -> Result<ValueId, Problem> {
        match value {
            Value::Tensor(tensor) => self.value(*tensor),
            Value::Known(scalar, dtype) => {
                let op = Op::Full { shape: Shape::scalar(), dtype: *dtype, value: scalar.to_f64() };
                Ok(self.builder.apply(op, &[])?)
            }
            other => Err(Problem::argument(format!("{} stands where a tensor is needed", other.kind()))),
        }
    }

    /// The shape and type of a tensor.
    pub(crate) fn info(&self, value: &Value) -> Option<(Shape, DType)> {
        match value {
            Value::Tensor(tensor) => {
                let id = self.cells[tensor.0 as usize].value;
                Some((self.builder.shape(id).clone(), self.builder.dtype(id)))
            }
            Value::Known(_, dtype) => Some((Shape::scalar(), *dtype)),
            _ => None,
        }
    }

    /// What a value holds, where it is a constant or a buffer, and whether that will never change.
    pub(super) fn content(&self, value: ValueId) -> Option<(HostTensor, bool)> {
        let graph = self.builder.graph();
        let (source, _) = graph.sources.iter().find(|(_, id)| *id == value)?;
        match *source {
            Source::Constant(n) => Some((graph.constants.get(n as usize)?.clone(), true)),
            Source::Buffer(n) => Some((self.buffers.get(n as usize)?.tensor.clone(), false)),
            _ => None,
        }
    }

    /// Whether a gradient could flow to a value.
    pub(super) fn is_differentiable(&mut self, value: ValueId) -> Result<bool, Problem> {
        self.charge(self.builder.graph().nodes.len() as u64)?;
        let graph = self.builder.graph();
        let mut reached = vec![false; graph.values.len()];
        for (source, id) in &graph.sources {
            reached[id.0 as usize] = matches!(source, Source::Input(_) | Source::Parameter(_));
        }
        for node in &graph.nodes {
            if node.inputs.iter().any(|id| reached[id.0 as usize]) {
                node.outputs.iter().for_each(|id| reached[id.0 as usize] = true);
            }
        }
        Ok(reached[value.0 as usize])
    }

    fn counter_of(&self, running_mean: u32) -> Option<usize> {
        let prefix = self.buffers[running_mean as usize].name.strip_suffix("running_mean")?;
        let name = format!("{prefix}num_batches_tracked");
        self.buffers.iter().position(|buffer| buffer.name == name)
    }

    /// Batch norm counts its batches in training and only there, whatever mode it was exported in.
    fn settle_counters(&mut self) -> Result<(), ArtifactError> {
        for running_mean in std::mem::take(&mut self.running_means) {
            let Some(index) = self.counter_of(running_mean) else { continue };
            let name = self.buffers[index].name.clone();
            let Value::Tensor(counter) = self.buffer(index)? else { continue };
            let source = self.builder.graph().source(Source::Buffer(index as u32));
            let Some(source) = source else { continue };
            let counted = self.cells[counter.0 as usize].value != source;
            if self.mode == Mode::Eval {
                self.cells[counter.0 as usize] =
                    Cell { value: source, stale: false, ..self.cells[counter.0 as usize] };
            } else if !counted {
                let dtype = self.builder.dtype(source);
                let shape = self.builder.shape(source).clone();
                let one = self.builder.apply(Op::Full { shape, dtype, value: 1.0 }, &[]);
                let next = one
                    .and_then(|one| self.builder.apply(Op::Binary(crate::graph::Binary::Add), &[source, one]))
                    .map_err(graph_error(&name))?;
                self.cells[counter.0 as usize].value = next;
            }
        }
        Ok(())
    }

    /// Connects outputs and changed buffers.
    ///
    /// # Errors
    /// [`ArtifactError`] when an output is no tensor or is not known any more.
    pub(crate) fn finish(mut self, outputs: &[Value]) -> Result<Ready, ArtifactError> {
        self.settle_counters()?;
        for (index, output) in outputs.iter().enumerate() {
            let value = self.materialise(output).map_err(|source| ArtifactError::Operation {
                place: format!("output {index}"),
                op: "return".into(),
                source,
            })?;
            self.builder.sink(Sink::Output(index as u32), value);
        }
        for index in 0..self.buffers.len() {
            let Some(cell) = self.buffer_cells[index] else { continue };
            let value = self.value(cell).map_err(|source| ArtifactError::Operation {
                place: self.buffers[index].name.clone(),
                op: "buffer update".into(),
                source,
            })?;
            if self.builder.graph().source(Source::Buffer(index as u32)) != Some(value) {
                self.builder.sink(Sink::BufferUpdate(index as u32), value);
            }
        }
        Ok(Ready { graph: self.builder.finish() })
    }
}
