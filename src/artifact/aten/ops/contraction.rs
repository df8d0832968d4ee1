//! Matrix products.

use super::{Call, Entry, Operand, Outcome, arithmetic::combine, entry, view::volume};
use crate::{
    artifact::Problem,
    graph::{Binary, Op, ValueId},
    tensor::Shape,
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("linear(input, weight, bias=None)", |call| {
        let (x, weight) = (call.tensor("input")?, call.tensor("weight")?);
        let shape = call.shape(x);
        let weight_shape = call.shape(weight);
        let (Some(&last), 1 | 2) = (shape.last(), weight_shape.rank()) else {
            return Err(Problem::argument(format!("input {shape} and weight {weight_shape} do not fit")));
        };
        let rows = volume(&shape[..shape.rank() - 1])?;
        let flat = call.reshape(x, [rows, last].into())?;
        let single = weight_shape.rank() == 1;
        let weight = if single { call.reshape(weight, [1, weight_shape[0]].into())? } else { weight };
        let outputs = if single { None } else { Some(weight_shape[0]) };
        let y = call.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[flat, weight])?;
        let full = shape[..shape.rank() - 1].iter().copied().chain(outputs).collect();
        let mut y = call.reshape(y, full)?;
        if let Some(bias) = call.optional_tensor("bias")? {
            y = call.apply(Op::Binary(Binary::Add), &[y, bias])?;
        }
        call.fresh(y)
    }),
    entry("matmul(self, other)", |call| {
        let (a, b) = (call.tensor("self")?, call.tensor("other")?);
        let y = matmul(call, a, b)?;
        call.fresh(y)
    }),
    entry("mm(self, mat2)", |call| exact(call, "self", "mat2", 2, 2)),
    entry("bmm(self, mat2)", |call| exact(call, "self", "mat2", 3, 3)),
    entry("mv(self, vec)", |call| exact(call, "self", "vec", 2, 1)),
    entry("dot(self, tensor)", |call| exact(call, "self", "tensor", 1, 1)),
    entry("addmm(self, mat1, mat2, *, beta=1, alpha=1)", |call| added(call, "mat1", "mat2")),
    entry("baddbmm(self, batch1, batch2, *, beta=1, alpha=1)", |call| added(call, "batch1", "batch2")),
    entry("addmv(self, mat, vec, *, beta=1, alpha=1)", |call| added(call, "mat", "vec")),
];

/// `torch.matmul`.
pub(super) fn matmul(call: &mut Call<'_, '_>, a: ValueId, b: ValueId) -> Result<ValueId, Problem> {
    let (sa, sb) = (call.shape(a), call.shape(b));
    if sa.rank() == 0 || sb.rank() == 0 {
        return Err(Problem::argument(format!("shapes {sa} and {sb} are no matrices")));
    }
    // A vector is a row on the left and a column on the right, and its dimension goes again afterwards.
    let matrix_a: Shape = if sa.rank() == 1 { [1, sa[0]].into() } else { sa.clone() };
    let matrix_b: Shape = if sb.rank() == 1 { [sb[0], 1].into() } else { sb.clone() };
    let (ra, rb) = (matrix_a.rank(), matrix_b.rank());
    let (batch_a, batch_b): (Shape, Shape) = (matrix_a[..ra - 2].into(), matrix_b[..rb - 2].into());
    let (m, k, n) = (matrix_a[ra - 2], matrix_a[ra - 1], matrix_b[rb - 1]);
    let mut a = call.reshape(a, matrix_a.clone())?;
    let mut b = call.reshape(b, matrix_b.clone())?;
    let product = Op::MatMul { transpose_a: false, transpose_b: false };
    let batch = batch_a.broadcast(&batch_b)?;
    let y = if batch_b.rank() == 0 && ra > 2 {
        // One matrix for the whole batch: the batch becomes rows.
        let rows = batch_a.checked_elements()?.saturating_mul(m);
        a = call.reshape(a, [rows, k].into())?;
        call.apply(product, &[a, b])?
    } else {
        let full = |inner: [usize; 2]| -> Shape { batch.iter().copied().chain(inner).collect() };
        a = call.expand(a, &full([m, k]))?;
        b = call.expand(b, &full([matrix_b[rb - 2], n]))?;
        call.apply(product, &[a, b])?
    };
    let rows = (sa.rank() > 1).then_some(m);
    let columns = (sb.rank() > 1).then_some(n);
    call.reshape(y, batch.iter().copied().chain(rows).chain(columns).collect())
}

fn exact(call: &mut Call<'_, '_>, left: &str, right: &str, rank_a: usize, rank_b: usize) -> Outcome {
    let (a, b) = (call.tensor(left)?, call.tensor(right)?);
    let ranks = (call.shape(a).rank(), call.shape(b).rank());
    if ranks != (rank_a, rank_b) {
        return Err(Problem::argument(format!("it takes {rank_a} and {rank_b} dimensions, not {ranks:?}")));
    }
    let y = matmul(call, a, b)?;
    call.fresh(y)
}

/// beta·self + alpha·(a·b).
fn added(call: &mut Call<'_, '_>, left: &str, right: &str) -> Outcome {
    let (base, a, b) = (call.tensor("self")?, call.tensor(left)?, call.tensor(right)?);
    let (alpha, beta) = (call.float("alpha")?, call.float("beta")?);
    let product = matmul(call, a, b)?;
    let product = call.scale(product, alpha)?;
    if beta == 0.0 {
        // PyTorch ignores the summand then, NaN and all.
        return call.fresh(product);
    }
    let base = call.scale(base, beta)?;
    let y = combine(call, Binary::Add, Operand::Tensor(product), Operand::Tensor(base))?;
    call.fresh(y)
}
