//! From a graph to steps with every place known.

mod together;

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use smallvec::{SmallVec, smallvec};

use super::{
    Addmm, Chain, Home, Joined, Place, addmm,
    chain::{self, Part},
    joined, place,
    workspace::{Need, pack},
};
use crate::{
    backend::{BuildError, CompileOptions, MemoryNeeds},
    graph::{Graph, Op, Sink, Source, ValueId, ValueInfo},
    tensor::{ALIGNMENT_BYTES, DType, HostTensor, Layout, PackedLayout, Shape, ShapeError},
};

/// How many operations are planned from one look at the clock to the next.
const NODES_A_LOOK: usize = 64;

/// What planning asks of a device.
pub trait Target {
    /// Whether the device reads an operand of an operation by its strides; if not, it is made contiguous.
    fn takes_strides(&self, op: &Op, operand: usize) -> bool;

    /// Scratch bytes that one operation needs while it runs. It reads its operands by `layouts`, each from the start of
    /// memory that is aligned to [`ALIGNMENT_BYTES`], and writes contiguous results.
    fn scratch_bytes(
        &self,
        op: &Op,
        inputs: &[&ValueInfo],
        layouts: &[&Layout],
        outputs: &[&ValueInfo],
    ) -> usize;

    /// Scratch bytes of a product that takes its bias with it, by the layouts of its factors and of the bias, which is
    /// contiguous; `None` where the device adds the bias in a step of its own.
    fn addmm_bytes(&self, addmm: Addmm, layouts: [&Layout; 3], y: &ValueInfo) -> Option<usize> {
        let _ = (addmm, layouts, y);
        None
    }

    /// Whether the device does a normalisation of batches over x, or its gradient, in one step with the chain that comes after or
    /// before it: without scratch, with the operation's operands contiguous and the chain's by strides, as [`Joined`] has them.
    fn joins(&self, x: &Shape) -> bool {
        let _ = x;
        false
    }
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum StepKind {
    /// An operation of the graph.
    Op(Op),
    /// A product with its bias.
    Addmm(Addmm),
    /// Several, which compute each element from those at the same place. Operands are read by strides, and broadcast.
    Chain(Chain),
    /// An operation with those that come before or after it.
    Joined(Box<Joined>),
    /// Copies a strided tensor into a contiguous one of the same shape and type.
    Copy,
}

/// Scratch memory within the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Scratch {
    /// Bytes from the workspace's start.
    pub offset_bytes: usize,
    /// How many bytes.
    pub len_bytes: usize,
}

/// One thing to do, with all its memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What.
    pub kind: StepKind,
    /// The operands.
    pub inputs: SmallVec<[Place; 4]>,
    /// The results; always contiguous.
    pub outputs: SmallVec<[Place; 2]>,
    /// Memory of its own while it runs.
    pub scratch: Scratch,
}

/// A graph with every place known.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// What to provide.
    pub needs: MemoryNeeds,
    /// The block of constants; each starts on a multiple of [`ALIGNMENT_BYTES`].
    pub constants: Vec<u8>,
}

impl Plan {
    /// Bytes of memory that it takes: steps with their places, and constants.
    pub fn held_bytes(&self) -> usize {
        let spilled = |step: &Step| {
            let links = match &step.kind {
                StepKind::Chain(chain) => chain.held_bytes(),
                StepKind::Joined(joined) => size_of::<Joined>() + joined.chain.held_bytes(),
                _ => 0,
            };
            let inputs = if step.inputs.spilled() { step.inputs.capacity() } else { 0 };
            let outputs = if step.outputs.spilled() { step.outputs.capacity() } else { 0 };
            links + (inputs + outputs) * size_of::<Place>()
        };
        self.steps.capacity() * size_of::<Step>()
            + self.steps.iter().map(spilled).sum::<usize>()
            + size_of_val(self.needs.saved.slots())
            + self.constants.capacity()
    }
}

/// Memory that one or more values look at.
#[derive(Clone, Copy)]
struct Storage {
    bytes: usize,
    /// Where it is, once that is decided; until then it belongs into the workspace.
    home: Option<(Home, usize)>,
}

/// A value as it stands in memory: a storage and how to read it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Bound {
    storage: usize,
    layout: Layout,
    dtype: DType,
}

struct Draft {
    kind: StepKind,
    inputs: SmallVec<[Bound; 4]>,
    outputs: SmallVec<[Bound; 2]>,
    scratch_bytes: usize,
}

