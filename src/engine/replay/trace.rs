//! A recorded pass operation by operation: what each gave, and which was the first to give no number.
//!
//! The graph runs on the device that runs passes, with the results of its operations as outputs, so that each number is
//! the pass's own. As many results are looked at in one run as fit a bound; the graph is run as often as that takes.

use super::{Replay, ReplayError};
use crate::{
    backend::{Backend as _, CompileOptions, Region, RunContext, nothing, run_on_host},
    engine::Kernel,
    graph::{Graph, GraphError, Sink, Source, ValueId, Wants, differentiate_within, simplify},
    record,
    tensor::{HostTensor, PackedLayout, Slot},
};

/// Bytes of results that are looked at in one run, where there is more than one.
const AT_A_TIME_BYTES: usize = 64 << 20;

/// What numbers a value holds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Range {
    /// The smallest finite number; 0 where there is none.
    pub min: f64,
    /// The largest finite number; 0 where there is none.
    pub max: f64,
    /// How many are no numbers.
    pub nans: usize,
    /// How many are infinite.
    pub infinities: usize,
    /// How many there are in all.
    pub elements: usize,
}

impl Range {
    /// Of a tensor's numbers.
    pub fn of(tensor: &HostTensor) -> Self {
        let numbers = tensor.to_f64();
        let finite = || numbers.iter().copied().filter(|number| number.is_finite());
        Self {
            min: finite().reduce(f64::min).unwrap_or(0.0),
            max: finite().reduce(f64::max).unwrap_or(0.0),
            nans: numbers.iter().filter(|number| number.is_nan()).count(),
            infinities: numbers.iter().filter(|number| number.is_infinite()).count(),
            elements: numbers.len(),
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Traced {
    /// The operation as the graph's text has it.
    pub operation: String,
    /// What it read, by name.
    pub operands: Vec<(String, Range)>,
    /// What it gave.
    pub results: Vec<Range>,
}

/// A pass operation by operation.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Trace {
    /// The operations, in the order they ran.
    pub operations: Vec<Traced>,
    /// Those by which what is not finite came into the results, in that order, by number. An infinity on the way that
    /// no result has, such as a mask's, is not among them.
    pub culprits: Vec<usize>,
}

impl Trace {
    /// The first operation by which what is not finite came into the results.
    pub fn first_culprit(&self) -> Option<&Traced> {
        self.operations.get(*self.culprits.first()?)
    }
}

impl Replay {
    /// Runs the pass without a time limit and looks at what every operation gives.
    ///
    /// Blocking: until done.
    ///
    /// # Errors
    /// [`ReplayError::Kernel`] where there is no plan, [`ReplayError::Trace`] where one for looking cannot be made,
    /// [`ReplayError::Forward`] where a backward has no activations.
    pub fn trace(&self) -> Result<Trace, ReplayError> {
        let plans = self.plans()?;
        let kernel = self.live.kernel();
        let mut graph = kernel.lower(&self.key, &self.config.graph_limits)?;
        simplify(&mut graph);
        let mut saved = nothing();
        let mut layout = PackedLayout::default();
        if self.record.header.direction == record::Direction::Backward {
            let graded: Vec<bool> =
                kernel.parameters().iter().map(|p| p.requires_grad && self.key.wants_parameters).collect();
            let wants = Wants { inputs: &[self.key.wants_input], parameters: &graded };
            let cannot = |error: GraphError| ReplayError::Trace { reason: error.to_string() };
            graph = differentiate_within(&graph, &wants, &self.config.graph_limits).map_err(cannot)?.backward;
            simplify(&mut graph);
            saved = self.activations(&plans)?.0;
            layout = plans.forward.needs().saved.clone();
        }
        let slot = |block: Region<'_>, slot: &Slot| {
            let mut bytes = vec![0; slot.len_bytes];
            let part = block.part(slot.offset_bytes, slot.len_bytes)?;
            part.read(&mut bytes).then(|| HostTensor::new(slot.shape.clone(), slot.dtype, bytes).ok())?
        };
        let feed = |source: Source| match source {
            Source::Input(_) => Some(self.record.input.clone()),
            Source::Parameter(n) => {
                slot(self.live.parameters(), &kernel.parameter_layout().slots()[n as usize])
            }
            Source::Buffer(n) => slot(self.live.buffers(), &kernel.buffer_layout().slots()[n as usize]),
            Source::Saved(n) => slot(saved.region(), &layout.slots()[n as usize]),
            Source::GradOutput(_) => self.record.grad_output.clone(),
            Source::Constant(n) => graph.constants.get(n as usize).cloned(),
        };
        let ranges = self.ranges(&graph, &feed)?;
        Ok(trace(&graph, kernel, &ranges))
    }

    /// What every value of a graph holds.
    fn ranges(
        &self,
        graph: &Graph,
        feed: &dyn Fn(Source) -> Option<HostTensor>,
    ) -> Result<Vec<Option<Range>>, ReplayError> {
        let cannot = |reason: String| ReplayError::Trace { reason };
        let fed = |source| feed(source).ok_or_else(|| cannot(format!("the record has no {source}")));
        let mut ranges = vec![None; graph.values.len()];
        for &(source, value) in &graph.sources {
            ranges[value.0 as usize] = Some(Range::of(&fed(source)?));
        }
        let kernel = self.live.kernel();
        let layouts = [kernel.parameter_layout(), kernel.buffer_layout()];
        let options = CompileOptions {
            parameters: layouts[0],
            buffers: layouts[1],
            limit_bytes: super::MAX_PLAN_BYTES as usize,
            deadline: None,
        };
        let seed = self.record.header.rng_seed;
        let context = RunContext { seed, deadline: None, threads: self.config.threads };
        let mut done = 0;
        while done < graph.nodes.len() {
            let (part, end) = until(graph, done);
            let executable =
                self.backend.compile(&part, &options).map_err(|error| cannot(error.to_string()))?;
            let given = |source| feed(source).expect("it was there for the whole graph");
            let results = run_on_host(&self.backend, &*executable, &part, layouts, given, &context);
            for (sink, tensor) in results.map_err(|error| cannot(error.to_string()))? {
                if let Sink::Output(value) = sink {
                    ranges[value as usize] = Some(Range::of(&tensor));
                }
            }
            done = end;
        }
        Ok(ranges)
    }
}

/// The graph up to some node, with the results of the nodes from `start` on as outputs; and the number of the first
/// node that is not in it. Outputs are numbered as values are.
fn until(graph: &Graph, start: usize) -> (Graph, usize) {
    let (mut end, mut bytes) = (start, 0usize);
    let mut part = Graph { sinks: Vec::new(), ..graph.clone() };
    while let Some(node) = graph.nodes.get(end) {
        let size = |value: &ValueId| {
            let info = graph.info(*value);
            info.shape.elements().saturating_mul(info.dtype.size_bytes())
        };
        bytes = bytes.saturating_add(node.outputs.iter().map(size).sum());
        if end > start && bytes > AT_A_TIME_BYTES {
            break;
        }
        part.sinks.extend(node.outputs.iter().map(|&value| (Sink::Output(value.0), value)));
        end += 1;
    }
    part.nodes.truncate(end);
    (part, end)
}

fn trace(graph: &Graph, kernel: &Kernel, ranges: &[Option<Range>]) -> Trace {
    let name = |value: ValueId| {
        let source = graph.sources.iter().find(|(_, known)| *known == value).map(|(source, _)| source);
        match source {
            None => value.to_string(),
            Some(Source::Parameter(n)) => kernel.parameters()[*n as usize].name.clone(),
            Some(Source::Buffer(n)) => kernel.buffers()[*n as usize].name.clone(),
            Some(source) => source.to_string().replace(' ', "_"),
        }
    };
    let range = |value: &ValueId| ranges[value.0 as usize];
    let operations = graph.nodes.iter().map(|node| Traced {
        operation: graph.line(node, &name).to_string(),
        operands: node.inputs.iter().filter_map(|value| Some((name(*value), range(value)?))).collect(),
        results: node.outputs.iter().filter_map(range).collect(),
    });
    Trace { operations: operations.collect(), culprits: culprits(graph, ranges) }
}

/// From the results that are not finite back through what is not finite: from NaNs where there are any, to the operands'
/// NaNs, and to their infinities only where none has a NaN; from infinities to infinities.
fn culprits(graph: &Graph, ranges: &[Option<Range>]) -> Vec<usize> {
    let range = |value: &ValueId| ranges[value.0 as usize].as_ref();
    let has_nans = |value: &ValueId| range(value).is_some_and(|range| range.nans > 0);
    let has_infinities = |value: &ValueId| range(value).is_some_and(|range| range.infinities > 0);
    // By value, whether its NaNs and whether its infinities are among those that came into the results.
    let (mut nans, mut infinities) = (vec![false; graph.values.len()], vec![false; graph.values.len()]);
    for (_, value) in &graph.sinks {
        nans[value.0 as usize] = has_nans(value);
        infinities[value.0 as usize] = has_infinities(value) && !has_nans(value);
    }
    let mut found = Vec::new();
    for (n, node) in graph.nodes.iter().enumerate().rev() {
        let is_any = |wanted: &[bool]| node.outputs.iter().any(|value| wanted[value.0 as usize]);
        let (gives_nans, gives_infinities) = (is_any(&nans), is_any(&infinities));
        if !gives_nans && !gives_infinities {
            continue;
        }
        found.push(n);
        let of_nans = gives_nans && node.inputs.iter().any(has_nans);
        let of_infinities = gives_infinities || !of_nans;
        for value in &node.inputs {
            nans[value.0 as usize] |= of_nans && has_nans(value);
            infinities[value.0 as usize] |= of_infinities && has_infinities(value);
        }
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Binary, Builder, Op, Unary},
        tensor::DType,
    };

