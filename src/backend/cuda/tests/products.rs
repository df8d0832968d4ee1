//! Products by a library: which go to it, that they are described rightly, and what happens where it fails.

use std::sync::Arc;

use super::{
    FREE, alone,
    blocks::{Blocks, compiled},
    options, single,
};
use crate::{
    backend::{
        Backend as _, Bindings, BuildError, CompileOptions, Region, RunError,
        conformance::fill,
        cuda::{
            CudaOptions,
            driver::{ProductSpec, RoutineSpec, host::HostDriver},
            testing::{OPTIONS, backend_on, held_backend},
        },
        run_on_host,
    },
    graph::{Binary, Builder, Conv2d, Graph, Op, Sink, Source, Unary, ValueId, reference::evaluate},
    tensor::{DType, PackedLayout},
};

/// A product of what two operations each make of an input.
fn product(
    [x, w]: [&[usize]; 2],
    dtype: DType,
    before: impl Fn(&mut Builder, [ValueId; 2]) -> [ValueId; 2],
    [transpose_a, transpose_b]: [bool; 2],
) -> Graph {
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), x.into(), dtype).unwrap();
    let w = builder.source(Source::Input(1), w.into(), dtype).unwrap();
    let factors = before(&mut builder, [x, w]);
    let y = builder.apply(Op::MatMul { transpose_a, transpose_b }, &factors).unwrap();
    builder.sink(Sink::Output(0), y);
    builder.finish()
}

/// Runs a graph, holds its results against the reference's, and gives what went to libraries.
pub(super) fn routines_of(graph: &Graph, options: CudaOptions) -> Vec<RoutineSpec> {
    routines_on(HostDriver::new(), graph, options)
}

/// The same on a driver of the test's.
pub(super) fn routines_on(driver: HostDriver, graph: &Graph, options: CudaOptions) -> Vec<RoutineSpec> {
    let driver = Arc::new(driver);
    let backend = backend_on(&driver, options);
    let none = PackedLayout::default();
    let executable = backend.compile(graph, &super::options(&none)).unwrap();
    let feed = |source| {
        let (_, value) = graph.sources.iter().find(|(known, _)| *known == source).unwrap();
        let info = graph.info(*value);
        fill(&info.shape, info.dtype, if source == Source::Input(0) { 1 } else { 2 }, (-1.0, 1.0))
    };
    let ours = run_on_host(&*backend, &*executable, graph, [&none, &none], feed, &FREE).unwrap();
    let truth = evaluate(graph, feed, FREE.seed).unwrap();
    for ((sink, ours), (_, truth)) in ours.iter().zip(&truth) {
        let tolerance = match ours.dtype() {
            DType::F16 | DType::BF16 => 2e-2,
            DType::F64 => 1e-12,
            _ => 1e-5,
        };
        for (a, b) in ours.to_f64().iter().zip(truth.to_f64()) {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{sink:?}: {a} instead of {b} in\n{graph}");
        }
    }
    let specs = driver.routines();
    drop(executable);
    assert!(driver.routines().is_empty(), "they go with their executable");
    specs
}

/// Has the library of a graph's one routine fail, and then work.
pub(super) fn fails_with_its_reason(graph: &Graph) {
    let (backend, driver) = held_backend();
    let executable = compiled(&*backend, graph);
    let blocks = Blocks::new(&*backend, &[(graph, &*executable)]);
    let mut queue = backend.open_queue(false);
    driver.fail_next("launch");
    let error = blocks.run(0, &*executable, &mut *queue, &FREE).unwrap_err();
    assert_eq!(error.to_string(), "cuda:0 failed: launch failed: a test wants it so");
    blocks.run(0, &*executable, &mut *queue, &FREE).unwrap();
}

/// Has the library of a graph's one routine refuse what it has planned, which is then a kernel of our own.
pub(super) fn is_ours_where_its_trial_fails(graph: &Graph) {
    let driver = HostDriver::new();
    driver.fail_next("launch");
    assert_eq!(routines_on(driver, graph, OPTIONS), []);
    assert_eq!(routines_of(graph, OPTIONS).len(), 1);
    // Where there is no memory to try it in, it is used untried, and tells when it runs.
    let driver = Arc::new(HostDriver::new());
    let backend = backend_on(&driver, CudaOptions { memory_bytes: 1, ..OPTIONS });
    let _executable = compiled(&*backend, graph);
    assert_eq!(driver.routines().len(), 1);
}

