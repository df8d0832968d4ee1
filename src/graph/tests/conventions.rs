//! Gradients at kinks, where finite differences say nothing: the values that torch 2.15 gives.

use crate::{
    graph::{Binary, Builder, Op, Reduction, Sink, Source, Unary, Wants, differentiate, reference::evaluate},
    tensor::{DType, HostTensor, Shape},
};

/// The gradient of the sum of an operation's first result, by operand.
fn gradients(op: Op, operands: &[&[f64]]) -> Vec<Vec<f64>> {
    let mut builder = Builder::new();
    let inputs: Vec<_> = operands
        .iter()
        .enumerate()
        .map(|(n, v)| builder.source(Source::Input(n as u32), [v.len()].into(), DType::F64).unwrap())
        .collect();
    let y = builder.apply(op, &inputs).unwrap();
    builder.sink(Sink::Output(0), y);
    let shape = builder.shape(y).clone();
    let wants = vec![true; operands.len()];
    let both = differentiate(&builder.finish(), &Wants { inputs: &wants, parameters: &[] }).unwrap();
    let host = |shape: Shape, v: &[f64]| HostTensor::from_values(shape, v).unwrap();
    let feed = |source| match source {
        Source::Input(n) => host([operands[n as usize].len()].into(), operands[n as usize]),
        other => panic!("{other:?}"),
    };
    let forward = evaluate(&both.forward, feed, 0).unwrap();
    let backward = evaluate(
        &both.backward,
        |source| match source {
            Source::Saved(n) => forward.iter().find(|(s, _)| *s == Sink::Saved(n)).unwrap().1.clone(),
            Source::GradOutput(_) => host(shape.clone(), &vec![1.0; shape.elements()]),
            other => feed(other),
        },
        0,
    )
    .unwrap();
    let of = |n: usize| backward.iter().find(|(s, _)| *s == Sink::GradInput(n as u32)).unwrap().1.to_f64();
    (0..operands.len()).map(of).collect()
}

#[test]
fn functions_of_one_tensor() {
    let inf = f64::INFINITY;
    let cases: [(Unary, &[f64], &[f64]); 14] = [
        (Unary::Abs, &[0.0], &[0.0]),
        (Unary::Relu, &[0.0], &[0.0]),
        (Unary::LeakyRelu { slope: 0.01 }, &[0.0], &[0.01]),
        (Unary::Elu { alpha: 1.0 }, &[0.0], &[1.0]),
        (Unary::Hardtanh { min: 0.0, max: 2.0 }, &[0.0, 2.0, 1.0, -1.0, 3.0], &[0.0, 0.0, 1.0, 0.0, 0.0]),
        (Unary::Hardtanh { min: -inf, max: 1.0 }, &[1.0, 0.0], &[0.0, 1.0]),
        (Unary::Hardsigmoid, &[-3.0, 3.0], &[0.0, 0.0]),
        (Unary::Hardswish, &[-3.0, 3.0], &[0.0, 1.0]),
        (Unary::Sqrt, &[0.0], &[inf]),
        (Unary::Rsqrt, &[0.0], &[-inf]),
        (Unary::PowScalar { exponent: 0.0 }, &[0.0], &[0.0]),
        (Unary::PowScalar { exponent: 2.5 }, &[0.0], &[0.0]),
        (Unary::PowScalar { exponent: 0.5 }, &[0.0], &[inf]),
        (Unary::PowScalar { exponent: 1.0 }, &[0.0], &[1.0]),
    ];
    for (unary, x, expected) in cases {
        assert_eq!(gradients(Op::Unary(unary), &[x])[0], expected, "{unary:?}");
    }
}

#[test]
fn ties_share() {
    for binary in [Binary::Maximum, Binary::Minimum] {
        assert_eq!(gradients(Op::Binary(binary), &[&[1.0], &[1.0]]), [[0.5], [0.5]]);
    }
    let amax = Op::Reduce { reduction: Reduction::Amax, dims: vec![0] };
    assert_eq!(gradients(amax, &[&[1.0, 1.0, 0.0]])[0], [0.5, 0.5, 0.0]);
}

#[test]
fn powers_of_zero() {
    let [of_base, of_exponent] = gradients(Op::Binary(Binary::Pow), &[&[0.0, 0.0, 2.0], &[0.0, 2.0, 0.0]])
        .try_into()
        .expect("two operands");
    assert_eq!(of_base, [0.0, 0.0, 0.0]);
    assert_eq!(of_exponent[..2], [0.0, 0.0]);
    assert!((of_exponent[2] - 2f64.ln()).abs() < 1e-12);
}
