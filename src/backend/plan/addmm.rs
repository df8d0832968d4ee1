//! Products that take a bias with them, and what cuts off below zero: done as they are written, so that the product goes to
//! memory once.

use std::collections::HashMap;

use super::chain::Part;
use crate::graph::{Binary, DefUse, Graph, Op, Unary, ValueId};

/// y = a·b + bias for each row, as `torch.addmm`; with `relu`, max(y, 0). The operands are a, b, and the bias with an element
/// for each column.
///
/// In halves it is rounded once, as PyTorch's is where a library adds the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addmm {
    /// Whether a lies transposed.
    pub transpose_a: bool,
    /// Whether b lies transposed.
    pub transpose_b: bool,
    /// Whether what is negative becomes 0.
    pub relu: bool,
}

/// What may be done with a product.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) addmm: Addmm,
    pub(super) bias: ValueId,
    /// The nodes after the product, in order; the last one gives the result.
    pub(super) after: Vec<usize>,
}

/// By node, the products whose only reader adds a bias, with nothing else or ReLU alone done to the sum in the same step.
pub(super) fn candidates(graph: &Graph, parts: &[Part]) -> HashMap<usize, Candidate> {
    let values = DefUse::of(graph);
    let found = graph.nodes.iter().enumerate().filter_map(|(n, node)| {
        let Op::MatMul { transpose_a, transpose_b } = node.op else { return None };
        let product = node.outputs[0];
        let sum = values.only_reader(product)?;
        let bias = bias_of(graph, sum, product)?;
        let after = match &parts[sum] {
            Part::Alone => vec![sum],
            _ => {
                let last = values.only_reader(graph.nodes[sum].outputs[0])?;
                let is_pair = matches!(&parts[last], Part::End { nodes, .. } if *nodes == [sum, last]);
                let is_relu = graph.nodes[last].op == Op::Unary(Unary::Relu);
                (is_pair && is_relu).then(|| vec![sum, last])?
            }
        };
        let addmm = Addmm { transpose_a, transpose_b, relu: after.len() > 1 };
        Some((n, Candidate { addmm, bias, after }))
    });
    found.collect()
}

/// The operand that a node adds to each row of a product, where it does so and no more.
fn bias_of(graph: &Graph, node: usize, product: ValueId) -> Option<ValueId> {
    let node = &graph.nodes[node];
    let (y, sum) = (graph.info(product), graph.info(node.outputs[0]));
    let bias = match (&node.op, node.inputs.as_slice()) {
        (Op::Binary(Binary::Add), &[a, b]) if a == product && b != product => b,
        (Op::Binary(Binary::Add), &[a, b]) if b == product && a != product => a,
        _ => return None,
    };
    let info = graph.info(bias);
    let (columns, before) = info.shape.split_last()?;
    let fits = Some(columns) == y.shape.last() && before.iter().all(|&size| size == 1);
    let alike = sum.shape == y.shape && info.dtype == y.dtype && y.dtype.is_floating_point();
    (fits && alike && !y.shape.contains(&0)).then_some(bias)
}

#[cfg(test)]
mod tests {
    use super::{super::chain::parts, *};
    use crate::{
        graph::{Builder, Sink, Source},
        tensor::DType,
    };

    /// x·w with a bias of some shape, then what is done with the sum and the product.
    fn graph(bias: &[usize], then: impl FnOnce(&mut Builder, ValueId, ValueId) -> ValueId) -> Graph {
        let mut builder = Builder::new();
        let mut input =
            |n, shape: &[usize]| builder.source(Source::Input(n), shape.into(), DType::F32).unwrap();
        let (x, w, bias) = (input(0, &[4, 3]), input(1, &[5, 3]), input(2, bias));
        let product = builder.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[x, w]).unwrap();
        let sum = builder.apply(Op::Binary(Binary::Add), &[bias, product]).unwrap();
        let y = then(&mut builder, sum, product);
        builder.sink(Sink::Output(0), y);
        builder.finish()
    }

    fn found(graph: &Graph) -> Option<(bool, Vec<usize>)> {
        let mut found = candidates(graph, &parts(graph));
        found.remove(&0).map(|candidate| (candidate.addmm.relu, candidate.after))
    }

    #[test]
    fn a_bias_alone_or_with_relu_goes_with_the_product() {
        let relu = |b: &mut Builder, sum, _| b.apply(Op::Unary(Unary::Relu), &[sum]).unwrap();
        assert_eq!(found(&graph(&[5], |_, sum, _| sum)), Some((false, vec![1])));
        assert_eq!(found(&graph(&[1, 5], relu)), Some((true, vec![1, 2])));
        let graph = graph(&[5], relu);
        let candidate = candidates(&graph, &parts(&graph)).remove(&0).unwrap();
        assert_eq!(candidate.bias, ValueId(2));
        assert_eq!(candidate.addmm, Addmm { transpose_a: false, transpose_b: true, relu: true });
    }

    #[test]
    fn what_is_read_elsewhere_or_is_no_bias_or_goes_on_stays_as_it_is() {
        assert_eq!(found(&graph(&[4, 5], |_, sum, _| sum)), None, "it has a row for each");
        assert_eq!(found(&graph(&[4, 1], |_, sum, _| sum)), None, "it has an element for each row");
        assert_eq!(found(&graph(&[1], |_, sum, _| sum)), None, "it has one element");
        let longer = |b: &mut Builder, sum, _| {
            let y = b.apply(Op::Unary(Unary::Relu), &[sum]).unwrap();
            b.apply(Op::Unary(Unary::Tanh), &[y]).unwrap()
        };
        assert_eq!(found(&graph(&[5], longer)), None, "a chain reads the product anyway");
        let twice =
            |b: &mut Builder, sum, product| b.apply(Op::Binary(Binary::Mul), &[sum, product]).unwrap();
        assert_eq!(found(&graph(&[5], twice)), None, "the product itself is wanted");
        let before = |b: &mut Builder, sum, _| {
            let y = b.apply(Op::Unary(Unary::Relu), &[sum]).unwrap();
            b.sink(Sink::Output(1), sum);
            y
        };
        assert_eq!(found(&graph(&[5], before)), None, "what comes before ReLU is wanted");
    }
}
