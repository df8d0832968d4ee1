//! Convolutions by a library: which go to it, that they are described rightly, and what happens where it fails.

use proptest::prelude::*;

use super::products::{
    fails_with_its_reason, is_ours_where_its_trial_fails, refuses_less_aligned, routines_of, routines_on,
};
use crate::{
    backend::cuda::{
        CudaOptions,
        driver::{ConvolutionSpec, Direction, RoutineSpec, host::HostDriver},
        testing::OPTIONS,
    },
    graph::{Builder, Conv2d, Graph, Op, Sink, Source, tests::convolutions},
    tensor::DType,
};

const PLAIN: Conv2d = Conv2d { stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 };

/// A convolution of x and w and its two gradients, each as a graph of its own.
fn all(conv: Conv2d, x: [usize; 4], w: [usize; 4], dtype: DType) -> [(Direction, Graph); 3] {
    let [forward, to_input, to_weight] = convolutions(conv, x, w, dtype);
    [
        (Direction::Forward, forward),
        (Direction::BackwardData, to_input),
        (Direction::BackwardFilter, to_weight),
    ]
}

/// The one convolution that a graph goes to the library as.
fn spec_of(graph: &Graph, options: CudaOptions) -> ConvolutionSpec {
    match routines_of(graph, options)[..] {
        [RoutineSpec::Convolution(spec)] => spec,
        ref other => panic!("{other:?} of\n{graph}"),
    }
}

fn goes_to_us(graph: &Graph) {
    assert_eq!(routines_of(graph, OPTIONS), [], "of\n{graph}");
}

#[test]
fn every_direction_and_type_goes_to_the_library() {
    let conv = Conv2d { stride: [2, 1], padding: [1, 2], dilation: [1, 2], groups: 2 };
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        for (direction, graph) in all(conv, [2, 6, 7, 9], [4, 3, 3, 2], dtype) {
            let expected = ConvolutionSpec {
                direction,
                dtype,
                tf32: false,
                x: [2, 6, 7, 9],
                w: [4, 3, 3, 2],
                y: [2, 4, 4, 11],
                stride: [2, 1],
                padding: [1, 2],
                dilation: [1, 2],
                groups: 2,
            };
            assert_eq!(spec_of(&graph, OPTIONS), expected);
            let tf32 = spec_of(&graph, CudaOptions { tf32: true, ..OPTIONS }).tf32;
            assert_eq!(tf32, dtype == DType::F32, "{dtype} may not be rounded");
        }
    }
}

#[test]
fn those_by_one_pixel_go_to_it_where_they_are_no_products_or_nobody_multiplies() {
    for (_, graph) in all(Conv2d { stride: [2, 1], ..PLAIN }, [2, 6, 5, 4], [8, 6, 1, 1], DType::F32) {
        spec_of(&graph, OPTIONS);
    }
    for (direction, graph) in all(PLAIN, [2, 6, 5, 4], [8, 6, 1, 1], DType::F32) {
        let with_both = routines_of(&graph, OPTIONS);
        let is_product = matches!(with_both[..], [RoutineSpec::Product(_)]);
        assert_eq!(is_product, direction != Direction::BackwardFilter, "{with_both:?}");
        let without = routines_on(HostDriver::without_products(), &graph, OPTIONS);
        assert!(matches!(without[..], [RoutineSpec::Convolution(_)]), "{without:?}");
    }
}

#[test]
fn filters_of_one_channel_each_are_ours_where_they_are_few() {
    let few = Conv2d { padding: [1, 1], groups: 6, ..PLAIN };
    all(few, [2, 6, 5, 4], [6, 1, 3, 3], DType::F32).iter().for_each(|(_, graph)| goes_to_us(graph));
    all(few, [2, 6, 5, 4], [12, 1, 3, 3], DType::F16).iter().for_each(|(_, graph)| goes_to_us(graph));
    let many = all(Conv2d { groups: 2, ..few }, [2, 2, 5, 4], [16, 1, 3, 3], DType::F32);
    for (direction, graph) in many {
        match direction {
            // Each channel's gradient comes of one row of filters.
            Direction::BackwardData => goes_to_us(&graph),
            _ => assert_eq!(spec_of(&graph, OPTIONS).groups, 2),
        }
    }
    // One channel in all is no group.
    for (_, graph) in all(Conv2d { groups: 1, ..few }, [2, 1, 5, 4], [4, 1, 3, 3], DType::F32) {
        spec_of(&graph, OPTIONS);
    }
}

