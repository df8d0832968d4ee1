//! Reverse-mode differentiation as a transformation of graphs.
//!
//! The gradient's nodes are first appended to the forward graph, so that a rule may read any forward value;
//! then the whole is split in two. What the backward half reads of the forward half becomes, in this order
//! of preference: the same source again (inputs, parameters, constants), the same view of something else
//! replayed, or a saved value.

use std::collections::{BTreeSet, HashMap, HashSet};

use smallvec::SmallVec;

use super::{
    Binary, Builder, Graph, GraphError, Limits, Node, Op, Sink, Source, ValueId,
    ops::{self, Rule},
};

/// Which gradients are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wants<'a> {
    /// By input.
    pub inputs: &'a [bool],
    /// By parameter.
    pub parameters: &'a [bool],
}

/// A forward graph and the backward graph that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Differentiated {
    /// The graph as it was, and `Sink::Saved` for what the backward graph reads.
    pub forward: Graph,
    /// From `Source::GradOutput` to `Sink::GradInput` and `Sink::GradParameter`. A gradient that is none in
    /// PyTorch, because no output depends on the value, is absent.
    pub backward: Graph,
}

/// Derives the backward graph within the default limits.
///
/// # Errors
/// As [`differentiate_within`].
pub fn differentiate(graph: &Graph, wants: &Wants<'_>) -> Result<Differentiated, GraphError> {
    differentiate_within(graph, wants, &Limits::default())
}

/// Derives the backward graph. `limits` are those of the forward graph; both together may have a few times as
/// much.
///
/// # Errors
/// [`GraphError::NoGradient`] when an operation without a gradient stands in the way, and what
/// [`Builder`] refuses.
pub fn differentiate_within(
    graph: &Graph,
    wants: &Wants<'_>,
    limits: &Limits,
) -> Result<Differentiated, GraphError> {
    let forward_nodes = graph.nodes.len();
    let needs = values_that_need(graph, wants);
    let mut builder = Builder::resume(graph.clone(), limits.with_gradient());
    let mut gradients = Gradients::default();

    for &(sink, value) in &graph.sinks {
        let info = graph.info(value);
        if let Sink::Output(n) = sink
            && needs[value.0 as usize]
            && info.dtype.is_floating_point()
        {
            let seed = builder.source(Source::GradOutput(n), info.shape.clone(), info.dtype)?;
            gradients.add(&mut builder, value, seed)?;
        }
    }
    for node in graph.nodes.iter().rev() {
        let of_outputs = node.outputs.iter().map(|&v| gradients.of(&mut builder, v));
        let of_outputs = of_outputs.collect::<Result<SmallVec<[_; 4]>, _>>()?;
        let wanted: SmallVec<[_; 4]> = node.inputs.iter().map(|v| needs[v.0 as usize]).collect();
        if of_outputs.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        let mut rule = Rule { builder: &mut builder, node, gradients: &of_outputs, wanted: &wanted };
        let of_inputs = ops::vjp(&mut rule)?;
        for (index, (&input, gradient)) in node.inputs.iter().zip(of_inputs).enumerate() {
            if let Some(gradient) = gradient.filter(|_| wanted[index]) {
                gradients.add(&mut builder, input, gradient)?;
            }
        }
    }
    let mut sinks = Vec::new();
    for &(source, value) in &graph.sources {
        let sink = match source {
            Source::Input(n) => Sink::GradInput(n),
            Source::Parameter(n) => Sink::GradParameter(n),
            _ => continue,
        };
        if is_wanted(source, wants)
            && let Some(gradient) = gradients.of(&mut builder, value)?
        {
            sinks.push((sink, gradient));
        }
    }
    Ok(split(graph, builder.finish(), forward_nodes, sinks))
}

fn is_wanted(source: Source, wants: &Wants<'_>) -> bool {
    match source {
        Source::Input(n) => wants.inputs.get(n as usize).copied().unwrap_or(false),
        Source::Parameter(n) => wants.parameters.get(n as usize).copied().unwrap_or(false),
        _ => false,
    }
}

/// By value: whether a wanted source reaches it through floating-point values.
fn values_that_need(graph: &Graph, wants: &Wants<'_>) -> Vec<bool> {
    let mut needs = vec![false; graph.values.len()];
    for &(source, value) in &graph.sources {
        needs[value.0 as usize] = is_wanted(source, wants) && graph.info(value).dtype.is_floating_point();
    }
    for node in &graph.nodes {
        if node.op != Op::Detach && node.inputs.iter().any(|v| needs[v.0 as usize]) {
            for &output in &node.outputs {
                needs[output.0 as usize] = graph.info(output).dtype.is_floating_point();
            }
        }
    }
    needs
}

