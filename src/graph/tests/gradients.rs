//! Every operation's gradient against central finite differences, in `f64` through the reference evaluator.

use std::collections::BTreeSet;

use super::table::{Case, cases};
use crate::{
    graph::{
        Binary, Builder, Graph, Op, Reduction, Sink, Source, Wants, differentiate, reference::evaluate,
        simplify,
    },
    tensor::{DType, HostTensor, Shape},
};

/// Numbers without structure, away from the kinks of most functions.
pub(crate) fn noise(shape: &Shape, salt: u64, low: f64, high: f64) -> Vec<f64> {
    let mut state = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..shape.elements())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            low + (high - low) * (state >> 11) as f64 / (1u64 << 53) as f64
        })
        .collect()
}

fn build(case: &Case) -> Graph {
    let mut builder = Builder::new();
    let mut inputs = Vec::new();
    for (i, shape) in case.shapes.iter().enumerate() {
        inputs.push(builder.source(Source::Input(i as u32), shape.clone(), DType::F64).unwrap());
    }
    let y = (case.build)(&mut builder, &inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    builder.sink(Sink::Output(0), y);
    builder.finish()
}

fn run(graph: &Graph, feed: impl Fn(Source) -> HostTensor) -> Vec<(Sink, HostTensor)> {
    evaluate(graph, feed, 42).unwrap()
}

fn host(shape: &Shape, values: &[f64]) -> HostTensor {
    HostTensor::from_values(shape.clone(), values).unwrap()
}

#[test]
fn gradients_equal_finite_differences() {
    for case in cases() {
        let graph = build(&case);
        let wants = vec![true; case.shapes.len()];
        let mut both = differentiate(&graph, &Wants { inputs: &wants, parameters: &[] })
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        // What is made smaller must still give the same.
        simplify(&mut both.forward);
        simplify(&mut both.backward);
        let out = graph.info(graph.sink(Sink::Output(0)).unwrap()).shape.clone();
        let inputs: Vec<Vec<f64>> = case
            .shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| noise(shape, 100 + i as u64, case.range.0, case.range.1))
            .collect();
        let gy = noise(&out, 7, -1.0, 1.0);
        let feed = |inputs: &[Vec<f64>], source: Source| match source {
            Source::Input(n) => host(&case.shapes[n as usize], &inputs[n as usize]),
            other => panic!("{}: unexpected {other:?}", case.name),
        };
        let loss = |inputs: &[Vec<f64>]| {
            let results = run(&graph, |source| feed(inputs, source));
            results[0].1.to_f64().iter().zip(&gy).map(|(y, g)| y * g).sum::<f64>()
        };

        let forward = run(&both.forward, |source| feed(&inputs, source));
        let saved = |n: u32| {
            let found = forward.iter().find(|(sink, _)| *sink == Sink::Saved(n));
            found.unwrap_or_else(|| panic!("{}: nothing saved as {n}", case.name)).1.clone()
        };
        let backward = run(&both.backward, |source| match source {
            Source::Saved(n) => saved(n),
            Source::GradOutput(0) => host(&out, &gy),
            other => feed(&inputs, other),
        });

        for (i, shape) in case.shapes.iter().enumerate() {
            let sink = Sink::GradInput(i as u32);
            let analytic = backward.iter().find(|(s, _)| *s == sink).map(|(_, tensor)| tensor.to_f64());
            let analytic = analytic.unwrap_or_else(|| vec![0.0; shape.elements()]);
            for element in 0..shape.elements() {
                let step = 1e-5;
                let at = |delta: f64| {
                    let mut moved = inputs.clone();
                    moved[i][element] += delta;
                    loss(&moved)
                };
                let numeric = (at(step) - at(-step)) / (2.0 * step);
                let error = (numeric - analytic[element]).abs() / (1.0 + numeric.abs());
                assert!(
                    error < 2e-7,
                    "{}: gradient of operand {i} at {element}: {} by the rule, {numeric} by differences",
                    case.name,
                    analytic[element],
                );
            }
        }
    }
}

/// Whether an operation can stand between a value and its gradient.
fn has_gradient(op: &str) -> bool {
    !op.ends_with("_grad")
        && !["eq", "compare", "full", "arange", "detach", "conv2d_grad_weight"].contains(&op)
}

#[test]
fn the_table_covers_every_operation_with_a_gradient() {
    let mut covered = BTreeSet::new();
    for case in cases() {
        covered.extend(build(&case).nodes.iter().map(|node| node.op.name()));
    }
    let missing: Vec<_> =
        Op::NAMES.iter().filter(|name| has_gradient(name) && !covered.contains(**name)).collect();
    assert!(missing.is_empty(), "no gradient test covers {missing:?}");
}

#[test]
fn what_no_output_depends_on_has_no_gradient() {
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), [2].into(), DType::F32).unwrap();
    builder.source(Source::Parameter(0), [2].into(), DType::F32).unwrap();
    builder.sink(Sink::Output(0), x);
    let both = differentiate(&builder.finish(), &Wants { inputs: &[true], parameters: &[true] }).unwrap();
    assert_eq!(both.backward.sinks.len(), 1);
    assert!(both.backward.sink(Sink::GradInput(0)).is_some());
}

