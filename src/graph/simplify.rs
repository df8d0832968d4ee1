//! Making a graph smaller without changing what it computes.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::{Graph, Node, Op, Reduction, Source, Unary, ValueId, attention};

/// Removes what no sink needs, what is computed twice and what changes nothing, and makes one operation of attention
/// that is written out.
///
/// Every sink stays, and so does every source but constants that nothing reads any more. Results are
/// equal bit by bit, except that x + 0 keeps the sign of a negative zero, and that attention is rounded otherwise.
pub fn simplify(graph: &mut Graph) {
    rewrite(graph);
    if attention::recognise(graph) {
        rewrite(graph);
    }
}

fn rewrite(graph: &mut Graph) {
    let mut rewriting = Rewriting { graph, known: HashMap::new(), producer: HashMap::new() };
    let nodes = std::mem::take(&mut rewriting.graph.nodes);
    let mut replaced: HashMap<ValueId, ValueId> = HashMap::new();
    for mut node in nodes {
        for input in &mut node.inputs {
            *input = replaced.get(input).copied().unwrap_or(*input);
        }
        let before = node.outputs.clone();
        replaced.extend(before.into_iter().zip(rewriting.place(node)));
    }
    for (_, value) in &mut graph.sinks {
        *value = replaced.get(value).copied().unwrap_or(*value);
    }
    sweep(graph);
}

/// An operation and what it reads. The printed attributes tell 0 from −0 and equal every NaN with itself,
/// as `==` on them would not.
type Key = (String, SmallVec<[ValueId; 4]>);

struct Rewriting<'a> {
    graph: &'a mut Graph,
    known: HashMap<Key, SmallVec<[ValueId; 2]>>,
    producer: HashMap<ValueId, usize>,
}

impl Rewriting<'_> {
    /// Puts a node into the graph unless it is not needed; gives the values that stand for its results.
    fn place(&mut self, mut node: Node) -> SmallVec<[ValueId; 2]> {
        self.compose(&mut node);
        if self.changes_nothing(&node) {
            return SmallVec::from_slice(&node.inputs[..1]);
        }
        let key = (format!("{:?}", node.op), node.inputs.clone());
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let outputs = node.outputs.clone();
        self.known.insert(key, outputs.clone());
        self.producer.extend(outputs.iter().map(|&value| (value, self.graph.nodes.len())));
        self.graph.nodes.push(node);
        outputs
    }

    /// Joins a view with the view it reads.
    fn compose(&self, node: &mut Node) {
        let Some(&from) = node.inputs.first() else { return };
        let Some(&producer) = self.producer.get(&from) else { return };
        let inner = &self.graph.nodes[producer];
        match (&mut node.op, &inner.op) {
            (Op::Reshape(_), Op::Reshape(_)) | (Op::Expand(_), Op::Expand(_)) => {}
            (Op::Permute(outer), Op::Permute(inner)) => outer.iter_mut().for_each(|d| *d = inner[*d]),
            _ => return,
        }
        node.inputs[0] = inner.inputs[0];
    }

    fn changes_nothing(&self, node: &Node) -> bool {
        let Some(&input) = node.inputs.first() else { return false };
        let (from, to) = (self.graph.info(input), self.graph.info(node.outputs[0]));
        match &node.op {
            Op::Reshape(_) | Op::Expand(_) | Op::Slice { .. } | Op::Unslice { .. } => from.shape == to.shape,
            Op::Permute(order) => order.is_sorted(),
            Op::Cast(_) => from.dtype == to.dtype,
            Op::Cat { .. } => node.inputs.len() == 1,
            // Of one element all but the sum of squares are the element itself.
            Op::Reduce { reduction, dims } => {
                *reduction != Reduction::SumOfSquares && dims.iter().all(|&d| from.shape[d] == 1)
            }
            Op::Dropout { p, .. } => *p == 0.0,
            Op::Unary(Unary::MulScalar { value } | Unary::PowScalar { exponent: value }) => *value == 1.0,
            Op::Unary(Unary::AddScalar { value }) => *value == 0.0,
            _ => false,
        }
    }
}

