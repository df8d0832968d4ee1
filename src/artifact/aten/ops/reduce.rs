//! Reductions and the softmax family.

use super::{
    Call, Entry, Outcome, Value,
    activation::floating,
    elementary::{against, otherwise},
    entry,
    view::{swap, volume},
};
use crate::{
    artifact::Problem,
    graph::{Binary, Compare, Op, Pool2d, Reduction, Unary, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("sum(self, dim=None, keepdim=False, *, dtype=None)", |call| {
        let mut x = call.tensor("self")?;
        let own = call.dtype_of(x);
        let dtype = call.dtype("dtype")?.unwrap_or(if own.is_floating_point() { own } else { DType::I64 });
        x = call.cast(x, dtype)?;
        reduce(call, x, Reduction::Sum)
    }),
    entry("mean(self, dim=None, keepdim=False, *, dtype=None)", |call| {
        let mut x = call.tensor("self")?;
        if let Some(dtype) = call.dtype("dtype")? {
            x = call.cast(x, dtype)?;
        }
        reduce(call, x, Reduction::Mean)
    }),
    entry("amax(self, dim=[], keepdim=False)", |call| most(call, Binary::Maximum)),
    entry("amin(self, dim=[], keepdim=False)", |call| most(call, Binary::Minimum)),
    entry("max.dim(self, dim, keepdim=False)", |call| extreme(call, Binary::Maximum)),
    entry("min.dim(self, dim, keepdim=False)", |call| extreme(call, Binary::Minimum)),
    entry("max.other(self, other)", |call| pairwise(call, Binary::Maximum)),
    entry("min.other(self, other)", |call| pairwise(call, Binary::Minimum)),
    entry("logsumexp(self, dim, keepdim=False)", |call| {
        let given = floating(call, "self")?;
        let x = widened(call, given)?;
        let shape = call.shape(x);
        let dims = call.dims("dim", &shape)?;
        let largest = call.apply(Op::Reduce { reduction: Reduction::Amax, dims: dims.clone() }, &[x])?;
        // An infinite one would leave nothing but NaN of the others.
        let size = call.unary(Unary::Abs, largest)?;
        let finite = against(call, size, Compare::Lt, f64::INFINITY)?;
        let largest = otherwise(call, finite, largest, 0.0)?;
        let largest = call.apply(Op::Detach, &[largest])?;
        let shifted = call.apply(Op::Binary(Binary::Sub), &[x, largest])?;
        let exps = call.unary(Unary::Exp, shifted)?;
        let sum = call.apply(Op::Reduce { reduction: Reduction::Sum, dims: dims.clone() }, &[exps])?;
        // Of nothing but −∞ the result is −∞, and its gradient 0.
        let some = against(call, sum, Compare::Ne, 0.0)?;
        let safe = otherwise(call, some, sum, 1.0)?;
        let log = call.unary(Unary::Log, safe)?;
        let y = call.apply(Op::Binary(Binary::Add), &[log, largest])?;
        let y = otherwise(call, some, y, f64::NEG_INFINITY)?;
        let y = settle(call, y, &shape, &dims)?;
        let dtype = call.dtype_of(given);
        let y = call.cast(y, dtype)?;
        call.fresh(y)
    }),
    entry("max.default(self)", |call| most(call, Binary::Maximum)),
    entry("min.default(self)", |call| most(call, Binary::Minimum)),
    entry("var.correction(self, dim=None, *, correction=1, keepdim=False)", |call| spread(call, false)),
    entry("var.dim(self, dim, unbiased=True, keepdim=False)", |call| spread(call, false)),
    entry("std.correction(self, dim=None, *, correction=1, keepdim=False)", |call| spread(call, true)),
    entry("std.dim(self, dim, unbiased=True, keepdim=False)", |call| spread(call, true)),
    entry("var.default(self, unbiased=True)", |call| spread(call, false)),
    entry("std.default(self, unbiased=True)", |call| spread(call, true)),
    entry("any(self, dim=None, keepdim=False)", |call| quantified(call, false)),
    entry("all(self, dim=None, keepdim=False)", |call| quantified(call, true)),
    entry("softmax(self, dim, dtype=None)", |call| soft(call, |dim| Op::Softmax { dim })),
    entry("_softmax(self, dim, half_to_float)", |call| soft(call, |dim| Op::Softmax { dim })),
    entry("log_softmax(self, dim, dtype=None)", |call| soft(call, |dim| Op::LogSoftmax { dim })),
    entry("_log_softmax(self, dim, half_to_float)", |call| soft(call, |dim| Op::LogSoftmax { dim })),
    entry("norm(self, p=2, dim=None, keepdim=False)", length),
    entry("frobenius_norm.dim(self, dim=None, keepdim=False)", length),
    entry("linalg_vector_norm(self, ord=2, dim=None, keepdim=False, *, dtype=None)", length),
];

/// The shape without its reduced dimensions.
fn without(shape: &Shape, dims: &[usize]) -> Shape {
    shape.iter().enumerate().filter(|(i, _)| !dims.contains(i)).map(|(_, &n)| n).collect()
}

/// Drops the reduced dimensions, unless the call keeps them.
pub(super) fn settle(
    call: &mut Call<'_, '_>,
    y: ValueId,
    shape: &Shape,
    dims: &[usize],
) -> Result<ValueId, Problem> {
    if call.flag("keepdim")? { Ok(y) } else { call.reshape(y, without(shape, dims)) }
}

fn reduce(call: &mut Call<'_, '_>, x: ValueId, reduction: Reduction) -> Outcome {
    let shape = call.shape(x);
    let dims = call.dims("dim", &shape)?;
    let y = call.apply(Op::Reduce { reduction, dims: dims.clone() }, &[x])?;
    let y = settle(call, y, &shape, &dims)?;
    call.fresh(y)
}

/// The largest or smallest element over dimensions, which share the gradient where several are equal.
fn most(call: &mut Call<'_, '_>, op: Binary) -> Outcome {
    let x = call.tensor("self")?;
    let shape = call.shape(x);
    let dims = call.dims("dim", &shape)?;
    let y = if call.dtype_of(x).is_floating_point() {
        let negative = op == Binary::Minimum;
        let x = if negative { call.unary(Unary::Neg, x)? } else { x };
        let y = call.apply(Op::Reduce { reduction: Reduction::Amax, dims: dims.clone() }, &[x])?;
        if negative { call.unary(Unary::Neg, y)? } else { y }
    } else {
        let mut y = x;
        for &dim in &dims {
            y = halved(call, y, dim, op)?;
        }
        y
    };
    let y = settle(call, y, &shape, &dims)?;
    call.fresh(y)
}

/// The largest or smallest integer along one dimension, which is kept: halves are compared until one is left.
fn halved(call: &mut Call<'_, '_>, x: ValueId, dim: usize, op: Binary) -> Result<ValueId, Problem> {
    let dtype = call.dtype_of(x);
    let mut y = call.cast(x, DType::I64)?;
    loop {
        let size = call.shape(y)[dim];
        let half = size / 2;
        let part = |start, len| Op::Slice { dim, start, len, step: 1 };
        match size {
            0 => return Err(nothing(&call.shape(y), dim)),
            1 => return call.cast(y, dtype),
            _ => {}
        }
        let (a, b) = (call.apply(part(0, half), &[y])?, call.apply(part(size - half, half), &[y])?);
        let compared = call.apply(Op::Binary(op), &[a, b])?;
        y = if size.is_multiple_of(2) {
            compared
        } else {
            let odd = call.apply(part(half, 1), &[y])?;
            call.apply(Op::Cat { dim }, &[compared, odd])?
        };
    }
}

fn nothing(shape: &Shape, dim: usize) -> Problem {
    Problem::argument(format!("shape {shape} has nothing to compare along dimension {dim}"))
}

/// Whether any element, or every one, is not zero.
fn quantified(call: &mut Call<'_, '_>, every: bool) -> Outcome {
    let x = call.tensor("self")?;
    let (shape, dtype) = (call.shape(x), call.dtype_of(x));
    let dims = call.dims("dim", &shape)?;
    if dims.iter().any(|&d| shape[d] == 0) {
        let kept = shape.iter().enumerate().map(|(i, &n)| if dims.contains(&i) { 1 } else { n }).collect();
        let y = call.full(kept, DType::Bool, if every { 1.0 } else { 0.0 })?;
        let y = settle(call, y, &shape, &dims)?;
        return call.fresh(y);
    }
    let zero = call.full(Shape::scalar(), dtype, 0.0)?;
    // Every element holds where none fails.
    let compare = if every { Compare::Eq } else { Compare::Ne };
    let counted = call.apply(Op::Compare(compare), &[x, zero])?;
    let numbers = call.cast(counted, DType::F32)?;
    let largest = call.apply(Op::Reduce { reduction: Reduction::Amax, dims: dims.clone() }, &[numbers])?;
    let none = call.full(Shape::scalar(), DType::F32, 0.0)?;
    let y = call.apply(Op::Compare(compare), &[largest, none])?;
    let y = settle(call, y, &shape, &dims)?;
    call.fresh(y)
}

fn extreme(call: &mut Call<'_, '_>, op: Binary) -> Outcome {
    let x = call.tensor("self")?;
    let shape = call.shape(x);
    let dim = call.dim("dim", &shape)?;
    if shape.rank() == 0 {
        let place = call.full(shape, DType::I64, 0.0)?;
        return call.fresh_tuple(&[x, place]);
    }
    let mut both = extremes(call, x, dim, op)?;
    for value in &mut both {
        *value = settle(call, *value, &shape, &[dim])?;
    }
    call.fresh_tuple(&both)
}

/// Values and indices along one dimension, which is kept. A pooling window over the whole of it, since that gives the
/// gradient to one element where several are equal, as PyTorch does here and `amax` does not.
pub(super) fn extremes(
    call: &mut Call<'_, '_>,
    x: ValueId,
    dim: usize,
    op: Binary,
) -> Result<[ValueId; 2], Problem> {
    let shape = call.shape(x);
    let Some(&size) = shape.get(dim).filter(|&&size| size > 0) else { return Err(nothing(&shape, dim)) };
    if !call.dtype_of(x).is_floating_point() {
        // A float holds not every integer: the first that equals the exact result.
        let value = halved(call, x, dim, op)?;
        let same = call.apply(Op::Compare(Compare::Eq), &[x, value])?;
        let same = call.cast(same, DType::F32)?;
        let [_, index] = extremes(call, same, dim, Binary::Maximum)?;
        return Ok([value, index]);
    }
    let last = shape.rank() - 1;
    let moved = swap(call, x, dim, last)?;
    let inner = call.shape(moved);
    let rows = volume(&inner[..last])?;
    let mut flat = call.reshape(moved, [rows, 1, 1, size].into())?;
    if op == Binary::Minimum {
        flat = call.unary(Unary::Neg, flat)?;
    }
    let kernel = [1, size];
    let window = Pool2d { kernel, stride: kernel, padding: [0, 0], dilation: [1, 1], ceil: false };
    let results = call.push(Op::MaxPool2d(window), &[flat])?;
    let mut both = [results[0], results[1]];
    if op == Binary::Minimum {
        both[0] = call.unary(Unary::Neg, both[0])?;
    }
    for value in &mut both {
        let kept = inner.iter().enumerate().map(|(i, &n)| if i == last { 1 } else { n }).collect();
        let kept = call.reshape(*value, kept)?;
        *value = swap(call, kept, dim, last)?;
    }
    Ok(both)
}

fn pairwise(call: &mut Call<'_, '_>, op: Binary) -> Outcome {
    let (a, b) = (call.operand("self")?, call.operand("other")?);
    let y = super::arithmetic::combine(call, op, a, b)?;
    call.fresh(y)
}

/// Mean and variance over dimensions that are kept, the variance divided by n − `correction`; with `root_of`
/// its square root.
pub(super) fn moments(
    call: &mut Call<'_, '_>,
    x: ValueId,
    dims: &[usize],
    correction: f64,
    root_of: bool,
) -> Result<(ValueId, ValueId), Problem> {
    let (shape, dtype) = (call.shape(x), call.dtype_of(x));
    let x = widened(call, x)?;
    let count = volume(&dims.iter().map(|&d| shape[d]).collect::<Vec<_>>())?;
    let mean = call.apply(Op::Reduce { reduction: Reduction::Mean, dims: dims.to_vec() }, &[x])?;
    let centred = call.apply(Op::Binary(Binary::Sub), &[x, mean])?;
    let squares = call.apply(Op::Binary(Binary::Mul), &[centred, centred])?;
    let sum = call.apply(Op::Reduce { reduction: Reduction::Sum, dims: dims.to_vec() }, &[squares])?;
    // As PyTorch: too few elements give a division by zero, not an error.
    let variance = call.scale(sum, 1.0 / (count as f64 - correction).max(0.0))?;
    let deviation = if root_of { root(call, variance)? } else { variance };
    Ok((call.cast(mean, dtype)?, call.cast(deviation, dtype)?))
}

/// Halves as float32, in which PyTorch reckons where it sums; other types as they are.
pub(super) fn widened(call: &mut Call<'_, '_>, x: ValueId) -> Result<ValueId, Problem> {
    match call.dtype_of(x) {
        DType::F16 | DType::BF16 => call.cast(x, DType::F32),
        _ => Ok(x),
    }
}

fn spread(call: &mut Call<'_, '_>, deviation: bool) -> Outcome {
    let x = floating(call, "self")?;
    let shape = call.shape(x);
    // `var(x, unbiased)` without dimensions arrives with a bool where the dimensions would stand.
    let whole = matches!(call.get("dim"), Value::Number(super::Scalar::Bool(_)));
    let dims = if whole { (0..shape.rank()).collect() } else { call.dims("dim", &shape)? };
    let correction = if whole {
        call.float("dim")?
    } else if call.get("unbiased") != Value::None {
        call.float("unbiased")?
    } else if call.get("correction") == Value::None {
        1.0
    } else {
        call.float("correction")?
    };
    let (_, y) = moments(call, x, &dims, correction, deviation)?;
    let y = settle(call, y, &shape, &dims)?;
    call.fresh(y)
}

fn soft(call: &mut Call<'_, '_>, op: fn(usize) -> Op) -> Outcome {
    let mut x = call.tensor("self")?;
    if let Some(dtype) = call.dtype("dtype")? {
        x = call.cast(x, dtype)?;
    }
    let shape = call.shape(x);
    let dim = call.dim("dim", &shape)?;
    if shape.rank() == 0 {
        return Err(Problem::unsupported("softmax of a tensor without dimensions"));
    }
    let y = call.apply(op(dim), &[x])?;
    call.fresh(y)
}

/// A square root whose gradient at 0 is 0, as PyTorch has it for norms and deviations.
pub(super) fn root(call: &mut Call<'_, '_>, x: ValueId) -> Result<ValueId, Problem> {
    let dtype = call.dtype_of(x);
    let zero = call.full(Shape::scalar(), dtype, 0.0)?;
    let one = call.full(Shape::scalar(), dtype, 1.0)?;
    let nothing = call.apply(Op::Compare(Compare::Eq), &[x, zero])?;
    let safe = call.apply(Op::Where, &[nothing, one, x])?;
    let y = call.unary(Unary::Sqrt, safe)?;
    call.apply(Op::Where, &[nothing, zero, y])
}

/// The norm of any order.
fn length(call: &mut Call<'_, '_>) -> Outcome {
    let given = floating(call, "self")?;
    let dtype = if call.get("dtype") == Value::None { None } else { call.dtype("dtype")? };
    let dtype = dtype.unwrap_or(call.dtype_of(given));
    let x = if dtype == DType::F64 { call.cast(given, dtype)? } else { widened(call, given)? };
    let name = if call.get("p") == Value::None { "ord" } else { "p" };
    let order = if call.get(name) == Value::None { 2.0 } else { call.float(name)? };
    let shape = call.shape(x);
    let dims = call.dims("dim", &shape)?;
    let reduced = |reduction| Op::Reduce { reduction, dims: dims.clone() };
    let size = call.unary(Unary::Abs, x)?;
    let y = match order {
        f64::INFINITY => call.apply(reduced(Reduction::Amax), &[size])?,
        f64::NEG_INFINITY => {
            let negated = call.unary(Unary::Neg, size)?;
            let largest = call.apply(reduced(Reduction::Amax), &[negated])?;
            call.unary(Unary::Neg, largest)?
        }
        0.0 => {
            let some = against(call, x, Compare::Ne, 0.0)?;
            let dtype = call.dtype_of(x);
            let ones = call.cast(some, dtype)?;
            call.apply(reduced(Reduction::Sum), &[ones])?
        }
        1.0 => call.apply(reduced(Reduction::Sum), &[size])?,
        2.0 => {
            let squares = call.unary(Unary::PowScalar { exponent: 2.0 }, x)?;
            let sum = call.apply(reduced(Reduction::Sum), &[squares])?;
            root(call, sum)?
        }
        _ => {
            let powers = call.unary(Unary::PowScalar { exponent: order }, size)?;
            let sum = call.apply(reduced(Reduction::Sum), &[powers])?;
            // As the square root: at 0 both value and gradient are 0.
            let some = against(call, sum, Compare::Ne, 0.0)?;
            let safe = otherwise(call, some, sum, 1.0)?;
            let y = call.unary(Unary::PowScalar { exponent: 1.0 / order }, safe)?;
            otherwise(call, some, y, 0.0)?
        }
    };
    let y = settle(call, y, &shape, &dims)?;
    let y = call.cast(y, dtype)?;
    call.fresh(y)
}
