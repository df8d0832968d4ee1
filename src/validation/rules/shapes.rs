//! `shapes.declared`: the program, lowered for the declared input, gives the declared output.

use super::{Report, SHAPES_DECLARED, pass_cost};
use crate::{
    artifact::{ArtifactError, DeclaredInput, Mode},
    graph::{Differentiated, Graph, Limits, Sink, Wants, differentiate_within, simplify},
    tensor::{DType, Shape},
    validation::{Metadata, PassCost},
};

/// The batch sizes a program with a free batch is lowered for. Neither is 1, which broadcasts.
const BATCHES: [usize; 2] = [2, 3];

/// The input a program is tried with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::validation) struct Probe {
    /// The shape without its batch dimension.
    pub(in crate::validation) shape: Shape,
    dtype: DType,
    batches: Vec<usize>,
}

impl Probe {
    /// What catalogue and program declare, where one of them says enough.
    ///
    /// # Errors
    /// A text that says why no input can be right.
    pub(in crate::validation) fn declared(
        metadata: Option<&Metadata>,
        inputs: Option<&[DeclaredInput]>,
    ) -> Result<Option<Self>, String> {
        let input = match inputs {
            None => None,
            Some([input]) => Some(input),
            Some(inputs) => {
                return Err(format!("the program takes {} inputs, a kernel takes one", inputs.len()));
            }
        };
        let exported = input.map(|input| input.sizes.split_first());
        if exported == Some(None) {
            return Err("the program takes a scalar, a kernel takes a batch of samples".to_owned());
        }
        let exported = exported.flatten();
        let fixed = exported.and_then(|(_, rest)| rest.iter().copied().collect::<Option<Shape>>());
        let Some(shape) = metadata.and_then(|metadata| metadata.input_shape.clone()).or(fixed) else {
            return Ok(None);
        };
        let batches = exported.and_then(|(batch, _)| *batch).map_or(BATCHES.to_vec(), |batch| vec![batch]);
        Ok(Some(Self { shape, dtype: input.map_or(DType::F32, |input| input.dtype), batches }))
    }
}

/// What came out of lowering.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::validation) struct Probed {
    /// The output's shape without its batch dimension.
    pub(in crate::validation) output: Shape,
    /// What one sample needs forward.
    pub(in crate::validation) forward: PassCost,
    /// What one sample needs backward.
    pub(in crate::validation) backward: PassCost,
    /// The program for the first of the batch sizes.
    pub(in crate::validation) lowered: Lowered,
}

/// A program lowered for one input.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::validation) struct Lowered {
    /// The input's shape with its batch.
    pub(in crate::validation) input: Shape,
    /// The input's type.
    pub(in crate::validation) dtype: DType,
    /// In eval mode.
    pub(in crate::validation) eval: Graph,
    /// In training mode, with its gradient.
    pub(in crate::validation) train: Differentiated,
}

/// Lowering of a module for inputs and a mode.
type Lower<'a> = dyn Fn(&[(Shape, DType)], Mode) -> Result<Graph, ArtifactError> + 'a;

/// Lowers for every batch size in both modes, and compares the outputs with each other and with what is
/// declared. An error blames the rule it is about and ends the trial.
pub(in crate::validation) fn probe(
    report: &mut Report,
    probe: &Probe,
    declared_output: Option<&Shape>,
    graded: &[bool],
    limits: &Limits,
    lower: &Lower<'_>,
) -> Option<Probed> {
    let mut output: Option<Shape> = None;
    let (mut forward, mut backward, mut first) = (Vec::new(), Vec::new(), None);
    for &batch in &probe.batches {
        let shape: Shape = std::iter::once(batch).chain(probe.shape.iter().copied()).collect();
        let mut graphs = Vec::with_capacity(2);
        for mode in [Mode::Eval, Mode::Train] {
            let mut graph = match lower(&[(shape.clone(), probe.dtype)], mode) {
                Ok(graph) => graph,
                Err(error) => {
                    report.blame(&error, true);
                    return None;
                }
            };
            match inferred_output(&graph, batch, output.as_ref().or(declared_output)) {
                Ok(sample) => output = Some(sample),
                Err(reason) => {
                    report.fail(SHAPES_DECLARED, format!("for an input of shape {shape}, {reason}"));
                    return None;
                }
            }
            simplify(&mut graph);
            graphs.push(graph);
        }
        let (train, eval) = (graphs.pop()?, graphs.pop()?);
        let wants = Wants { inputs: &[probe.dtype.is_floating_point()], parameters: graded };
        let mut train = match differentiate_within(&train, &wants, limits) {
            Ok(train) => train,
            Err(error) => {
                report.blame_gradient(&error);
                return None;
            }
        };
        simplify(&mut train.backward);
        forward.push(pass_cost(&eval));
        backward.push(pass_cost(&train.backward));
        first.get_or_insert(Lowered { input: shape, dtype: probe.dtype, eval, train });
    }
    let output = output?;
    let batches: Vec<String> = probe.batches.iter().map(ToString::to_string).collect();
    let (shape, batches) = (&probe.shape, batches.join(" and "));
    let declared = if declared_output.is_some() { " as declared" } else { "" };
    report
        .pass(SHAPES_DECLARED, format!("{shape} gives {output}{declared}, tried with batches of {batches}"));
    let [forward, backward] = [forward, backward].map(|costs| one_sample(&costs, &probe.batches));
    Some(Probed { output, forward, backward, lowered: first? })
}

