//! A parsed artifact.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use super::{
    ArtifactError, ReadLimits, RewriteError,
    aten::{Lowering, Ready},
    pt2, torchscript,
};
use crate::{
    graph::{Graph, Limits},
    tensor::{DType, HostTensor, Shape},
};

/// How an artifact was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// By `torch.jit.save`.
    TorchScript,
    /// By `torch.export.save`.
    Pt2,
}

impl Format {
    /// The format's short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchScript => "torchscript",
            Self::Pt2 => "pt2",
        }
    }
}

/// Whether a kernel trains: what `module.train()` and `module.eval()` choose between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Batch statistics, running statistics updated, dropout active.
    Train,
    /// Running statistics, dropout off.
    Eval,
}

/// A tensor that training changes.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its path, as `named_parameters` gives it.
    pub name: String,
    /// Its value in the artifact.
    pub tensor: HostTensor,
    /// Whether it wants a gradient.
    pub requires_grad: bool,
    /// The other paths that it is reached by, where weights are tied.
    pub aliases: Vec<String>,
}

/// A tensor that the forward pass itself may change.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Its path, as `named_buffers` gives it.
    pub name: String,
    /// Its value in the artifact.
    pub tensor: HostTensor,
    /// Whether part of its memory is another tensor's too. What is written to such a buffer would have to be
    /// seen in the other, so that it is refused.
    pub shared: bool,
    /// The other paths that it is reached by.
    pub aliases: Vec<String>,
    /// Whether a `state_dict` has it. TorchScript does not say, and gives every buffer to its own.
    pub persistent: bool,
}

/// What the exporter of PT2 archives writes as path and class of a node that it made itself.
pub const EXPORTERS_FRAME: &str = "_empty_nn_module_stack_from_metadata_hook";

/// One module of the tree and its class, such as `conv` and `torch.nn.modules.conv.Conv2d`. Without a class it
/// is a node of which the archive does not say where it is from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModuleType {
    /// The path from the root, which is the empty path.
    pub path: String,
    /// The class's qualified name, without TorchScript's mangling.
    pub class: String,
}

/// The shape that an input was exported with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredInput {
    /// The sizes; `None` where the size is free.
    pub sizes: Vec<Option<usize>>,
    /// The element type.
    pub dtype: DType,
}

/// A parsed artifact: named parameters and buffers, and a program. Immutable, and shared between threads.
#[derive(Debug)]
pub struct Module {
    pub(super) format: Format,
    pub(super) parameters: Vec<Parameter>,
    pub(super) buffers: Vec<NamedTensor>,
    pub(super) types: Vec<ModuleType>,
    pub(super) ops: BTreeSet<String>,
    pub(super) declared: Option<Vec<DeclaredInput>>,
    pub(super) program: Program,
    pub(super) limits: ReadLimits,
    /// The artifact itself, of which most tensors are parts.
    pub(super) archive: Arc<[u8]>,
    pub(super) copied_bytes: usize,
}

/// The program in its own format.
#[derive(Debug)]
pub(super) enum Program {
    Pt2(pt2::Program),
    TorchScript(torchscript::Program),
}

impl Module {
    /// How the artifact was written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The parameters, in the module's own order; `Source::Parameter(n)` is the n-th.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The buffers, in the module's own order; `Source::Buffer(n)` is the n-th.
    pub fn buffers(&self) -> &[NamedTensor] {
        &self.buffers
    }

    /// The tensors that are neither: what the program has by itself, each with a name to find it by. Those that
    /// no operation reads are among them.
    pub fn constants(&self) -> Vec<(String, &HostTensor)> {
        match &self.program {
            Program::Pt2(program) => program.constants().collect(),
            Program::TorchScript(program) => program.constants(),
        }
    }

    /// The artifact's bytes.
    pub fn archive(&self) -> &Arc<[u8]> {
        &self.archive
    }

    /// The artifact with other values of its parameters and buffers.
    ///
    /// # Errors
    /// As [`rewrite`](super::rewrite()).
    pub fn rewritten(&self, values: &BTreeMap<String, HostTensor>) -> Result<Arc<[u8]>, RewriteError> {
        let deadline = Instant::now() + self.limits.time_limit;
        super::rewrite(&self.archive, values, &self.limits.until(deadline))
    }

    /// The most bytes that are in use for a moment while the artifact is [rewritten](Self::rewritten), beside it and the
    /// values: the result twice, or once with the files that change; of tensors that are no parts of it, because they
    /// are packed or lie in an archive within, four more copies.
    pub fn rewrite_bytes(&self) -> usize {
        let copied = self.copied_bytes.saturating_mul(4);
        self.archive.len().saturating_mul(2).saturating_add(copied)
    }

    /// Bytes of memory that are held with the module: the artifact, and what tensors are copied from it, such as
    /// packed ones.
    pub fn held_bytes(&self) -> usize {
        self.archive.len().saturating_add(self.copied_bytes)
    }

    /// Bytes of the tensors that are no parts of the artifact.
    pub(super) fn count_copies(&self) -> usize {
        let parameters = self.parameters.iter().map(|parameter| &parameter.tensor);
        let buffers = self.buffers.iter().map(|buffer| &buffer.tensor);
        let constants = self.constants();
        let all = parameters.chain(buffers).chain(constants.iter().map(|(_, tensor)| *tensor));
        let copies = all.filter(|tensor| !tensor.is_part_of(&self.archive));
        copies.fold(0, |sum, tensor| sum.saturating_add(tensor.bytes().len()))
    }

    /// Every module of the tree that is known, sorted by path.
    pub fn types(&self) -> &[ModuleType] {
        &self.types
    }

    /// The names of all operations in the program, such as `aten.conv2d`, whether lowering reaches them or
    /// not.
    pub fn ops(&self) -> &BTreeSet<String> {
        &self.ops
    }

    /// The inputs that the program was exported for, where the format says.
    pub fn declared_inputs(&self) -> Option<&[DeclaredInput]> {
        self.declared.as_deref()
    }

    /// The program for given inputs, as a graph.
    ///
    /// `mode` decides for batch norm and dropout whatever flag was exported with them, so that a layer's
    /// `train()` and `eval()` reach its kernels.
    ///
    /// # Errors
    /// [`ArtifactError`] naming the operation and where it stands.
    pub fn lower(
        &self,
        inputs: &[(Shape, DType)],
        mode: Mode,
        limits: &Limits,
    ) -> Result<Graph, ArtifactError> {
        let mut lowering = Lowering::new(&self.parameters, &self.buffers, mode, *limits, &self.limits);
        let inputs = inputs
            .iter()
            .enumerate()
            .map(|(index, (shape, dtype))| lowering.input(index, shape.clone(), *dtype))
            .collect::<Result<Vec<_>, _>>()?;
        let outputs = match &self.program {
            Program::Pt2(program) => program.run(&mut lowering, &inputs)?,
            Program::TorchScript(program) => program.run(&mut lowering, &inputs, &self.limits)?,
        };
        lowering.finish(&outputs).map(|Ready { graph }| graph)
    }
}
