//! The state of one lowering: the graph that grows, and what the program's tensors are at the moment.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::{
    memory::{Cells, Origin},
    value::{Known, Scalar, SequenceRef, TensorRef, Value},
};
use crate::{
    artifact::{ArtifactError, Mode, NamedTensor, Parameter, Problem, ReadLimits},
    graph::{Builder, Graph, GraphError, Limits, Op, Sink, Source, ValueId},
    tensor::{DType, HostTensor, Shape},
};

/// How many burns of fuel there are from one look at the clock to the next.
const BURNS_A_LOOK: u64 = 256;

/// A finished lowering.
pub(crate) struct Ready {
    pub(crate) graph: Graph,
}

/// One lowering.
pub(crate) struct Lowering<'a> {
    pub(super) builder: Builder,
    pub(super) mode: Mode,
    parameters: &'a [Parameter],
    pub(super) buffers: &'a [NamedTensor],
    pub(super) cells: Cells,
    sequences: Vec<Vec<Value>>,
    parameter_cells: Vec<Option<TensorRef>>,
    buffer_cells: Vec<Option<TensorRef>>,
    dropout_sites: u32,
    /// Buffers that hold running means, and how often batch norm has used each.
    running_means: BTreeMap<u32, u32>,
    /// Buffers that count batches, by what stands before `num_batches_tracked` in their name.
    counters: HashMap<&'a str, usize>,
    fuel: u64,
    fuel_limit: u64,
    deadline: Instant,
    time_limit: Duration,
    /// Units burnt since the clock was looked at.
    burns: u64,
}

fn graph_error(place: &str) -> impl FnOnce(GraphError) -> ArtifactError {
    move |source| ArtifactError::Graph { place: place.to_owned(), source }
}

fn counters(buffers: &[NamedTensor]) -> HashMap<&str, usize> {
    let mut found = HashMap::new();
    for (index, buffer) in buffers.iter().enumerate() {
        if let Some(prefix) = buffer.name.strip_suffix("num_batches_tracked") {
            found.insert(prefix, index);
        }
    }
    found
}

impl<'a> Lowering<'a> {
    pub(crate) fn new(
        parameters: &'a [Parameter],
        buffers: &'a [NamedTensor],
        mode: Mode,
        limits: Limits,
        read: &ReadLimits,
    ) -> Self {
        Self {
            builder: Builder::with_limits(limits),
            mode,
            parameters,
            buffers,
            cells: Cells::default(),
            sequences: Vec::new(),
            parameter_cells: vec![None; parameters.len()],
            buffer_cells: vec![None; buffers.len()],
            dropout_sites: 0,
            running_means: BTreeMap::new(),
            counters: counters(buffers),
            fuel: read.fuel,
            fuel_limit: read.fuel,
            deadline: limits.until(Instant::now() + read.time_limit).deadline.unwrap_or_else(Instant::now),
            time_limit: read.time_limit,
            burns: 0,
        }
    }