/// The output's shape without its batch, if it is the one expected.
fn inferred_output(graph: &Graph, batch: usize, expected: Option<&Shape>) -> Result<Shape, String> {
    let outputs = graph.sinks.iter().filter(|(sink, _)| matches!(sink, Sink::Output(_))).count();
    let (Some(value), 1) = (graph.sink(Sink::Output(0)), outputs) else {
        return Err(format!("the program gives {outputs} outputs, a kernel gives one"));
    };
    let info = graph.info(value);
    if !info.dtype.is_floating_point() {
        return Err(format!("the output is of type {}, a kernel gives floating-point numbers", info.dtype));
    }
    match info.shape.split_first() {
        Some((&first, rest)) if first == batch => {
            let sample = Shape::from(rest);
            match expected {
                Some(expected) if *expected != sample => Err(format!(
                    "the output is {sample} without its batch, {expected} is declared or was given before"
                )),
                _ => Ok(sample),
            }
        }
        _ => Err(format!(
            "the output has shape {}, which does not begin with the batch of {batch}",
            info.shape
        )),
    }
}

/// What a pass costs for one sample: the point at 1 of the line through both batch sizes, so that what a pass
/// costs whatever its batch counts once. A program that is dearer the larger its batch, or that does other things
/// with another batch, does not lie on that line: no sample's share of either batch may be more either.
fn one_sample(costs: &[PassCost], batches: &[usize]) -> PassCost {
    let shares = |read: fn(&PassCost) -> u64| {
        let shares = costs.iter().zip(batches).map(|(cost, &batch)| read(cost).div_ceil(batch.max(1) as u64));
        shares.max().unwrap_or(0)
    };
    let of = |read: fn(&PassCost) -> u64| match (costs, batches) {
        ([two, three], [2, 3]) => read(two).saturating_mul(2).saturating_sub(read(three)).max(shares(read)),
        _ => shares(read),
    };
    PassCost { flops: of(|cost| cost.flops), peak_bytes: of(|cost| cost.peak_bytes) }
}

#[cfg(test)]
mod tests {
    use super::{super::OPS_WHITELIST, *};
    use crate::graph::{Builder, Op, Reduction, Source, Unary};

    fn declared(sizes: &[Option<usize>]) -> DeclaredInput {
        DeclaredInput { sizes: sizes.to_vec(), dtype: DType::F32 }
    }

    fn metadata(input: &[usize]) -> Metadata {
        Metadata { input_shape: Some(input.into()), ..Metadata::bare("k".parse().unwrap()) }
    }

    #[test]
    fn the_catalogue_and_the_program_say_what_to_try() {
        let both = Probe::declared(Some(&metadata(&[3, 8])), Some(&[declared(&[None, Some(3), Some(8)])]));
        assert_eq!(both, Ok(Some(Probe { shape: [3, 8].into(), dtype: DType::F32, batches: vec![2, 3] })));
        let program = Probe::declared(None, Some(&[declared(&[Some(4), Some(3)])])).unwrap().unwrap();
        assert_eq!((program.shape, program.batches), ([3].into(), vec![4]));
        assert_eq!(Probe::declared(None, Some(&[declared(&[None, Some(3), None])])), Ok(None));
        assert_eq!(Probe::declared(None, None), Ok(None));
        assert!(Probe::declared(None, Some(&[])).is_err());
        assert!(Probe::declared(None, Some(&[declared(&[])])).is_err());
    }