/// Gives a graph of one routine its first input so many bytes behind where a library may find it, with libraries and
/// without.
pub(super) fn refuses_less_aligned(graph: &Graph, shift_bytes: u64) {
    let (with, _) = held_backend();
    for (backend, is_refused) in [(&*with, true), (alone(), false)] {
        let executable = compiled(backend, graph);
        let blocks = Blocks::new(backend, &[(graph, &*executable)]);
        let mut queue = backend.open_queue(false);
        blocks.with_bindings(0, |bindings| {
            let len_bytes = bindings.inputs[0].len_bytes();
            let room = backend.allocate(len_bytes + shift_bytes as usize);
            let start = room.region().start().expose_provenance() as u64;
            // SAFETY: the room is as large, and stays until the queue is done.
            let shifted = unsafe { Region::on_device(start + shift_bytes, len_bytes) };
            let inputs = [shifted, bindings.inputs[1]];
            let bindings = Bindings { inputs: &inputs, ..*bindings };
            let result = executable.run(&mut *queue, &bindings, &FREE);
            assert_eq!(matches!(result, Err(RunError::Misaligned { needed_bytes: 16, .. })), is_refused);
            assert_eq!(result.is_ok(), !is_refused);
            queue.finish(None).unwrap();
        });
    }
}

/// The products among what went to libraries.
fn specs_of(graph: &Graph, options: CudaOptions) -> Vec<ProductSpec> {
    let products = routines_of(graph, options).into_iter().filter_map(|spec| match spec {
        RoutineSpec::Product(spec) => Some(spec),
        RoutineSpec::Convolution(_) => None,
    });
    products.collect()
}

/// The one product that a graph goes to the library as.
fn spec_of(graph: &Graph) -> ProductSpec {
    let specs = specs_of(graph, OPTIONS);
    assert_eq!(specs.len(), 1, "of\n{graph}");
    specs[0]
}

fn is_no_product(graph: &Graph) {
    assert!(specs_of(graph, OPTIONS).is_empty(), "of\n{graph}");
}

fn view(op: &Op, builder: &mut Builder, value: ValueId) -> ValueId {
    builder.apply(op.clone(), &[value]).unwrap()
}

#[test]
fn every_type_and_transposition_goes_to_the_library() {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        for transpose_a in [false, true] {
            for transpose_b in [false, true] {
                let x: &[usize] = if transpose_a { &[6, 5] } else { &[5, 6] };
                let w: &[usize] = if transpose_b { &[7, 6] } else { &[6, 7] };
                let spec = spec_of(&product([x, w], dtype, |_, both| both, [transpose_a, transpose_b]));
                // The library's left factor is the plan's right one.
                assert_eq!((spec.transposes_a, spec.transposes_b), (transpose_b, transpose_a));
                assert_eq!((spec.m, spec.n, spec.k, spec.batch, spec.dtype), (7, 5, 6, 1, dtype));
            }
        }
    }
}

#[test]
fn only_products_in_float32_may_be_rounded_to_tf32() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let graph = product([&[5, 6], &[6, 7]], dtype, |_, both| both, [false; 2]);
        assert!(!spec_of(&graph).tf32);
        let [spec] = specs_of(&graph, CudaOptions { tf32: true, ..OPTIONS })[..] else { panic!("{graph}") };
        assert_eq!(spec.tf32, dtype == DType::F32);
    }
}

