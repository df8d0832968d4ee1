//! Descriptors as values: copied out of shared memory first, then checked, then acted upon.

use super::{
    ArenaLayout, Completion, DESCRIPTOR_BYTES, FailureKind, MAX_RANK, MAX_SEEDS, Status, Submission,
    WireError,
};
use crate::{
    id::{LayerId, SeedIndex, TicketId},
    tensor::{ALIGNMENT_BYTES, DType, Shape},
};

/// [`Submission::verb`]: run the layer's seeds.
pub const VERB_FORWARD: u32 = 1;
/// [`Submission::verb`]: run their backward and spend the ticket.
pub const VERB_BACKWARD: u32 = 2;
/// [`Submission::verb`]: spend the ticket without a backward.
pub const VERB_RELEASE: u32 = 3;

/// [`Submission::flags`], forward: training mode (dropout on, running statistics updated).
pub const FLAG_TRAIN: u32 = 1;
/// [`Submission::flags`], forward: a backward will follow; keep what it needs.
pub const FLAG_TAKE_TICKET: u32 = 2;
/// [`Submission::flags`]: forward, the backward will ask for the gradient of x; backward, it does.
pub const FLAG_WANT_GRAD_INPUT: u32 = 4;
/// [`Submission::flags`]: as above, for the parameters.
pub const FLAG_WANT_GRAD_PARAMETERS: u32 = 8;
/// [`Submission::flags`]: as above, for the alphas.
pub const FLAG_WANT_GRAD_ALPHAS: u32 = 16;

/// What it takes to copy a struct out of and into shared memory word by word.
pub trait Descriptor: Copy {
    /// The ring it travels in, for errors.
    const RING: &'static str;
    /// From words as they stood in memory.
    fn from_words(words: [u64; DESCRIPTOR_BYTES / 8]) -> Self;
    /// To words as they are to stand in memory.
    fn to_words(&self) -> [u64; DESCRIPTOR_BYTES / 8];
}

macro_rules! words {
    ($name:ident, $ring:literal) => {
        impl Descriptor for $name {
            const RING: &'static str = $ring;

            fn from_words(words: [u64; DESCRIPTOR_BYTES / 8]) -> Self {
                // SAFETY: the struct is repr(C) of the same size without padding (asserted in `layout`),
                // and all of its fields are numbers, for which every pattern of bits is a value.
                unsafe { std::mem::transmute(words) }
            }

            fn to_words(&self) -> [u64; DESCRIPTOR_BYTES / 8] {
                // SAFETY: as above; without padding every byte is initialised.
                unsafe { std::mem::transmute(*self) }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::from_words([0; DESCRIPTOR_BYTES / 8])
            }
        }
    };
}

words!(Submission, "submission");
words!(Completion, "completion");

/// A block of the arena that has been checked to lie in its heap, aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Bytes from the start of the arena.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

impl Block {
    /// Whether any byte lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.bytes != 0
            && other.bytes != 0
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// A submission that has been checked as far as it can be without knowing the session's layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run the seeds of a layer.
    Forward(Forward),
    /// Run their backward and spend the ticket.
    Backward(Backward),
    /// Spend the ticket.
    Release(Release),
}

/// A forward pass of a layer's seeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// To be carried back.
    pub sequence: u64,
    /// The layer.
    pub layer: LayerId,
    /// Training mode.
    pub train: bool,
    /// Whether a backward will follow.
    pub take_ticket: bool,
    /// What that backward will want.
    pub wants: Wants,
    /// Decides every dropout mask.
    pub rng_seed: u64,
    /// Element type of input and output.
    pub dtype: DType,
    /// Where x lies; it stays unchanged until the ticket is spent.
    pub input: Block,
    /// The sizes of x, the batch first.
    pub input_shape: Shape,
    /// Where S, P or, in a layer with a host, y is to be written.
    pub output: Block,
    /// The sizes the client expects of it, the batch first.
    pub output_shape: Shape,
    /// Where alphas for this pass lie, one f32 for each seed of the layer, NaN for the daemon's own.
    pub alphas: Option<Block>,
}