struct Planner<'a> {
    graph: &'a Graph,
    target: &'a dyn Target,
    storages: Vec<Storage>,
    values: Vec<Option<Bound>>,
    /// Contiguous copies made so far, by what they are copies of.
    copies: HashMap<Bound, Bound>,
    drafts: Vec<Draft>,
    constants: Vec<u8>,
}

/// Plans a graph for a device.
///
/// # Errors
/// [`BuildError::TooMuchMemory`] when a block would not fit the address space, [`BuildError::Time`] when the
/// deadline passed.
pub fn plan(graph: &Graph, target: &dyn Target, options: &CompileOptions<'_>) -> Result<Plan, BuildError> {
    let too_much =
        |_| BuildError::TooMuchMemory { needed_bytes: usize::MAX, limit_bytes: options.limit_bytes };
    let saved = saved_layout(graph).map_err(too_much)?;
    let mut planner = Planner {
        graph,
        target,
        storages: Vec::new(),
        values: vec![None; graph.values.len()],
        copies: HashMap::new(),
        drafts: Vec::new(),
        constants: Vec::new(),
    };
    planner.sources(options, &saved);
    planner.nodes(options.deadline)?;
    planner.sinks(options, &saved);
    Ok(planner.place(saved))
}

/// The layout of saved values, which both halves derive from their own graph.
fn saved_layout(graph: &Graph) -> Result<PackedLayout, ShapeError> {
    let from_sinks =
        graph.sinks.iter().filter_map(|&(s, v)| if let Sink::Saved(n) = s { Some((n, v)) } else { None });
    let from_sources =
        graph.sources.iter().filter_map(|&(s, v)| if let Source::Saved(n) = s { Some((n, v)) } else { None });
    let mut saved: Vec<(u32, ValueId)> = from_sinks.chain(from_sources).collect();
    saved.sort_unstable();
    PackedLayout::new(saved.into_iter().map(|(_, value)| {
        let info = graph.info(value);
        (&info.shape, info.dtype)
    }))
}

fn offset_in(layout: &PackedLayout, n: u32) -> usize {
    layout.slots().get(n as usize).map_or(0, |slot| slot.offset_bytes)
}

