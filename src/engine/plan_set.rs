//! The plans of a kernel for one input shape and mode: forward, and backward where gradients are wanted.

use std::{collections::HashSet, sync::Arc, time::Instant};

use super::{EngineConfig, EngineError, Kernel, charge::Charge};
use crate::{
    backend::{Backend, CompileOptions, Executable},
    graph::{
        Builder, Cost, Graph, GraphError, Limits, Op, Reduction, Sink, ValueId, ValueInfo, Wants, cost,
        differentiate_within, simplify,
    },
    id::KernelId,
    tensor::{DType, Shape},
};

/// What a plan depends on beside its kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlanKey {
    /// The input's shape, the batch first.
    pub input_shape: Shape,
    /// The input's type.
    pub dtype: DType,
    /// Training mode.
    pub train: bool,
    /// Whether a backward will want the gradient of the input.
    pub wants_input: bool,
    /// Whether a backward will want the gradients of the parameters.
    pub wants_parameters: bool,
}

impl PlanKey {
    /// The same for a seed that learns behind its layer, which gives no gradient of x.
    pub fn straight(&self) -> Self {
        Self { wants_input: false, ..self.clone() }
    }
}

/// A kernel's plans for one key.
#[derive(Debug)]
pub struct PlanSet {
    /// What they were made for.
    pub key: PlanKey,
    /// What the kernel gives.
    pub output: ValueInfo,
    /// Runs the kernel. Where it [`measures`](Self::measures), output 1 is the f32 sum of the squares of output 0: finite
    /// only if all of it is. Where the sum is not, the output has to be looked through.
    pub forward: Arc<dyn Executable>,
    /// Runs its gradient; absent where none is wanted or nothing wanted depends on the output.
    pub backward: Option<Backward>,
    /// Buffers that the forward pass updates, by number.
    pub updates: Vec<usize>,
    /// Whether `forward` gives the sum of the squares: for the guard, and in training for the series.
    pub measures: bool,
    /// What the forward pass costs.
    pub cost: Cost,
    /// What the plans weigh, in their kernel's weight for as long as anybody holds them.
    _charge: Charge,
}

/// A kernel's gradient.
#[derive(Debug)]
pub struct Backward {
    /// Runs it.
    pub executable: Arc<dyn Executable>,
    /// Whether it gives the gradient of the input.
    pub gives_input: bool,
    /// Parameters for which it gives no gradient, by number.
    pub ungraded: Vec<usize>,
}