/// The backward of a ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backward {
    /// To be carried back.
    pub sequence: u64,
    /// The layer.
    pub layer: LayerId,
    /// The ticket.
    pub ticket: TicketId,
    /// Where the gradient of S, P or y lies.
    pub grad_output: Block,
    /// Where the gradient of x is to be written.
    pub grad_input: Option<Block>,
    /// Where the parameters' gradients are to be written: the blocks of the seeds that ran, in seed order.
    pub grad_parameters: Option<Block>,
    /// Where it says at which byte of it each slot's block begins, where they do not follow each other.
    pub places: Option<Block>,
    /// Where the alphas' gradients are to be written, one f32 for each seed of the layer.
    pub grad_alphas: Option<Block>,
    /// Where the gradient of y lies for seeds in training, where it is another than that of the output.
    pub straight: Option<Block>,
}

/// The end of a ticket without a backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// To be carried back.
    pub sequence: u64,
    /// The layer.
    pub layer: LayerId,
    /// The ticket.
    pub ticket: TicketId,
}

/// Which gradients are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wants {
    /// Of x.
    pub input: bool,
    /// Of the parameters.
    pub parameters: bool,
    /// Of the alphas.
    pub alphas: bool,
}

impl Wants {
    fn from_flags(flags: u32) -> Self {
        Self {
            input: flags & FLAG_WANT_GRAD_INPUT != 0,
            parameters: flags & FLAG_WANT_GRAD_PARAMETERS != 0,
            alphas: flags & FLAG_WANT_GRAD_ALPHAS != 0,
        }
    }

    /// As bits of [`Submission::flags`].
    pub fn flags(self) -> u32 {
        let bit = |wanted, flag| if wanted { flag } else { 0 };
        bit(self.input, FLAG_WANT_GRAD_INPUT)
            | bit(self.parameters, FLAG_WANT_GRAD_PARAMETERS)
            | bit(self.alphas, FLAG_WANT_GRAD_ALPHAS)
    }
}

impl Command {
    /// The number to be carried back.
    pub fn sequence(&self) -> u64 {
        match self {
            Self::Forward(forward) => forward.sequence,
            Self::Backward(backward) => backward.sequence,
            Self::Release(release) => release.sequence,
        }
    }
}

impl Submission {
    /// Checks everything that can be checked without knowing the session's layers and tickets. `self` must
    /// be a copy: the shared memory it came from may change at any time.
    ///
    /// # Errors
    /// [`WireError::Descriptor`] and [`WireError::Block`], on either of which the session ends.
    pub fn check(&self, arena: &ArenaLayout) -> Result<Command, WireError> {
        if self.reserved != [0; 2] {
            return Err(refused("reserved bytes are not 0"));
        }
        let (sequence, layer, ticket) = (self.sequence, LayerId(self.layer), TicketId(self.ticket));
        match self.verb {
            VERB_FORWARD => self.check_forward(arena).map(Command::Forward),
            VERB_BACKWARD => self.check_backward(arena).map(Command::Backward),
            VERB_RELEASE if self.flags != 0 => Err(refused("a release has no flags")),
            VERB_RELEASE => Ok(Command::Release(Release { sequence, layer, ticket })),
            verb => Err(refused(format!("verb {verb} is not known"))),
        }
    }

    fn check_forward(&self, arena: &ArenaLayout) -> Result<Forward, WireError> {
        let known =
            FLAG_TRAIN | FLAG_TAKE_TICKET | Wants { input: true, parameters: true, alphas: true }.flags();
        if self.flags & !known != 0 {
            return Err(refused(format!("flags {:#x} are not known", self.flags & !known)));
        }
        let dtype = u8::try_from(self.dtype).ok().and_then(DType::from_code);
        let Some(dtype) = dtype.filter(|dtype| dtype.is_floating_point()) else {
            return Err(refused(format!("element type {} is no floating-point type", self.dtype)));
        };
        let input_shape = shape("input", self.input_rank, &self.input_dims)?;
        let output_shape = shape("output", self.output_rank, &self.output_dims)?;
        let input = block(arena, "input", self.input_offset, self.input_bytes)?;
        let output = block(arena, "output", self.output_offset, self.output_bytes)?;
        for (name, block, shape) in [("input", input, &input_shape), ("output", output, &output_shape)] {
            let needed = shape.elements().saturating_mul(dtype.size_bytes()) as u64;
            if block.bytes != needed {
                let bytes = block.bytes;
                return Err(refused(format!("{name} {shape} of {dtype} takes {needed} bytes, not {bytes}")));
            }
        }
        let alphas = given(arena, "alphas", self.alphas_offset, self.alphas_bytes)?;
        disjoint(&[("input", Some(input)), ("output", Some(output)), ("alphas", alphas)])?;
        Ok(Forward {
            sequence: self.sequence,
            layer: LayerId(self.layer),
            train: self.flags & FLAG_TRAIN != 0,
            take_ticket: self.flags & FLAG_TAKE_TICKET != 0,
            wants: Wants::from_flags(self.flags),
            rng_seed: self.rng_seed,
            dtype,
            input,
            input_shape,
            output,
            output_shape,
            alphas,
        })
    }