impl Planner<'_> {
    fn sources(&mut self, options: &CompileOptions<'_>, saved: &PackedLayout) {
        for &(source, value) in &self.graph.sources {
            let offset = match source {
                Source::Parameter(n) => offset_in(options.parameters, n),
                Source::Buffer(n) => offset_in(options.buffers, n),
                Source::Saved(n) => offset_in(saved, n),
                Source::Constant(n) => self.constant(&self.graph.constants[n as usize]),
                Source::Input(_) | Source::GradOutput(_) => 0,
            };
            let info = self.graph.info(value);
            let bound = self.fresh(&info.shape, info.dtype, Some((place::of_source(source), offset)));
            self.values[value.0 as usize] = Some(bound);
        }
    }

    fn nodes(&mut self, deadline: Option<Instant>) -> Result<(), BuildError> {
        let total = self.graph.nodes.len();
        let parts = chain::parts(self.graph);
        let candidates = addmm::candidates(self.graph, &parts);
        let may_join = joined::candidates(self.graph, &parts, |x| self.target.joins(x));
        let mut done_before = HashSet::<usize>::new();
        for (done, node) in self.graph.nodes.iter().enumerate() {
            if done.is_multiple_of(NODES_A_LOOK) && deadline.is_some_and(|at| Instant::now() >= at) {
                return Err(BuildError::Time { done, total });
            }
            if done_before.remove(&done) {
                continue;
            }
            if let Some(candidate) = candidates.get(&done)
                && self.addmm(done, candidate)
            {
                done_before.extend(&candidate.after);
                continue;
            }
            if let Some(candidate) = may_join.get(&done)
                && !candidate.nodes.iter().chain([&candidate.op]).any(|node| done_before.contains(node))
                && self.joined(candidate)
            {
                let nodes = candidate.nodes.iter().chain([&candidate.op]).copied();
                done_before.extend(nodes.filter(|&node| node > done));
                continue;
            }
            match &parts[done] {
                Part::Alone => {}
                Part::Link => continue,
                Part::End { nodes, outputs } => {
                    self.chain(nodes, outputs);
                    continue;
                }
            }
            let inputs: SmallVec<[Bound; 4]> = node.inputs.iter().map(|&v| self.bound(v)).collect();
            let infos: SmallVec<[&ValueInfo; 2]> = node.outputs.iter().map(|&v| self.graph.info(v)).collect();
            let viewed = match &node.op {
                Op::Reshape(shape) => Some(self.reshaped(&inputs[0], shape)),
                Op::Permute(order) => Some(relaid(&inputs[0], inputs[0].layout.permute(order))),
                Op::Expand(shape) => Some(relaid(&inputs[0], inputs[0].layout.expand(shape))),
                Op::Slice { dim, start, len, step } => {
                    Some(relaid(&inputs[0], inputs[0].layout.slice(*dim, *start, *len, *step)))
                }
                Op::Detach => Some(inputs[0].clone()),
                Op::Full { shape, dtype, value } => Some(self.repeated(shape, *dtype, *value)),
                Op::Cast(dtype) if *dtype == inputs[0].dtype => Some(inputs[0].clone()),
                _ => None,
            };
            if let Some(bound) = viewed {
                self.values[node.outputs[0].0 as usize] = Some(bound);
                continue;
            }
            let inputs: SmallVec<[Bound; 4]> = inputs
                .into_iter()
                .enumerate()
                .map(
                    |(i, bound)| {
                        if self.target.takes_strides(&node.op, i) { bound } else { self.contiguous(bound) }
                    },
                )
                .collect();
            let outputs: SmallVec<[Bound; 2]> =
                infos.iter().map(|info| self.fresh(&info.shape, info.dtype, None)).collect();
            for (&value, bound) in node.outputs.iter().zip(&outputs) {
                self.values[value.0 as usize] = Some(bound.clone());
            }
            let input_infos: SmallVec<[&ValueInfo; 4]> =
                node.inputs.iter().map(|&v| self.graph.info(v)).collect();
            let scratch_bytes = {
                let layouts: SmallVec<[&Layout; 4]> = inputs.iter().map(|bound| &bound.layout).collect();
                self.target.scratch_bytes(&node.op, &input_infos, &layouts, &infos)
            };
            self.drafts.push(Draft { kind: StepKind::Op(node.op.clone()), inputs, outputs, scratch_bytes });
        }
        Ok(())
    }

    /// Computes each leaving value where it has to end up, or copies it there.
    fn sinks(&mut self, options: &CompileOptions<'_>, saved: &PackedLayout) {
        for &(sink, value) in &self.graph.sinks {
            let offset = match sink {
                Sink::GradParameter(n) => offset_in(options.parameters, n),
                Sink::BufferUpdate(n) => offset_in(options.buffers, n),
                Sink::Saved(n) => offset_in(saved, n),
                Sink::Output(_) | Sink::GradInput(_) => 0,
            };
            let home = (place::of_sink(sink), offset);
            let bound = self.bound(value);
            let storage = &mut self.storages[bound.storage];
            let whole = bound.layout.is_contiguous()
                && bound.layout.offset() == 0
                && bound.layout.shape().elements() * bound.dtype.size_bytes() == storage.bytes;
            if storage.home.is_none() && whole {
                storage.home = Some(home);
                continue;
            }
            let info = self.graph.info(value);
            let to = self.fresh(&info.shape, info.dtype, Some(home));
            self.copy(bound, to);
        }
    }

    /// Packs what is left into the workspace and writes the final steps.
    fn place(mut self, saved: PackedLayout) -> Plan {
        let mut lives: HashMap<usize, (usize, usize)> = HashMap::new();
        for (step, draft) in self.drafts.iter().enumerate() {
            for bound in draft.inputs.iter().chain(&draft.outputs) {
                lives.entry(bound.storage).and_modify(|(_, last)| *last = step).or_insert((step, step));
            }
        }
        enum Owner {
            Storage(usize),
            Scratch(usize),
        }
        let homeless = lives.into_iter().filter(|(storage, _)| self.storages[*storage].home.is_none());
        let mut needs: Vec<(Need, Owner)> = homeless
            .map(|(storage, (first, last))| {
                (Need { first, last, bytes: self.storages[storage].bytes }, Owner::Storage(storage))
            })
            .collect();
        for (step, draft) in self.drafts.iter().enumerate().filter(|(_, draft)| draft.scratch_bytes > 0) {
            needs.push((Need { first: step, last: step, bytes: draft.scratch_bytes }, Owner::Scratch(step)));
        }
        // The second key makes the plan the same on every build.
        needs.sort_by_key(|(need, owner)| {
            (
                need.first,
                match owner {
                    Owner::Storage(n) => (0, *n),
                    Owner::Scratch(n) => (1, *n),
                },
            )
        });
        let (offsets, workspace_bytes) = pack(&needs.iter().map(|(need, _)| *need).collect::<Vec<_>>());
        let mut scratch = vec![Scratch::default(); self.drafts.len()];
        for ((need, owner), offset_bytes) in needs.into_iter().zip(offsets) {
            match owner {
                Owner::Storage(n) => self.storages[n].home = Some((Home::Workspace, offset_bytes)),
                Owner::Scratch(step) => scratch[step] = Scratch { offset_bytes, len_bytes: need.bytes },
            }
        }
        let storages = &self.storages;
        let placed = |bound: Bound| {
            let (home, offset_bytes) = storages[bound.storage]
                .home
                .expect("every storage that a step touches has been given a home");
            Place { home, offset_bytes, dtype: bound.dtype, layout: bound.layout }
        };
        let steps = self
            .drafts
            .into_iter()
            .zip(scratch)
            .map(|(draft, scratch)| Step {
                kind: draft.kind,
                inputs: draft.inputs.into_iter().map(placed).collect(),
                outputs: draft.outputs.into_iter().map(placed).collect(),
                scratch,
            })
            .collect();
        Plan { steps, needs: MemoryNeeds { workspace_bytes, saved }, constants: self.constants }
    }

    fn bound(&self, value: ValueId) -> Bound {
        self.values[value.0 as usize].clone().expect("a builder's graph gives values before they are read")
    }

    fn fresh(&mut self, shape: &Shape, dtype: DType, home: Option<(Home, usize)>) -> Bound {
        self.storages.push(Storage { bytes: shape.elements().saturating_mul(dtype.size_bytes()), home });
        Bound { storage: self.storages.len() - 1, layout: Layout::contiguous(shape.clone()), dtype }
    }

    fn copy(&mut self, from: Bound, to: Bound) {
        let draft =
            Draft { kind: StepKind::Copy, inputs: smallvec![from], outputs: smallvec![to], scratch_bytes: 0 };
        self.drafts.push(draft);
    }

    fn contiguous(&mut self, bound: Bound) -> Bound {
        if bound.layout.is_contiguous() {
            return bound;
        }
        if let Some(copy) = self.copies.get(&bound) {
            return copy.clone();
        }
        let copy = self.fresh(bound.layout.shape(), bound.dtype, None);
        self.copy(bound.clone(), copy.clone());
        self.copies.insert(bound, copy.clone());
        copy
    }

    fn reshaped(&mut self, bound: &Bound, shape: &Shape) -> Bound {
        match bound.layout.reshape(shape) {
            Some(layout) => relaid(bound, layout),
            None => {
                let copy = self.contiguous(bound.clone());
                let layout = copy.layout.reshape(shape).expect("a contiguous tensor takes any shape");
                relaid(&copy, layout)
            }
        }
    }

    /// One element read everywhere: a filled tensor without the filling.
    fn repeated(&mut self, shape: &Shape, dtype: DType, value: f64) -> Bound {
        let scalar = scalar(dtype, value);
        let offset = self.constant(&scalar);
        let bound = self.fresh(&Shape::scalar(), dtype, Some((Home::Constants, offset)));
        relaid(&bound, bound.layout.expand(shape))
    }

    fn constant(&mut self, tensor: &HostTensor) -> usize {
        let offset = self.constants.len();
        self.constants.extend_from_slice(tensor.bytes());
        self.constants.resize(self.constants.len().next_multiple_of(ALIGNMENT_BYTES), 0);
        offset
    }
}

fn relaid(bound: &Bound, layout: Layout) -> Bound {
    Bound { storage: bound.storage, layout, dtype: bound.dtype }
}

fn scalar(dtype: DType, value: f64) -> HostTensor {
    use half::{bf16, f16};
    let bytes: Vec<u8> = match dtype {
        DType::F64 => value.to_le_bytes().to_vec(),
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        DType::I64 => (value as i64).to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
        DType::U8 => vec![value as u8],
        DType::Bool => vec![u8::from(value != 0.0)],
    };
    HostTensor::new(Shape::scalar(), dtype, bytes).expect("one element has as many bytes as its type")
}
