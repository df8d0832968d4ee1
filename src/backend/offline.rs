//! Running graphs on tensors in host memory, with all blocks made for the occasion: for `kasmina exec`,
//! trials and tests. The data plane keeps its blocks and does not come here.

use super::{Bindings, Executable, HostMemory, Memory as _, Region, RunContext, RunError};
use crate::{
    graph::{Graph, Sink, Source},
    tensor::{HostTensor, PackedLayout},
};

/// Runs an executable on the tensors that `feed` gives for the graph's sources, and gives what the graph
/// sends out.
///
/// `parameters` and `buffers` are the layouts the graph was compiled with.
///
/// # Errors
/// As [`Executable::run`].
///
/// # Panics
/// When a fed tensor has not the source's shape and type.
pub fn run_on_host(
    executable: &dyn Executable,
    graph: &Graph,
    [parameters, buffers]: [&PackedLayout; 2],
    mut feed: impl FnMut(Source) -> HostTensor,
    context: &RunContext,
) -> Result<Vec<(Sink, HostTensor)>, RunError> {
    let mut blocks = HostBlocks::new([parameters, buffers], &executable.needs().saved);
    for &(source, value) in &graph.sources {
        if matches!(source, Source::Constant(_)) {
            continue;
        }
        let (tensor, info) = (feed(source), graph.info(value));
        assert!(
            *tensor.shape() == info.shape && tensor.dtype() == info.dtype,
            "{source:?} is fed as it is declared"
        );
        blocks.feed(source, tensor.bytes());
    }
    blocks.run(executable, graph, context)?;
    let results = graph.sinks.iter().map(|&(sink, value)| {
        let (info, region) = (graph.info(value), blocks.of(sink));
        let mut bytes = vec![0; region.len_bytes()];
        region.read(&mut bytes);
        let tensor = HostTensor::new(info.shape.clone(), info.dtype, bytes);
        (sink, tensor.expect("every block was made for the shapes it holds"))
    });
    Ok(results.collect())
}

/// The memory of a kernel's passes: what is fed or given stays until it is written again, so that a backward
/// graph finds what its forward graph has left.
#[derive(Debug)]
pub struct HostBlocks<'a> {
    parameters: Block<'a>,
    buffers: Block<'a>,
    grad_parameters: Block<'a>,
    buffer_updates: Block<'a>,
    saved: Block<'a>,
    singles: Vec<(Single, HostMemory)>,
    workspace: HostMemory,
}

