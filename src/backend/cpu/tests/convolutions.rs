//! Convolutions beside the definition, by each way that the CPU has, over sizes that are worth it and sizes that are not.

use proptest::prelude::*;

use super::{
    super::{CpuBackend, Winograd},
    result,
};
use crate::{
    backend::conformance::fill,
    graph::{Conv2d, Graph, Source, reference::evaluate, tests::convolutions},
    tensor::{DType, HostTensor},
};

const PLAIN: Conv2d = Conv2d { stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 1 };

/// A number at one place of one operand.
type Odd = Option<(u32, usize, f32)>;

/// The result of a graph on the CPU, and by definition.
fn both(graph: &Graph, winograd: Winograd, odd: Odd) -> [Vec<f64>; 2] {
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
    let cpu = CpuBackend::new(2).with_winograd(winograd);
    [result(graph, &cpu, feed), evaluate(graph, feed, 1).unwrap()[0].1.to_f64()]
}

/// Holds a graph's result against the definition's.
fn agrees(graph: &Graph, winograd: Winograd) {
    let is_double = graph.info(graph.source(Source::Input(0)).unwrap()).dtype == DType::F64;
    let most = if is_double { 1e-12 } else { 2e-5 };
    let [ours, truth] = both(graph, winograd, None);
    let largest = truth.iter().fold(0.0, |most: f64, b| most.max(b.abs()));
    for (a, b) in ours.into_iter().zip(truth) {
        assert!((a - b).abs() <= most * (0.1 + largest), "{a} and {b} of\n{graph}");
    }
}

/// Holds a graph's result with one odd operand against the definition's: exactly those results are odd that must be, and the
/// others are as without.
fn agrees_with(graph: &Graph, winograd: Winograd, odd: (u32, usize, f32)) {
    let [ours, truth] = both(graph, winograd, Some(odd));
    let [_, even] = both(graph, winograd, None);
    let largest = even.iter().fold(0.0, |most: f64, b| most.max(b.abs()));
    for ((a, b), even) in ours.into_iter().zip(truth).zip(even) {
        let is_near = b == even && (a - b).abs() <= 2e-5 * (0.1 + largest);
        let is_odd = a == b || a.is_nan() && b.is_nan() || b != even && (a - b).abs() <= 1e-5 * b.abs();
        assert!(is_near || is_odd, "{a} and {b}, {odd:?}, of\n{graph}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_size_of_3_by_3(
        images in 1usize..4,
        inputs in 1usize..24,
        outputs in 1usize..24,
        size in [1usize..14, 1usize..14],
        padding in [0usize..11, 0usize..3],
    ) {
        let conv = Conv2d { padding, ..PLAIN };
        prop_assume!(size.iter().zip(padding).all(|(size, padding)| size + 2 * padding >= 3));
        for graph in convolutions(conv, [images, inputs, size[0], size[1]], [outputs, inputs, 3, 3], DType::F32) {
            agrees(&graph, Winograd::Always);
        }
    }

    #[test]
    fn any_kernel(
        images in 1usize..4,
        channels in [1usize..20, 1usize..20],
        groups in 1usize..4,
        is_depthwise: bool,
        kernel in [1usize..6, 1usize..6],
        size in [1usize..20, 1usize..20],
        stride in [1usize..3, 1usize..3],
        dilation in [1usize..3, 1usize..3],
        padding in [0usize..4, 0usize..4],
        dtype in prop_oneof![4 => Just(DType::F32), 1 => Just(DType::F64)],
    ) {
        let fits = |i: usize| size[i] + 2 * padding[i] > dilation[i] * (kernel[i] - 1);
        prop_assume!(fits(0) && fits(1));
        let [inputs, outputs] = if is_depthwise { [1, 1] } else { channels };
        let conv = Conv2d { stride, padding, dilation, groups };
        let w = [outputs * groups, inputs, kernel[0], kernel[1]];
        for graph in convolutions(conv, [images, inputs * groups, size[0], size[1]], w, dtype) {
            agrees(&graph, Winograd::WhereFaster);
        }
    }
}

#[test]
fn what_is_not_finite_stays_where_it_belongs() {
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38] {
        // More tiles than one task has, and edges on all sides.
        let [forward, grad_input, grad_weight] =
            convolutions(PLAIN, [5, 3, 19, 11], [5, 3, 3, 3], DType::F32);
        // At an edge and within.
        for at in [0, 100, 3000] {
            for graph in [&forward, &grad_input, &grad_weight] {
                for operand in [0, 1] {
                    agrees_with(graph, Winograd::Always, (operand, at, value));
                    agrees_with(graph, Winograd::Never, (operand, at, value));
                }
            }
        }
        let depthwise = Conv2d { groups: 4, ..PLAIN };
        let strided = Conv2d { stride: [2, 1], dilation: [1, 2], groups: 2, ..PLAIN };
        for (conv, x, w) in [(depthwise, [2, 4, 9, 7], [4, 1, 3, 3]), (strided, [2, 6, 9, 7], [4, 3, 3, 2])] {
            for graph in convolutions(conv, x, w, DType::F32) {
                for (operand, at) in [(0, 0), (0, 31), (1, 0), (1, 31)] {
                    agrees_with(&graph, Winograd::WhereFaster, (operand, at, value));
                }
            }
        }
    }
}

#[test]
fn padding_that_is_most_of_it() {
    let far = 1 << 14;
    for (conv, x, w) in [
        (Conv2d { padding: [far / 2, 0], dilation: [far, 1], ..PLAIN }, [1, 2, 4, 4], [2, 2, 2, 1]),
        (Conv2d { padding: [18, 18], dilation: [18, 18], groups: 2, ..PLAIN }, [2, 2, 16, 16], [2, 1, 3, 3]),
        (
            Conv2d { padding: [far / 2, 0], dilation: [far, 1], groups: 2, ..PLAIN },
            [1, 2, 4, 4],
            [2, 1, 2, 1],
        ),
        // No input at all behind it.
        (Conv2d { padding: [2, 1], ..PLAIN }, [1, 2, 0, 3], [3, 2, 3, 3]),
    ] {
        for graph in convolutions(conv, x, w, DType::F32) {
            agrees(&graph, Winograd::WhereFaster);
        }
    }
}

#[test]
fn double_precision_and_a_whole_round_of_tiles() {
    for graph in convolutions(PLAIN, [1, 4, 8, 9], [7, 4, 3, 3], DType::F64) {
        agrees(&graph, Winograd::Always);
    }
    // More tiles than are transformed at once for the gradient of the weight.
    for graph in convolutions(PLAIN, [1, 40, 260, 260], [2, 40, 3, 3], DType::F32) {
        agrees(&graph, Winograd::Always);
    }
}

#[test]
fn layers_of_networks() {
    let pointwise = Conv2d { padding: [0, 0], ..PLAIN };
    let strided = Conv2d { stride: [2, 2], ..PLAIN };
    for (conv, x, w) in [
        (PLAIN, [2, 32, 36, 28], [48, 32, 3, 3]),
        (strided, [2, 24, 33, 40], [40, 24, 3, 3]),
        (pointwise, [3, 72, 13, 17], [40, 72, 1, 1]),
        (pointwise, [1, 600, 9, 8], [33, 600, 1, 1]),
        (Conv2d { groups: 3, ..pointwise }, [2, 48, 16, 16], [24, 16, 1, 1]),
    ] {
        for graph in convolutions(conv, x, w, DType::F32) {
            agrees(&graph, Winograd::WhereFaster);
        }
    }
}
