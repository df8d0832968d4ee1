//! Attention that is written out by hand, found and made one operation.
//!
//! What is looked for is softmax(q·kᵀ)·v along the last dimension, with factors at q, at k or at the scores, under
//! views that leave matrices as they are, where nobody else reads what lies between. A mask, a dropout or a cast in
//! between leaves the operations as they are.

use smallvec::{SmallVec, smallvec};

use super::{Binary, DefUse, Graph, Node, Op, Source, Unary, ValueId, ValueInfo, infer};
use crate::tensor::Shape;

/// Puts an attention in the place of each product that ends one, and says whether there was any. What is no longer
/// needed stays for a sweep.
pub(super) fn recognise(graph: &mut Graph) -> bool {
    let known = Known::of(graph);
    let found: Vec<Option<Found>> = graph.nodes.iter().map(|node| known.attention(node)).collect();
    if found.iter().all(Option::is_none) {
        return false;
    }
    let nodes = std::mem::take(&mut graph.nodes);
    for (node, found) in nodes.into_iter().zip(found) {
        match found {
            None => graph.nodes.push(node),
            Some(found) => found.place(graph, node.outputs[0]),
        }
    }
    true
}

/// A value and the views to read it by.
struct Viewed {
    value: ValueId,
    views: Vec<Op>,
    info: ValueInfo,
}

/// The operands of an attention, and the info of its second result.
struct Found {
    operands: [Viewed; 3],
    scale: f64,
    sums: ValueInfo,
}

impl Found {
    /// Appends the attention, whose result is a value that is there.
    fn place(self, graph: &mut Graph, y: ValueId) {
        let value = |graph: &mut Graph, info: ValueInfo| {
            graph.values.push(info);
            ValueId(graph.values.len() as u32 - 1)
        };
        let mut inputs: SmallVec<[ValueId; 4]> = smallvec![];
        for operand in self.operands {
            let mut at = operand.value;
            for op in operand.views {
                let info =
                    infer(&op, &[graph.info(at)]).expect("the views were inferred when they were found");
                let viewed = value(graph, info[0].clone());
                graph.nodes.push(Node { op, inputs: smallvec![at], outputs: smallvec![viewed] });
                at = viewed;
            }
            inputs.push(at);
        }
        let sums = value(graph, self.sums);
        let op = Op::Attention { causal: false, scale: self.scale };
        graph.nodes.push(Node { op, inputs, outputs: smallvec![y, sums] });
    }
}

/// A graph with who gives and who reads each value.
struct Known<'a> {
    graph: &'a Graph,
    values: DefUse,
}

impl<'a> Known<'a> {
    fn of(graph: &'a Graph) -> Self {
        Self { graph, values: DefUse::of(graph) }
    }

