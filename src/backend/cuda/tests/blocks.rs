//! Memory of the device for whole graphs.

use std::sync::Arc;

use super::options;
use crate::{
    backend::{
        Backend, Bindings, Executable, OwnMemory, Queue, Region, RunContext, RunError, conformance::fill,
        nothing,
    },
    graph::{Graph, Sink, Source},
    tensor::PackedLayout,
};

/// A graph on a backend.
pub(super) fn compiled(backend: &dyn Backend, graph: &Graph) -> Arc<dyn Executable> {
    let none = PackedLayout::default();
    backend.compile(graph, &options(&none)).unwrap()
}

/// A block for each source and sink of some graphs, such as a forward one and its backward one.
#[derive(Default)]
pub(super) struct Blocks {
    inputs: Vec<OwnMemory>,
    outputs: Vec<OwnMemory>,
    grad_outputs: Vec<OwnMemory>,
    grad_inputs: Vec<OwnMemory>,
    saved: Option<OwnMemory>,
    /// By graph.
    workspaces: Vec<OwnMemory>,
}

impl Blocks {
    /// Blocks for graphs and what they were compiled to.
    pub(super) fn new(backend: &dyn Backend, graphs: &[(&Graph, &dyn Executable)]) -> Self {
        let mut blocks = Self::default();
        for (graph, executable) in graphs {
            for &(source, value) in &graph.sources {
                match source {
                    Source::Input(n) => give(backend, &mut blocks.inputs, n, len_bytes(graph, value)),
                    Source::GradOutput(n) => {
                        give(backend, &mut blocks.grad_outputs, n, len_bytes(graph, value))
                    }
                    _ => {}
                }
            }
            for &(sink, value) in &graph.sinks {
                match sink {
                    Sink::Output(n) => give(backend, &mut blocks.outputs, n, len_bytes(graph, value)),
                    Sink::GradInput(n) => give(backend, &mut blocks.grad_inputs, n, len_bytes(graph, value)),
                    _ => {}
                }
            }
            let needs = executable.needs();
            let saved_bytes = needs.saved.total_bytes();
            if blocks.saved.is_none() && saved_bytes > 0 {
                blocks.saved = Some(backend.allocate(saved_bytes));
            }
            blocks.workspaces.push(backend.allocate(needs.workspace_bytes));
        }
        blocks
    }

    /// Writes noise to what a graph reads.
    pub(super) fn feed(&self, queue: &mut dyn Queue, graph: &Graph, salt: u64) {
        for &(source, value) in &graph.sources {
            let (block, salt) = match source {
                Source::Input(n) => (&self.inputs[n as usize], salt + u64::from(n)),
                Source::GradOutput(n) => (&self.grad_outputs[n as usize], salt + 100 + u64::from(n)),
                _ => continue,
            };
            let info = graph.info(value);
            let tensor = fill(&info.shape, info.dtype, salt, (-1.0, 1.0));
            queue.write(tensor.bytes(), block.region()).unwrap();
        }
    }

    /// The memory of the `nth` graph's runs.
    pub(super) fn with_bindings<T>(&self, nth: usize, then: impl FnOnce(&Bindings<'_>) -> T) -> T {
        let [inputs, outputs, grad_outputs, grad_inputs] =
            [&self.inputs, &self.outputs, &self.grad_outputs, &self.grad_inputs]
                .map(|list| list.iter().map(|memory| memory.region()).collect::<Vec<_>>());
        then(&Bindings {
            inputs: &inputs,
            outputs: &outputs,
            grad_outputs: &grad_outputs,
            grad_inputs: &grad_inputs,
            saved: self.saved.as_ref().map_or(Region::EMPTY, |saved| saved.region()),
            workspace: self.workspaces[nth].region(),
            ..Bindings::EMPTY
        })
    }

    /// Hands over a run of the `nth` graph.
    pub(super) fn run(
        &self,
        nth: usize,
        executable: &dyn Executable,
        queue: &mut dyn Queue,
        context: &RunContext,
    ) -> Result<(), RunError> {
        self.with_bindings(nth, |bindings| executable.run(queue, bindings, context))
    }

    /// Fills with zeros what a run writes.
    pub(super) fn forget(&self, queue: &mut dyn Queue) {
        for memory in self.outputs.iter().chain(&self.grad_inputs).chain(&self.workspaces) {
            queue.zero(memory.region()).unwrap();
        }
    }

    /// What the outputs hold.
    pub(super) fn read(&self, queue: &mut dyn Queue) -> Vec<Vec<u8>> {
        let mut read = |memory: &OwnMemory| {
            let mut bytes = vec![0; memory.region().len_bytes()];
            queue.read(memory.region(), &mut bytes).unwrap();
            bytes
        };
        self.outputs.iter().chain(&self.grad_inputs).map(&mut read).collect()
    }
}

fn len_bytes(graph: &Graph, value: crate::graph::ValueId) -> usize {
    let info = graph.info(value);
    info.shape.elements() * info.dtype.size_bytes()
}

fn give(backend: &dyn Backend, list: &mut Vec<OwnMemory>, n: u32, len_bytes: usize) {
    while list.len() <= n as usize {
        list.push(nothing());
    }
    list[n as usize] = backend.allocate(len_bytes);
}
