//! A deliberately naive evaluator on `f64`: one index at a time, straight from the definitions.
//!
//! It is the oracle: backends must agree with it, and finite differences through it check every gradient.
//! It is slow, allocates at will and is meant for tests and for nothing on a trainer's path.

mod attention;
mod contraction;
mod elementwise;
mod movement;
mod norm;
mod pool;
mod reduce;
mod tensor;

use super::{Binary, Graph, Op, Sink, Source, ops::keep};
use crate::tensor::{DType, HostTensor, TensorError};

pub use elementwise::{gradient as unary_gradient, unary as unary_value};
use tensor::Tensor;

/// Runs a graph. Every value is computed in `f64`; those of half precision are rounded where they are made, as
/// that is part of what they mean, the others only at the sinks.
///
/// # Errors
/// [`TensorError`] when a fed tensor's shape is not the source's.
///
/// # Panics
/// When the graph does not come from a [`Builder`](super::Builder).
pub fn evaluate(
    graph: &Graph,
    mut feed: impl FnMut(Source) -> HostTensor,
    seed: u64,
) -> Result<Vec<(Sink, HostTensor)>, TensorError> {
    let mut values: Vec<Option<Tensor>> = vec![None; graph.values.len()];
    for &(source, value) in &graph.sources {
        let tensor = match source {
            Source::Constant(n) => graph.constants[n as usize].clone(),
            other => feed(other),
        };
        let expected = &graph.info(value).shape;
        if tensor.shape() != expected {
            return Err(TensorError::Length {
                shape: expected.clone(),
                dtype: tensor.dtype(),
                expected: expected.elements(),
                actual: tensor.shape().elements(),
            });
        }
        values[value.0 as usize] = Some(Tensor::from_host(&tensor));
    }
    for node in &graph.nodes {
        let operands: Vec<&Tensor> = node
            .inputs
            .iter()
            .map(|v| {
                values[v.0 as usize].as_ref().expect("a builder's graph gives values before they are read")
            })
            .collect();
        let results = run(&node.op, &operands, seed);
        assert_eq!(results.len(), node.outputs.len(), "{}", node.op.name());
        for (&output, result) in node.outputs.iter().zip(results) {
            assert_eq!(result.shape, graph.info(output).shape, "{} gives the inferred shape", node.op.name());
            let dtype = graph.info(output).dtype;
            let is_half = matches!(dtype, DType::BF16 | DType::F16);
            let divided = node.op == Op::Binary(Binary::Div) && !dtype.is_floating_point();
            let result = match (is_half, divided) {
                (true, _) => result.map(|v| elementwise::cast(dtype, v)),
                (_, true) => result.map(elementwise::whole_quotient),
                _ => result,
            };
            values[output.0 as usize] = Some(result);
        }
    }
    graph
        .sinks
        .iter()
        .map(|&(sink, value)| {
            let tensor =
                values[value.0 as usize].as_ref().expect("a sink's value is given by a node or a source");
            Ok((sink, tensor.to_host(graph.info(value).dtype)?))
        })
        .collect()
}

fn run(op: &Op, operands: &[&Tensor], seed: u64) -> Vec<Tensor> {
    let first = |t: Tensor| vec![t];
    match (op, operands) {
        (Op::Unary(unary), [x]) => first(x.map(|v| elementwise::unary(*unary, v))),
        (Op::UnaryGrad(unary), [x, gy]) => {
            first(Tensor::broadcast([x, gy], |[x, gy]| elementwise::gradient(*unary, x, gy)))
        }
        (Op::Binary(binary), [a, b]) => {
            first(Tensor::broadcast([a, b], |[a, b]| elementwise::binary(*binary, a, b)))
        }
        (Op::Compare(compare), [a, b]) => first(Tensor::broadcast([a, b], |[a, b]| {
            f64::from(u8::from(elementwise::compare(*compare, a, b)))
        })),
        (Op::Where, [c, a, b]) => {
            first(Tensor::broadcast([c, a, b], |[c, a, b]| if c != 0.0 { a } else { b }))
        }
        (Op::Cast(dtype), [x]) => first(x.map(|v| elementwise::cast(*dtype, v))),
        (Op::Dropout { p, site }, [x]) => {
            let scale = if *p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 };
            let mask = |i: usize| if keep(seed, *site, i as u64, *p) { scale } else { 0.0 };
            let data = x.data.iter().enumerate().map(|(i, v)| v * mask(i)).collect();
            first(Tensor { shape: x.shape.clone(), data })
        }
        (Op::Full { shape, value, dtype }, []) => {
            let value = elementwise::cast(*dtype, *value);
            first(Tensor { shape: shape.clone(), data: vec![value; shape.elements()] })
        }
        (Op::Arange { start, step, len, .. }, []) => {
            first(Tensor { shape: [*len].into(), data: (0..*len).map(|i| start + step * i as f64).collect() })
        }
        _ => movement::run(op, operands)
            .or_else(|| reduce::run(op, operands))
            .or_else(|| contraction::run(op, operands))
            .or_else(|| attention::run(op, operands))
            .or_else(|| pool::run(op, operands))
            .or_else(|| norm::run(op, operands))
            .expect("every operation stands in one of the families"),
    }
}