    /// The mode that is lowered for.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Burns units of the program's fuel, and looks at the clock now and then.
    pub(crate) fn burn(&mut self, units: u64, place: impl Fn() -> String) -> Result<(), ArtifactError> {
        if self.is_late(units) {
            let limit_ms = usize::try_from(self.time_limit.as_millis()).unwrap_or(usize::MAX);
            return Err(ArtifactError::limit(place(), "milliseconds of lowering", limit_ms));
        }
        match self.fuel.checked_sub(units) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => Err(ArtifactError::limit(place(), "program steps", self.fuel_limit as usize)),
        }
    }

    /// Whether time is up, as far as it was looked at.
    fn is_late(&mut self, units: u64) -> bool {
        self.burns = self.burns.saturating_add(units);
        if self.burns < BURNS_A_LOOK {
            return false;
        }
        self.burns = 0;
        Instant::now() >= self.deadline
    }

    /// The n-th input of the pass.
    pub(crate) fn input(&mut self, index: usize, shape: Shape, dtype: DType) -> Result<Value, ArtifactError> {
        let value = self
            .builder
            .source(Source::Input(index as u32), shape, dtype)
            .map_err(graph_error(&format!("input {index}")))?;
        Ok(Value::Tensor(self.cells.allocate(value, Origin::Input)))
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
        let cell = self.cells.allocate(value, Origin::Parameter);
        self.parameter_cells[index] = Some(cell);
        Ok(Value::Tensor(cell))
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
        let cell = self.cells.allocate(value, Origin::Buffer(index as u32));
        self.buffer_cells[index] = Some(cell);
        Ok(Value::Tensor(cell))
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
            return Ok(Value::known(scalar, tensor.dtype()));
        }
        let value = self.builder.constant(tensor.clone()).map_err(graph_error(name))?;
        Ok(Value::Tensor(self.cells.allocate(value, Origin::Constant)))
    }

    /// A constant of a script, as [`Known::literal`] says.
    pub(crate) fn literal(&mut self, name: &str, tensor: &HostTensor) -> Result<Value, ArtifactError> {
        Ok(match self.constant(name, tensor)? {
            Value::Known(known) => Value::Known(Known { literal: true, ..known }),
            other => other,
        })
    }

    /// A tensor of one number everywhere.
    pub(super) fn filled(&mut self, shape: Shape, dtype: DType, scalar: Scalar) -> Result<ValueId, Problem> {
        let value = scalar.to_f64();
        match scalar {
            // Beyond 2⁵³ a float64 does not hold every integer.
            Scalar::Int(int) if dtype == DType::I64 && value as i128 != i128::from(int) => {
                let one = HostTensor::from_values(Shape::scalar(), &[int]);
                let one = one.map_err(|error| Problem::argument(error.to_string()))?;
                let one = self.builder.constant(one)?;
                Ok(self.builder.apply(Op::Expand(shape), &[one])?)
            }
            _ => Ok(self.builder.apply(Op::Full { shape, dtype, value }, &[])?),
        }
    }

    /// Burns fuel for a walk over a list; where it runs out, the next step is refused.
    pub(crate) fn spend(&mut self, units: usize) {
        self.burns = self.burns.saturating_add(units as u64);
        self.fuel = self.fuel.saturating_sub(units as u64);
    }

    /// Burns fuel for work that grows with the program.
    pub(super) fn charge(&mut self, units: u64) -> Result<(), Problem> {
        if self.is_late(units) {
            return Err(GraphError::Time { nodes: self.builder.graph().nodes.len() }.into());
        }
        match self.fuel.checked_sub(units) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => Err(Problem::argument(format!(
                "more than {} program steps: use a smaller kernel",
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

    /// Makes a name of the module hold another tensor: who took the old one before keeps that.
    pub(crate) fn rebind(&mut self, index: usize, value: &Value) -> Result<(), Problem> {
        let (Value::Tensor(old), new) =
            (self.buffer(index).map_err(|e| Problem::argument(e.to_string()))?, value)
        else {
            return Err(Problem::argument("it takes a tensor"));
        };
        let content = self.materialise(new)?;
        let was = self.cells.any_value(old);
        if self.builder.graph().info(was) != self.builder.graph().info(content) {
            return Err(Problem::argument("the new content has another shape or type"));
        }
        let new = match *new {
            Value::Tensor(tensor) => tensor,
            _ => self.cells.allocate(content, Origin::Computed),
        };
        self.buffer_cells[index] = Some(new);
        Ok(())
    }

    /// A buffer's name.
    pub(crate) fn buffer_name(&self, index: usize) -> &str {
        &self.buffers[index].name
    }

    /// The number of the buffer a tensor is, where it is one.
    pub(super) fn buffer_of(&self, tensor: TensorRef) -> Option<u32> {
        match self.cells.origin(tensor) {
            Origin::Buffer(index) => Some(index),
            _ => None,
        }
    }

    /// Whether a tensor is a parameter or a buffer itself, and no view of one.
    pub(super) fn is_state(&self, tensor: TensorRef) -> bool {
        self.parameter_cells.contains(&Some(tensor)) || self.buffer_cells.contains(&Some(tensor))
    }

    /// Notes that batch norm counts its batches beside this running mean.
    pub(super) fn note_running_mean(&mut self, tensor: TensorRef) {
        if let Some(index) = self.buffer_of(tensor) {
            *self.running_means.entry(index).or_default() += 1;
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
            Value::Known(Known { scalar, dtype, .. }) => self.filled(Shape::scalar(), *dtype, *scalar),
            other => Err(Problem::argument(format!("{} stands where a tensor is needed", other.kind()))),
        }
    }

    /// The shape and type of a tensor.
    pub(crate) fn info(&self, value: &Value) -> Option<(Shape, DType)> {
        match value {
            Value::Tensor(tensor) => {
                let id = self.cells.any_value(*tensor);
                Some((self.builder.shape(id).clone(), self.builder.dtype(id)))
            }
            Value::Known(known) => Some((Shape::scalar(), known.dtype)),
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
        self.counters.get(prefix).copied()
    }

    /// Batch norm counts its batches in training and only there, whatever mode it was exported in.
    fn settle_counters(&mut self) -> Result<(), ArtifactError> {
        for (running_mean, uses) in std::mem::take(&mut self.running_means) {
            let Some(index) = self.counter_of(running_mean) else { continue };
            let name = self.buffers[index].name.clone();
            let Value::Tensor(counter) = self.buffer(index)? else { continue };
            let source = self.builder.graph().source(Source::Buffer(index as u32));
            let Some(source) = source else { continue };
            let counted = self.cells.any_value(counter) != source;
            if self.mode == Mode::Eval {
                self.cells.reset(counter, source);
            } else if !counted {
                let dtype = self.builder.dtype(source);
                let shape = self.builder.shape(source).clone();
                let count = self.builder.apply(Op::Full { shape, dtype, value: uses.into() }, &[]);
                let next = count
                    .and_then(|n| self.builder.apply(Op::Binary(crate::graph::Binary::Add), &[source, n]))
                    .map_err(graph_error(&name))?;
                self.cells.reset(counter, next);
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