    fn producer(&self, value: ValueId) -> Option<&'a Node> {
        self.values.producer(value).map(|n| &self.graph.nodes[n])
    }

    /// What gives a value that one reader alone reads.
    fn inner(&self, value: ValueId) -> Option<&'a Node> {
        self.producer(value).filter(|_| self.values.only_reader(value).is_some())
    }

    fn shape(&self, value: ValueId) -> &'a Shape {
        &self.graph.info(value).shape
    }

    /// The attention that ends with a node.
    fn attention(&self, node: &Node) -> Option<Found> {
        let Op::MatMul { transpose_a: false, transpose_b: turns_values } = node.op else { return None };
        let softmax = loop_over(node.inputs[0], |value| {
            let inner = self.inner(value)?;
            if self.keeps_matrices(inner) { Some(Err(inner.inputs[0])) } else { Some(Ok(inner)) }
        })?;
        let Op::Softmax { dim } = softmax.op else { return None };
        if dim + 1 != self.shape(softmax.inputs[0]).rank() {
            return None;
        }
        let mut scale = 1.0;
        let product = loop_over(softmax.inputs[0], |value| {
            let inner = self.inner(value)?;
            if let Some((factor, x)) = self.factor(inner) {
                scale *= factor;
                return Some(Err(x));
            }
            if self.keeps_matrices(inner) { Some(Err(inner.inputs[0])) } else { Some(Ok(inner)) }
        })?;
        let Op::MatMul { transpose_a, transpose_b } = product.op else { return None };
        let v = self
            .viewed(node.inputs[1], turns_values.then(|| self.swap(node.inputs[1])).into_iter().collect())?;
        let batch = &v.info.shape[..v.info.shape.rank() - 2];
        // Devices share the work by heads: of one alone, as a router's weights may be, products are cut better by themselves.
        if batch.iter().product::<usize>() < 2 {
            return None;
        }
        let q = self.factored(product.inputs[0], transpose_a, batch, &mut scale)?;
        let k = self.factored(product.inputs[1], !transpose_b, batch, &mut scale)?;
        let op = Op::Attention { causal: false, scale };
        let results = infer(&op, &[&q.info, &k.info, &v.info]).ok()?;
        let fits = scale.is_finite() && results[0] == *self.graph.info(node.outputs[0]);
        fits.then(|| Found { operands: [q, k, v], scale, sums: results[1].clone() })
    }

    /// An operand of the scores, as matrices of a batch, below the factors that stand at it.
    fn factored(&self, value: ValueId, turns: bool, batch: &[usize], scale: &mut f64) -> Option<Viewed> {
        // From the outermost view to the innermost.
        let mut views: Vec<Op> = turns.then(|| self.swap(value)).into_iter().collect();
        let (mut below, mut count, mut at) = (value, views.len(), value);
        while let Some(inner) = self.inner(at) {
            if let Some((factor, x)) = self.factor(inner) {
                *scale *= factor;
                (below, count) = (x, views.len());
                at = x;
            } else if matches!(inner.op, Op::Reshape(_) | Op::Permute(_) | Op::Expand(_)) {
                views.push(inner.op.clone());
                at = inner.inputs[0];
            } else {
                break;
            }
        }
        views.truncate(count);
        views.reverse();
        let mut viewed = self.viewed(below, views)?;
        let rank = viewed.info.shape.rank();
        if viewed.info.shape[..rank - 2] != *batch {
            let whole = batch.iter().chain(&viewed.info.shape[rank - 2..]).copied().collect();
            viewed.views.push(Op::Reshape(whole));
            viewed = self.viewed(below, viewed.views)?;
        }
        Some(viewed)
    }

    fn viewed(&self, value: ValueId, views: Vec<Op>) -> Option<Viewed> {
        let mut info = self.graph.info(value).clone();
        for op in &views {
            info = infer(op, &[&info]).ok()?.swap_remove(0);
        }
        Some(Viewed { value, views, info })
    }

    /// The other order of a value's last two dimensions.
    fn swap(&self, value: ValueId) -> Op {
        let rank = self.shape(value).rank();
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(rank - 2, rank - 1);
        Op::Permute(order)
    }

    /// Whether a node gives the same matrices in a batch of another shape.
    fn keeps_matrices(&self, node: &Node) -> bool {
        let Op::Reshape(to) = &node.op else { return false };
        let from = self.shape(node.inputs[0]);
        from.rank() >= 2 && to.rank() >= 2 && from[from.rank() - 2..] == to[to.rank() - 2..]
    }

    /// The number by which a node multiplies, and what.
    fn factor(&self, node: &Node) -> Option<(f64, ValueId)> {
        let alike = |x: ValueId| self.shape(x) == self.shape(node.outputs[0]);
        match (&node.op, &node.inputs[..]) {
            (Op::Unary(Unary::MulScalar { value }), &[x]) => Some((*value, x)),
            (Op::Binary(Binary::Mul), &[a, b]) => {
                let sides = [(a, b), (b, a)].into_iter().filter(|&(x, _)| alike(x));
                sides.filter_map(|(x, number)| Some((self.number(number)?, x))).next()
            }
            (Op::Binary(Binary::Div), &[x, number]) if alike(x) => Some((1.0 / self.number(number)?, x)),
            _ => None,
        }
    }

    /// The number that a value is everywhere, as far as the graph alone says.
    fn number(&self, value: ValueId) -> Option<f64> {
        loop_over(value, |value| {
            let Some(node) = self.producer(value) else {
                let constant = self.graph.sources.iter().find_map(|&(source, id)| match source {
                    Source::Constant(n) if id == value => self.graph.constants.get(n as usize),
                    _ => None,
                });
                let single = constant.filter(|tensor| tensor.shape().elements() == 1)?;
                return single.to_f64().first().copied().map(Ok);
            };
            match node.op {
                Op::Full { value, .. } => Some(Ok(value)),
                Op::Reshape(_) | Op::Expand(_) => Some(Err(node.inputs[0])),
                _ => None,
            }
        })
    }
}

