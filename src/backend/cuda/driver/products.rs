//! Products of matrices that a library computes.

use crate::tensor::DType;

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
    /// Whether an element of a vector, which is as long as a column, is added to each row before it is rounded and written.
    pub adds_bias: bool,
}

impl ProductSpec {
    /// See [`RoutineSpec::operand_bytes`](super::RoutineSpec::operand_bytes).
    pub(super) fn operand_bytes(&self) -> [u64; 4] {
        let bytes = |elements: u64| elements.saturating_mul(self.dtype.size_bytes() as u64);
        let span = |matrices: &Matrices, columns: u64| {
            let one = matrices.lead.saturating_mul(columns);
            bytes(matrices.apart.saturating_mul(self.batch.saturating_sub(1)).saturating_add(one))
        };
        [
            span(&self.a, if self.transposes_a { self.m } else { self.k }),
            span(&self.b, if self.transposes_b { self.k } else { self.n }),
            span(&self.out, self.n),
            if self.adds_bias { bytes(self.m) } else { 0 },
        ]
    }
}