impl PlanSet {
    pub(super) fn build(
        kernel: &Kernel,
        key: &PlanKey,
        backend: &dyn Backend,
        config: &EngineConfig,
    ) -> Result<Self, EngineError> {
        let now = Instant::now();
        let limits = config.graph_limits.until(now.checked_add(config.plan_time_limit).unwrap_or(now));
        let mut graph = kernel.lower(key, &limits)?;
        let outputs = graph.sinks.iter().filter(|(sink, _)| matches!(sink, Sink::Output(_))).count();
        let id = || kernel.id().clone();
        let Some(output) = graph.sink(Sink::Output(0)).filter(|_| outputs == 1) else {
            return Err(EngineError::Outputs { kernel: id(), count: outputs });
        };
        let output = graph.info(output).clone();
        simplify(&mut graph);
        let refused = |source: GraphError| EngineError::Gradient { kernel: kernel.id().clone(), source };
        let options = CompileOptions {
            parameters: kernel.parameter_layout(),
            buffers: kernel.buffer_layout(),
            limit_bytes: config.max_plan_bytes,
            deadline: limits.deadline,
        };
        let compile = |graph: &Graph| {
            let built = backend.compile(graph, &options);
            built.map_err(|source| EngineError::Build { kernel: kernel.id().clone(), source })
        };
        let mut flops = cost(&graph).flops;
        let affordable = |flops: u64| {
            let samples = key.input_shape.first().map_or(1, |&batch| batch.max(1) as u64);
            let (needed, limit) = (flops / samples, config.max_flops);
            if needed > limit {
                let (kernel, input) = (kernel.id().clone(), key.input_shape.clone());
                return Err(EngineError::Flops { kernel, input, needed, limit });
            }
            Ok(())
        };
        affordable(flops)?;
        let mut backward = None;
        if key.wants_input || key.wants_parameters {
            let graded: Vec<bool> =
                kernel.parameters().iter().map(|p| p.requires_grad && key.wants_parameters).collect();
            let wants = Wants { inputs: &[key.wants_input], parameters: &graded };
            let mut both = differentiate_within(&graph, &wants, &limits).map_err(refused)?;
            simplify(&mut both.backward);
            flops = flops.saturating_add(cost(&both.backward).flops);
            affordable(flops)?;
            if !both.backward.sinks.is_empty() {
                let gives = |sink| both.backward.sink(sink).is_some();
                let given: HashSet<usize> = both.backward.sinks.iter().filter_map(graded_parameter).collect();
                backward = Some(Backward {
                    executable: compile(&both.backward)?,
                    gives_input: gives(Sink::GradInput(0)),
                    ungraded: (0..graded.len()).filter(|&n| !given.contains(&n)).collect(),
                });
                graph = both.forward;
            }
        }
        let is_asked = config.non_finite_guard || key.train && config.series_length > 0;
        let measures = is_asked && output.dtype.is_floating_point();
        if measures {
            graph = measure(graph, limits).map_err(refused)?;
            simplify(&mut graph);
        }
        let updates = graph.sinks.iter().filter_map(|&(sink, _)| match sink {
            Sink::BufferUpdate(n) => Some(n as usize),
            _ => None,
        });
        let updates = updates.collect();
        let cost = cost(&graph);
        let forward = compile(&graph)?;
        let executables = backward.iter().map(|backward| &backward.executable).chain([&forward]);
        let held_bytes = executables.map(|executable| executable.held_bytes()).sum::<usize>();
        let _charge = kernel.charge(size_of::<Self>() + held_bytes);
        let key = key.clone();
        Ok(Self { key, output, forward, backward, updates, measures, cost, _charge })
    }

    /// Whether what the kernel gives is what a layer needs.
    pub(super) fn check_output(
        &self,
        kernel: &KernelId,
        expected: &Shape,
        expected_dtype: DType,
    ) -> Result<(), EngineError> {
        let ValueInfo { shape, dtype } = &self.output;
        if shape == expected && *dtype == expected_dtype {
            return Ok(());
        }
        Err(EngineError::Output {
            kernel: kernel.clone(),
            expected: expected.clone(),
            expected_dtype,
            actual: shape.clone(),
            actual_dtype: *dtype,
        })
    }

    /// Bytes that a pass holds until its backward, beside the output.
    pub fn saved_bytes(&self) -> usize {
        self.forward.needs().saved.total_bytes()
    }

    /// Bytes of scratch memory that either direction needs.
    pub fn workspace_bytes(&self) -> usize {
        let backward = self.backward.as_ref().map_or(0, |b| b.executable.needs().workspace_bytes);
        self.forward.needs().workspace_bytes.max(backward)
    }
}

fn graded_parameter((sink, _): &(Sink, ValueId)) -> Option<usize> {
    if let Sink::GradParameter(n) = sink { Some(*n as usize) } else { None }
}

/// Adds the sum of the squares of output 0 as another output: infinities and NaNs cannot cancel out in it, and its
/// root is the output's norm.
fn measure(graph: Graph, limits: Limits) -> Result<Graph, GraphError> {
    let mut builder = Builder::resume(graph, limits.with_gradient());
    let Some(mut value) = builder.graph().sink(Sink::Output(0)) else { return Ok(builder.finish()) };
    value = builder.apply(Op::Cast(DType::F32), &[value])?;
    // The batch last: until then every sample is summed on its own, side by side.
    let rank = builder.shape(value).rank();
    let of_samples = Op::Reduce { reduction: Reduction::SumOfSquares, dims: (1..rank).collect() };
    value = builder.apply(of_samples, &[value])?;
    let of_all = Op::Reduce { reduction: Reduction::Sum, dims: (0..rank.min(1)).collect() };
    value = builder.apply(of_all, &[value])?;
    builder.sink(Sink::Output(1), value);
    Ok(builder.finish())
}