impl<'a> HostBlocks<'a> {
    /// Zeroed blocks for parameters, buffers and what a forward graph saves.
    pub fn new([parameters, buffers]: [&'a PackedLayout; 2], saved: &'a PackedLayout) -> Self {
        Self {
            parameters: Block::new(parameters),
            buffers: Block::new(buffers),
            grad_parameters: Block::new(parameters),
            buffer_updates: Block::new(buffers),
            saved: Block::new(saved),
            singles: Vec::new(),
            workspace: HostMemory::new(0),
        }
    }

    /// Writes a source's bytes; constants are the graph's own and are passed over.
    ///
    /// # Panics
    /// When the layouts have no such tensor.
    pub fn feed(&mut self, source: Source, bytes: &[u8]) {
        let region = match source {
            Source::Input(n) => self.single(Single::Input(n), bytes.len()),
            Source::GradOutput(n) => self.single(Single::GradOutput(n), bytes.len()),
            Source::Parameter(n) => self.parameters.slot(n),
            Source::Buffer(n) => self.buffers.slot(n),
            Source::Saved(n) => self.saved.slot(n),
            Source::Constant(_) => return,
        };
        region.write(bytes);
    }

    /// Runs an executable of `graph` on what the blocks hold.
    ///
    /// # Errors
    /// As [`Executable::run`].
    pub fn run(
        &mut self,
        executable: &dyn Executable,
        graph: &Graph,
        context: &RunContext,
    ) -> Result<(), RunError> {
        for &(sink, value) in &graph.sinks {
            let info = graph.info(value);
            let len_bytes = info.shape.elements() * info.dtype.size_bytes();
            match sink {
                Sink::Output(n) => drop(self.single(Single::Output(n), len_bytes)),
                Sink::GradInput(n) => drop(self.single(Single::GradInput(n), len_bytes)),
                Sink::BufferUpdate(_) | Sink::Saved(_) | Sink::GradParameter(_) => {}
            }
        }
        let workspace_bytes = executable.needs().workspace_bytes;
        if self.workspace.len_bytes() < workspace_bytes {
            self.workspace = HostMemory::new(workspace_bytes);
        }
        let list = |number: fn(Single) -> Option<u32>| {
            let mut regions = Vec::new();
            for (single, memory) in &self.singles {
                if let Some(n) = number(*single) {
                    regions.resize(regions.len().max(n as usize + 1), Region::EMPTY);
                    regions[n as usize] = memory.region();
                }
            }
            regions
        };
        let inputs = list(|single| if let Single::Input(n) = single { Some(n) } else { None });
        let outputs = list(|single| if let Single::Output(n) = single { Some(n) } else { None });
        let grad_outputs = list(|single| if let Single::GradOutput(n) = single { Some(n) } else { None });
        let grad_inputs = list(|single| if let Single::GradInput(n) = single { Some(n) } else { None });
        let bindings = Bindings {
            inputs: &inputs,
            outputs: &outputs,
            grad_outputs: &grad_outputs,
            grad_inputs: &grad_inputs,
            parameters: self.parameters.memory.region(),
            grad_parameters: self.grad_parameters.memory.region(),
            buffers: self.buffers.memory.region(),
            buffer_updates: self.buffer_updates.memory.region(),
            saved: self.saved.memory.region(),
            workspace: self.workspace.region(),
        };
        executable.run(&bindings, context)
    }

    /// What the last run with this sink has left there; empty where there was none.
    ///
    /// # Panics
    /// When the layouts have no such tensor.
    pub fn of(&self, sink: Sink) -> Region<'_> {
        let single = |wanted: Single| {
            let found = self.singles.iter().find(|(single, _)| *single == wanted);
            found.map_or(Region::EMPTY, |(_, memory)| memory.region())
        };
        match sink {
            Sink::Output(n) => single(Single::Output(n)),
            Sink::GradInput(n) => single(Single::GradInput(n)),
            Sink::GradParameter(n) => self.grad_parameters.slot(n),
            Sink::BufferUpdate(n) => self.buffer_updates.slot(n),
            Sink::Saved(n) => self.saved.slot(n),
        }
    }

    fn single(&mut self, single: Single, len_bytes: usize) -> Region<'_> {
        let at = match self.singles.iter().position(|(known, _)| *known == single) {
            Some(at) => at,
            None => {
                self.singles.push((single, HostMemory::new(len_bytes)));
                self.singles.len() - 1
            }
        };
        let memory = &mut self.singles[at].1;
        if memory.len_bytes() != len_bytes {
            *memory = HostMemory::new(len_bytes);
        }
        memory.region()
    }
}

/// A tensor that has a block of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Single {
    Input(u32),
    Output(u32),
    GradOutput(u32),
    GradInput(u32),
}

/// Several tensors in one block.
#[derive(Debug)]
struct Block<'a> {
    layout: &'a PackedLayout,
    memory: HostMemory,
}

impl<'a> Block<'a> {
    fn new(layout: &'a PackedLayout) -> Self {
        Self { layout, memory: HostMemory::new(layout.total_bytes()) }
    }

    fn slot(&self, n: u32) -> Region<'_> {
        let slot = &self.layout.slots()[n as usize];
        let part = self.memory.region().part(slot.offset_bytes, slot.len_bytes);
        part.expect("the block was made for the layout")
    }
}