/// Follows values as long as a step gives another one.
fn loop_over<T>(
    mut value: ValueId,
    mut step: impl FnMut(ValueId) -> Option<Result<T, ValueId>>,
) -> Option<T> {
    loop {
        match step(value)? {
            Ok(end) => return Some(end),
            Err(next) => value = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use crate::{
        graph::{
            Binary, Builder, Graph, Op, Sink, Source, Unary, ValueId, reference::evaluate, simplify,
            tests::noise,
        },
        tensor::{DType, HostTensor},
    };

    /// A graph of q [2, 3, 4, 5], k [2, 3, 6, 5] and v [2, 3, 6, 7].
    fn graph(build: impl FnOnce(&mut Builder, [ValueId; 3]) -> ValueId) -> Graph {
        graph_of(SHAPES, DType::F64, build)
    }

    const SHAPES: [[usize; 4]; 3] = [[2, 3, 4, 5], [2, 3, 6, 5], [2, 3, 6, 7]];

    /// A graph of q, k and v.
    fn graph_of(
        shapes: [[usize; 4]; 3],
        dtype: DType,
        build: impl FnOnce(&mut Builder, [ValueId; 3]) -> ValueId,
    ) -> Graph {
        let mut builder = Builder::new();
        let inputs =
            [0, 1, 2].map(|n| builder.source(Source::Input(n), shapes[n as usize].into(), dtype).unwrap());
        let y = build(&mut builder, inputs);
        builder.sink(Sink::Output(0), y);
        builder.finish()
    }

    /// What becomes of a graph, which must go on giving what it gave.
    fn simplified(graph: &Graph) -> Vec<String> {
        let feed = |source: Source| {
            let shape = graph.info(graph.source(source).unwrap()).shape.clone();
            let salt = if let Source::Input(n) = source { u64::from(n) } else { 9 };
            HostTensor::from_values(shape.clone(), &noise(&shape, salt, -1.0, 1.0)).unwrap()
        };
        let mut small = graph.clone();
        simplify(&mut small);
        let (before, after) = (evaluate(graph, feed, 1).unwrap(), evaluate(&small, feed, 1).unwrap());
        for ((sink, before), (same, after)) in before.iter().zip(&after) {
            assert_eq!(sink, same);
            assert!(
                before.to_f64().iter().zip(after.to_f64()).all(|(a, b)| (a - b).abs() < 1e-12),
                "{small}"
            );
        }
        small.nodes.iter().map(|node| node.op.to_string()).collect()
    }

    const PLAIN: Op = Op::MatMul { transpose_a: false, transpose_b: false };
    const TURNED: Op = Op::MatMul { transpose_a: false, transpose_b: true };

    fn times(value: f64) -> Op {
        Op::Unary(Unary::MulScalar { value })
    }

    fn swap() -> Op {
        Op::Permute(vec![0, 1, 3, 2])
    }

    /// The rest behind the scores.
    fn behind(b: &mut Builder, scores: ValueId, v: ValueId) -> ValueId {
        let weights = b.apply(Op::Softmax { dim: 3 }, &[scores]).unwrap();
        b.apply(PLAIN, &[weights, v]).unwrap()
    }

    #[test]
    fn factors_at_the_scores_or_at_their_operands_are_one_scale() {
        let one = "attention {causal=false, scale=0.5}";
        let at_scores = graph(|b, [q, k, v]| {
            let k = b.apply(swap(), &[k]).unwrap();
            let scores = b.apply(PLAIN, &[q, k]).unwrap();
            let scores = b.apply(times(0.5), &[scores]).unwrap();
            behind(b, scores, v)
        });
        assert_eq!(simplified(&at_scores), [one]);
        let at_both = graph(|b, [q, k, v]| {
            let q = b.apply(times(0.25), &[q]).unwrap();
            let k = b.apply(times(2.0), &[k]).unwrap();
            let k = b.apply(swap(), &[k]).unwrap();
            let scores = b.apply(PLAIN, &[q, k]).unwrap();
            behind(b, scores, v)
        });
        assert_eq!(simplified(&at_both), [one]);
        for (op, number) in [(Binary::Div, 2.0), (Binary::Mul, 0.5)] {
            let by_a_tensor = graph(|b, [q, k, v]| {
                let number = Op::Full { shape: [1].into(), dtype: DType::F64, value: number };
                let number = b.apply(number, &[]).unwrap();
                let scores = b.apply(TURNED, &[q, k]).unwrap();
                let scores = b.apply(Op::Binary(op), &[scores, number]).unwrap();
                behind(b, scores, v)
            });
            assert_eq!(simplified(&by_a_tensor), [one]);
        }
        let by_a_constant = graph(|b, [q, k, v]| {
            let number = b.constant(HostTensor::from_values([].into(), &[2.0]).unwrap()).unwrap();
            let scores = b.apply(TURNED, &[q, k]).unwrap();
            let scores = b.apply(Op::Binary(Binary::Div), &[scores, number]).unwrap();
            behind(b, scores, v)
        });
        assert_eq!(simplified(&by_a_constant), [one]);
    }

    #[test]
    fn batches_that_change_their_shape_are_followed() {
        let reshaped = graph(|b, [q, k, v]| {
            let k = b.apply(swap(), &[k]).unwrap();
            let q = b.apply(Op::Reshape([6, 4, 5].into()), &[q]).unwrap();
            let k = b.apply(Op::Reshape([6, 5, 6].into()), &[k]).unwrap();
            let scores = b.apply(PLAIN, &[q, k]).unwrap();
            let scores = b.apply(Op::Reshape([2, 3, 4, 6].into()), &[scores]).unwrap();
            let weights = b.apply(Op::Softmax { dim: 3 }, &[scores]).unwrap();
            let weights = b.apply(Op::Reshape([6, 4, 6].into()), &[weights]).unwrap();
            let v = b.apply(Op::Reshape([6, 6, 7].into()), &[v]).unwrap();
            b.apply(PLAIN, &[weights, v]).unwrap()
        });
        let ops = simplified(&reshaped);
        assert_eq!(ops.last().unwrap(), "attention {causal=false, scale=1.0}");
        assert!(
            ops[..ops.len() - 1].iter().all(|op| op.starts_with("reshape") || op.starts_with("permute")),
            "{ops:?}"
        );
    }

    /// What a graph becomes, the last of which must be an attention with a scale.
    fn ends_with_attention(graph: &Graph, scale: &str) {
        let ops = simplified(graph);
        let attention = format!("attention {{causal=false, scale={scale}}}");
        let [before @ .., last] = &ops[..] else { panic!("nothing is left") };
        assert_eq!(*last, attention);
        let are_views =
            before.iter().all(|op| ["reshape", "permute", "expand"].iter().any(|v| op.starts_with(v)));
        assert!(are_views, "{ops:?}");
    }

    #[test]
    fn factors_below_views_are_found() {
        ends_with_attention(
            &graph(|b, [q, k, v]| {
                let q = b.apply(times(0.5), &[q]).unwrap();
                let q = b.apply(Op::Reshape([6, 4, 5].into()), &[q]).unwrap();
                let k = b.apply(Op::Reshape([6, 6, 5].into()), &[k]).unwrap();
                let scores = b.apply(TURNED, &[q, k]).unwrap();
                let weights = b.apply(Op::Softmax { dim: 2 }, &[scores]).unwrap();
                let v = b.apply(Op::Reshape([6, 6, 7].into()), &[v]).unwrap();
                b.apply(PLAIN, &[weights, v]).unwrap()
            }),
            "0.5",
        );
        // One key for all heads, scaled before it is spread.
        let shapes = [[2, 3, 4, 5], [2, 1, 6, 5], [2, 3, 6, 7]];
        let spread = graph_of(shapes, DType::F64, |b, [q, k, v]| {
            let k = b.apply(times(0.5), &[k]).unwrap();
            let k = b.apply(Op::Expand([2, 3, 6, 5].into()), &[k]).unwrap();
            let scores = b.apply(TURNED, &[q, k]).unwrap();
            behind(b, scores, v)
        });
        ends_with_attention(&spread, "0.5");
    }

    #[test]
    fn operands_that_lie_transposed_are_turned() {
        let shapes = [[2, 3, 5, 4], [2, 3, 6, 5], [2, 3, 7, 6]];
        let turned = graph_of(shapes, DType::F64, |b, [q, k, v]| {
            let both = Op::MatMul { transpose_a: true, transpose_b: true };
            let scores = b.apply(both, &[q, k]).unwrap();
            let weights = b.apply(Op::Softmax { dim: 3 }, &[scores]).unwrap();
            b.apply(TURNED, &[weights, v]).unwrap()
        });
        ends_with_attention(&turned, "1.0");
    }

    #[test]
    fn factors_in_halves_are_numbers_too() {
        let mut graph = graph_of(SHAPES, DType::F16, |b, [q, k, v]| {
            let number = HostTensor::from_values([].into(), &[f16::from_f32(0.125)]).unwrap();
            let number = b.constant(number).unwrap();
            let scores = b.apply(TURNED, &[q, k]).unwrap();
            let scores = b.apply(Op::Binary(Binary::Mul), &[number, scores]).unwrap();
            behind(b, scores, v)
        });
        simplify(&mut graph);
        let ops: Vec<_> = graph.nodes.iter().map(|node| node.op.to_string()).collect();
        assert_eq!(ops, ["attention {causal=false, scale=0.125}"]);
    }

    #[test]
    fn what_others_read_or_something_else_changes_stays() {
        let stays = |graph: &Graph| {
            let ops = simplified(graph);
            assert!(ops.iter().all(|op| !op.starts_with("attention")), "{ops:?}");
        };
        let mut given = graph(|b, [q, k, v]| {
            let scores = b.apply(TURNED, &[q, k]).unwrap();
            behind(b, scores, v)
        });
        // The weights leave the graph.
        let weights = given.nodes[1].outputs[0];
        given.sinks.push((Sink::Output(1), weights));
        stays(&given);
        stays(&graph(|b, [q, k, v]| {
            let scores = b.apply(TURNED, &[q, k]).unwrap();
            let y = behind(b, scores, v);
            let sums =
                b.apply(Op::Reduce { reduction: crate::graph::Reduction::Sum, dims: vec![3] }, &[scores]);
            b.apply(Op::Binary(Binary::Add), &[y, sums.unwrap()]).unwrap()
        }));
        stays(&graph(|b, [q, k, v]| {
            let scores = b.apply(TURNED, &[q, k]).unwrap();
            let weights = b.apply(Op::Softmax { dim: 2 }, &[scores]).unwrap();
            b.apply(PLAIN, &[weights, v]).unwrap()
        }));
        stays(&graph(|b, [q, k, v]| {
            let scores = b.apply(TURNED, &[q, k]).unwrap();
            let weights = b.apply(Op::Softmax { dim: 3 }, &[scores]).unwrap();
            let weights = b.apply(Op::Dropout { p: 0.5, site: 0 }, &[weights]).unwrap();
            b.apply(PLAIN, &[weights, v]).unwrap()
        }));
        stays(&graph(|b, [q, k, v]| {
            let mask = Op::Arange { start: 0.0, step: 1.0, len: 6, dtype: DType::F64 };
            let mask = b.apply(mask, &[]).unwrap();
            let scores = b.apply(TURNED, &[q, k]).unwrap();
            let scores = b.apply(Op::Binary(Binary::Mul), &[scores, mask]).unwrap();
            behind(b, scores, v)
        }));
    }
}
