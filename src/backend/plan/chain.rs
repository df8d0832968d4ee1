//! Chains: operations on elements that are done together, so that what lies between them never goes to memory.
//!
//! A chain computes each element as its operations would one after the other, in the same type and with the same
//! roundings: results are equal bit by bit.

use std::collections::BinaryHeap;

use smallvec::SmallVec;

use crate::{
    graph::{Binary, DefUse, Graph, Op, Unary, ValueId},
    tensor::{DType, Shape},
};

/// The most operands, links and results of a chain.
pub const MOST_INPUTS: usize = 6;
/// See [`MOST_INPUTS`].
pub const MOST_LINKS: usize = 16;
/// See [`MOST_INPUTS`].
pub const MOST_OUTPUTS: usize = 4;

/// Within how many nodes it does not matter what is held for longer.
pub(super) const NEAR: usize = 8;

/// An operation that computes each element from those at the same place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinkOp {
    /// Of one operand.
    Unary(Unary),
    /// From x and the gradient of f(x) to that of x.
    UnaryGrad(Unary),
    /// Of two operands.
    Binary(Binary),
    /// Dropout with probability `p`; the mask of `site`.
    Dropout {
        /// How probable it is that an element is dropped.
        p: f64,
        /// Which of the graph's it is.
        site: u32,
    },
}

impl LinkOp {
    fn of(op: &Op) -> Option<Self> {
        match *op {
            Op::Unary(unary) => Some(Self::Unary(unary)),
            Op::UnaryGrad(unary) => Some(Self::UnaryGrad(unary)),
            Op::Binary(binary) => Some(Self::Binary(binary)),
            Op::Dropout { p, site } => Some(Self::Dropout { p, site }),
            _ => None,
        }
    }
}

/// One operation of a chain. Values are numbered: the operands first, then the results of links.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// What.
    pub op: LinkOp,
    /// Of which values; the second is the first again where there is one operand.
    pub args: [u8; 2],
}

/// Operations on elements of tensors of one shape and type, or that are broadcast to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// In order.
    pub links: SmallVec<[Link; 4]>,
    /// By result of the step, which value it is.
    pub outputs: SmallVec<[u8; 2]>,
}

impl Chain {
    /// Bytes of memory that it takes beside itself.
    pub fn held_bytes(&self) -> usize {
        if self.links.spilled() { size_of_val(self.links.as_slice()) } else { 0 }
    }
}

/// What becomes of a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// It is planned by itself.
    Alone,
    /// It is a link of a later one's chain.
    Link,
    /// It ends a chain: the nodes in it, in order, itself included, and the values that the chain gives.
    End { nodes: Vec<usize>, outputs: SmallVec<[ValueId; 2]> },
}

/// Which nodes of a graph are done together.
pub(super) fn parts(graph: &Graph) -> Vec<Part> {
    let mut joining = Joining::of(graph);
    for end in (0..graph.nodes.len()).rev() {
        if joining.is_free(end) {
            joining.join(end);
        }
    }
    joining.parts
}

struct Joining<'a> {
    graph: &'a Graph,
    values: DefUse,
    parts: Vec<Part>,
    is_taken: Vec<bool>,
}

impl<'a> Joining<'a> {
    fn of(graph: &'a Graph) -> Self {
        let nodes = graph.nodes.len();
        let (parts, is_taken) = (vec![Part::Alone; nodes], vec![false; nodes]);
        Self { graph, values: DefUse::of(graph), parts, is_taken }
    }

    /// Whether a node can be a link that nobody has taken yet.
    fn is_free(&self, node: usize) -> bool {
        !self.is_taken[node] && kind_of(self.graph, node).is_some()
    }

    /// Joins to the end of a chain what comes before it, the latest first, as long as there is room.
    fn join(&mut self, end: usize) {
        let kind = kind_of(self.graph, end);
        let (mut nodes, mut candidates) = (vec![end], BinaryHeap::new());
        candidates.extend(self.before(end));
        while let Some(node) = candidates.pop() {
            if nodes.contains(&node) || !self.is_free(node) || kind_of(self.graph, node) != kind {
                continue;
            }
            let value = self.graph.nodes[node].outputs[0];
            // Whoever reads it elsewhere must come later: there it is not before the chain's end.
            let is_late = |reader: &usize| nodes.contains(reader) || *reader > end;
            if !self.values.readers(value).iter().all(is_late) || self.holds_more(node, end) {
                continue;
            }
            nodes.push(node);
            if self.fits(&nodes) {
                candidates.extend(self.before(node));
            } else {
                nodes.pop();
            }
        }
        if nodes.len() == 1 {
            return;
        }
        nodes.sort_unstable();
        let outputs = self.given(&nodes);
        for &node in &nodes {
            (self.parts[node], self.is_taken[node]) = (Part::Link, true);
        }
        self.parts[end] = Part::End { nodes, outputs };
    }