    /// Tries `relu` followed by an operation of the shape's own choice.
    fn try_with(op: impl Fn(usize) -> Op, output: Option<&[usize]>) -> (Option<Probed>, String) {
        let lower = |inputs: &[(Shape, DType)], _| {
            let mut builder = Builder::new();
            let x = builder.source(Source::Input(0), inputs[0].0.clone(), inputs[0].1).unwrap();
            let y = builder.apply(Op::Unary(Unary::Relu), &[x]).unwrap();
            let z = builder.apply(op(inputs[0].0[0]), &[y]).unwrap();
            builder.sink(Sink::Output(0), z);
            Ok(builder.finish())
        };
        let mut report = Report::default();
        let input = Probe::declared(Some(&metadata(&[6])), None).unwrap().unwrap();
        let probed =
            probe(&mut report, &input, output.map(Shape::from).as_ref(), &[], &Limits::default(), &lower);
        (probed, report.finish().remove(0).detail)
    }

    #[test]
    fn the_output_must_be_as_declared_and_follow_the_batch() {
        let reshape = |batch| Op::Reshape([batch, 2, 3].into());
        let (probed, detail) = try_with(reshape, Some(&[2, 3]));
        let probed = probed.unwrap();
        assert_eq!((probed.output, probed.forward.flops), ([2, 3].into(), 6));
        assert_eq!(detail, "[6] gives [2, 3] as declared, tried with batches of 2 and 3");
        assert_eq!(try_with(reshape, None).0.unwrap().output, [2, 3].into());

        let (probed, detail) = try_with(reshape, Some(&[6]));
        assert!(probed.is_none() && detail.contains("[6] is declared"), "{detail}");
        let (probed, detail) = try_with(|batch| Op::Reshape([6, batch].into()), None);
        assert!(probed.is_none() && detail.contains("does not begin with the batch"), "{detail}");
        let sum = |_| Op::Reduce { reduction: Reduction::Sum, dims: vec![0] };
        assert!(try_with(sum, None).0.is_none(), "the batch is gone");
        let tail = |batch| Op::Reshape([batch, 6 / batch, batch].into());
        assert!(try_with(tail, None).0.is_none(), "the sample's shape follows the batch");
        assert!(try_with(|_| Op::Cast(DType::I64), None).1.contains("int64"));
    }

    #[test]
    fn a_sample_costs_at_least_its_share_of_every_batch_tried() {
        let cost = |flops| PassCost { flops, peak_bytes: 7 };
        let flops = |two, three| one_sample(&[cost(two), cost(three)], &BATCHES).flops;
        assert_eq!(flops(20, 30), 10);
        assert_eq!(flops(100 + 20, 100 + 30), 110, "what does not depend on the batch counts once");
        assert_eq!(flops(4_000, 9_000), 3_000, "quadratic in the batch");
        assert_eq!(flops(2, 3_000_000), 1_000_000, "dear for one of the batches only");
        assert_eq!(one_sample(&[cost(90)], &[8]).flops, 12, "rounded up");
        assert_eq!(one_sample(&[cost(u64::MAX), cost(u64::MAX)], &BATCHES).flops, u64::MAX / 2 + 1);
    }

    #[test]
    fn an_operation_that_does_not_lower_blames_the_whitelist() {
        let mut report = Report::default();
        let input = Probe::declared(Some(&metadata(&[6])), None).unwrap().unwrap();
        let unknown = |_: &[(Shape, DType)], _| {
            let source = crate::artifact::Problem::Unknown;
            Err(ArtifactError::Operation { place: "line 3".into(), op: "aten.fft".into(), source })
        };
        assert_eq!(probe(&mut report, &input, None, &[], &Limits::default(), &unknown), None);
        let rule = report.finish().remove(0);
        assert_eq!((rule.name.as_str(), rule.passed), (OPS_WHITELIST, false));
        assert!(rule.detail.contains("aten.fft"), "{}", rule.detail);
    }
}
