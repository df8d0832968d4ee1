//! Work that libraries do: planned once, and handed over as a launch is.

use std::fmt;

use super::{Address, ConvolutionSpec, ProductSpec};

/// The most that is promised of an address that a library is given: what copies to tensor cores ask for. Blocks are aligned
/// to more.
pub const MOST_ALIGNMENT_BYTES: usize = 16;

/// Work of a library's that was planned, which lives until it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Routine(pub u64);

/// What a library is to compute of two operands, and of a bias with some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoutineSpec {
    /// Products of matrices, which cuBLASLt computes.
    Product(ProductSpec),
    /// A convolution, or one of its gradients, which cuDNN computes.
    Convolution(ConvolutionSpec),
}

impl RoutineSpec {
    /// How many bytes of the first operand, the second, the result and the bias are touched at most, from where each begins.
    pub fn operand_bytes(&self) -> [u64; 4] {
        match self {
            Self::Product(spec) => spec.operand_bytes(),
            Self::Convolution(spec) => {
                let [a, b, out] = spec.sizes().map(|sizes| spec.bytes(&sizes));
                [a, b, out, 0]
            }
        }
    }
}

/// A routine that is ready, and what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRoutine {
    /// For [`Code::Routine`](super::Code::Routine).
    pub routine: Routine,
    /// Bytes of memory of its own while it runs, wherever that lies.
    pub workspace_bytes: usize,
}

/// The argument of a launch that is a routine: where everything lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RoutineArguments {
    /// The first operand.
    pub a: Address,
    /// The second.
    pub b: Address,
    /// The result.
    pub out: Address,
    /// Memory of its own; any number where it needs none.
    pub workspace: Address,
    /// The vector of a product with a bias; any number for others.
    pub bias: Address,
}

impl RoutineArguments {
    /// The addresses as the arguments of a launch.
    pub fn bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let words = bytes.as_chunks_mut::<{ size_of::<Address>() }>().0;
        for (word, address) in words.iter_mut().zip([self.a, self.b, self.out, self.workspace, self.bias]) {
            *word = address.to_ne_bytes();
        }
        bytes
    }

    /// The addresses in a launch's arguments, in the order of the fields; `None` where they are not as many.
    pub fn read(arguments: &[u8]) -> Option<Self> {
        let words: &[u8; size_of::<Self>()] = arguments.try_into().ok()?;
        let mut words = words.as_chunks::<{ size_of::<Address>() }>().0.iter().copied();
        let mut next = || words.next().map(Address::from_ne_bytes);
        Some(Self { a: next()?, b: next()?, out: next()?, workspace: next()?, bias: next()? })
    }
}

/// The libraries that compute for a driver's device.
///
/// Calls may come from any thread. A routine is planned once and handed over as often as needed, by
/// [`Driver::launch`](super::Driver::launch); that allocates nothing.
pub trait Routines: Send + Sync + fmt::Debug {
    /// Gets ready for work of one kind; `None` where there is no library for it, or it has no way to do it: then kernels
    /// of ours do.
    ///
    /// What is chosen depends on the kind, the library and the model of the card alone, as long as the library does not fail:
    /// then it is a kernel of ours too.
    fn plan_routine(&self, spec: &RoutineSpec) -> Option<PlannedRoutine>;

    /// Lets a routine go; what was handed over of it still runs.
    fn close_routine(&self, routine: Routine);
}
