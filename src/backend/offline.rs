//! Running graphs on tensors that come from the host and go back to it, with all blocks made for the occasion: for
//! `kasmina exec`, trials and tests. The data plane keeps its blocks and does not come here.

use super::{Backend, Bindings, Executable, OwnMemory, Queue, Region, RunContext, RunError, nothing};
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
    backend: &dyn Backend,
    executable: &dyn Executable,
    graph: &Graph,
    [parameters, buffers]: [&PackedLayout; 2],
    mut feed: impl FnMut(Source) -> HostTensor,
    context: &RunContext,
) -> Result<Vec<(Sink, HostTensor)>, RunError> {
    let mut blocks = PassBlocks::new(backend, [parameters, buffers], &executable.needs().saved);
    for &(source, value) in &graph.sources {
        if matches!(source, Source::Constant(_)) {
            continue;
        }
        let (tensor, info) = (feed(source), graph.info(value));
        assert!(
            *tensor.shape() == info.shape && tensor.dtype() == info.dtype,
            "{source:?} is fed as it is declared"
        );
        blocks.feed(source, tensor.bytes())?;
    }
    blocks.run(executable, graph, context)?;
    let results = graph.sinks.iter().map(|&(sink, value)| {
        let info = graph.info(value);
        let tensor = HostTensor::new(info.shape.clone(), info.dtype, blocks.read(sink)?);
        Ok((sink, tensor.expect("every block was made for the shapes it holds")))
    });
    results.collect()
}

/// The memory of a kernel's passes: what is fed or given stays until it is written again, so that a backward
/// graph finds what its forward graph has left.
#[derive(Debug)]
pub struct PassBlocks<'a> {
    backend: &'a dyn Backend,
    queue: Box<dyn Queue>,
    held: Held<'a>,
}

/// The blocks themselves.
#[derive(Debug)]
struct Held<'a> {
    parameters: Block<'a>,
    buffers: Block<'a>,
    grad_parameters: Block<'a>,
    buffer_updates: Block<'a>,
    saved: Block<'a>,
    singles: Vec<(Single, usize, OwnMemory)>,
    workspace: OwnMemory,
}

impl<'a> PassBlocks<'a> {
    /// Zeroed blocks for parameters, buffers and what a forward graph saves.
    pub fn new(
        backend: &'a dyn Backend,
        [parameters, buffers]: [&'a PackedLayout; 2],
        saved: &'a PackedLayout,
    ) -> Self {
        let block =
            |layout: &'a PackedLayout| Block { layout, memory: backend.allocate(layout.total_bytes()) };
        let held = Held {
            parameters: block(parameters),
            buffers: block(buffers),
            grad_parameters: block(parameters),
            buffer_updates: block(buffers),
            saved: block(saved),
            singles: Vec::new(),
            workspace: nothing(),
        };
        Self { backend, queue: backend.open_queue(false), held }
    }

    /// Writes a source's bytes; constants are the graph's own and are passed over.
    ///
    /// # Errors
    /// As [`Queue::write`].
    ///
    /// # Panics
    /// When the layouts have no such tensor.
    pub fn feed(&mut self, source: Source, bytes: &[u8]) -> Result<(), RunError> {
        let Self { backend, queue, held } = self;
        let region = match source {
            Source::Input(n) => held.make(*backend, Single::Input(n), bytes.len()),
            Source::GradOutput(n) => held.make(*backend, Single::GradOutput(n), bytes.len()),
            Source::Parameter(n) => held.parameters.slot(n),
            Source::Buffer(n) => held.buffers.slot(n),
            Source::Saved(n) => held.saved.slot(n),
            Source::Constant(_) => return Ok(()),
        };
        if bytes.is_empty() { Ok(()) } else { queue.write(bytes, region) }
    }

    /// Runs an executable of `graph` on what the blocks hold, and waits for it.
    ///
    /// # Errors
    /// As [`Executable::run`].
    pub fn run(
        &mut self,
        executable: &dyn Executable,
        graph: &Graph,
        context: &RunContext,
    ) -> Result<(), RunError> {
        let Self { backend, queue, held } = self;
        for &(sink, value) in &graph.sinks {
            let info = graph.info(value);
            let single = match sink {
                Sink::Output(n) => Single::Output(n),
                Sink::GradInput(n) => Single::GradInput(n),
                Sink::BufferUpdate(_) | Sink::Saved(_) | Sink::GradParameter(_) => continue,
            };
            held.make(*backend, single, info.shape.elements() * info.dtype.size_bytes());
        }
        let workspace_bytes = executable.needs().workspace_bytes;
        if held.workspace.region().len_bytes() < workspace_bytes {
            held.workspace = backend.allocate(workspace_bytes);
        }
        let list = |number: fn(Single) -> Option<u32>| {
            let mut regions = Vec::new();
            for (single, _, memory) in &held.singles {
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
            parameters: held.parameters.memory.region(),
            grad_parameters: held.grad_parameters.memory.region(),
            buffers: held.buffers.memory.region(),
            buffer_updates: held.buffer_updates.memory.region(),
            saved: held.saved.memory.region(),
            workspace: held.workspace.region(),
        };
        executable.run(&mut **queue, &bindings, context)?;
        queue.finish(None)
    }

    /// What the last run with this sink has left there; empty where there was none.
    ///
    /// # Panics
    /// When the layouts have no such tensor.
    pub fn of(&self, sink: Sink) -> Region<'_> {
        self.held.of(sink)
    }

    /// The bytes of [`of`](Self::of).
    ///
    /// # Errors
    /// As [`Queue::read`].
    pub fn read(&mut self, sink: Sink) -> Result<Vec<u8>, RunError> {
        let region = self.held.of(sink);
        let mut bytes = vec![0; region.len_bytes()];
        self.queue.read(region, &mut bytes).map(|()| bytes)
    }
}

impl Held<'_> {
    fn of(&self, sink: Sink) -> Region<'_> {
        match sink {
            Sink::Output(n) => self.single(Single::Output(n)),
            Sink::GradInput(n) => self.single(Single::GradInput(n)),
            Sink::GradParameter(n) => self.grad_parameters.slot(n),
            Sink::BufferUpdate(n) => self.buffer_updates.slot(n),
            Sink::Saved(n) => self.saved.slot(n),
        }
    }

    fn single(&self, wanted: Single) -> Region<'_> {
        let found = self.singles.iter().find(|(single, ..)| *single == wanted);
        found.map_or(Region::EMPTY, |(_, _, memory)| memory.region())
    }

    /// A block of its own for a tensor, made anew where the one that is there has another size.
    fn make(&mut self, backend: &dyn Backend, single: Single, len_bytes: usize) -> Region<'_> {
        let at = match self.singles.iter().position(|(known, ..)| *known == single) {
            Some(at) => at,
            None => {
                self.singles.push((single, len_bytes, backend.allocate(len_bytes)));
                self.singles.len() - 1
            }
        };
        let (_, known_bytes, memory) = &mut self.singles[at];
        if *known_bytes != len_bytes {
            (*known_bytes, *memory) = (len_bytes, backend.allocate(len_bytes));
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
    memory: OwnMemory,
}

impl Block<'_> {
    fn slot(&self, n: u32) -> Region<'_> {
        let slot = &self.layout.slots()[n as usize];
        self.memory.region().part(slot.offset_bytes, slot.len_bytes).unwrap_or(Region::EMPTY)
    }
}
