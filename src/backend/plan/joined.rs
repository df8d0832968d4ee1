//! Chains that are done within a normalisation of batches: what follows it while its result is in the cache, and what comes
//! before its gradient.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::chain::{Chain, MOST_INPUTS, MOST_OUTPUTS, NEAR, Part, chain, kind_of};
use crate::{
    graph::{DefUse, Graph, Op, ValueId},
    tensor::Shape,
};

/// An operation and a chain in one step. Operands are the operation's, then the chain's, without the value that one hands to
/// the other.
///
/// Results are equal bit by bit to those of two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The operation.
    pub op: Op,
    /// How many of the step's operands are the operation's; the others are the chain's.
    pub own: usize,
    /// What is done to each element.
    pub chain: Chain,
    /// Which comes first.
    pub order: Order,
}

/// What hands its result to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The operation's first result is this operand of the chain. The step's results are the operation's others, then the
    /// chain's.
    OpFirst {
        /// By the number that it has in the chain.
        operand: u8,
    },
    /// The chain's first result is the operation's last operand, of the shape of its first result. The step's results are the
    /// operation's, then the chain's others.
    ChainFirst,
}

/// What may be joined.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    /// The operation's node.
    pub(super) op: usize,
    /// The chain's nodes, in order.
    pub(super) nodes: Vec<usize>,
    /// Operands of the step in order.
    pub(super) inputs: SmallVec<[ValueId; 8]>,
    /// Results of the step in order.
    pub(super) outputs: SmallVec<[ValueId; 6]>,
    pub(super) joined: Joined,
}

/// What may be joined, by the node at which the step is planned: the operation's, or the chain's last where that comes first.
/// `joins` says over which x.
pub(super) fn candidates(
    graph: &Graph,
    parts: &[Part],
    joins: impl Fn(&Shape) -> bool,
) -> HashMap<usize, Candidate> {
    let is_joined = |&n: &usize| {
        let node = &graph.nodes[n];
        (normalises(&node.op) || is_gradient(&node.op)) && joins(&graph.info(node.inputs[0]).shape)
    };
    let ops: Vec<usize> = (0..graph.nodes.len()).filter(is_joined).collect();
    let mut found = HashMap::new();
    if ops.is_empty() {
        return found;
    }
    let looking = Looking { graph, values: DefUse::of(graph), chains: Chains::of(graph, parts) };
    for op in ops {
        let is_gradient = is_gradient(&graph.nodes[op].op);
        let candidate =
            if is_gradient { looking.led(op) } else { looking.followed(op).map(|joined| (op, joined)) };
        if let Some((at, candidate)) = candidate {
            // Of two gradients that read one chain's result the earlier joins it.
            found.entry(at).or_insert(candidate);
        }
    }
    found
}

fn normalises(op: &Op) -> bool {
    matches!(op, Op::BatchNorm { .. } | Op::BatchNormEval { .. })
}

fn is_gradient(op: &Op) -> bool {
    matches!(op, Op::BatchNormGrad | Op::BatchNormEvalGrad { .. })
}

/// The chains of a graph, those of one link included, by each of their nodes.
struct Chains<'a> {
    by_node: HashMap<usize, usize>,
    all: Vec<(Vec<usize>, SmallVec<[ValueId; 2]>)>,
    graph: &'a Graph,
}

impl<'a> Chains<'a> {
    fn of(graph: &'a Graph, parts: &[Part]) -> Self {
        let mut chains = Self { by_node: HashMap::new(), all: Vec::new(), graph };
        for (n, part) in parts.iter().enumerate() {
            match part {
                Part::Alone if kind_of(graph, n).is_some() => {
                    chains.push(vec![n], graph.nodes[n].outputs[..1].into());
                }
                Part::End { nodes, outputs } => chains.push(nodes.clone(), outputs.clone()),
                Part::Alone | Part::Link => {}
            }
        }
        chains
    }

    fn push(&mut self, nodes: Vec<usize>, outputs: SmallVec<[ValueId; 2]>) {
        self.by_node.extend(nodes.iter().map(|&node| (node, self.all.len())));
        self.all.push((nodes, outputs));
    }

    /// The nodes of the chain that a node is of, and what it gives; only where it is of the shape and type of a value.
    fn with(&self, node: usize, like: ValueId) -> Option<&(Vec<usize>, SmallVec<[ValueId; 2]>)> {
        let info = self.graph.info(like);
        let is_alike = kind_of(self.graph, node)? == (&info.shape, info.dtype);
        is_alike.then(|| &self.all[self.by_node[&node]])
    }
}

struct Looking<'a> {
    graph: &'a Graph,
    values: DefUse,
    chains: Chains<'a>,
}

