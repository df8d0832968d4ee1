//! What a graph costs to run, known before it runs: arithmetic and memory traffic.

use super::{Graph, Node, Op, Unary, ValueId};
use crate::tensor::Shape;

/// What one run of a graph costs. Counts saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations: a multiply-add is two, a transcendental function counts as eight.
    pub flops: u64,
    /// Bytes that nodes read and write when each runs by itself; views move none.
    pub moved_bytes: u64,
    /// Bytes of the largest single value.
    pub largest_value_bytes: u64,
}

/// Estimates what one run of the graph costs, fusion and caches left aside.
pub fn cost(graph: &Graph) -> Cost {
    let nodes = graph.nodes.iter().map(|node| node_cost(graph, node));
    let all = (0..graph.values.len()).map(|i| value_bytes(graph, ValueId(i as u32)));
    let largest_value_bytes = all.max().unwrap_or(0);
    nodes.fold(Cost { largest_value_bytes, ..Cost::default() }, |sum, node| Cost {
        flops: sum.flops.saturating_add(node.flops),
        moved_bytes: sum.moved_bytes.saturating_add(node.moved_bytes),
        largest_value_bytes,
    })
}

/// Estimates what one node of the graph costs.
pub fn node_cost(graph: &Graph, node: &Node) -> Cost {
    let values = || node.inputs.iter().chain(&node.outputs).map(|&value| value_bytes(graph, value));
    let moved_bytes = if is_view(&node.op) { 0 } else { values().fold(0, u64::saturating_add) };
    Cost { flops: flops(graph, node), moved_bytes, largest_value_bytes: values().max().unwrap_or(0) }
}

fn value_bytes(graph: &Graph, value: ValueId) -> u64 {
    let info = graph.info(value);
    (info.shape.elements() as u64).saturating_mul(info.dtype.size_bytes() as u64)
}

/// Whether an operation can be had by reading the same memory another way.
fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Permute(_) | Op::Expand(_) | Op::Slice { .. } | Op::Detach)
}

fn flops(graph: &Graph, node: &Node) -> u64 {
    let count = |value: ValueId| graph.info(value).shape.elements() as u64;
    let shape = |index: usize| &graph.info(node.inputs[index]).shape;
    let (read, written) = (|| node.inputs.first().map_or(0, |&v| count(v)), count(node.outputs[0]));
    let window = |kernel: [usize; 2]| (kernel[0] as u64).saturating_mul(kernel[1] as u64);
    let each = |n: u64, per_element: u64| n.saturating_mul(per_element);
    match &node.op {
        Op::Unary(unary) => each(written, per_element(unary)),
        // The derivative, then the product with gy.
        Op::UnaryGrad(unary) => each(written, per_element(unary) + 2),
        Op::Binary(super::Binary::Pow) => each(written, 16),
        Op::Binary(_) | Op::Compare(_) | Op::Where | Op::Cast(_) | Op::Dropout { .. } => written,
        Op::Reshape(_)
        | Op::Permute(_)
        | Op::Expand(_)
        | Op::Slice { .. }
        | Op::Unslice { .. }
        | Op::Cat { .. }
        | Op::Pick { .. }
        | Op::Detach
        | Op::Full { .. } => 0,
        Op::Unpick { .. } => count(node.inputs[1]),
        Op::Arange { .. } => each(written, 2),
        Op::Reduce { .. } => read(),
        Op::Softmax { .. } | Op::LogSoftmax { .. } => each(written, 12),
        Op::SoftmaxGrad { .. } => each(written, 4),
        Op::LogSoftmaxGrad { .. } => each(written, 12),
        // One product and one sum for each element of the inner dimension.
        Op::MatMul { transpose_a, .. } => {
            let (a, rank) = (shape(0), shape(0).rank());
            let inner = if *transpose_a { a[rank - 2] } else { a[rank - 1] };
            each(written, 2u64.saturating_mul(inner as u64))
        }
        // One product and one sum for each output element and each tap; the gradients have as many.
        Op::Conv2d(_) => conv(written, &shape(1)[1..]),
        Op::Conv2dGradInput { .. } => conv(count(node.inputs[1]), &shape(0)[1..]),
        Op::Conv2dGradWeight { .. } => conv(count(node.inputs[1]), &graph.info(node.outputs[0]).shape[1..]),
        // Two products and a softmax of the scores, or five products and what is made of two: all of them, causal or not.
        Op::Attention { .. } => {
            let (scores, widths) = attention(shape(0), shape(1), shape(2));
            each(scores, widths.saturating_mul(2).saturating_add(12))
        }
        Op::AttentionGrad { .. } => {
            let (scores, widths) = attention(shape(0), shape(1), shape(2));
            let keys = shape(0).last().map_or(0, |&n| n as u64);
            each(scores, widths.saturating_mul(4).saturating_add(keys.saturating_mul(2)).saturating_add(12))
        }
        Op::MaxPool2d(pool) | Op::AvgPool2d { pool, .. } => each(written, window(pool.kernel)),
        Op::MaxPool2dGrad { .. } => count(node.inputs[1]),
        Op::AvgPool2dGrad { pool, .. } => each(read(), window(pool.kernel)),
        Op::AdaptiveAvgPool2d { .. } => read().max(written),
        Op::AdaptiveAvgPool2dGrad { .. } => read().max(written),
        Op::BatchNorm { .. } | Op::LayerNorm { .. } | Op::GroupNorm { .. } => each(read(), 7),
        Op::BatchNormEval { .. } => each(read(), 2),
        Op::BatchNormEvalGrad { .. } => each(read(), 6),
        Op::BatchNormGrad | Op::LayerNormGrad { .. } | Op::GroupNormGrad { .. } => each(read(), 11),
    }
}