#[test]
fn views_are_read_where_they_lie_if_the_library_can() {
    let f32 = DType::F32;
    let turned = |builder: &mut Builder, [x, w]: [ValueId; 2]| {
        [view(&Op::Permute(vec![1, 0]), builder, x), view(&Op::Permute(vec![1, 0]), builder, w)]
    };
    let spec = spec_of(&product([&[6, 5], &[7, 6]], f32, turned, [false; 2]));
    assert_eq!((spec.transposes_a, spec.transposes_b, spec.a.lead, spec.b.lead), (true, true, 6, 5));

    let slice = |start, len, step| Op::Slice { dim: 1, start, len, step };
    let sliced = |op: Op| {
        product([&[5, 16], &[6, 7]], f32, move |builder, [x, w]| [view(&op, builder, x), w], [false; 2])
    };
    let spec = spec_of(&sliced(slice(2, 6, 1)));
    assert_eq!((spec.b.lead, spec.b.alignment_bytes, spec.a.alignment_bytes), (16, 8, 16));
    is_no_product(&sliced(slice(0, 6, 2)));

    let expanded =
        |builder: &mut Builder, [x, w]: [ValueId; 2]| [view(&Op::Expand([5, 6].into()), builder, x), w];
    is_no_product(&product([&[1, 6], &[6, 7]], f32, expanded, [false; 2]));

    // Vectors lie together the long way.
    let spec = spec_of(&product([&[1, 6], &[6, 7]], f32, |_, both| both, [false; 2]));
    assert_eq!((spec.n, spec.transposes_b, spec.b.lead), (1, false, 6));
    let spec = spec_of(&product([&[5, 6], &[6, 1]], f32, |_, both| both, [false; 2]));
    assert_eq!((spec.m, spec.transposes_a, spec.a.lead), (1, true, 6));
    spec_of(&product([&[5, 1], &[1, 7]], f32, |_, both| both, [false; 2]));
    is_no_product(&product([&[5, 0], &[0, 7]], f32, |_, both| both, [false; 2]));
}

#[test]
fn batches_have_one_stride_or_are_no_products() {
    let f32 = DType::F32;
    let spec = spec_of(&product([&[3, 5, 6], &[3, 6, 7]], f32, |_, both| both, [false; 2]));
    assert_eq!((spec.batch, spec.a.apart, spec.b.apart, spec.out.apart), (3, 42, 30, 35));
    let spec = spec_of(&product([&[2, 3, 5, 6], &[2, 3, 7, 6]], f32, |_, both| both, [false, true]));
    assert_eq!((spec.batch, spec.a.apart), (6, 42));

    // One weight for all is one product of more rows, or else a batch that reads it again and again.
    let one_weight = |x: &[usize], transpose_a| {
        product(
            [x, &[6, 7]],
            f32,
            |builder, [x, w]| [x, view(&Op::Expand([3, 6, 7].into()), builder, w)],
            [transpose_a, false],
        )
    };
    let spec = spec_of(&one_weight(&[3, 5, 6], false));
    assert_eq!((spec.batch, spec.m, spec.n, spec.k), (1, 7, 15, 6));
    let spec = spec_of(&one_weight(&[3, 6, 5], true));
    assert_eq!((spec.batch, spec.n, spec.a.apart, spec.b.apart), (3, 5, 0, 30));
    let spec = spec_of(&one_weight(&[3, 1, 6], false));
    assert_eq!((spec.batch, spec.n), (1, 3));

    let crossed =
        |builder: &mut Builder, [x, w]: [ValueId; 2]| [view(&Op::Permute(vec![1, 0, 2, 3]), builder, x), w];
    is_no_product(&product([&[3, 2, 5, 6], &[2, 3, 6, 7]], f32, crossed, [false; 2]));
}

