//! Who gives each value of a graph, and who reads it.

use smallvec::SmallVec;

use super::{Graph, ValueId};

/// The definition and the uses of every value, by node.
#[derive(Debug)]
pub(crate) struct DefUse {
    producers: Vec<Option<usize>>,
    readers: Vec<SmallVec<[usize; 2]>>,
    leaves: Vec<bool>,
}

impl DefUse {
    pub(crate) fn of(graph: &Graph) -> Self {
        let values = graph.values.len();
        let mut all = Self {
            producers: vec![None; values],
            readers: vec![SmallVec::new(); values],
            leaves: vec![false; values],
        };
        for (n, node) in graph.nodes.iter().enumerate() {
            node.outputs.iter().for_each(|value| all.producers[value.0 as usize] = Some(n));
            node.inputs.iter().for_each(|value| all.readers[value.0 as usize].push(n));
        }
        graph.sinks.iter().for_each(|(_, value)| all.leaves[value.0 as usize] = true);
        all
    }

    /// The node that gives a value; `None` for a source.
    pub(crate) fn producer(&self, value: ValueId) -> Option<usize> {
        self.producers[value.0 as usize]
    }

    /// The nodes that read a value, in order, each as often as it does.
    pub(crate) fn readers(&self, value: ValueId) -> &[usize] {
        &self.readers[value.0 as usize]
    }

    /// Whether a value is one of the graph's results.
    pub(crate) fn leaves(&self, value: ValueId) -> bool {
        self.leaves[value.0 as usize]
    }

    /// The node that reads a value, where it does so once and nobody else wants it.
    pub(crate) fn only_reader(&self, value: ValueId) -> Option<usize> {
        match self.readers(value) {
            &[reader] if !self.leaves(value) => Some(reader),
            _ => None,
        }
    }
}