/// How many scores there are, and the widths of a key and a value together.
fn attention(q: &Shape, k: &Shape, v: &Shape) -> (u64, u64) {
    let last = |shape: &Shape| shape.last().map_or(0, |&n| n as u64);
    let queries = q[..q.rank() - 1].iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
    (queries.saturating_mul(k[k.rank() - 2] as u64), last(k).saturating_add(last(v)))
}

fn conv(outputs: u64, taps: &[usize]) -> u64 {
    taps.iter().fold(outputs.saturating_mul(2), |flops, &n| flops.saturating_mul(n as u64))
}

fn per_element(unary: &Unary) -> u64 {
    match unary {
        Unary::Neg
        | Unary::Abs
        | Unary::Relu
        | Unary::LeakyRelu { .. }
        | Unary::Hardtanh { .. }
        | Unary::AddScalar { .. }
        | Unary::MulScalar { .. }
        | Unary::Sqrt
        | Unary::Sign
        | Unary::Floor
        | Unary::Ceil
        | Unary::Round
        | Unary::Trunc
        | Unary::Reciprocal => 1,
        Unary::Rsqrt => 2,
        Unary::Hardswish | Unary::Hardsigmoid => 4,
        Unary::Exp
        | Unary::Expm1
        | Unary::Log
        | Unary::Log1p
        | Unary::Sin
        | Unary::Cos
        | Unary::Erf
        | Unary::Elu { .. }
        | Unary::Sigmoid
        | Unary::Tanh
        | Unary::Silu
        | Unary::Gelu
        | Unary::GeluTanh => 8,
        Unary::Softplus { .. } | Unary::PowScalar { .. } => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Builder, Conv2d, Sink, Source, Wants, differentiate},
        tensor::DType,
    };

    #[test]
    fn a_convolution_and_its_gradients_cost_the_same_each() {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [2, 4, 8, 8].into(), DType::F32).unwrap();
        let w = builder.source(Source::Parameter(0), [6, 2, 3, 3].into(), DType::F32).unwrap();
        let op = Op::Conv2d(Conv2d { stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 2 });
        let y = builder.apply(op, &[x, w]).unwrap();
        builder.sink(Sink::Output(0), y);
        let graph = builder.finish();
        let forward = cost(&graph);
        assert_eq!(forward.flops, 2 * (2 * 6 * 8 * 8) * (2 * 3 * 3));
        assert_eq!(forward.moved_bytes, 4 * (2 * 4 * 64 + 6 * 2 * 9 + 2 * 6 * 64));
        assert_eq!(forward.largest_value_bytes, 4 * 2 * 6 * 64);
        let both = differentiate(&graph, &Wants { inputs: &[true], parameters: &[true] }).unwrap();
        assert_eq!(cost(&both.backward).flops, 2 * forward.flops);
    }

    #[test]
    fn attention_costs_two_products_and_its_gradient_five() {
        let mut builder = Builder::new();
        let shapes: [&[usize]; 3] = [&[2, 3, 5, 8], &[2, 3, 7, 8], &[2, 3, 7, 4]];
        let inputs = [0, 1, 2]
            .map(|n| builder.source(Source::Input(n), shapes[n as usize].into(), DType::F32).unwrap());
        let y = builder.apply(Op::Attention { causal: false, scale: 1.0 }, &inputs).unwrap();
        builder.sink(Sink::Output(0), y);
        let graph = builder.finish();
        let scores = 2 * 3 * 5 * 7;
        assert_eq!(cost(&graph).flops, scores * (2 * (8 + 4) + 12));
        let both = differentiate(&graph, &Wants { inputs: &[true; 3], parameters: &[] }).unwrap();
        assert_eq!(cost(&both.backward).flops, scores * (2 * (3 * 8 + 2 * 4) + 12));
    }

    #[test]
    fn views_move_nothing_and_counts_saturate() {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [1 << 20, 1].into(), DType::F32).unwrap();
        let wide = builder.apply(Op::Expand([1 << 20, 1 << 10].into()), &[x]).unwrap();
        let turned = builder.apply(Op::Permute(vec![1, 0]), &[wide]).unwrap();
        builder.sink(Sink::Output(0), turned);
        assert_eq!(cost(&builder.finish()).moved_bytes, 0);
        assert_eq!(conv(u64::MAX, &[usize::MAX]), u64::MAX);
    }
}
