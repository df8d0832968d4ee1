//! Normalisations of batches with what comes before and after them, beside the same in steps of their own: equal bits, on any number
//! of threads.

use proptest::prelude::*;

use super::{
    super::{CpuBackend, Winograd, support},
    results,
};
use crate::{
    backend::{
        CompileOptions,
        conformance::fill,
        plan::{StepKind, plan},
    },
    graph::{Binary, Builder, Graph, Op, Sink, Source, Unary, ValueId},
    tensor::{DType, PackedLayout, Shape},
};

/// What stands around a normalisation.
#[derive(Clone, Copy, Debug)]
enum Around {
    Relu,
    /// x + y, as long as it is wanted, and ReLU of that.
    Residual,
    /// x·σ(x), whose gradient wants x.
    Silu,
    /// A factor for each image and channel, then dropout.
    Gate,
    /// A factor for each column, then 14 more links.
    Long,
}

const ALL: [Around; 5] = [Around::Relu, Around::Residual, Around::Silu, Around::Gate, Around::Long];

struct Net {
    builder: Builder,
    shape: Shape,
    dtype: DType,
    /// Whether views stand where a chain would be joined.
    apart: bool,
    /// Whether what a chain hands over is a result too.
    is_wanted: bool,
    inputs: u32,
}

impl Net {
    fn new(shape: &[usize], dtype: DType, apart: bool, is_wanted: bool) -> Self {
        Self { builder: Builder::new(), shape: shape.into(), dtype, apart, is_wanted, inputs: 0 }
    }

    fn input(&mut self, shape: Shape) -> ValueId {
        self.inputs += 1;
        self.builder.source(Source::Input(self.inputs), shape, self.dtype).unwrap()
    }

    fn whole(&mut self) -> ValueId {
        let shape = self.shape.clone();
        self.input(shape)
    }

    fn channel(&mut self) -> ValueId {
        self.input([self.shape[1]].into())
    }

    fn apply(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.builder.apply(op, inputs).unwrap()
    }

    fn sink(&mut self, n: u32, value: ValueId) {
        self.builder.sink(Sink::Output(n), value);
    }

    fn border(&mut self, value: ValueId) -> ValueId {
        if self.apart { self.apply(Op::Detach, &[value]) } else { value }
    }

    fn around(&mut self, around: Around, value: ValueId) -> ValueId {
        match around {
            Around::Relu => self.apply(Op::Unary(Unary::Relu), &[value]),
            Around::Residual => {
                let x = self.whole();
                let sum = self.apply(Op::Binary(Binary::Add), &[x, value]);
                self.sink(7, sum);
                self.apply(Op::Unary(Unary::Relu), &[sum])
            }
            Around::Silu => {
                self.sink(7, value);
                self.apply(Op::Unary(Unary::Silu), &[value])
            }
            Around::Gate => {
                let mut shape: Vec<usize> = vec![1; self.shape.rank()];
                shape[..2].copy_from_slice(&self.shape[..2]);
                let gate = self.input(Shape::from(shape.as_slice()));
                let gated = self.apply(Op::Binary(Binary::Mul), &[gate, value]);
                self.apply(Op::Dropout { p: 0.25, site: 3 }, &[gated])
            }
            Around::Long => {
                let columns = self.input([*self.shape.last().unwrap()].into());
                let mut y = self.apply(Op::Binary(Binary::Mul), &[value, columns]);
                for _ in 0..7 {
                    let twice = self.apply(Op::Unary(Unary::MulScalar { value: 1.5 }), &[y]);
                    y = self.apply(Op::Unary(Unary::Tanh), &[twice]);
                }
                y
            }
        }
    }
}

fn forward(around: Around, of_batch: bool, mut net: Net) -> Graph {
    let x = net.whole();
    let parameters = [net.channel(), net.channel()];
    let y = if of_batch {
        let all = net.builder.push(Op::BatchNorm { eps: 1e-5 }, &[&[x], &parameters[..]].concat()).unwrap();
        all[1..].iter().zip(1..).for_each(|(&statistic, n)| net.sink(n, statistic));
        all[0]
    } else {
        let statistics = [net.channel(), net.channel()];
        net.apply(Op::BatchNormEval { eps: 1e-5 }, &[&[x], &parameters[..], &statistics].concat())
    };
    // Where what follows is longer, not both are given.
    if net.is_wanted && !matches!(around, Around::Long) {
        net.sink(8, y);
    }
    let y = net.border(y);
    let z = net.around(around, y);
    net.sink(0, z);
    net.builder.finish()
}

