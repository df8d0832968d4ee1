//! Products of matrices that a library computes.

use std::fmt;

use super::Address;
use crate::tensor::DType;

/// A planned product, which lives until it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product(pub u64);

/// Matrices of a batch as cuBLASLt sees them: each column's elements lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrices {
    /// Elements from one column to the next, no fewer than there are rows.
    pub lead: u64,
    /// Elements from one matrix to the next; 0 where the whole batch reads one.
    pub apart: u64,
    /// A power of two that divides the first one's address.
    pub alignment_bytes: u32,
}

/// What is to be multiplied: out = op(a) · op(b), for each of a batch.
///
/// All are column by column: op(a) has `m` rows, op(b) `n` columns, and `k` is what they share. op(a) is a, or its
/// transpose where `transposes_a` says so; then a itself has `k` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductSpec {
    /// The type of all elements: a floating one. Sums are kept in `float64` for `float64`, else in `float32`.
    pub dtype: DType,
    /// Whether factors of `float32` may be rounded to TF32's ten bits.
    pub tf32: bool,
    /// How many products.
    pub batch: u64,
    /// Rows of the result.
    pub m: u64,
    /// Columns of the result.
    pub n: u64,
    /// The inner size.
    pub k: u64,
    /// Whether a lies transposed.
    pub transposes_a: bool,
    /// Whether b lies transposed.
    pub transposes_b: bool,
    /// The left factors.
    pub a: Matrices,
    /// The right factors.
    pub b: Matrices,
    /// The results.
    pub out: Matrices,
}

/// A product that is ready, and what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedProduct {
    /// For [`Code::Product`](super::Code::Product).
    pub product: Product,
    /// Bytes of memory of its own while it runs, wherever that lies.
    pub workspace_bytes: usize,
}

/// The argument of a launch that is a product: where everything lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProductArguments {
    /// The left factors.
    pub a: Address,
    /// The right factors.
    pub b: Address,
    /// The results.
    pub out: Address,
    /// Memory of its own; any number where it needs none.
    pub workspace: Address,
}

impl ProductArguments {
    /// The addresses in a launch's arguments, in the order of the fields; `None` where they are not as many.
    pub fn read(arguments: &[u8]) -> Option<Self> {
        let words: &[u8; size_of::<Self>()] = arguments.try_into().ok()?;
        let mut words = words.as_chunks::<{ size_of::<Address>() }>().0.iter().copied();
        let mut next = || words.next().map(Address::from_ne_bytes);
        Some(Self { a: next()?, b: next()?, out: next()?, workspace: next()? })
    }
}

/// A library of matrix products on a driver's device.
///
/// Calls may come from any thread. A product is planned once and handed over as often as needed, by
/// [`Driver::launch`](super::Driver::launch); that allocates nothing.
pub trait Products: Send + Sync + fmt::Debug {
    /// Gets ready for products of one kind; `None` where there is no library, or it has no way to compute them: then
    /// kernels of ours do.
    ///
    /// What is chosen depends on the kind, the library and the model of the card alone.
    fn plan_product(&self, spec: &ProductSpec) -> Option<PlannedProduct>;

    /// Lets a product go; what was handed over of it still runs.
    fn close_product(&self, product: Product);
}
