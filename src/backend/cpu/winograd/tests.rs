//! Winograd's algorithm beside the definition, over sizes that are worth it and sizes that are not.

use proptest::prelude::*;

use super::Winograd;
use crate::{
    backend::{Backend as _, CompileOptions, RunContext, conformance::fill, cpu::CpuBackend, run_on_host},
    graph::{Builder, Conv2d, Graph, Op, Sink, Source, reference::evaluate},
    tensor::{DType, HostTensor, PackedLayout},
};

/// A convolution and its two gradients, each of its first operand and the second.
fn all(conv: Conv2d, x: [usize; 4], outputs: usize, dtype: DType) -> [Graph; 3] {
    let [height, width] = conv.output_size([x[2], x[3]], [3, 3]).unwrap();
    let (w, y) = ([outputs, x[1], 3, 3], [x[0], outputs, height, width]);
    let of = |[a, b]: [[usize; 4]; 2], op: Op| {
        let mut builder = Builder::new();
        let a = builder.source(Source::Input(0), a.into(), dtype).unwrap();
        let b = builder.source(Source::Input(1), b.into(), dtype).unwrap();
        let result = builder.apply(op, &[a, b]).unwrap();
        builder.sink(Sink::Output(0), result);
        builder.finish()
    };
    [
        of([x, w], Op::Conv2d(conv)),
        of([w, y], Op::Conv2dGradInput { conv, input_size: [x[2], x[3]] }),
        of([x, y], Op::Conv2dGradWeight { conv, kernel_size: [3, 3] }),
    ]
}

/// Holds a graph's result against the reference's. With `odd` an element of one operand is not finite: then exactly those
/// results are not that must not be.
fn agrees(graph: &Graph, odd: Option<(u32, usize, f32)>) {
    let feed = |source: Source| {
        let info = graph.info(graph.source(source).unwrap());
        let Source::Input(number) = source else { panic!("{source:?}") };
        let even = fill(&info.shape, info.dtype, u64::from(number) + 1, (-1.0, 1.0));
        match odd {
            Some((operand, at, value)) if operand == number => {
                let mut values: Vec<f32> = even.to_f64().into_iter().map(|value| value as f32).collect();
                let len = values.len();
                values[at % len] = value;
                HostTensor::from_values(info.shape.clone(), &values).unwrap()
            }
            _ => even,
        }
    };
    let none = PackedLayout::default();
    let options =
        CompileOptions { parameters: &none, buffers: &none, limit_bytes: usize::MAX, deadline: None };
    let backend = CpuBackend::new(2).with_winograd(Winograd::Always);
    let executable = backend.compile(graph, &options).unwrap();
    let context = RunContext { seed: 1, deadline: None, threads: 2 };
    let ours = run_on_host(&backend, &*executable, graph, [&none, &none], feed, &context).unwrap();
    let truth = evaluate(graph, feed, 1).unwrap();
    let (ours, truth) = (ours[0].1.to_f64(), truth[0].1.to_f64());
    let largest = truth.iter().filter(|value| value.is_finite()).fold(0.0, |most: f64, b| most.max(b.abs()));
    for (a, b) in ours.into_iter().zip(truth) {
        let is_near = (a - b).abs() <= 2e-5 * (0.1 + largest);
        assert!(is_near || a == b || a.is_nan() && b.is_nan(), "{a} and {b} of\n{graph}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_size_gives_what_the_definition_gives(
        images in 1usize..4,
        inputs in 1usize..24,
        outputs in 1usize..24,
        size in [1usize..14, 1usize..14],
        padding in [0usize..3, 0usize..3],
    ) {
        let conv = Conv2d { stride: [1, 1], padding, dilation: [1, 1], groups: 1 };
        prop_assume!(size.iter().zip(padding).all(|(size, padding)| size + 2 * padding >= 3));
        for graph in all(conv, [images, inputs, size[0], size[1]], outputs, DType::F32) {
            agrees(&graph, None);
        }
    }
}

#[test]
fn what_is_not_finite_stays_where_it_belongs() {
    let conv = Conv2d { stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 1 };
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38] {
        let [forward, grad_input, grad_weight] = all(conv, [2, 3, 9, 7], 5, DType::F32);
        for at in [0, 100, 170] {
            agrees(&forward, Some((0, at, value)));
            agrees(&grad_input, Some((1, at, value)));
            agrees(&grad_weight, Some((0, at, value)));
        }
    }
}

#[test]
fn double_precision_and_a_whole_round_of_tiles() {
    let conv = Conv2d { stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 1 };
    for graph in all(conv, [1, 4, 8, 9], 7, DType::F64) {
        agrees(&graph, None);
    }
    // More tiles than are transformed at once for the gradient of the weight.
    for graph in all(conv, [1, 40, 260, 260], 2, DType::F32) {
        agrees(&graph, None);
    }
}