    fn check_backward(&self, arena: &ArenaLayout) -> Result<Backward, WireError> {
        let wants = Wants::from_flags(self.flags);
        if self.flags != wants.flags() {
            return Err(refused(format!("flags {:#x} do not belong to a backward", self.flags)));
        }
        let wanted = |wanted: bool, name, offset, bytes| match wanted {
            true => block(arena, name, offset, bytes).map(Some),
            false if (offset, bytes) == (0, 0) => Ok(None),
            false => Err(refused(format!("{name} has a place but is not wanted"))),
        };
        let grad_output = block(arena, "grad_output", self.grad_output_offset, self.grad_output_bytes)?;
        let grad_input = wanted(wants.input, "grad_input", self.grad_input_offset, self.grad_input_bytes)?;
        let grad_parameters = wanted(
            wants.parameters,
            "grad_parameters",
            self.grad_parameters_offset,
            self.grad_parameters_bytes,
        )?;
        let grad_alphas =
            wanted(wants.alphas, "grad_alphas", self.grad_alphas_offset, self.grad_alphas_bytes)?;
        let straight = given(arena, "straight", self.straight_offset, self.straight_bytes)?;
        let places = given(arena, "places", self.alphas_offset, self.alphas_bytes)?;
        disjoint(&[
            ("grad_output", Some(grad_output)),
            ("grad_input", grad_input),
            ("grad_parameters", grad_parameters),
            ("grad_alphas", grad_alphas),
            ("straight", straight),
            ("places", places),
        ])?;
        Ok(Backward {
            sequence: self.sequence,
            layer: LayerId(self.layer),
            ticket: TicketId(self.ticket),
            grad_output,
            grad_input,
            grad_parameters,
            places,
            grad_alphas,
            straight,
        })
    }
}

impl Completion {
    /// A refusal of a whole submission.
    pub fn refused(sequence: u64, status: Status, message: &str) -> Self {
        let mut completion = Self { sequence, status: status as u32, ..Self::default() };
        completion.set_message(message);
        completion
    }

    /// Puts a text into the message, cut to fit between two characters.
    pub fn set_message(&mut self, text: &str) {
        let end = text.floor_char_boundary(self.message.len());
        self.message = [0; 64];
        self.message[..end].copy_from_slice(&text.as_bytes()[..end]);
        self.message_bytes = end as u32;
    }

    /// The message; what is no UTF-8 in it is replaced.
    pub fn message(&self) -> String {
        let len = (self.message_bytes as usize).min(self.message.len());
        String::from_utf8_lossy(&self.message[..len]).into_owned()
    }

    /// Marks a seed as one that ran. Seeds from [`MAX_SEEDS`] on cannot be marked.
    pub fn set_live(&mut self, seed: SeedIndex) {
        self.live_mask |= bit(seed);
    }

    /// Marks a seed as one that failed. Seeds from [`MAX_SEEDS`] on cannot be marked.
    pub fn set_failed(&mut self, seed: SeedIndex, kind: FailureKind) {
        self.failed_mask |= bit(seed);
        if let Some(status) = self.seed_status.get_mut(usize::from(seed.0)) {
            *status = kind as u8;
        }
    }

    /// The seeds that ran, in order.
    pub fn live_seeds(&self) -> impl Iterator<Item = SeedIndex> + use<> {
        let mask = self.live_mask;
        (0..MAX_SEEDS as u16).map(SeedIndex).filter(move |seed| mask & bit(*seed) != 0)
    }

    /// The seeds that failed, in order, with the kind of failure.
    pub fn failed_seeds(&self) -> impl Iterator<Item = (SeedIndex, FailureKind)> + '_ {
        (0..MAX_SEEDS as u16).map(SeedIndex).filter(|seed| self.failed_mask & bit(*seed) != 0).map(|seed| {
            let kind = FailureKind::from_byte(self.seed_status[usize::from(seed.0)]);
            (seed, kind.unwrap_or(FailureKind::Runtime))
        })
    }
}

fn bit(seed: SeedIndex) -> u64 {
    1u64.checked_shl(u32::from(seed.0)).unwrap_or(0)
}

fn refused(reason: impl Into<String>) -> WireError {
    WireError::Descriptor { reason: reason.into() }
}