    fn of_two_numbers() -> (Builder, ValueId) {
        let mut b = Builder::new();
        let x = b.source(Source::Input(0), [2].into(), DType::F32).unwrap();
        (b, x)
    }

    fn unary(b: &mut Builder, unary: Unary, v: ValueId) -> ValueId {
        b.apply(Op::Unary(unary), &[v]).unwrap()
    }

    #[test]
    fn an_infinity_that_does_not_reach_the_result_is_no_culprit() {
        let (mut b, x) = of_two_numbers();
        // 0: -inf, which becomes 0 again; 2: NaN; 3: both together; 4: NaN too, further on.
        let mask = unary(&mut b, Unary::Log, x);
        let zero = unary(&mut b, Unary::Exp, mask);
        let root = unary(&mut b, Unary::Sqrt, x);
        let sum = b.apply(Op::Binary(Binary::Add), &[zero, root]).unwrap();
        let out = unary(&mut b, Unary::Tanh, sum);
        b.sink(Sink::Output(0), out);
        let graph = b.finish();
        let range = |is_finite: bool| {
            Some(Range { min: 0.0, max: 0.0, nans: usize::from(!is_finite), infinities: 0, elements: 2 })
        };
        let mut ranges = vec![range(true); graph.values.len()];
        for bad in [mask, root, sum, out] {
            ranges[bad.0 as usize] = range(false);
        }
        assert_eq!(culprits(&graph, &ranges), [2, 3, 4]);
    }