#[test]
fn views_and_sources_are_not_saved() {
    use crate::graph::Unary;
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), [4, 6].into(), DType::F32).unwrap();
    let w = builder.source(Source::Parameter(0), [6].into(), DType::F32).unwrap();
    let h = builder.apply(Op::Unary(Unary::Tanh), &[x]).unwrap();
    let t = builder.apply(Op::Permute(vec![1, 0]), &[h]).unwrap();
    let t = builder.apply(Op::Reshape([2, 3, 4].into()), &[t]).unwrap();
    let w = builder.apply(Op::Reshape([2, 3, 1].into()), &[w]).unwrap();
    let y = builder.apply(Op::Binary(Binary::Mul), &[t, w]).unwrap();
    builder.sink(Sink::Output(0), y);
    let both = differentiate(&builder.finish(), &Wants { inputs: &[true], parameters: &[true] }).unwrap();
    let saved: Vec<_> = both.forward.sinks.iter().filter(|(s, _)| matches!(s, Sink::Saved(_))).collect();
    // Only tanh's result: its views are replayed, x and w are read again.
    assert_eq!(saved.len(), 1);
    assert_eq!(saved[0].1, h);
}

#[test]
fn bounded_values_are_kept_in_the_place_of_what_was_bounded_where_bounds_are_exact() {
    use crate::graph::Unary;
    let third = 1.0 / 3.0;
    for (dtype, max, is_exact) in [
        (DType::F32, 6.0, true),
        (DType::BF16, 6.0, true),
        (DType::F32, f64::INFINITY, true),
        (DType::F64, third, true),
        (DType::F32, third, false),
        (DType::F16, 2049.0, false),
        (DType::BF16, 257.0, false),
    ] {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [4].into(), dtype).unwrap();
        let h = builder.apply(Op::Unary(Unary::Tanh), &[x]).unwrap();
        let y = builder.apply(Op::Unary(Unary::Hardtanh { min: 0.0, max }), &[h]).unwrap();
        builder.sink(Sink::Output(0), y);
        let both = differentiate(&builder.finish(), &Wants { inputs: &[true], parameters: &[] }).unwrap();
        let saved = both.forward.sinks.iter().any(|&(s, v)| matches!(s, Sink::Saved(_)) && v == y);
        assert_eq!(saved, is_exact, "{max} in {dtype}");
    }
}

#[test]
fn what_is_detached_gives_none_and_what_has_steps_gives_zeros() {
    let mut builder = Builder::new();
    let parameter = |b: &mut Builder, n| b.source(Source::Parameter(n), [2].into(), DType::F32).unwrap();
    let [cut, stepped, direct, compared] = [0, 1, 2, 3].map(|n| parameter(&mut builder, n));
    let still = builder.apply(Op::Detach, &[cut]).unwrap();
    let sign = builder.apply(Op::Unary(crate::graph::Unary::Sign), &[stepped]).unwrap();
    let above = builder.apply(Op::Compare(crate::graph::Compare::Gt), &[compared, direct]).unwrap();
    let number = builder.apply(Op::Cast(DType::F32), &[above]).unwrap();
    let mut y = direct;
    for factor in [still, sign, number] {
        y = builder.apply(Op::Binary(Binary::Mul), &[y, factor]).unwrap();
    }
    builder.sink(Sink::Output(0), y);
    let wants = Wants { inputs: &[], parameters: &[true; 4] };
    let both = differentiate(&builder.finish(), &wants).unwrap();
    let has: Vec<bool> = (0..4).map(|n| both.backward.sink(Sink::GradParameter(n)).is_some()).collect();
    assert_eq!(has, [false, true, true, false]);
}

#[test]
fn gradients_of_slices_that_make_up_the_whole_are_laid_end_to_end() {
    let gradient = |slices: &[(usize, usize)], also_itself: bool| {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [2, 6].into(), DType::F64).unwrap();
        let mut summands = Vec::new();
        for &(start, len) in slices {
            let part = builder.apply(Op::Slice { dim: 1, start, len, step: 1 }, &[x]).unwrap();
            summands.push(builder.apply(Op::Binary(Binary::Mul), &[part, part]).unwrap());
        }
        summands.extend(also_itself.then_some(x));
        let sum = Op::Reduce { reduction: Reduction::Sum, dims: vec![1] };
        let sums = summands.iter().map(|&value| builder.apply(sum.clone(), &[value]).unwrap());
        let sums: Vec<_> = sums.collect();
        let add = |y, sum| builder.apply(Op::Binary(Binary::Add), &[y, sum]).unwrap();
        let y = sums.into_iter().reduce(add).unwrap();
        builder.sink(Sink::Output(0), y);
        let both = differentiate(&builder.finish(), &Wants { inputs: &[true], parameters: &[] }).unwrap();
        let count = |name: &str| both.backward.nodes.iter().filter(|node| node.op.name() == name).count();
        let spread = (count("cat"), count("unslice"));
        let values: Vec<f64> = (0..12).map(f64::from).collect();
        let results = run(&both.backward, |source| match source {
            Source::GradOutput(0) => host(&[2, 1].into(), &[1.0, 10.0]),
            Source::Input(0) => host(&[2, 6].into(), &values),
            other => panic!("unexpected {other:?}"),
        });
        let scale = |n: usize| if n < 6 { 1.0 } else { 10.0 };
        let is_in = |column: usize| slices.iter().filter(|&&(s, len)| (s..s + len).contains(&column)).count();
        let expected: Vec<f64> = (0..12)
            .map(|n| scale(n) * (2.0 * values[n] * is_in(n % 6) as f64 + f64::from(u8::from(also_itself))))
            .collect();
        assert_eq!(results[0].1.to_f64(), expected, "{slices:?}");
        spread
    };
    assert_eq!(gradient(&[(4, 2), (0, 2), (2, 2)], false), (1, 0));
    assert_eq!(gradient(&[(0, 3), (3, 3)], true), (1, 0));
    assert_eq!(gradient(&[(0, 2), (4, 2)], false), (0, 2), "there is a gap");
    assert_eq!(gradient(&[(0, 4), (3, 3)], false), (0, 2), "they overlap");
    assert_eq!(gradient(&[(1, 5)], false), (0, 1));
}