/// The gradient gathered so far for each value.
#[derive(Default)]
struct Gradients(HashMap<ValueId, Gathered>);

#[derive(Default)]
struct Gathered {
    sum: Option<ValueId>,
    /// Not added yet: where slices make up the whole, as those of `chunk` and `unbind` do, their gradients are laid end to end
    /// instead, which reads and writes each element once.
    slices: Vec<OfSlice>,
}

/// The gradient of a slice without steps.
struct OfSlice {
    dim: usize,
    start: usize,
    len: usize,
    gradient: ValueId,
}

impl Gradients {
    /// The sum of what was added for a value, once.
    fn of(&mut self, builder: &mut Builder, value: ValueId) -> Result<Option<ValueId>, GraphError> {
        let Some(mut gathered) = self.0.remove(&value) else { return Ok(None) };
        let mut slices = std::mem::take(&mut gathered.slices);
        if let Some(whole) = joined(builder, &mut slices, value)? {
            gathered.add(builder, whole)?;
        } else {
            // One after the other, so that no two are held at a time.
            for OfSlice { dim, start, gradient, .. } in slices {
                let size = builder.shape(value)[dim];
                let spread = builder.apply(Op::Unslice { dim, size, start, step: 1 }, &[gradient])?;
                gathered.add(builder, spread)?;
            }
        }
        Ok(gathered.sum)
    }

    fn add(&mut self, builder: &mut Builder, value: ValueId, gradient: ValueId) -> Result<(), GraphError> {
        let gathered = self.0.entry(value).or_default();
        match OfSlice::new(builder, gradient) {
            Some(slice) => gathered.slices.push(slice),
            None => gathered.add(builder, gradient)?,
        }
        Ok(())
    }
}

impl Gathered {
    fn add(&mut self, builder: &mut Builder, gradient: ValueId) -> Result<(), GraphError> {
        self.sum = Some(match self.sum {
            Some(sum) => builder.apply(Op::Binary(Binary::Add), &[sum, gradient])?,
            None => gradient,
        });
        Ok(())
    }
}

impl OfSlice {
    /// What the node that was pushed last has spread within zeros, if that is where this gradient comes from.
    fn new(builder: &Builder, spread: ValueId) -> Option<Self> {
        let node = builder.graph().nodes.last().filter(|node| node.outputs.as_slice() == [spread])?;
        let Op::Unslice { dim, start, step: 1, .. } = node.op else { return None };
        let gradient = node.inputs[0];
        Some(Self { dim, start, len: builder.shape(gradient)[dim], gradient })
    }
}

/// The gradients of slices end to end, if they make up all of a value.
fn joined(
    builder: &mut Builder,
    slices: &mut [OfSlice],
    value: ValueId,
) -> Result<Option<ValueId>, GraphError> {
    slices.sort_by_key(|slice| slice.start);
    let [OfSlice { dim, .. }, _, ..] = *slices else { return Ok(None) };
    let mut end = 0;
    for slice in &*slices {
        if slice.dim != dim || slice.start != end {
            return Ok(None);
        }
        end += slice.len;
    }
    if end != builder.shape(value)[dim] {
        return Ok(None);
    }
    let parts: SmallVec<[ValueId; 4]> = slices.iter().map(|slice| slice.gradient).collect();
    builder.apply(Op::Cat { dim }, &parts).map(Some)
}

/// How the backward graph comes by a value of the forward graph.
enum Reading {
    /// From the same source.
    Again,
    /// By running the forward node of this index once more.
    Replay(usize),
    /// From what the forward pass saved.
    Saved,
}

/// Cuts the joint graph in two behind the first `forward_nodes` nodes.
fn split(forward: &Graph, joint: Graph, forward_nodes: usize, sinks: Vec<(Sink, ValueId)>) -> Differentiated {
    let own = reached(&joint, forward_nodes, sinks.iter().map(|&(_, value)| value));
    let readings = readings(forward, &joint, &own, &sinks);

    let mut cut = Cut { joint: &joint, backward: Graph::default(), renamed: HashMap::new() };
    let mut with_saved = forward.clone();
    for &(source, value) in &joint.sources {
        let foreign = value.0 as usize >= forward.values.len();
        if foreign || matches!(readings.get(&value), Some(Reading::Again)) {
            cut.source(source, value);
        }
    }
    let mut saved: Vec<ValueId> =
        readings.iter().filter(|(_, how)| matches!(how, Reading::Saved)).map(|(&value, _)| value).collect();
    saved.sort_unstable();
    for (n, &value) in saved.iter().enumerate() {
        let n = n as u32;
        with_saved.sinks.push((Sink::Saved(n), value));
        cut.source(Source::Saved(n), value);
    }
    let replayed: BTreeSet<usize> = readings
        .values()
        .filter_map(|how| if let Reading::Replay(index) = how { Some(*index) } else { None })
        .collect();
    for index in replayed.into_iter().chain(own) {
        cut.node(&joint.nodes[index]);
    }
    for (sink, value) in sinks {
        let value = cut.renamed[&value];
        cut.backward.sinks.push((sink, value));
    }
    Differentiated { forward: with_saved, backward: cut.backward }
}