/// Removes nodes, constants and values that no sink needs, and numbers the rest anew.
fn sweep(graph: &mut Graph) {
    let mut needed = vec![false; graph.values.len()];
    graph.sinks.iter().for_each(|(_, value)| needed[value.0 as usize] = true);
    for node in graph.nodes.iter().rev() {
        if node.outputs.iter().any(|value| needed[value.0 as usize]) {
            node.inputs.iter().chain(&node.outputs).for_each(|value| needed[value.0 as usize] = true);
        }
    }
    let is_needed = |value: &ValueId| needed[value.0 as usize];
    graph.nodes.retain(|node| node.outputs.iter().any(is_needed));
    graph.sources.retain(|(source, value)| !matches!(source, Source::Constant(_)) || is_needed(value));

    let constants = std::mem::take(&mut graph.constants);
    for (source, _) in &mut graph.sources {
        if let Source::Constant(n) = source {
            graph.constants.push(constants[*n as usize].clone());
            *n = graph.constants.len() as u32 - 1;
        }
    }
    let old = std::mem::take(&mut graph.values);
    let mut renamed: HashMap<ValueId, ValueId> = HashMap::new();
    let values = &mut graph.values;
    let mut rename = |value: &mut ValueId| {
        *value = *renamed.entry(*value).or_insert_with(|| {
            values.push(old[value.0 as usize].clone());
            ValueId(values.len() as u32 - 1)
        });
    };
    graph.sources.iter_mut().for_each(|(_, value)| rename(value));
    for node in &mut graph.nodes {
        node.inputs.iter_mut().chain(&mut node.outputs).for_each(&mut rename);
    }
    graph.sinks.iter_mut().for_each(|(_, value)| rename(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Binary, Builder, Reduction, Sink},
        tensor::{DType, HostTensor, Shape},
    };

    fn simplified(build: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> (Graph, Vec<&'static str>) {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [2, 3].into(), DType::F32).unwrap();
        let y = build(&mut builder, x);
        builder.sink(Sink::Output(0), y);
        let mut graph = builder.finish();
        simplify(&mut graph);
        let names = graph.nodes.iter().map(|node| node.op.name()).collect();
        (graph, names)
    }

    #[test]
    fn what_changes_nothing_goes() {
        let shape = || Shape::from([2, 3]);
        let idle = [
            Op::Reshape(shape()),
            Op::Expand(shape()),
            Op::Permute(vec![0, 1]),
            Op::Cast(DType::F32),
            Op::Slice { dim: 1, start: 0, len: 3, step: 1 },
            Op::Unslice { dim: 1, size: 3, start: 0, step: 1 },
            Op::Cat { dim: 0 },
            Op::Reduce { reduction: Reduction::Sum, dims: vec![] },
            Op::Dropout { p: 0.0, site: 0 },
            Op::Unary(Unary::MulScalar { value: 1.0 }),
            Op::Unary(Unary::AddScalar { value: 0.0 }),
        ];
        let (graph, names) =
            simplified(|b, x| idle.into_iter().fold(x, |value, op| b.apply(op, &[value]).unwrap()));
        assert_eq!(names, [""; 0]);
        assert_eq!(graph.sink(Sink::Output(0)), graph.source(Source::Input(0)));
    }

    #[test]
    fn a_sum_of_squares_of_single_elements_stays() {
        let squares = || Op::Reduce { reduction: Reduction::SumOfSquares, dims: vec![] };
        let (_, names) = simplified(|b, x| b.apply(squares(), &[x]).unwrap());
        assert_eq!(names, ["reduce"]);
    }

    #[test]
    fn views_of_views_become_one() {
        let (_, names) = simplified(|b, x| {
            let turned = b.apply(Op::Permute(vec![1, 0]), &[x]).unwrap();
            let back = b.apply(Op::Permute(vec![1, 0]), &[turned]).unwrap();
            let flat = b.apply(Op::Reshape([6].into()), &[back]).unwrap();
            b.apply(Op::Reshape([3, 2].into()), &[flat]).unwrap()
        });
        assert_eq!(names, ["reshape"]);
    }

    #[test]
    fn what_is_computed_twice_is_computed_once_but_chance_has_sites() {
        let (_, names) = simplified(|b, x| {
            let [a, c] = [0, 0].map(|_| b.apply(Op::Unary(Unary::Exp), &[x]).unwrap());
            let sum = b.apply(Op::Binary(Binary::Add), &[a, c]).unwrap();
            let [d, e] = [0, 1].map(|site| b.apply(Op::Dropout { p: 0.5, site }, &[sum]).unwrap());
            b.apply(Op::Unary(Unary::Sin), &[d]).unwrap();
            b.apply(Op::Binary(Binary::Mul), &[d, e]).unwrap()
        });
        assert_eq!(names, ["exp", "add", "dropout", "dropout", "mul"]);
    }

    #[test]
    fn zeros_of_either_sign_are_told_apart() {
        let full = |value| Op::Full { shape: [3].into(), dtype: DType::F32, value };
        let (_, names) = simplified(|b, _| {
            let [plus, minus] = [0.0, -0.0].map(|value| b.apply(full(value), &[]).unwrap());
            b.apply(Op::Binary(Binary::Div), &[plus, minus]).unwrap()
        });
        assert_eq!(names, ["full", "full", "div"]);
    }

    #[test]
    fn constants_that_nothing_reads_go_and_the_rest_keep_their_content() {
        let constant = |value: f32| HostTensor::from_values([1].into(), &[value]).unwrap();
        let (graph, _) = simplified(|b, x| {
            b.constant(constant(1.0)).unwrap();
            let kept = b.constant(constant(2.0)).unwrap();
            b.apply(Op::Binary(Binary::Add), &[x, kept]).unwrap()
        });
        assert_eq!(graph.constants, [constant(2.0)]);
        assert_eq!(graph.sources[1].0, Source::Constant(0));
        assert_eq!(graph.values.len(), 3);
    }
}
