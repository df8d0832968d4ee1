//! Half-precision values computed in `float32`.

use std::collections::HashMap;

use smallvec::smallvec;

use crate::{
    graph::{Graph, Node, Op, ValueId, ValueInfo},
    tensor::DType,
};

/// The graph with every operation on `bfloat16` or `float16` done in `float32` between casts, for devices that
/// compute in nothing smaller.
///
/// Each result is rounded to its own type before it is read again, as PyTorch does when it runs operation by
/// operation. Operations that only move values keep their type.
pub fn widen(graph: &Graph) -> Graph {
    let is_half = |info: &ValueInfo| matches!(info.dtype, DType::BF16 | DType::F16);
    if !graph.values.iter().any(is_half) {
        return graph.clone();
    }
    let mut wide = Graph { nodes: Vec::with_capacity(3 * graph.nodes.len()), ..graph.clone() };
    // A value is widened once, however many read it.
    let mut widened: HashMap<ValueId, ValueId> = HashMap::new();
    for node in &graph.nodes {
        if moves(&node.op) || !node.inputs.iter().chain(&node.outputs).any(|&v| is_half(graph.info(v))) {
            wide.nodes.push(node.clone());
            continue;
        }
        let mut computed = node.clone();
        for input in computed.inputs.iter_mut().filter(|input| is_half(graph.info(**input))) {
            *input = *widened.entry(*input).or_insert_with(|| {
                let value = twin(&mut wide, graph.info(*input));
                let cast =
                    Node { op: Op::Cast(DType::F32), inputs: smallvec![*input], outputs: smallvec![value] };
                wide.nodes.push(cast);
                value
            });
        }
        let mut rounded = Vec::new();
        for output in computed.outputs.iter_mut().filter(|output| is_half(graph.info(**output))) {
            let (narrow, dtype) = (*output, graph.info(*output).dtype);
            *output = twin(&mut wide, graph.info(narrow));
            rounded.push(Node {
                op: Op::Cast(dtype),
                inputs: smallvec![*output],
                outputs: smallvec![narrow],
            });
        }
        wide.nodes.push(computed);
        wide.nodes.extend(rounded);
    }
    wide
}

/// Another value of the same shape in `float32`.
fn twin(graph: &mut Graph, like: &ValueInfo) -> ValueId {
    graph.values.push(ValueInfo { shape: like.shape.clone(), dtype: DType::F32 });
    ValueId(graph.values.len() as u32 - 1)
}

/// Whether an operation hands on what it reads, or fills in what its attributes say.
fn moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Cast(_)
            | Op::Reshape(_)
            | Op::Permute(_)
            | Op::Expand(_)
            | Op::Slice { .. }
            | Op::Unslice { .. }
            | Op::Cat { .. }
            | Op::Pick { .. }
            | Op::Detach
            | Op::Full { .. }
            | Op::Arange { .. }
            | Op::Where
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Binary, Builder, Sink, Source, Unary};

    #[test]
    fn each_result_is_rounded_and_each_operand_widened_once() {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [2, 3].into(), DType::BF16).unwrap();
        let turned = builder.apply(Op::Permute(vec![1, 0]), &[x]).unwrap();
        let product = builder.apply(Op::Binary(Binary::Mul), &[turned, turned]).unwrap();
        let y = builder.apply(Op::Unary(Unary::Exp), &[product]).unwrap();
        builder.sink(Sink::Output(0), y);
        let graph = builder.finish();
        let wide = widen(&graph);
        let ops: Vec<_> = wide.nodes.iter().map(|node| node.op.name()).collect();
        assert_eq!(ops, ["permute", "cast", "mul", "cast", "cast", "exp", "cast"]);
        assert_eq!((wide.info(y).dtype, &wide.sinks), (DType::BF16, &graph.sinks));
        for node in wide.nodes.iter().filter(|node| ["mul", "exp"].contains(&node.op.name())) {
            assert!(node.inputs.iter().chain(&node.outputs).all(|&v| wide.info(v).dtype == DType::F32));
        }
    }

    #[test]
    fn a_graph_without_halves_stays_as_it_is() {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [2].into(), DType::F64).unwrap();
        let y = builder.apply(Op::Unary(Unary::Exp), &[x]).unwrap();
        builder.sink(Sink::Output(0), y);
        let graph = builder.finish();
        assert_eq!(widen(&graph), graph);
    }
}