/// The backward half's own nodes that lead to a sink, in order.
fn reached(joint: &Graph, forward_nodes: usize, roots: impl Iterator<Item = ValueId>) -> Vec<usize> {
    let mut wanted: BTreeSet<ValueId> = roots.collect();
    let mut nodes: Vec<usize> = Vec::new();
    for (index, node) in joint.nodes.iter().enumerate().skip(forward_nodes).rev() {
        if node.outputs.iter().any(|v| wanted.contains(v)) {
            wanted.extend(node.inputs.iter().copied());
            nodes.push(index);
        }
    }
    nodes.reverse();
    nodes
}

/// Decides on every value of the forward graph that the backward half reads.
fn readings(
    forward: &Graph,
    joint: &Graph,
    own: &[usize],
    sinks: &[(Sink, ValueId)],
) -> HashMap<ValueId, Reading> {
    let by_source: HashMap<ValueId, Source> = forward.sources.iter().map(|&(s, v)| (v, s)).collect();
    let mut producer = HashMap::new();
    for (index, node) in forward.nodes.iter().enumerate() {
        producer.extend(node.outputs.iter().map(|&v| (v, index)));
    }
    let updated: HashSet<u32> = forward
        .sinks
        .iter()
        .filter_map(|&(sink, _)| if let Sink::BufferUpdate(n) = sink { Some(n) } else { None })
        .collect();
    let is_forward = |value: &ValueId| (value.0 as usize) < forward.values.len();

    let read = own.iter().flat_map(|&index| joint.nodes[index].inputs.iter().copied());
    let mut open: Vec<ValueId> = read.chain(sinks.iter().map(|&(_, v)| v)).filter(is_forward).collect();
    let mut decided = HashMap::new();
    while let Some(value) = open.pop() {
        if decided.contains_key(&value) {
            continue;
        }
        let how = match (by_source.get(&value), producer.get(&value)) {
            // A buffer that this pass updates holds something else by the time of the backward pass.
            (Some(Source::Buffer(n)), _) if updated.contains(n) => Reading::Saved,
            (Some(_), _) => Reading::Again,
            (None, Some(&index)) if is_replayed(forward, &forward.nodes[index]) => {
                open.extend(forward.nodes[index].inputs.iter().copied());
                Reading::Replay(index)
            }
            (None, _) => Reading::Saved,
        };
        decided.insert(value, how);
    }
    decided
}

/// Whether running a node again is cheaper than saving what it gives: views cost nothing, nor do values
/// made of attributes alone. A small slice of something large is better saved than its whole base.
fn is_replayed(graph: &Graph, node: &Node) -> bool {
    let elements = |value: ValueId| graph.info(value).shape.elements();
    match node.op {
        Op::Reshape(_)
        | Op::Permute(_)
        | Op::Expand(_)
        | Op::Detach
        | Op::Full { .. }
        | Op::Arange { .. } => true,
        Op::Slice { .. } => elements(node.outputs[0]).saturating_mul(4) >= elements(node.inputs[0]),
        _ => false,
    }
}

/// The backward graph as it is cut out of the joint one, with values and constants numbered anew.
struct Cut<'a> {
    joint: &'a Graph,
    backward: Graph,
    renamed: HashMap<ValueId, ValueId>,
}

impl Cut<'_> {
    fn source(&mut self, source: Source, value: ValueId) {
        let source = match source {
            Source::Constant(n) => {
                self.backward.constants.push(self.joint.constants[n as usize].clone());
                Source::Constant(self.backward.constants.len() as u32 - 1)
            }
            other => other,
        };
        let renamed = self.value(value);
        self.backward.sources.push((source, renamed));
    }

    fn node(&mut self, node: &Node) {
        let inputs = node.inputs.iter().map(|value| self.renamed[value]).collect();
        let outputs = node.outputs.iter().map(|&value| self.value(value)).collect();
        self.backward.nodes.push(Node { op: node.op.clone(), inputs, outputs });
    }

    fn value(&mut self, value: ValueId) -> ValueId {
        let renamed = ValueId(self.backward.values.len() as u32);
        self.backward.values.push(self.joint.info(value).clone());
        self.renamed.insert(value, renamed);
        renamed
    }
}
