//! Products beside the definition, over sizes of both ways that the CPU has, and the same on any number of threads.

use proptest::prelude::*;

use super::{super::CpuBackend, result};
use crate::{
    backend::conformance::fill,
    graph::{Builder, Graph, Op, Sink, Source, reference::evaluate},
    tensor::{DType, Shape},
};

/// a·b, each as it is or transposed.
fn product([m, k, n]: [usize; 3], [transpose_a, transpose_b]: [bool; 2], dtype: DType) -> Graph {
    let mut builder = Builder::new();
    let shape = |rows, columns, turned: bool| -> Shape {
        if turned { [columns, rows].into() } else { [rows, columns].into() }
    };
    let a = builder.source(Source::Input(0), shape(m, k, transpose_a), dtype).unwrap();
    let b = builder.source(Source::Input(1), shape(k, n, transpose_b), dtype).unwrap();
    let y = builder.apply(Op::MatMul { transpose_a, transpose_b }, &[a, b]).unwrap();
    builder.sink(Sink::Output(0), y);
    builder.finish()
}

fn agrees(graph: &Graph, most: f64) {
    let feed = |source: Source| {
        let info = graph.info(graph.source(source).unwrap());
        let Source::Input(number) = source else { panic!("{source:?}") };
        fill(&info.shape, info.dtype, u64::from(number) + 1, (-1.0, 1.0))
    };
    let run = |threads| result(graph, &CpuBackend::new(threads), feed);
    let (ours, truth) = (run(1), evaluate(graph, feed, 1).unwrap()[0].1.to_f64());
    for (a, b) in ours.iter().zip(truth) {
        assert!((a - b).abs() <= most, "{a} and {b} of\n{graph}");
    }
    assert!(ours == run(3), "equal bits on three threads of\n{graph}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_size(
        m in 1usize..200,
        k in 1usize..200,
        n in 1usize..200,
        transposed: [bool; 2],
        dtype in prop_oneof![4 => Just(DType::F32), 1 => Just(DType::F64)],
    ) {
        agrees(&product([m, k, n], transposed, dtype), if dtype == DType::F64 { 1e-12 } else { 1e-4 });
    }
}

#[test]
fn depths_of_several_pieces_and_many_strips() {
    for (sizes, transposed) in [
        ([40, 1300, 70], [true, true]),
        ([1030, 520, 40], [false, false]),
        ([33, 2050, 300], [true, false]),
        ([9, 513, 1000], [false, true]),
    ] {
        agrees(&product(sizes, transposed, DType::F32), 1e-3);
    }
}
