//! Running an artifact in this process: what `exec` does once and the quickstart's trainer does for its host.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::CliError;
use crate::{
    artifact::{self, Mode, Module, ReadLimits},
    backend::{Backend as _, CompileOptions, Executable, RunContext, cpu::CpuBackend, run_on_host},
    graph::{Graph, Limits, Sink, Source, Wants, differentiate, simplify},
    tensor::{DType, HostTensor, PackedLayout, Shape},
};

/// The most memory that one pass may plan for.
const MAX_PLAN_BYTES: usize = 1 << 36;

/// A graph with what runs it.
#[derive(Debug)]
struct Placed {
    graph: Graph,
    executable: Arc<dyn Executable>,
}

#[derive(Debug)]
struct Planned {
    forward: Placed,
    backward: Placed,
}

/// An artifact with its present weights, run on the CPU of this process.
#[derive(Debug)]
pub(super) struct Offline {
    module: Module,
    /// The parameters, in the module's order. An optimizer replaces them.
    pub(super) parameters: Vec<HostTensor>,
    /// The buffers, in the module's order. A training pass replaces them.
    pub(super) buffers: Vec<HostTensor>,
    layouts: [PackedLayout; 2],
    backend: CpuBackend,
    plans: HashMap<(Shape, DType, Mode), Planned>,
}

/// A forward pass that was run.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) output: HostTensor,
    input: HostTensor,
    mode: Mode,
    seed: u64,
    saved: HashMap<u32, HostTensor>,
    /// The buffers as they were before the pass.
    buffers: Vec<HostTensor>,
}

/// What a backward pass gives. Absent is what no output depends on.
#[derive(Debug, Default)]
pub(super) struct Gradients {
    pub(super) input: Option<HostTensor>,
    pub(super) parameters: HashMap<usize, HostTensor>,
}

impl Offline {
    /// Reads an artifact.
    pub(super) fn open(path: &Path, threads: usize) -> Result<Self, CliError> {
        let bytes = std::fs::read(path).map_err(CliError::file(path))?;
        let module = artifact::read(bytes.into(), &ReadLimits::default())?;
        let parameters: Vec<_> = module.parameters().iter().map(|p| p.tensor.clone()).collect();
        let buffers: Vec<_> = module.buffers().iter().map(|b| b.tensor.clone()).collect();
        let layout =
            |tensors: &[HostTensor]| PackedLayout::new(tensors.iter().map(|t| (t.shape(), t.dtype())));
        let too_large = |error: crate::tensor::ShapeError| CliError::usage(error.to_string());
        let layouts = [layout(&parameters).map_err(too_large)?, layout(&buffers).map_err(too_large)?];
        let backend = CpuBackend::new(threads);
        Ok(Self { module, parameters, buffers, layouts, backend, plans: HashMap::new() })
    }

    pub(super) fn module(&self) -> &Module {
        &self.module
    }

    /// Runs forward. In training mode the buffers are updated.
    pub(super) fn forward(&mut self, input: HostTensor, mode: Mode, seed: u64) -> Result<Ran, CliError> {
        let key = (input.shape().clone(), input.dtype(), mode);
        if !self.plans.contains_key(&key) {
            let planned = self.plan(&key)?;
            self.plans.insert(key.clone(), planned);
        }
        let before = self.buffers.clone();
        let results = self.run(&self.plans[&key].forward, seed, |source| match source {
            Source::Input(_) => input.clone(),
            Source::Parameter(n) => self.parameters[n as usize].clone(),
            Source::Buffer(n) => before[n as usize].clone(),
            other => unreachable!("a forward graph reads no {other:?}"),
        })?;
        let (mut output, mut saved) = (None, HashMap::new());
        for (sink, tensor) in results {
            match sink {
                Sink::Output(0) => output = Some(tensor),
                Sink::Saved(n) => drop(saved.insert(n, tensor)),
                Sink::BufferUpdate(n) => self.buffers[n as usize] = tensor,
                _ => {}
            }
        }
        let output = output.ok_or_else(|| CliError::usage("the artifact gives no tensor as its output"))?;
        Ok(Ran { output, input, mode, seed, saved, buffers: before })
    }

    /// Runs the backward of a forward pass. The parameters must not have changed since.
    pub(super) fn backward(&self, ran: &Ran, grad_output: &HostTensor) -> Result<Gradients, CliError> {
        let key = (ran.input.shape().clone(), ran.input.dtype(), ran.mode);
        let planned = self.plans.get(&key).ok_or_else(|| CliError::usage("the pass was not run here"))?;
        let results = self.run(&planned.backward, ran.seed, |source| match source {
            Source::Input(_) => ran.input.clone(),
            Source::Parameter(n) => self.parameters[n as usize].clone(),
            Source::Buffer(n) => ran.buffers[n as usize].clone(),
            Source::Saved(n) => ran.saved[&n].clone(),
            Source::GradOutput(_) => grad_output.clone(),
            Source::Constant(_) => unreachable!("constants are the graph's own"),
        })?;
        let mut gradients = Gradients::default();
        for (sink, tensor) in results {
            match sink {
                Sink::GradInput(0) => gradients.input = Some(tensor),
                Sink::GradParameter(n) => drop(gradients.parameters.insert(n as usize, tensor)),
                _ => {}
            }
        }
        Ok(gradients)
    }

    fn run(
        &self,
        placed: &Placed,
        seed: u64,
        feed: impl FnMut(Source) -> HostTensor,
    ) -> Result<Vec<(Sink, HostTensor)>, CliError> {
        let context = RunContext { seed, deadline: None, threads: self.backend.threads() };
        let [parameters, buffers] = &self.layouts;
        let (executable, layouts) = (placed.executable.as_ref(), [parameters, buffers]);
        Ok(run_on_host(&self.backend, executable, &placed.graph, layouts, feed, &context)?)
    }

    fn plan(&self, (shape, dtype, mode): &(Shape, DType, Mode)) -> Result<Planned, CliError> {
        let mut graph = self.module.lower(&[(shape.clone(), *dtype)], *mode, &Limits::default())?;
        simplify(&mut graph);
        let wanted: Vec<bool> =
            self.module.parameters().iter().map(|parameter| parameter.requires_grad).collect();
        let both = differentiate(&graph, &Wants { inputs: &[true], parameters: &wanted })?;
        let place = |mut graph: Graph| -> Result<Placed, CliError> {
            simplify(&mut graph);
            let [parameters, buffers] = &self.layouts;
            let options = CompileOptions { parameters, buffers, limit_bytes: MAX_PLAN_BYTES, deadline: None };
            Ok(Placed { executable: self.backend.compile(&graph, &options)?, graph })
        };
        Ok(Planned { forward: place(both.forward)?, backward: place(both.backward)? })
    }
}