impl Looking<'_> {
    /// A normalisation with the chain that reads its result first.
    fn followed(&self, op: usize) -> Option<Candidate> {
        let node = &self.graph.nodes[op];
        let y = node.outputs[0];
        let (nodes, given) = self.chains.with(*self.values.readers(y).first()?, y)?;
        let mut outputs = given.clone();
        let is_wanted =
            self.values.leaves(y) || self.values.readers(y).iter().any(|reader| !nodes.contains(reader));
        if is_wanted {
            outputs.push(y);
        }
        let (chain, operands) = chain(self.graph, nodes, &outputs);
        let operand = operands.iter().position(|&operand| operand == y)?;
        // What it needs of the operation's other results is there only when that is done.
        let needs_more = operands.iter().any(|operand| node.outputs[1..].contains(operand));
        // They are given as early as the operation is done, and held until they are read.
        let holds_more = outputs.len() > 1 && nodes.last().is_some_and(|&last| last > op + NEAR);
        if outputs.len() > MOST_OUTPUTS || operands.len() > MOST_INPUTS || needs_more || holds_more {
            return None;
        }
        let others = operands.iter().copied().filter(|&operand| operand != y);
        Some(Candidate {
            op,
            nodes: nodes.clone(),
            inputs: node.inputs.iter().copied().chain(others).collect(),
            outputs: node.outputs[1..].iter().copied().chain(outputs).collect(),
            joined: Joined {
                op: node.op.clone(),
                own: node.inputs.len(),
                chain,
                order: Order::OpFirst { operand: operand as u8 },
            },
        })
    }

    /// A gradient of a normalisation with the chain that gives what it is of, and that chain's last node.
    fn led(&self, op: usize) -> Option<(usize, Candidate)> {
        let node = &self.graph.nodes[op];
        let (&gy, operands) = node.inputs.split_last()?;
        let (nodes, given) = self.chains.with(self.values.producer(gy)?, gy)?;
        let is_wanted = self.values.leaves(gy) || self.values.readers(gy).iter().any(|&reader| reader != op);
        let mut outputs: SmallVec<[ValueId; 2]> = SmallVec::from_slice(&[gy]);
        outputs.extend(given.iter().copied().filter(|&value| value != gy || is_wanted));
        let last = *nodes.last()?;
        // An operand that the chain itself gives.
        let needs_more = operands.iter().any(|operand| given.contains(operand));
        if outputs.len() > MOST_OUTPUTS || needs_more || last > op {
            return None;
        }
        let (chain, others) = chain(self.graph, nodes, &outputs);
        let candidate = Candidate {
            op,
            nodes: nodes.clone(),
            inputs: operands.iter().copied().chain(others).collect(),
            outputs: node.outputs.iter().copied().chain(outputs[1..].iter().copied()).collect(),
            joined: Joined { op: node.op.clone(), own: operands.len(), chain, order: Order::ChainFirst },
        };
        Some((last, candidate))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::chain::parts, *};
    use crate::{
        graph::{Binary, Builder, Sink, Source, Unary},
        tensor::DType,
    };

    const SHAPE: [usize; 3] = [4, 3, 5];

    fn whole(builder: &mut Builder, n: u32) -> ValueId {
        builder.source(Source::Input(n), SHAPE.into(), DType::F32).unwrap()
    }

    fn channels(builder: &mut Builder, n: u32) -> ValueId {
        builder.source(Source::Parameter(n), [3].into(), DType::F32).unwrap()
    }

    fn relu(builder: &mut Builder, x: ValueId) -> ValueId {
        builder.apply(Op::Unary(Unary::Relu), &[x]).unwrap()
    }

    /// y, mean, rstd and var of a normalised input.
    fn norm(builder: &mut Builder) -> Vec<ValueId> {
        let (x, weight, bias) = (whole(builder, 0), channels(builder, 0), channels(builder, 1));
        builder.push(Op::BatchNorm { eps: 1e-5 }, &[x, weight, bias]).unwrap().to_vec()
    }

    /// The gradients of a normalisation, of `gy`.
    fn grad(builder: &mut Builder, gy: ValueId) -> Vec<ValueId> {
        let x = whole(builder, 0);
        let [weight, mean, rstd] = [0, 1, 2].map(|n| channels(builder, n));
        builder.push(Op::BatchNormGrad, &[x, weight, mean, rstd, gy]).unwrap().to_vec()
    }

    fn found(graph: &Graph) -> HashMap<usize, Candidate> {
        candidates(graph, &parts(graph), |_| true)
    }

    #[test]
    fn what_reads_a_normalised_input_goes_with_it() {
        let mut b = Builder::new();
        let all = norm(&mut b);
        let x = whole(&mut b, 1);
        let sum = b.apply(Op::Binary(Binary::Add), &[x, all[0]]).unwrap();
        let y = relu(&mut b, sum);
        b.sink(Sink::Output(0), y);
        let graph = b.finish();
        let candidate = &found(&graph)[&0];
        assert_eq!((&candidate.nodes, candidate.joined.own), (&vec![1, 2], 3));
        assert_eq!(candidate.joined.order, Order::OpFirst { operand: 1 });
        assert_eq!(candidate.inputs[3..], [x]);
        assert_eq!(candidate.outputs.as_slice(), [all[1], all[2], all[3], y]);
        assert_eq!(candidate.joined.chain.outputs.as_slice(), [3]);
        assert!(candidates(&graph, &parts(&graph), |_| false).is_empty());
    }

    #[test]
    fn what_is_wanted_elsewhere_is_given_too() {
        let mut b = Builder::new();
        let all = norm(&mut b);
        let y = relu(&mut b, all[0]);
        let other = b.apply(Op::Softmax { dim: 0 }, &[all[0]]).unwrap();
        [y, other].iter().zip(0..).for_each(|(&value, n)| b.sink(Sink::Output(n), value));
        let graph = b.finish();
        let candidate = &found(&graph)[&0];
        assert_eq!(candidate.outputs[3..], [y, all[0]]);
        assert_eq!(candidate.joined.chain.outputs.as_slice(), [1, 0]);
    }

    #[test]
    fn what_needs_the_statistics_or_is_larger_or_only_moves_stays_apart() {
        let mut b = Builder::new();
        let all = norm(&mut b);
        let means = b.apply(Op::Reshape([1, 3, 1].into()), &[all[1]]).unwrap();
        let spread = b.apply(Op::Expand(SHAPE.into()), &[means]).unwrap();
        let moved = b.apply(Op::Permute(vec![0, 2, 1]), &[all[0]]).unwrap();
        let y = relu(&mut b, moved);
        [spread, y].iter().zip(0..).for_each(|(&value, n)| b.sink(Sink::Output(n), value));
        assert!(found(&b.finish()).is_empty());

        let mut b = Builder::new();
        let y = norm(&mut b)[0];
        let larger = b.source(Source::Input(1), [2, 4, 3, 5].into(), DType::F32).unwrap();
        let sum = b.apply(Op::Binary(Binary::Add), &[y, larger]).unwrap();
        let y = relu(&mut b, sum);
        b.sink(Sink::Output(0), y);
        assert!(found(&b.finish()).is_empty(), "each element is read twice");

        let mut b = Builder::new();
        let x = b.source(Source::Input(0), [3, 3].into(), DType::F32).unwrap();
        let (weight, bias) = (channels(&mut b, 0), channels(&mut b, 1));
        let all = b.push(Op::BatchNorm { eps: 1e-5 }, &[x, weight, bias]).unwrap();
        let y = b.apply(Op::Binary(Binary::Sub), &[all[0], all[1]]).unwrap();
        b.sink(Sink::Output(0), y);
        assert!(found(&b.finish()).is_empty(), "the mean is there only afterwards");
    }

    #[test]
    fn what_comes_before_a_gradient_goes_with_it() {
        for is_wanted in [false, true] {
            let mut b = Builder::new();
            let (y, gz) = (whole(&mut b, 1), whole(&mut b, 2));
            let gy = b.apply(Op::UnaryGrad(Unary::Relu), &[y, gz]).unwrap();
            let all = grad(&mut b, gy);
            let mut wanted = all.clone();
            wanted.extend(is_wanted.then_some(gy));
            wanted.iter().zip(0..).for_each(|(&value, n)| b.sink(Sink::Output(n), value));
            let graph = b.finish();
            let candidate = &found(&graph)[&0];
            assert_eq!((candidate.op, &candidate.nodes, candidate.joined.own), (1, &vec![0], 4));
            assert_eq!(candidate.joined.order, Order::ChainFirst);
            assert_eq!(candidate.inputs[4..], [y, gz]);
            assert_eq!(candidate.outputs.as_slice(), wanted);
            let given: &[u8] = if is_wanted { &[2, 2] } else { &[2] };
            assert_eq!(candidate.joined.chain.outputs.as_slice(), given);
        }
    }

    #[test]
    fn of_two_gradients_of_one_chain_the_first_joins_it() {
        let mut b = Builder::new();
        let (y, gz) = (whole(&mut b, 1), whole(&mut b, 2));
        let gy = b.apply(Op::UnaryGrad(Unary::Relu), &[y, gz]).unwrap();
        let all = [grad(&mut b, gy), grad(&mut b, gy)].concat();
        all.iter().zip(0..).for_each(|(&value, n)| b.sink(Sink::Output(n), value));
        let found = found(&b.finish());
        assert_eq!(found.values().map(|candidate| candidate.op).collect::<Vec<_>>(), [1]);
    }
}
