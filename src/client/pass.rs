//! Passes: a forward, and perhaps its backward.

use std::sync::Arc;

use super::{
    ClientError, Grafted, Layer,
    session::{Held, Shared},
};
use crate::{
    id::{LayerId, SeedIndex, TicketId},
    tensor::{DType, Shape},
    wire::{
        Completion, FLAG_TAKE_TICKET, FLAG_TRAIN, FailureKind, MAX_RANK, Submission, TensorEntry,
        VERB_BACKWARD, VERB_FORWARD, VERB_RELEASE, Wants,
    },
};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct PassRequest<'a> {
    /// x, contiguous.
    pub input: &'a [f32],
    /// Its sizes, the batch first.
    pub input_shape: &'a Shape,
    /// The sizes of the host's own output, which every seed's must have.
    pub output_shape: &'a Shape,
    /// Training mode: dropout on, running statistics updated.
    pub train: bool,
    /// Which gradients the backward will be asked for; `None` where there will be no backward.
    pub gradients: Option<Wants>,
    /// Decides every dropout mask of the pass.
    pub rng_seed: u64,
    /// Alphas for this pass, one for each seed of the layer, NaN for the daemon's own.
    pub alphas: Option<&'a [f32]>,
}

/// A forward pass that was run. Its ticket, if it took one, is released when it is dropped.
#[derive(Debug)]
pub struct Pass {
    shared: Arc<Shared>,
    layer: LayerId,
    wants: Wants,
    seeds: usize,
    output: Held,
    input: Held,
    ticket: Option<TicketId>,
    live: Vec<(SeedIndex, Arc<Grafted>)>,
    /// A seed that ran, while another thread gave it another kernel or took it out: nobody can tell here which it was.
    unsure: Option<SeedIndex>,
    completion: Completion,
}

/// What a backward yields.
#[derive(Debug)]
pub struct Gradients {
    /// Of x, if it was asked for.
    pub input: Option<Vec<f32>>,
    /// For each seed that ran, its block of parameter gradients, laid out as its parameters are. Empty if
    /// they were not asked for.
    pub parameters: Vec<(SeedIndex, Vec<f32>)>,
    /// For each seed of the layer the daemon's part of its alpha's gradient, if it was asked for: the whole of it where
    /// the daemon has the host. Else, for a convex blend whose [`alpha_total`](Pass::alpha_total) is at most 1, the
    /// caller subtracts ⟨h, g⟩.
    pub alphas: Option<Vec<f32>>,
}

impl Pass {
    pub(super) fn forward(layer: &Layer, request: &PassRequest<'_>) -> Result<Self, ClientError> {
        let PassRequest { input, input_shape, output_shape, .. } = request;
        if input.len() != input_shape.elements() {
            return Err(ClientError::usage(format!("{} numbers are no {input_shape}", input.len())));
        }
        let shared = layer.shared.clone();
        let input_block = shared.hold(input)?;
        let alphas = request.alphas.map(|alphas| given(layer, alphas)).transpose()?;
        let (alphas_offset, alphas_bytes) = place(&alphas);
        let output = shared.allocate(output_shape.elements().saturating_mul(4))?;
        let wants = request.gradients.unwrap_or_default();
        let ticket = if request.gradients.is_some() { FLAG_TAKE_TICKET } else { 0 };
        let (input_dims, output_dims) = (dims(input_shape)?, dims(output_shape)?);
        let before = layer.slots();
        let completion = shared.run(Submission {
            verb: VERB_FORWARD,
            flags: ticket | wants.flags() | if request.train { FLAG_TRAIN } else { 0 },
            layer: layer.id.0,
            dtype: u32::from(DType::F32.code()),
            rng_seed: request.rng_seed,
            input_offset: input_block.block.offset,
            input_bytes: input_block.block.bytes,
            output_offset: output.block.offset,
            output_bytes: output.block.bytes,
            input_rank: input_shape.rank() as u32,
            output_rank: output_shape.rank() as u32,
            input_dims,
            output_dims,
            alphas_offset,
            alphas_bytes,
            ..Submission::default()
        })?;
        let after = layer.slots();
        let of = |slots: &[Option<Arc<Grafted>>], seed: SeedIndex| {
            slots.get(usize::from(seed.0)).cloned().flatten()
        };
        let (mut live, mut unsure) = (Vec::new(), None);
        for seed in completion.live_seeds() {
            match (of(&before, seed), of(&after, seed)) {
                (Some(before), Some(after)) if Arc::ptr_eq(&before, &after) => live.push((seed, after)),
                // It came into an empty seed: nothing else can have run there.
                (None, Some(after)) => live.push((seed, after)),
                _ => unsure = Some(seed),
            }
        }
        let ticket = Some(TicketId(completion.ticket)).filter(|ticket| ticket.0 != 0);
        let (layer, seeds) = (layer.id, layer.seeds());
        Ok(Self { shared, layer, wants, seeds, output, input: input_block, ticket, live, unsure, completion })
    }