fn shape(name: &str, rank: u32, dims: &[u32; MAX_RANK]) -> Result<Shape, WireError> {
    let rank = rank as usize;
    if rank > MAX_RANK || dims[rank..].iter().any(|&dim| dim != 0) {
        return Err(refused(format!("{name} has rank {rank} and sizes {dims:?}")));
    }
    let shape: Shape = dims[..rank].iter().map(|&dim| dim as usize).collect();
    shape.checked_elements().map_err(|error| refused(format!("{name}: {error}")))?;
    Ok(shape)
}

fn block(arena: &ArenaLayout, name: &'static str, offset: u64, bytes: u64) -> Result<Block, WireError> {
    let refused = |reason| Err(WireError::Block { name, offset, bytes, reason });
    if !offset.is_multiple_of(ALIGNMENT_BYTES as u64) {
        return refused("it must start on a multiple of 64");
    }
    let heap_end = arena.heap_offset + arena.heap_bytes;
    match offset.checked_add(bytes) {
        Some(end) if offset >= arena.heap_offset && end <= heap_end => Ok(Block { offset, bytes }),
        _ => refused("it does not lie in the heap"),
    }
}

/// A block that a client may leave out, with 0 in both words.
fn given(
    arena: &ArenaLayout,
    name: &'static str,
    offset: u64,
    bytes: u64,
) -> Result<Option<Block>, WireError> {
    if (offset, bytes) == (0, 0) { Ok(None) } else { block(arena, name, offset, bytes).map(Some) }
}

