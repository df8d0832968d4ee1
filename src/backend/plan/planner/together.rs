//! Steps of several operations.

use smallvec::{SmallVec, smallvec};

use super::{
    super::{addmm, chain, joined},
    Bound, Draft, Planner, StepKind,
};
use crate::graph::ValueId;

impl Planner<'_> {
    /// Plans a product with its bias, where the device does both at once and the bias is there by then, in one piece.
    pub(super) fn addmm(&mut self, product: usize, candidate: &addmm::Candidate) -> bool {
        let graph = self.graph;
        let bias = self.values[candidate.bias.0 as usize].clone();
        let Some(bias) = bias.filter(|bias| bias.layout.is_contiguous()) else { return false };
        let node = &graph.nodes[product];
        let factors = [0, 1].map(|i| {
            let factor = self.bound(node.inputs[i]);
            if self.target.takes_strides(&node.op, i) { factor } else { self.contiguous(factor) }
        });
        let last = candidate.after.last().map_or(product, |&last| last);
        let value = graph.nodes[last].outputs[0];
        let info = graph.info(value);
        let layouts = [&factors[0].layout, &factors[1].layout, &bias.layout];
        let Some(scratch_bytes) = self.target.addmm_bytes(candidate.addmm, layouts, info) else {
            return false;
        };
        let output = self.fresh(&info.shape, info.dtype, None);
        self.values[value.0 as usize] = Some(output.clone());
        let [a, b] = factors;
        self.drafts.push(Draft {
            kind: StepKind::Addmm(candidate.addmm),
            inputs: smallvec![a, b, bias],
            outputs: smallvec![output],
            scratch_bytes,
        });
        true
    }

    /// Plans an operation with what comes before or after it, where all that both read is there by then.
    pub(super) fn joined(&mut self, candidate: &joined::Candidate) -> bool {
        if candidate.inputs.iter().any(|value| self.values[value.0 as usize].is_none()) {
            return false;
        }
        let own = candidate.joined.own;
        let inputs = candidate.inputs.iter().enumerate().map(|(n, &value)| {
            let bound = self.bound(value);
            if n < own { self.contiguous(bound) } else { bound }
        });
        let inputs = inputs.collect();
        let outputs = self.results(&candidate.outputs);
        let kind = StepKind::Joined(Box::new(candidate.joined.clone()));
        self.drafts.push(Draft { kind, inputs, outputs, scratch_bytes: 0 });
        true
    }

    /// Memory of their own for values that a step gives.
    fn results(&mut self, values: &[ValueId]) -> SmallVec<[Bound; 2]> {
        let given = values.iter().map(|&value| {
            let info = self.graph.info(value);
            let bound = self.fresh(&info.shape, info.dtype, None);
            self.values[value.0 as usize] = Some(bound.clone());
            bound
        });
        given.collect()
    }

    /// Plans operations that are done together.
    pub(super) fn chain(&mut self, nodes: &[usize], outputs: &[ValueId]) {
        let (chain, inputs) = chain::chain(self.graph, nodes, outputs);
        let inputs = inputs.iter().map(|&value| self.bound(value)).collect();
        let outputs = self.results(outputs);
        self.drafts.push(Draft { kind: StepKind::Chain(chain), inputs, outputs, scratch_bytes: 0 });
    }
}
