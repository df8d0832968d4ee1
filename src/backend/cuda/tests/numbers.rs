//! Numbers at the edges: what is none, whole numbers, halves.

use half::{bf16, f16};

use super::{FREE, backend, both, options, single};
use crate::{
    backend::{Backend as _, conformance::fill, run_on_host},
    graph::{Binary, Compare, Op, Reduction, Source, Unary},
    tensor::{DType, HostTensor, PackedLayout, Shape},
};

/// Numbers on which functions go their own ways.
const ODD: [f32; 12] =
    [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.0, 3.0, 1e30];

#[test]
fn numbers_that_are_none_come_out_as_the_reference_has_them() {
    let tensor = |values: &[f32]| HostTensor::from_values([values.len()].into(), values).unwrap();
    let pairs: (Vec<f32>, Vec<f32>) = ODD.iter().flat_map(|&a| ODD.iter().map(move |&b| (a, b))).unzip();
    let mut graphs = Vec::new();
    for unary in [
        Unary::Abs,
        Unary::Sqrt,
        Unary::Exp,
        Unary::Log,
        Unary::Sign,
        Unary::Round,
        Unary::Relu,
        Unary::Elu { alpha: 1.0 },
        Unary::Sigmoid,
        Unary::Tanh,
        Unary::Hardswish,
        Unary::Hardsigmoid,
        Unary::Hardtanh { min: -1.0, max: 1.0 },
        Unary::LeakyRelu { slope: 0.1 },
        Unary::PowScalar { exponent: 0.5 },
        Unary::PowScalar { exponent: 2.0 },
        Unary::Softplus { beta: 1.0, threshold: 20.0 },
    ] {
        graphs.push((single(&[(&[12], DType::F32)], Op::Unary(unary)), false));
        graphs.push((single(&[(&[144], DType::F32), (&[144], DType::F32)], Op::UnaryGrad(unary)), true));
    }
    for binary in [Binary::Add, Binary::Mul, Binary::Div, Binary::Maximum, Binary::Minimum, Binary::Pow] {
        graphs.push((single(&[(&[144], DType::F32), (&[144], DType::F32)], Op::Binary(binary)), true));
    }
    for compare in [Compare::Eq, Compare::Ne, Compare::Lt, Compare::Le, Compare::Gt, Compare::Ge] {
        graphs.push((single(&[(&[144], DType::F32), (&[144], DType::F32)], Op::Compare(compare)), true));
    }
    for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Amax, Reduction::SumOfSquares] {
        graphs.push((single(&[(&[12], DType::F32)], Op::Reduce { reduction, dims: vec![0] }), false));
    }
    graphs.push((single(&[(&[12], DType::F32)], Op::Softmax { dim: 0 }), false));
    for to in [DType::I64, DType::I32, DType::U8, DType::Bool, DType::F16, DType::BF16, DType::F64] {
        graphs.push((single(&[(&[12], DType::F32)], Op::Cast(to)), false));
    }
    for (graph, is_pair) in graphs {
        let [ours, truth] = both(&graph, |source| match (source, is_pair) {
            (Source::Input(1), _) => tensor(&pairs.1),
            (_, true) => tensor(&pairs.0),
            (_, false) => tensor(&ODD),
        });
        for (n, (&a, &b)) in ours[0].iter().zip(&truth[0]).enumerate() {
            let near = (a - b).abs() <= 1e-5 * b.abs();
            // 32-bit casts of what does not fit differ between devices; the reference and the CPU do too.
            let wraps = graph.nodes[0].op == Op::Cast(DType::I32) || graph.nodes[0].op == Op::Cast(DType::U8);
            let fits = !wraps || (0.0..200.0).contains(&ODD[n]);
            assert!(
                !fits || near || a == b || (a.is_nan() && b.is_nan()),
                "{n}: {a} instead of {b} in\n{graph}"
            );
        }
    }
}