#[test]
fn convolutions_by_one_pixel_are_products() {
    let conv = Conv2d { stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 };
    let forward =
        |x: [usize; 4], w: [usize; 4], conv| single(&[(&x, DType::F32), (&w, DType::F32)], Op::Conv2d(conv));
    let back = |[n, c, h, w]: [usize; 4], o: usize| {
        let (x, gy, weight) = ([n, c, h, w], [n, o, h, w], [o, c, 1, 1]);
        let input = Op::Conv2dGradInput { conv, input_size: [h, w] };
        let weights = Op::Conv2dGradWeight { conv, kernel_size: [1, 1] };
        [
            single(&[(&weight, DType::F32), (&gy, DType::F32)], input),
            single(&[(&x, DType::F32), (&gy, DType::F32)], weights),
        ]
    };
    for (x, expected) in [([2, 6, 3, 4], (2, 12, 5)), ([1, 6, 3, 4], (1, 12, 5)), ([9, 6, 1, 1], (1, 5, 9))] {
        let spec = spec_of(&forward(x, [5, 6, 1, 1], conv));
        assert_eq!((spec.batch, spec.m, spec.n, spec.k), (expected.0, expected.1, expected.2, 6));
        let [input, weight] = back(x, 5);
        spec_of(&input);
        if x[0] == 1 || x[2] == 1 {
            assert_eq!((spec_of(&weight).m, spec_of(&weight).n), (6, 5));
        } else {
            is_no_product(&weight);
        }
    }
    is_no_product(&forward([2, 6, 3, 4], [5, 6, 3, 3], Conv2d { padding: [1, 1], ..conv }));
    is_no_product(&forward([2, 6, 3, 4], [5, 6, 1, 1], Conv2d { stride: [1, 2], ..conv }));
    is_no_product(&forward([2, 6, 3, 4], [5, 6, 1, 1], Conv2d { padding: [1, 0], ..conv }));
    is_no_product(&forward([2, 6, 3, 4], [4, 3, 1, 1], Conv2d { groups: 2, ..conv }));
}

#[test]
fn a_library_that_fails_fails_the_run_with_its_reason() {
    fails_with_its_reason(&product([&[5, 6], &[6, 7]], DType::F32, |_, both| both, [false; 2]));
}

#[test]
fn what_a_library_plans_and_refuses_to_run_is_a_kernel_of_ours() {
    is_ours_where_its_trial_fails(&product([&[5, 6], &[6, 7]], DType::F32, |_, both| both, [false; 2]));
}

#[test]
fn memory_that_is_less_aligned_than_the_library_was_told_is_refused() {
    refuses_less_aligned(&product([&[5, 6], &[6, 7]], DType::F32, |_, both| both, [false; 2]), 4);
}

#[test]
fn what_is_not_built_leaves_no_product_open() {
    let (backend, driver) = held_backend();
    let none = PackedLayout::default();
    let graph = product([&[5, 16], &[16, 7]], DType::F32, |_, both| both, [false; 2]);
    let tight = CompileOptions { limit_bytes: 0, ..options(&none) };
    let refused = backend.compile(&graph, &tight).unwrap_err();
    assert!(matches!(refused, BuildError::TooMuchMemory { .. }), "{refused}");
    assert!(driver.routines().is_empty());
}

/// x·wᵀ + bias, with ReLU where asked for.
fn linear(bias: &[usize], dtype: DType, relu: bool) -> Graph {
    let mut builder = Builder::new();
    let mut input = |n, shape: &[usize]| builder.source(Source::Input(n), shape.into(), dtype).unwrap();
    let (x, w, bias) = (input(0, &[2, 4, 9]), input(1, &[1, 5, 9]), input(2, bias));
    let w = builder.apply(Op::Expand([2, 5, 9].into()), &[w]).unwrap();
    let y = builder.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[x, w]).unwrap();
    let mut y = builder.apply(Op::Binary(Binary::Add), &[y, bias]).unwrap();
    if relu {
        y = builder.apply(Op::Unary(Unary::Relu), &[y]).unwrap();
    }
    builder.sink(Sink::Output(0), y);
    builder.finish()
}

#[test]
fn a_bias_goes_to_the_library_with_its_product() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let spec = spec_of(&linear(&[5], dtype, false));
        assert_eq!((spec.adds_bias, spec.m, spec.n, spec.k, spec.batch), (true, 5, 8, 9, 1));
    }
    assert!(!spec_of(&linear(&[5], DType::F64, false)).adds_bias, "it promises nothing there");
    assert!(!spec_of(&linear(&[4, 5], DType::F32, false)).adds_bias, "it is no bias");
    assert!(!spec_of(&linear(&[5], DType::F32, true)).adds_bias, "the bias goes with ReLU");
}
