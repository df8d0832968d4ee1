//! Sums and products along a dimension, and where the extremes lie.

use super::{
    Call, Entry, Outcome, Value,
    activation::floating,
    entry,
    reduce::{extremes, moments, settle, widened},
};
use crate::{
    artifact::Problem,
    graph::{Binary, Op, ValueId},
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

/// Each step adds what stands 1, 2, 4, … places before, until nothing stands so far.
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
    x = call.cast(x, dtype)?;
    let (size, mut y) = (shape[dim], widened(call, x)?);
    let computed = call.dtype_of(y);
    let mut distance = 1;
    while distance < size {
        let front = shape.iter().enumerate().map(|(i, &n)| if i == dim { distance } else { n }).collect();
        let none = call.full(front, computed, 0.0)?;
        let kept = Op::Slice { dim, start: 0, len: size - distance, step: 1 };
        let kept = call.apply(kept, &[y])?;
        let before = call.apply(Op::Cat { dim }, &[none, kept])?;
        y = call.apply(Op::Binary(Binary::Add), &[y, before])?;
        distance *= 2;
    }
    let y = call.cast(y, dtype)?;
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
    let mut x = call.tensor("self")?;
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
    let (mean, spread) = moments(call, x, &dims, correction, deviation)?;
    let results = [settle(call, spread, &shape, &dims)?, settle(call, mean, &shape, &dims)?];
    call.fresh_tuple(&results)
}