    /// S (convex, residual) or P (multiply): what the caller blends with the host's own output; or y, where the
    /// daemon has the host.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn output(&self) -> Result<Vec<f32>, ClientError> {
        Ok(self.output.floats()?.to_vec())
    }

    /// A: the total blend weight of the seeds that went into the blend.
    pub fn blend_weight(&self) -> f32 {
        self.completion.blend_weight
    }

    /// T: the sum of the alphas of the seeds that went into the blend.
    pub fn alpha_total(&self) -> f32 {
        self.completion.alpha_total
    }

    /// The seeds that ran, in order, and the host where the daemon has it.
    pub fn live(&self) -> impl Iterator<Item = SeedIndex> + '_ {
        self.completion.live_seeds()
    }

    /// The seeds that failed and were left out, in order.
    pub fn failures(&self) -> impl Iterator<Item = (SeedIndex, FailureKind)> + '_ {
        self.completion.failed_seeds()
    }

    /// How long the daemon worked on it, in nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        self.completion.duration_ns
    }

    /// Runs the backward of what [`output`](Self::output) gave, and spends the ticket.
    ///
    /// Blocking: until the daemon is done.
    ///
    /// # Errors
    /// [`ClientError::Usage`] when the pass took no ticket, the gradient has another size than the output, or a seed
    /// was given another kernel while the pass was under way; otherwise as [`Layer::forward`].
    pub fn backward(self, grad_output: &[f32]) -> Result<Gradients, ClientError> {
        self.backward_with(grad_output, None)
    }

    /// The same with the gradient of the layer's output, y, for seeds in training, where it is another than that
    /// of what [`output`](Self::output) gave: in a layer that multiplies and whose host is the caller's.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_with(
        mut self,
        grad_output: &[f32],
        straight: Option<&[f32]>,
    ) -> Result<Gradients, ClientError> {
        let Some(ticket) = self.ticket else {
            return Err(ClientError::usage("the pass took no ticket: ask for gradients in its forward"));
        };
        if let Some(seed) = self.unsure {
            return Err(ClientError::usage(format!(
                "seed {seed} was given another kernel while the pass was under way, so its gradients could be taken for \
                 those of the wrong one: run the forward again"
            )));
        }
        let output_bytes = self.output.block.bytes;
        let lengths = [Some(grad_output), straight].into_iter().flatten().map(<[f32]>::len);
        if let Some(len) = lengths.into_iter().find(|&len| len as u64 * 4 != output_bytes) {
            return Err(ClientError::usage(format!("{len} gradients for an output of {output_bytes} bytes")));
        }
        let take = |wanted: bool, bytes: usize| match wanted {
            true => self.shared.allocate(bytes).map(Some),
            false => Ok(None),
        };
        let gradient_bytes = self.live.iter().map(|(_, g)| g.reply().gradient_bytes as usize).sum();
        let grad = self.shared.hold(grad_output)?;
        let straight = straight.map(|numbers| self.shared.hold(numbers)).transpose()?;
        let input = take(self.wants.input, self.input.block.bytes as usize)?;
        let parameters = take(self.wants.parameters, gradient_bytes)?;
        let alphas = take(self.wants.alphas, self.seeds * 4)?;
        let (grad_input_offset, grad_input_bytes) = place(&input);
        let (grad_parameters_offset, grad_parameters_bytes) = place(&parameters);
        let (grad_alphas_offset, grad_alphas_bytes) = place(&alphas);
        let (straight_offset, straight_bytes) = place(&straight);
        self.shared.run(Submission {
            verb: VERB_BACKWARD,
            flags: self.wants.flags(),
            layer: self.layer.0,
            ticket: ticket.0,
            grad_output_offset: grad.block.offset,
            grad_output_bytes: grad.block.bytes,
            grad_input_offset,
            grad_input_bytes,
            grad_parameters_offset,
            grad_parameters_bytes,
            grad_alphas_offset,
            grad_alphas_bytes,
            straight_offset,
            straight_bytes,
            ..Submission::default()
        })?;
        self.ticket = None;
        let numbers = |held: &Option<Held>| -> Result<Option<Vec<f32>>, ClientError> {
            held.as_ref().map(|h| Ok(h.floats()?.to_vec())).transpose()
        };
        let mut blocks = Vec::new();
        if let Some(all) = numbers(&parameters)? {
            let mut rest = all.as_slice();
            for (seed, grafted) in &self.live {
                let count = (grafted.reply().gradient_bytes as usize / 4).min(rest.len());
                let (block, after) = rest.split_at(count);
                blocks.push((*seed, block.to_vec()));
                rest = after;
            }
        }
        Ok(Gradients { input: numbers(&input)?, parameters: blocks, alphas: numbers(&alphas)? })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let (layer, ticket) = (self.layer.0, ticket.0);
            self.shared.post(Submission { verb: VERB_RELEASE, layer, ticket, ..Submission::default() });
        }
    }
}

impl Gradients {
    /// The gradient of one parameter of one seed; `None` if the seed did not run, or for an element type
    /// other than f32.
    pub fn parameter(&self, seed: SeedIndex, entry: &TensorEntry) -> Option<&[f32]> {
        let (_, block) = self.parameters.iter().find(|(ran, _)| *ran == seed)?;
        let start = usize::try_from(entry.offset).ok()? / 4;
        let end = start.checked_add(entry.shape.elements())?;
        if entry.dtype == DType::F32 { block.get(start..end) } else { None }
    }
}

/// Alphas in the arena.
fn given(layer: &Layer, alphas: &[f32]) -> Result<Held, ClientError> {
    if alphas.len() != layer.seeds() {
        let (len, seeds) = (alphas.len(), layer.seeds());
        return Err(ClientError::usage(format!("{len} alphas for a layer of {seeds} seeds")));
    }
    layer.shared.hold(alphas)
}

/// Offset and bytes of a block, or 0 where there is none.
fn place(held: &Option<Held>) -> (u64, u64) {
    held.as_ref().map_or((0, 0), |held| (held.block.offset, held.block.bytes))
}

fn dims(shape: &Shape) -> Result<[u32; MAX_RANK], ClientError> {
    let mut dims = [0; MAX_RANK];
    if shape.rank() > MAX_RANK {
        return Err(ClientError::usage(format!("{shape} has more than {MAX_RANK} dimensions")));
    }
    for (dim, &size) in dims.iter_mut().zip(shape.dims()) {
        *dim = u32::try_from(size).map_err(|_| ClientError::usage(format!("{shape} is too large")))?;
    }
    Ok(dims)
}
