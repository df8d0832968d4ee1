//! Sums and products along a dimension, and where the extremes lie.

use super::{
    Call, Entry, Outcome, Value,
    activation::floating,
    contraction::matmul,
    entry,
    logic::band,
    reduce::{extremes, moments, root, settle},
    view::swap,
};
use crate::{
    artifact::Problem,
    graph::{Binary, Compare, Op, ValueId},
    tensor::DType,
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("cumsum(self, dim, *, dtype=None)", cumulative),
    entry("prod.dim_int(self, dim, keepdim=False, *, dtype=None)", |call| {
        let x = multiplied(call)?;
        let shape = call.shape(x);
        let dim = call.dim("dim", &shape)?;
        if shape.rank() == 0 {
            return call.fresh(x);
        }
        let y = product(call, x, dim)?;
        let y = settle(call, y, &shape, &[dim])?;
        call.fresh(y)
    }),
    entry("prod(self, *, dtype=None)", |call| {
        let x = multiplied(call)?;
        let elements = call.shape(x).elements();
        let flat = call.reshape(x, [elements].into())?;
        let y = product(call, flat, 0)?;
        let y = call.reshape(y, [].into())?;
        call.fresh(y)
    }),
    entry("argmax(self, dim=None, keepdim=False)", |call| place(call, Binary::Maximum)),
    entry("argmin(self, dim=None, keepdim=False)", |call| place(call, Binary::Minimum)),
    entry("var_mean.correction(self, dim=None, *, correction=1, keepdim=False)", |call| both(call, false)),
    entry("var_mean.dim(self, dim, unbiased=True, keepdim=False)", |call| both(call, false)),
    entry("std_mean.correction(self, dim=None, *, correction=1, keepdim=False)", |call| both(call, true)),
    entry("std_mean.dim(self, dim, unbiased=True, keepdim=False)", |call| both(call, true)),
];

/// The longest dimension that is summed up step by step: the work grows with its square.
const MAX_STEPS: usize = 4096;

/// A product with a triangle of ones.
fn cumulative(call: &mut Call<'_, '_>) -> Outcome {
    let mut x = call.tensor("self")?;
    let own = call.dtype_of(x);
    let given = if own.is_floating_point() { own } else { DType::I64 };
    let dtype = call.dtype("dtype")?.unwrap_or(given);
    let shape = call.shape(x);
    let dim = call.dim("dim", &shape)?;
    if shape.rank() == 0 {
        let y = call.cast(x, dtype)?;
        return call.fresh(y);
    }
    let (size, last) = (shape[dim], shape.rank() - 1);
    if size > MAX_STEPS {
        return Err(Problem::unsupported(format!("a running sum over {size} elements")));
    }
    // Integers are exact in float64 up to 2⁵³.
    let computed = if dtype.is_floating_point() { dtype } else { DType::F64 };
    x = call.cast(x, computed)?;
    let moved = swap(call, x, dim, last)?;
    let triangle = band(call, [size, size], Compare::Ge, 0)?;
    let triangle = call.cast(triangle, computed)?;
    // A vector is a matrix of one row, and nothing at all stays nothing.
    let sum = matmul(call, moved, triangle)?;
    let back = swap(call, sum, dim, last)?;
    let y = call.cast(back, dtype)?;
    call.fresh(y)
}

fn multiplied(call: &mut Call<'_, '_>) -> Result<ValueId, Problem> {
    let x = call.tensor("self")?;
    let own = call.dtype_of(x);
    let given = if own.is_floating_point() { own } else { DType::I64 };
    let dtype = call.dtype("dtype")?.unwrap_or(given);
    call.cast(x, dtype)
}

/// Halves are multiplied until one is left, so that a zero leaves the others' gradients right.
fn product(call: &mut Call<'_, '_>, x: ValueId, dim: usize) -> Result<ValueId, Problem> {
    let mut y = x;
    loop {
        let shape = call.shape(y);
        let (size, dtype) = (shape[dim], call.dtype_of(y));
        if size == 1 {
            return Ok(y);
        }
        if size == 0 {
            let one = shape.iter().enumerate().map(|(i, &n)| if i == dim { 1 } else { n }).collect();
            return call.full(one, dtype, 1.0);
        }
        let half = size / 2;
        let part = |start, len| Op::Slice { dim, start, len, step: 1 };
        let (a, b) = (call.apply(part(0, half), &[y])?, call.apply(part(half, half), &[y])?);
        let multiplied = call.apply(Op::Binary(Binary::Mul), &[a, b])?;
        y = if size.is_multiple_of(2) {
            multiplied
        } else {
            let odd = call.apply(part(size - 1, 1), &[y])?;
            call.apply(Op::Cat { dim }, &[multiplied, odd])?
        };
    }
}

fn place(call: &mut Call<'_, '_>, op: Binary) -> Outcome {
    let mut x = floating(call, "self")?;
    let whole = call.get("dim") == Value::None;
    let shape = call.shape(x);
    if whole {
        x = call.reshape(x, [shape.elements()].into())?;
    }
    let flat = call.shape(x);
    let dim = if whole { 0 } else { call.dim("dim", &flat)? };
    let [_, index] = extremes(call, x, dim, op)?;
    let y = if whole {
        let kept = if call.flag("keepdim")? { vec![1; shape.rank()] } else { Vec::new() };
        call.reshape(index, kept.into())?
    } else {
        settle(call, index, &flat, &[dim])?
    };
    call.fresh(y)
}

fn both(call: &mut Call<'_, '_>, deviation: bool) -> Outcome {
    let x = floating(call, "self")?;
    let shape = call.shape(x);
    let dims = call.dims("dim", &shape)?;
    let name = if call.get("unbiased") == Value::None { "correction" } else { "unbiased" };
    let correction = if call.get(name) == Value::None { 1.0 } else { call.float(name)? };
    let (mean, variance) = moments(call, x, &dims, correction)?;
    let spread = if deviation { root(call, variance)? } else { variance };
    let results = [settle(call, spread, &shape, &dims)?, settle(call, mean, &shape, &dims)?];
    call.fresh_tuple(&results)
}