fn backward(around: Around, of_batch: bool, mut net: Net) -> Graph {
    let gz = net.whole();
    let gy = net.around(around, gz);
    if net.is_wanted {
        net.sink(8, gy);
    }
    let gy = net.border(gy);
    let x = net.whole();
    let [weight, mean, spread] = [(); 3].map(|()| net.channel());
    let op = if of_batch { Op::BatchNormGrad } else { Op::BatchNormEvalGrad { eps: 1e-5 } };
    let all = net.builder.push(op, &[x, weight, mean, spread, gy]).unwrap();
    all.iter().zip(0..).for_each(|(&gradient, n)| net.sink(n, gradient));
    net.builder.finish()
}

fn joins(graph: &Graph) -> bool {
    let none = PackedLayout::default();
    let options =
        CompileOptions { parameters: &none, buffers: &none, limit_bytes: usize::MAX, deadline: None };
    let cpu = support::Cpu { threads: 1, winograd: Winograd::default() };
    let plan = plan(graph, &cpu, &options).unwrap();
    plan.steps.iter().any(|step| matches!(step.kind, StepKind::Joined(_)))
}

fn agrees(
    shape: &[usize],
    dtype: DType,
    around: Around,
    [of_batch, is_wanted]: [bool; 2],
    build: impl Fn(Around, bool, Net) -> Graph,
) {
    let [whole, apart] =
        [false, true].map(|apart| build(around, of_batch, Net::new(shape, dtype, apart, is_wanted)));
    let is_worth_it = shape[2..].iter().product::<usize>() >= 256;
    assert!(joins(&whole) == is_worth_it && !joins(&apart), "{whole}");
    let feed = |source: Source| {
        let info = whole.info(whole.source(source).unwrap());
        let Source::Input(number) = source else { panic!("{source:?}") };
        // The spread of a channel is positive.
        fill(
            &info.shape,
            info.dtype,
            u64::from(number),
            if info.shape.rank() == 1 { (0.5, 1.5) } else { (-1.0, 1.0) },
        )
    };
    let run = |graph: &Graph, threads| results(graph, &CpuBackend::new(threads), feed);
    let truth = run(&apart, 1);
    assert!(truth.iter().all(|(_, values)| values.iter().all(|value| value.is_finite())), "{apart}");
    let bits = |results: Vec<(Sink, Vec<f64>)>| -> Vec<(Sink, Vec<u64>)> {
        results.into_iter().map(|(sink, all)| (sink, all.into_iter().map(f64::to_bits).collect())).collect()
    };
    let truth = bits(truth);
    for threads in [1, 3] {
        assert_eq!(bits(run(&whole, threads)), truth, "{threads} threads of\n{whole}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn joined_steps_give_the_bits_of_two(
        images in 2usize..9,
        channels in 1usize..150,
        plane in prop_oneof![
            Just(vec![]), Just(vec![15, 17]), Just(vec![16, 16]), Just(vec![17, 19]), Just(vec![300]), Just(vec![2, 400]),
        ],
        around in 0..ALL.len(),
        kinds: [bool; 2],
        is_forward: bool,
        dtype in prop_oneof![4 => Just(DType::F32), 1 => Just(DType::F64)],
    ) {
        let shape = [&[images, channels], plane.as_slice()].concat();
        agrees(&shape, dtype, ALL[around], kinds, if is_forward { forward } else { backward });
    }
}

#[test]
fn channels_larger_than_a_task() {
    for around in ALL {
        for kinds in [[false, false], [true, true]] {
            agrees(&[5, 3, 90, 91], DType::F32, around, kinds, forward);
            agrees(&[5, 3, 90, 91], DType::F32, around, kinds, backward);
        }
    }
}
