//! A kernel: a proven artifact with its plans.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{
    EngineConfig, EngineError, PlanKey, PlanSet, Program,
    charge::{Account, Charge},
    recent::Recent,
};
use crate::{
    artifact::{Module, NamedTensor, Parameter},
    backend::{Backend, Region},
    digest::Digest,
    graph::{Graph, Limits},
    id::KernelId,
    tensor::{HostTensor, PackedLayout, Shape, ShapeError},
    validation::{Metadata, Verdict},
};

/// Plans kept for one kernel on one device; the least recently used goes first.
const MAX_PLANS: usize = 32;

/// A parameter or a buffer of a kernel, with its value in the artifact.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Its path, as `named_parameters` or `named_buffers` gives it.
    pub name: String,
    /// Its value in the artifact.
    pub tensor: HostTensor,
    /// Whether it wants a gradient; never true of a buffer.
    pub requires_grad: bool,
    /// The other paths that it is reached by.
    pub aliases: Vec<String>,
    /// Whether a `state_dict` has it; false of some buffers.
    pub persistent: bool,
}

/// A kernel: immutable but for the plans that gather with use.
pub struct Kernel {
    id: KernelId,
    digest: Digest,
    metadata: Metadata,
    verdict: Option<Verdict>,
    parameters: Vec<Weight>,
    buffers: Vec<Weight>,
    parameter_layout: PackedLayout,
    buffer_layout: PackedLayout,
    program: Box<dyn Program>,
    plans: Mutex<Vec<OfDevice>>,
    /// What plans and the memory that seeds run on weigh.
    account: Account,
}

/// Plans that are there or being made, or why there are none.
type MadeOnce = OnceLock<Result<Arc<PlanSet>, EngineError>>;

/// A kernel's plans on one device.
struct OfDevice {
    device: String,
    plans: Recent<PlanKey, Arc<MadeOnce>>,
}

/// What a kernel is made of.
#[derive(Debug)]
pub struct KernelParts {
    /// Its name.
    pub id: KernelId,
    /// SHA-256 of its artifact.
    pub digest: Digest,
    /// What the catalogue says of it.
    pub metadata: Metadata,
    /// What the validator says of it; absent for kernels that were never validated, in tests and offline.
    pub verdict: Option<Verdict>,
    /// Its parameters, in the program's order.
    pub parameters: Vec<Weight>,
    /// Its buffers, in the program's order.
    pub buffers: Vec<Weight>,
    /// Its program.
    pub program: Box<dyn Program>,
}

impl Kernel {
    /// A kernel of an artifact that was read and judged.
    ///
    /// # Errors
    /// [`EngineError::TooLarge`] when its weights do not fit the address space.
    pub fn from_module(
        id: KernelId,
        metadata: Metadata,
        verdict: Verdict,
        module: Arc<Module>,
    ) -> Result<Self, EngineError> {
        let (parameters, buffers) = weights(&module);
        let parts = KernelParts {
            digest: verdict.digest,
            metadata,
            verdict: Some(verdict),
            parameters,
            buffers,
            program: Box::new(module),
            id: id.clone(),
        };
        Self::new(parts).map_err(|source| EngineError::TooLarge { kernel: id, source })
    }

    /// A kernel of its parts.
    ///
    /// # Errors
    /// [`ShapeError::TooLarge`] when its weights do not fit the address space.
    pub fn new(parts: KernelParts) -> Result<Self, ShapeError> {
        let layout = |weights: &[Weight]| {
            PackedLayout::new(weights.iter().map(|weight| (weight.tensor.shape(), weight.tensor.dtype())))
        };
        Ok(Self {
            parameter_layout: layout(&parts.parameters)?,
            buffer_layout: layout(&parts.buffers)?,
            id: parts.id,
            digest: parts.digest,
            metadata: parts.metadata,
            verdict: parts.verdict,
            parameters: parts.parameters,
            buffers: parts.buffers,
            program: parts.program,
            plans: Mutex::default(),
            account: Account::default(),
        })
    }

    /// Its name.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// SHA-256 of its artifact.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the catalogue says of it.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What the validator says of it.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Its parameters, in the program's order.
    pub fn parameters(&self) -> &[Weight] {
        &self.parameters
    }

    /// Its buffers, in the program's order.
    pub fn buffers(&self) -> &[Weight] {
        &self.buffers
    }

    /// Where its parameters lie in their block, and their gradients in theirs.
    pub fn parameter_layout(&self) -> &PackedLayout {
        &self.parameter_layout
    }

    /// Where its buffers lie in their block.
    pub fn buffer_layout(&self) -> &PackedLayout {
        &self.buffer_layout
    }

    /// Bytes from the start of a seed's memory to its block of buffers; the parameters' block starts at 0.
    pub fn buffers_offset(&self) -> usize {
        self.parameter_layout.total_bytes()
    }

    /// Bytes that a seed's parameters and buffers take together; at least 64, so that a memory file is
    /// never empty.
    pub fn memory_bytes(&self) -> usize {
        (self.buffers_offset() + self.buffer_layout.total_bytes()).max(64)
    }

