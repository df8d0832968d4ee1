//! Running a graph on tensors in host memory, with all blocks made for the occasion: for `kasmina exec`,
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
    let needs = executable.needs();
    let mut singles = Singles::default();
    let block = |layout: &PackedLayout| HostMemory::new(layout.total_bytes());
    let parameter_block = block(parameters);
    let buffer_block = block(buffers);
    let (gradient_block, update_block) = (block(parameters), block(buffers));
    let saved_block = block(&needs.saved);
    let workspace = HostMemory::new(needs.workspace_bytes);

    for &(source, value) in &graph.sources {
        if matches!(source, Source::Constant(_)) {
            continue;
        }
        let (tensor, info) = (feed(source), graph.info(value));
        assert!(
            *tensor.shape() == info.shape && tensor.dtype() == info.dtype,
            "{source:?} is fed as it is declared"
        );
        match source {
            Source::Input(n) => singles.put(Kind::Input, n, tensor.bytes()),
            Source::GradOutput(n) => singles.put(Kind::GradOutput, n, tensor.bytes()),
            Source::Parameter(n) => put(&parameter_block, parameters, n, tensor.bytes()),
            Source::Buffer(n) => put(&buffer_block, buffers, n, tensor.bytes()),
            Source::Saved(n) => put(&saved_block, &needs.saved, n, tensor.bytes()),
            Source::Constant(_) => {}
        }
    }
    for &(sink, value) in &graph.sinks {
        let info = graph.info(value);
        let bytes = vec![0; info.shape.elements() * info.dtype.size_bytes()];
        match sink {
            Sink::Output(n) => singles.put(Kind::Output, n, &bytes),
            Sink::GradInput(n) => singles.put(Kind::GradInput, n, &bytes),
            _ => {}
        }
    }
    {
        let [inputs, outputs, grad_outputs, grad_inputs] = singles.regions();
        let bindings = Bindings {
            inputs: &inputs,
            outputs: &outputs,
            grad_outputs: &grad_outputs,
            grad_inputs: &grad_inputs,
            parameters: parameter_block.region(),
            grad_parameters: gradient_block.region(),
            buffers: buffer_block.region(),
            buffer_updates: update_block.region(),
            saved: saved_block.region(),
            workspace: workspace.region(),
        };
        executable.run(&bindings, context)?;
    }
    let results = graph.sinks.iter().map(|&(sink, value)| {
        let info = graph.info(value);
        let bytes = match sink {
            Sink::Output(n) => singles.get(Kind::Output, n),
            Sink::GradInput(n) => singles.get(Kind::GradInput, n),
            Sink::GradParameter(n) => get(&gradient_block, parameters, n),
            Sink::BufferUpdate(n) => get(&update_block, buffers, n),
            Sink::Saved(n) => get(&saved_block, &needs.saved, n),
        };
        let tensor = HostTensor::new(info.shape.clone(), info.dtype, bytes);
        (sink, tensor.expect("every block was made for the shapes it holds"))
    });
    Ok(results.collect())
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Input,
    Output,
    GradOutput,
    GradInput,
}

/// Tensors that have a region of their own.
#[derive(Default)]
struct Singles(Vec<(Kind, u32, HostMemory)>);

impl Singles {
    fn put(&mut self, kind: Kind, n: u32, bytes: &[u8]) {
        let memory = HostMemory::new(bytes.len());
        memory.region().write(bytes);
        self.0.push((kind, n, memory));
    }

    fn get(&self, kind: Kind, n: u32) -> Vec<u8> {
        let found = self.0.iter().find(|(k, i, _)| *k == kind && *i == n);
        found.map_or_else(Vec::new, |(_, _, memory)| copied(memory.region()))
    }

    fn regions(&self) -> [Vec<Region<'_>>; 4] {
        let mut regions = [const { Vec::new() }; 4];
        for (kind, n, memory) in &self.0 {
            let list = &mut regions[*kind as usize];
            list.resize(list.len().max(*n as usize + 1), Region::EMPTY);
            list[*n as usize] = memory.region();
        }
        regions
    }
}

fn copied(region: Region<'_>) -> Vec<u8> {
    let mut bytes = vec![0; region.len_bytes()];
    region.read(&mut bytes);
    bytes
}

fn slot<'a>(block: &'a HostMemory, layout: &PackedLayout, n: u32) -> Region<'a> {
    let slot = &layout.slots()[n as usize];
    block.region().part(slot.offset_bytes, slot.len_bytes).expect("the block was made for the layout")
}

fn put(block: &HostMemory, layout: &PackedLayout, n: u32, bytes: &[u8]) {
    slot(block, layout, n).write(bytes);
}

fn get(block: &HostMemory, layout: &PackedLayout, n: u32) -> Vec<u8> {
    copied(slot(block, layout, n))
}