    /// Whether much more memory would be held for long if a node were done as late as the chain's end: two tensors that
    /// nobody else reads any more, in the place of the one that it makes of them.
    fn holds_more(&self, node: usize, end: usize) -> bool {
        let dies = |value: &&ValueId| {
            let is_computed = self.values.producer(**value).is_some();
            is_computed && self.values.readers(**value).iter().all(|&reader| reader <= node)
        };
        end - node > NEAR && self.graph.nodes[node].inputs.iter().filter(dies).count() > 1
    }

    fn before(&self, node: usize) -> impl Iterator<Item = usize> {
        self.graph.nodes[node].inputs.iter().filter_map(|&value| self.values.producer(value))
    }

    fn fits(&self, nodes: &[usize]) -> bool {
        let mut inputs: SmallVec<[ValueId; MOST_INPUTS]> = SmallVec::new();
        for value in nodes.iter().flat_map(|&node| &self.graph.nodes[node].inputs) {
            let is_own = self.values.producer(*value).is_some_and(|producer| nodes.contains(&producer));
            if !is_own && !inputs.contains(value) {
                inputs.push(*value);
            }
        }
        nodes.len() <= MOST_LINKS && inputs.len() <= MOST_INPUTS && self.given(nodes).len() <= MOST_OUTPUTS
    }

    /// The values that somebody else wants, in order.
    fn given(&self, nodes: &[usize]) -> SmallVec<[ValueId; 2]> {
        let mut given: SmallVec<[ValueId; 2]> = nodes
            .iter()
            .map(|&node| self.graph.nodes[node].outputs[0])
            .filter(|&value| {
                let readers = self.values.readers(value);
                self.values.leaves(value)
                    || readers.is_empty()
                    || readers.iter().any(|reader| !nodes.contains(reader))
            })
            .collect();
        given.sort_unstable();
        given
    }
}

/// Shape and type of what a node gives, where it can be a link.
pub(super) fn kind_of(graph: &Graph, node: usize) -> Option<(&Shape, DType)> {
    let found = &graph.nodes[node];
    LinkOp::of(&found.op)?;
    let info = graph.info(found.outputs[0]);
    let alike = found.inputs.iter().all(|&input| graph.info(input).dtype == info.dtype);
    let is_real = info.dtype.is_floating_point() && alike;
    (is_real && !info.shape.contains(&0)).then_some((&info.shape, info.dtype))
}