    #[test]
    fn a_nan_comes_of_a_nan_where_it_meets_a_mask() {
        let (mut b, x) = of_two_numbers();
        // 0: a mask, of -inf; 1: NaN; 2: both; 3: an infinity of the sum's.
        let mask = unary(&mut b, Unary::Log, x);
        let root = unary(&mut b, Unary::Sqrt, x);
        let sum = b.apply(Op::Binary(Binary::Add), &[root, mask]).unwrap();
        let out = unary(&mut b, Unary::Exp, sum);
        b.sink(Sink::Output(0), out);
        let graph = b.finish();
        let range = |nans, infinities| Some(Range { min: 0.0, max: 0.0, nans, infinities, elements: 2 });
        let mut ranges = vec![range(0, 0); graph.values.len()];
        let mut found = |values: [(ValueId, usize, usize); 4]| {
            values
                .iter()
                .for_each(|&(value, nans, infinities)| ranges[value.0 as usize] = range(nans, infinities));
            culprits(&graph, &ranges)
        };
        assert_eq!(found([(mask, 0, 1), (root, 1, 0), (sum, 1, 1), (out, 1, 0)]), [1, 2, 3]);
        // Without one it comes of the infinities, and an infinity comes of these alone.
        assert_eq!(found([(mask, 0, 1), (root, 0, 1), (sum, 1, 0), (out, 1, 0)]), [0, 1, 2, 3]);
        assert_eq!(found([(mask, 0, 1), (root, 1, 0), (sum, 1, 1), (out, 0, 1)]), [0, 2, 3]);
    }
}