fn disjoint(blocks: &[(&str, Option<Block>)]) -> Result<(), WireError> {
    for (i, (first, a)) in blocks.iter().enumerate() {
        for (second, b) in &blocks[i + 1..] {
            if let (Some(a), Some(b)) = (a, b)
                && a.overlaps(b)
            {
                return Err(WireError::Descriptor { reason: format!("{first} and {second} overlap") });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> ArenaLayout {
        ArenaLayout::new(1 << 20).unwrap()
    }

    fn forward() -> Submission {
        let heap = arena().heap_offset;
        let mut submission = Submission {
            verb: VERB_FORWARD,
            flags: FLAG_TRAIN | FLAG_TAKE_TICKET | FLAG_WANT_GRAD_PARAMETERS,
            sequence: 9,
            layer: 3,
            dtype: u32::from(DType::F32.code()),
            input_offset: heap,
            input_bytes: 24,
            output_offset: heap + 64,
            output_bytes: 16,
            input_rank: 2,
            output_rank: 1,
            ..Submission::default()
        };
        submission.input_dims[..2].copy_from_slice(&[2, 3]);
        submission.output_dims[0] = 4;
        submission
    }

    fn backward() -> Submission {
        let heap = arena().heap_offset;
        Submission {
            verb: VERB_BACKWARD,
            flags: FLAG_WANT_GRAD_INPUT,
            ticket: 5,
            grad_output_offset: heap,
            grad_output_bytes: 16,
            grad_input_offset: heap + 64,
            grad_input_bytes: 24,
            ..Submission::default()
        }
    }

    #[test]
    fn a_forward_is_read_as_written() {
        let Command::Forward(read) = forward().check(&arena()).unwrap() else { panic!() };
        assert!(read.train && read.take_ticket);
        assert_eq!(read.wants, Wants { parameters: true, ..Wants::default() });
        assert_eq!((read.sequence, read.layer, read.dtype), (9, LayerId(3), DType::F32));
        assert_eq!((read.input_shape, read.output_shape), (Shape::from([2, 3]), Shape::from([4])));
        assert_eq!(read.alphas, None);
        assert_eq!(Submission::from_words(forward().to_words()), forward());
        let offset = arena().heap_offset + 128;
        let with = Submission { alphas_offset: offset, alphas_bytes: 8, ..forward() };
        let Command::Forward(read) = with.check(&arena()).unwrap() else { panic!() };
        assert_eq!(read.alphas, Some(Block { offset, bytes: 8 }));
    }

    #[test]
    fn a_backward_names_a_place_for_what_it_wants_and_nothing_else() {
        let Command::Backward(read) = backward().check(&arena()).unwrap() else { panic!() };
        assert_eq!(read.ticket, TicketId(5));
        assert!(read.grad_input.is_some() && read.grad_parameters.is_none() && read.grad_alphas.is_none());
        assert_eq!(read.straight, None);
        let offset = arena().heap_offset + 128;
        let with = Submission { straight_offset: offset, straight_bytes: 16, ..backward() };
        let Command::Backward(read) = with.check(&arena()).unwrap() else { panic!() };
        assert_eq!(read.straight, Some(Block { offset, bytes: 16 }));
        let unwanted = Submission { flags: 0, ..backward() };
        assert!(unwanted.check(&arena()).is_err());
    }

    #[test]
    fn lies_are_refused() {
        let heap = arena().heap_offset;
        let end = arena().arena_bytes;
        let lies: Vec<(&str, Submission)> = vec![
            ("verb", Submission { verb: 0, ..forward() }),
            ("verb", Submission { verb: 4, ..forward() }),
            ("flags", Submission { flags: 32, ..forward() }),
            ("dtype", Submission { dtype: 0, ..forward() }),
            ("integers", Submission { dtype: u32::from(DType::I64.code()), ..forward() }),
            ("dtype past a byte", Submission { dtype: 257, ..forward() }),
            ("rank", Submission { input_rank: 9, ..forward() }),
            ("rank and sizes", Submission { input_rank: 1, ..forward() }),
            ("bytes", Submission { input_bytes: 28, ..forward() }),
            ("header", Submission { input_offset: 0, ..forward() }),
            ("ring", Submission { input_offset: heap - 64, ..forward() }),
            ("past the end", Submission { input_offset: end, ..forward() }),
            ("wrapping", Submission { input_offset: u64::MAX - 63, ..forward() }),
            ("misaligned", Submission { input_offset: heap + 128 + 4, ..forward() }),
            ("overlap", Submission { output_offset: heap, ..forward() }),
            ("overflow", Submission { input_dims: [u32::MAX; 8], input_rank: 8, ..forward() }),
            ("reserved", Submission { reserved: [0, 1], ..forward() }),
            ("alphas in the header", Submission { alphas_bytes: 8, ..forward() }),
            ("alphas misaligned", Submission { alphas_offset: heap + 132, alphas_bytes: 8, ..forward() }),
            ("alphas past the end", Submission { alphas_offset: end - 64, alphas_bytes: 65, ..forward() }),
            ("alphas over the input", Submission { alphas_offset: heap, alphas_bytes: 8, ..forward() }),
            ("alphas over the output", Submission { alphas_offset: heap + 64, alphas_bytes: 8, ..forward() }),
            ("straight in the header", Submission { straight_bytes: 16, ..backward() }),
            (
                "straight wrapping",
                Submission { straight_offset: u64::MAX - 63, straight_bytes: 128, ..backward() },
            ),
            (
                "straight over a gradient",
                Submission { straight_offset: heap + 64, straight_bytes: 16, ..backward() },
            ),
            ("overlap", Submission { grad_input_offset: heap, ..backward() }),
            ("train", Submission { flags: FLAG_WANT_GRAD_INPUT | FLAG_TRAIN, ..backward() }),
            ("release", Submission { verb: VERB_RELEASE, flags: 1, ..Submission::default() }),
        ];
        for (what, lie) in lies {
            let error = lie.check(&arena()).expect_err(what);
            assert_eq!(crate::fault::Fault::code(&error), "session.protocol", "{what}");
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        proptest::proptest!(|(words in proptest::collection::vec(proptest::num::u64::ANY, 32), verb in 0u32..5)| {
            let mut submission = Submission::from_words(words.clone().try_into().unwrap());
            let _ = submission.check(&arena());
            submission.verb = verb;
            submission.reserved = [0; 2];
            let _ = submission.check(&arena());
            let completion = Completion::from_words(words.try_into().unwrap());
            let _ = (completion.message(), completion.failed_seeds().count(), completion.live_seeds().count());
        });
    }

    #[test]
    fn a_completion_names_seeds_and_cuts_its_message_between_characters() {
        let mut completion = Completion::refused(3, Status::Quota, &"ä".repeat(40));
        assert_eq!(completion.message(), "ä".repeat(32));
        completion.set_message(&format!("x{}", "ä".repeat(40)));
        assert_eq!(completion.message().len(), 63);
        completion.set_live(SeedIndex(63));
        completion.set_failed(SeedIndex(0), FailureKind::NonFinite);
        completion.set_failed(SeedIndex(64), FailureKind::Shape);
        assert_eq!(completion.live_seeds().collect::<Vec<_>>(), [SeedIndex(63)]);
        assert_eq!(completion.failed_seeds().collect::<Vec<_>>(), [(SeedIndex(0), FailureKind::NonFinite)]);
    }
}