    /// Bytes that are resident because of this kernel.
    ///
    /// Its weights, or the artifact that they are parts of; its plans, as long as anybody holds them; and the
    /// workspace of every seed that runs it. It grows when a plan is made, or first run by a seed, and shrinks when
    /// plans and seeds go. A seed's own parameters and what tickets save are their session's.
    pub fn resident_bytes(&self) -> usize {
        let weights = self.parameter_layout.total_bytes() + self.buffer_layout.total_bytes();
        weights.max(self.program.held_bytes()).saturating_add(self.account.bytes())
    }

    /// Counts bytes as this kernel's until the charge is dropped.
    pub(super) fn charge(&self, bytes: usize) -> Charge {
        self.account.charge(bytes)
    }

    /// How many plans it has, on all devices.
    pub fn plan_count(&self) -> u32 {
        let is_there = |made: &MadeOnce| matches!(made.get(), Some(Ok(_)));
        let kept = self.kept();
        kept.iter().flat_map(|of| of.plans.iter()).filter(|(_, made)| is_there(made)).count() as u32
    }

    /// Writes the artifact's values into a seed's memory; `false` where that is too small.
    pub fn initialise(&self, memory: Region<'_>) -> bool {
        self.weights_in(memory)
            .all(|(weight, part)| part.is_some_and(|part| part.write(weight.tensor.bytes())))
    }

    /// Every parameter and buffer with its place in a seed's memory; `None` where that is too small.
    pub(super) fn weights_in<'a>(
        &'a self,
        memory: Region<'a>,
    ) -> impl Iterator<Item = (&'a Weight, Option<Region<'a>>)> {
        let blocks = [
            (0, &self.parameters, &self.parameter_layout),
            (self.buffers_offset(), &self.buffers, &self.buffer_layout),
        ];
        blocks.into_iter().flat_map(move |(start, weights, layout)| {
            let slots = weights.iter().zip(layout.slots());
            slots.map(move |(weight, slot)| (weight, memory.part(start + slot.offset_bytes, slot.len_bytes)))
        })
    }

    /// The artifact it was read from, where there is one.
    pub(super) fn module(&self) -> Option<&Module> {
        self.program.module()
    }

    /// The plans for one key on one device, made on first use.
    ///
    /// Blocking: while a plan is made, by this caller or by another that came first. A failure is kept too:
    /// the same key fails at once.
    ///
    /// # Errors
    /// [`EngineError`] when the program does not take this input, cannot be differentiated or planned.
    pub fn plans(
        &self,
        key: &PlanKey,
        backend: &dyn Backend,
        config: &EngineConfig,
    ) -> Result<Arc<PlanSet>, EngineError> {
        let made = self.made_once(key, backend.name());
        made.get_or_init(|| PlanSet::build(self, key, backend, config).map(Arc::new)).clone()
    }

    /// Whether [`plans`](Self::plans) would answer at once, with plans or with why there are none.
    pub fn is_planned(&self, key: &PlanKey, backend: &dyn Backend) -> bool {
        let kept = self.kept();
        let mut there = kept.iter().filter(|of| of.device == backend.name()).flat_map(|of| of.plans.iter());
        there.any(|(known, made)| known == key && made.get().is_some())
    }

    fn made_once(&self, key: &PlanKey, device: &str) -> Arc<MadeOnce> {
        let mut kept = self.kept();
        let place = kept.iter().position(|of| of.device == device).unwrap_or_else(|| {
            kept.push(OfDevice { device: device.to_owned(), plans: Recent::new(MAX_PLANS) });
            kept.len() - 1
        });
        let plans = &mut kept[place].plans;
        if let Some(made) = plans.get(key) {
            return made.clone();
        }
        let made = Arc::<MadeOnce>::default();
        plans.insert(key.clone(), made.clone());
        made
    }

    fn kept(&self) -> MutexGuard<'_, Vec<OfDevice>> {
        // Nothing that is done within can panic half-way.
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lower(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, EngineError> {
        self.program.lower(key, limits).map_err(|fault| EngineError::Lower {
            kernel: self.id.clone(),
            input: key.input_shape.clone(),
            dtype: key.dtype,
            code: fault.code(),
            reason: fault.to_string(),
        })
    }

    /// The shape an input has with a batch of `batch`, as far as the catalogue declares one.
    pub fn declared_input(&self, batch: usize) -> Option<Shape> {
        let sample = self.metadata.input_shape.as_ref()?;
        Some(std::iter::once(batch).chain(sample.iter().copied()).collect())
    }
}

/// A module's parameters and buffers, in its program's order.
pub(super) fn weights(module: &Module) -> (Vec<Weight>, Vec<Weight>) {
    let buffer = |b: &NamedTensor| Weight {
        name: b.name.clone(),
        tensor: b.tensor.clone(),
        requires_grad: false,
        aliases: b.aliases.clone(),
        persistent: b.persistent,
    };
    let parameter = |p: &Parameter| Weight {
        name: p.name.clone(),
        tensor: p.tensor.clone(),
        requires_grad: p.requires_grad,
        aliases: p.aliases.clone(),
        persistent: true,
    };
    let parameters = module.parameters().iter().map(parameter).collect();
    (parameters, module.buffers().iter().map(buffer).collect())
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.id)
    }
}