#[test]
fn operands_lie_together_and_begin_where_the_library_can_read() {
    let seen = |before: &Op, shape: &[usize]| {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), shape.into(), DType::F32).unwrap();
        let w = builder.source(Source::Input(1), [4, 3, 2, 2].into(), DType::F32).unwrap();
        let x = builder.apply(before.clone(), &[x]).unwrap();
        let y = builder.apply(Op::Conv2d(PLAIN), &[x, w]).unwrap();
        builder.sink(Sink::Output(0), y);
        builder.finish()
    };
    // Made contiguous first.
    let turned = Op::Permute(vec![0, 3, 1, 2]);
    assert_eq!(spec_of(&seen(&turned, &[2, 5, 4, 3]), OPTIONS).x, [2, 3, 5, 4]);
    // Contiguous, but for what lies before: 240 bytes for each image of 3·5·4, 180 for each of 3·5·3.
    let rest = Op::Slice { dim: 0, start: 1, len: 2, step: 1 };
    assert_eq!(spec_of(&seen(&rest, &[3, 3, 5, 4]), OPTIONS).x, [2, 3, 5, 4]);
    goes_to_us(&seen(&rest, &[3, 3, 5, 3]));
    // Nothing is summed, or nobody is there.
    let empty = [([0, 3, 5, 4], [4, 3, 2, 2]), ([2, 0, 5, 4], [4, 0, 2, 2]), ([2, 3, 5, 4], [0, 3, 2, 2])];
    for (x, w) in empty {
        all(PLAIN, x, w, DType::F32).iter().for_each(|(_, graph)| goes_to_us(graph));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_convolution_is_described_rightly(
        (images, groups, channels, outputs) in (1usize..3, 1usize..4, 1usize..4, 1usize..4),
        kernel in prop::array::uniform2(1usize..4),
        stride in prop::array::uniform2(1usize..4),
        padding in prop::array::uniform2(0usize..4),
        dilation in prop::array::uniform2(1usize..4),
        beyond in prop::array::uniform2(0usize..6),
    ) {
        let conv = Conv2d { stride, padding, dilation, groups };
        // As large as the kernel reaches at least.
        let size = [0, 1].map(|d| {
            let reach = (kernel[d] - 1) * dilation[d] + 1;
            reach.saturating_sub(2 * padding[d]).max(1) + beyond[d]
        });
        let x = [images, channels * groups, size[0], size[1]];
        let w = [outputs * groups, channels, kernel[0], kernel[1]];
        for (_, graph) in all(conv, x, w, DType::F64) {
            // It is held against the reference there.
            routines_on(HostDriver::without_products(), &graph, OPTIONS);
        }
    }
}

#[test]
fn a_library_that_fails_fails_the_run_with_its_reason() {
    let [(_, graph), ..] = all(PLAIN, [2, 3, 5, 4], [4, 3, 2, 2], DType::F32);
    fails_with_its_reason(&graph);
}

#[test]
fn what_a_library_plans_and_refuses_to_run_is_a_kernel_of_ours() {
    let [(_, graph), ..] = all(PLAIN, [2, 3, 5, 4], [4, 3, 2, 2], DType::F32);
    is_ours_where_its_trial_fails(&graph);
}

#[test]
fn memory_that_is_less_aligned_than_the_library_was_told_is_refused() {
    let [(_, graph), ..] = all(PLAIN, [2, 3, 5, 4], [4, 3, 2, 2], DType::F32);
    refuses_less_aligned(&graph, 8);
}