#[test]
fn whole_numbers_agree_in_every_type_that_has_them() {
    let numbers: [i64; 8] = [0, 1, -1, 7, -7, i64::MAX, i64::MIN, 1 << 40];
    let (a, b): (Vec<i64>, Vec<i64>) =
        numbers.iter().flat_map(|&a| numbers.iter().map(move |&b| (a, b))).unzip();
    let expected = |binary, a: i64, b: i64| match binary {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::Div => a.checked_div(b).unwrap_or(0),
        Binary::Pow => a.wrapping_pow(u32::try_from(b).unwrap_or(0)),
        Binary::Maximum => a.max(b),
        Binary::Minimum => a.min(b),
    };
    let none = PackedLayout::default();
    let backend = backend();
    for binary in
        [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Pow, Binary::Maximum, Binary::Minimum]
    {
        let graph = single(&[(&[64], DType::I64), (&[64], DType::I64)], Op::Binary(binary));
        let executable = backend.compile(&graph, &options(&none)).unwrap();
        let feed = |source| {
            let values = if source == Source::Input(0) { &a } else { &b };
            HostTensor::from_values([64].into(), values).unwrap()
        };
        let ours = run_on_host(backend, executable.as_ref(), &graph, [&none, &none], feed, &FREE).unwrap();
        let truth: Vec<i64> = a.iter().zip(&b).map(|(&a, &b)| expected(binary, a, b)).collect();
        assert_eq!(ours[0].1, HostTensor::from_values([64].into(), &truth).unwrap(), "{binary:?}");
    }
    for dtype in [DType::I64, DType::I32, DType::U8, DType::Bool] {
        for op in [Op::Compare(Compare::Lt), Op::Compare(Compare::Eq), Op::Cat { dim: 0 }] {
            let graph = single(&[(&[4, 3], dtype), (&[4, 3], dtype)], op);
            let [ours, truth] = both(&graph, |source| {
                let salt = if source == Source::Input(0) { 1 } else { 2 };
                fill(&[4, 3].into(), dtype, salt, (0.0, 4.0))
            });
            assert_eq!(ours, truth, "{graph}");
        }
        for to in DType::ALL {
            let graph = single(&[(&[40], dtype)], Op::Cast(to));
            let [ours, truth] = both(&graph, |_| fill(&[40].into(), dtype, 3, (0.0, 4.0)));
            assert_eq!(ours, truth, "{graph}");
        }
        let unslice = Op::Unslice { dim: 1, size: 9, start: 1, step: 3 };
        let [ours, truth] =
            both(&single(&[(&[4, 3], dtype)], unslice), |_| fill(&[4, 3].into(), dtype, 3, (0.0, 4.0)));
        assert_eq!(ours, truth);
    }
}

#[test]
fn halves_are_the_nearest_and_of_two_the_even_one() {
    // Every seventh half, what lies halfway to the next and a little beside, and the ends of the range.
    let floats: Vec<f32> = (0..=u16::MAX)
        .step_by(7)
        .flat_map(|bits| {
            let (half, brain) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            let beside = |x: f32, bits: u32| f32::from_bits(x.to_bits().wrapping_add(bits));
            let around_f16 = [0, 0xfff, 0x1000, 0x1001].map(|bits| beside(half, bits));
            let around_bf16 = [0, 0x7fff, 0x8000, 0x8001].map(|bits| beside(brain, bits));
            around_f16.into_iter().chain(around_bf16)
        })
        .chain([65_519.99, 65_520.0, 5.9e-8, 2.9e-8, 2.98e-8, 3.0e-8, 8.9e-8, 9.0e-8])
        .collect();
    let shape = Shape::from([floats.len()]);
    let doubles: Vec<f64> = floats.iter().map(|&x| x.into()).collect();
    for to in [DType::F16, DType::BF16] {
        let truth =
            |x: f32| if to == DType::F16 { f16::from_f32(x).to_f64() } else { bf16::from_f32(x).to_f64() };
        for from in [DType::F32, DType::F64] {
            let graph = single(&[(shape.dims(), from)], Op::Cast(to));
            let [ours, _] = both(&graph, |_| match from {
                DType::F32 => HostTensor::from_values(shape.clone(), &floats).unwrap(),
                _ => HostTensor::from_values(shape.clone(), &doubles).unwrap(),
            });
            for (&a, &x) in ours[0].iter().zip(&floats) {
                let b = truth(x);
                assert!(a == b || (a.is_nan() && b.is_nan()), "{from} {x:e} as {to}: {a:e} instead of {b:e}");
            }
        }
        // And back: every half is read as what it is.
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let graph = single(&[(&[1 << 16], to)], Op::Cast(DType::F32));
        let [ours, truth] = both(&graph, |_| HostTensor::new([1 << 16].into(), to, bytes.clone()).unwrap());
        assert!(
            ours[0].iter().zip(&truth[0]).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())),
            "{to} is misread"
        );
    }
}