/// The chain of some nodes of a graph, and the values that it reads.
pub(super) fn chain(
    graph: &Graph,
    nodes: &[usize],
    outputs: &[ValueId],
) -> (Chain, SmallVec<[ValueId; MOST_INPUTS]>) {
    let own: SmallVec<[ValueId; MOST_LINKS]> =
        nodes.iter().map(|&node| graph.nodes[node].outputs[0]).collect();
    let mut inputs: SmallVec<[ValueId; MOST_INPUTS]> = SmallVec::new();
    for value in nodes.iter().flat_map(|&node| &graph.nodes[node].inputs) {
        if !own.contains(value) && !inputs.contains(value) {
            inputs.push(*value);
        }
    }
    let number = |value: &ValueId| {
        let of_inputs = inputs.iter().position(|input| input == value);
        let at = of_inputs.or_else(|| own.iter().position(|o| o == value).map(|n| inputs.len() + n));
        at.expect("a link reads operands and what came before it") as u8
    };
    let links = nodes.iter().map(|&node| {
        let node = &graph.nodes[node];
        let op = LinkOp::of(&node.op).expect("only such are joined");
        let (first, last) = (number(&node.inputs[0]), number(&node.inputs[node.inputs.len() - 1]));
        Link { op, args: [first, last] }
    });
    let chain = Chain { links: links.collect(), outputs: outputs.iter().map(number).collect() };
    (chain, inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, Sink, Source};

    const SHAPE: [usize; 2] = [4, 3];

    fn input(builder: &mut Builder, n: u32) -> ValueId {
        builder.source(Source::Input(n), SHAPE.into(), DType::F32).unwrap()
    }

    /// The nodes of each chain, and how many values it gives.
    fn ends(graph: &Graph) -> Vec<(Vec<usize>, usize)> {
        let ends = parts(graph).into_iter().filter_map(|part| match part {
            Part::End { nodes, outputs } => Some((nodes, outputs.len())),
            _ => None,
        });
        ends.collect()
    }

    #[test]
    fn what_follows_each_other_is_one_chain_and_gives_what_leaves_it() {
        let mut builder = Builder::new();
        let [x, w] = [0, 1].map(|n| input(&mut builder, n));
        let a = builder.apply(Op::Unary(Unary::Relu), &[x]).unwrap();
        let b = builder.apply(Op::Binary(Binary::Mul), &[a, w]).unwrap();
        let c = builder.apply(Op::Binary(Binary::Add), &[b, a]).unwrap();
        let d = builder.apply(Op::Softmax { dim: 1 }, &[b]).unwrap();
        builder.sink(Sink::Output(0), c);
        builder.sink(Sink::Output(1), d);
        let graph = builder.finish();
        assert_eq!(ends(&graph), [(vec![0, 1, 2], 2)], "the product is read later, by what is no link");
        let Part::End { nodes, outputs } = &parts(&graph)[2] else { panic!("it is the last") };
        let (chain, inputs) = chain(&graph, nodes, outputs);
        assert_eq!(inputs.as_slice(), [x, w]);
        assert_eq!(chain.outputs.as_slice(), [3, 4]);
        let args: Vec<_> = chain.links.iter().map(|link| link.args).collect();
        assert_eq!(args, [[0, 0], [2, 1], [3, 2]]);
    }

    #[test]
    fn what_is_read_in_between_or_of_another_shape_or_type_stays_outside() {
        let mut builder = Builder::new();
        let [x, w] = [0, 1].map(|n| input(&mut builder, n));
        let a = builder.apply(Op::Unary(Unary::Relu), &[x]).unwrap();
        let whole = builder.apply(Op::Softmax { dim: 1 }, &[a]).unwrap();
        let b = builder.apply(Op::Binary(Binary::Mul), &[a, whole]).unwrap();
        let row = builder.source(Source::Input(2), [1, 3].into(), DType::F32).unwrap();
        let scaled = builder.apply(Op::Unary(Unary::Exp), &[row]).unwrap();
        let c = builder.apply(Op::Binary(Binary::Add), &[b, scaled]).unwrap();
        let half = builder.apply(Op::Cast(DType::F16), &[c]).unwrap();
        let d = builder.apply(Op::Unary(Unary::Neg), &[half]).unwrap();
        builder.sink(Sink::Output(0), d);
        builder.sink(Sink::Output(1), w);
        assert_eq!(ends(&builder.finish()), [(vec![2, 4], 1)]);
    }

    #[test]
    fn what_would_be_held_for_long_is_computed_when_it_can_be() {
        let mut builder = Builder::new();
        let x = input(&mut builder, 0);
        let [a, b] = [0, 1].map(|dim| builder.apply(Op::Softmax { dim }, &[x]).unwrap());
        let product = builder.apply(Op::Binary(Binary::Mul), &[a, b]).unwrap();
        let mut y = x;
        for _ in 0..NEAR {
            y = builder.apply(Op::Softmax { dim: 1 }, &[y]).unwrap();
        }
        let sum = builder.apply(Op::Binary(Binary::Add), &[product, y]).unwrap();
        builder.sink(Sink::Output(0), sum);
        assert_eq!(ends(&builder.finish()), []);
    }

    #[test]
    fn a_chain_has_bounds() {
        let mut builder = Builder::new();
        let mut y = input(&mut builder, 0);
        for _ in 0..40 {
            y = builder.apply(Op::Unary(Unary::Tanh), &[y]).unwrap();
        }
        builder.sink(Sink::Output(0), y);
        let lengths: Vec<_> = ends(&builder.finish()).iter().map(|(nodes, _)| nodes.len()).collect();
        assert_eq!(lengths, [8, MOST_LINKS, MOST_LINKS]);

        let mut builder = Builder::new();
        let mut y = input(&mut builder, 0);
        for n in 1..=9 {
            let other = input(&mut builder, n);
            y = builder.apply(Op::Binary(Binary::Add), &[y, other]).unwrap();
        }
        builder.sink(Sink::Output(0), y);
        let lengths: Vec<_> = ends(&builder.finish()).iter().map(|(nodes, _)| nodes.len()).collect();
        assert_eq!(lengths, [4, MOST_INPUTS - 1]);
    }
}
