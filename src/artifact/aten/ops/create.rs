//! Tensors made of nothing but sizes and numbers.

use super::{Call, Entry, Outcome, Scalar, Value, entry};
use crate::{
    artifact::Problem,
    graph::{Compare, Op},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("zeros(size, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| of_size(call, 0)),
    entry("zeros.traced(size, dtype, layout, device, pin_memory=None)", |call| of_size(call, 0)),
    // Memory that nobody wrote may hold anything, zeros too.
    entry(
        "empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None)",
        |call| of_size(call, 0),
    ),
    entry("empty.traced(size, dtype, layout, device, pin_memory=None, memory_format=None)", |call| {
        of_size(call, 0)
    }),
    entry(
        "empty_like(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None)",
        |call| like(call, Scalar::Int(0)),
    ),
    entry("new_empty(self, size, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| {
        new(call, Scalar::Int(0))
    }),
    entry("ones(size, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| of_size(call, 1)),
    entry("full(size, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| {
        let number = call.number("fill_value")?;
        let dtype = call.dtype("dtype")?.unwrap_or(number.dtype());
        let shape = call.sizes("size")?;
        filled(call, shape.into(), dtype, number)
    }),
    entry(
        "zeros_like(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None)",
        |call| like(call, Scalar::Int(0)),
    ),
    entry(
        "ones_like(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None)",
        |call| like(call, Scalar::Int(1)),
    ),
    entry(
        "full_like(self, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None)",
        |call| {
            let number = call.number("fill_value")?;
            like(call, number)
        },
    ),
    entry("new_zeros(self, size, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| {
        new(call, Scalar::Int(0))
    }),
    entry("new_ones(self, size, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| {
        new(call, Scalar::Int(1))
    }),
    entry(
        "new_full(self, size, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None)",
        |call| {
            let number = call.number("fill_value")?;
            new(call, number)
        },
    ),
    entry("scalar_tensor(s, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| {
        let number = call.number("s")?;
        let dtype = call.dtype("dtype")?.unwrap_or(number.dtype());
        Ok(Value::known(number, dtype))
    }),
    entry("arange(end, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| {
        range(call, Scalar::Int(0), Scalar::Int(1))
    }),
    entry("arange.start(start, end, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| {
        let start = call.number("start")?;
        range(call, start, Scalar::Int(1))
    }),
    entry(
        "arange.start_step(start, end, step=1, *, dtype=None, layout=None, device=None, pin_memory=None)",
        |call| {
            let (start, step) = (call.number("start")?, call.number("step")?);
            range(call, start, step)
        },
    ),
    // As traces write them: type, layout, device and pinning by place.
    entry("arange.traced(end, dtype, layout, device, pin_memory)", |call| {
        range(call, Scalar::Int(0), Scalar::Int(1))
    }),
    entry("arange.traced_start(start, end, step, dtype, layout, device, pin_memory)", |call| {
        let (start, step) = (call.number("start")?, call.number("step")?);
        range(call, start, step)
    }),
    entry("eye(n, m=None, *, dtype=None, layout=None, device=None, pin_memory=None)", |call| {
        let rows = call.size("n")?;
        let columns = if call.get("m") == Value::None { rows } else { call.size("m")? };
        let on = super::logic::band(call, [rows, columns], Compare::Eq, 0)?;
        let dtype = call.dtype("dtype")?.unwrap_or(DType::F32);
        let y = call.cast(on, dtype)?;
        call.fresh(y)
    }),
];

fn filled(call: &mut Call<'_, '_>, shape: Shape, dtype: DType, value: Scalar) -> Outcome {
    let y = call.lowering.filled(shape, dtype, value.cast(dtype))?;
    call.fresh(y)
}

fn of_size(call: &mut Call<'_, '_>, value: i64) -> Outcome {
    let (shape, dtype) = (call.sizes("size")?, call.dtype("dtype")?.unwrap_or(DType::F32));
    filled(call, shape.into(), dtype, Scalar::Int(value))
}

fn base(call: &Call<'_, '_>) -> Result<(Shape, DType), Problem> {
    let info = call.lowering.info(&call.get("self"));
    let (shape, own) = info.ok_or_else(|| Problem::argument("it takes a tensor"))?;
    Ok((shape, call.dtype("dtype")?.unwrap_or(own)))
}

fn like(call: &mut Call<'_, '_>, value: Scalar) -> Outcome {
    let (shape, dtype) = base(call)?;
    filled(call, shape, dtype, value)
}

fn new(call: &mut Call<'_, '_>, value: Scalar) -> Outcome {
    let (_, dtype) = base(call)?;
    let shape = call.sizes("size")?;
    filled(call, shape.into(), dtype, value)
}

fn range(call: &mut Call<'_, '_>, start: Scalar, step: Scalar) -> Outcome {
    let end = call.number("end")?;
    let whole = [start, step, end].iter().all(|number| number.to_i64().is_some());
    let dtype = call.dtype("dtype")?.unwrap_or(if whole { DType::I64 } else { DType::F32 });
    let (start, step) = (start.to_f64(), step.to_f64());
    let count = ((end.to_f64() - start) / step).ceil();
    // NaN and infinity fail the comparison too.
    if !(0.0..9e15).contains(&count) || step == 0.0 {
        return Err(Problem::argument(format!(
            "a range from {start} by {step} does not reach {}",
            end.to_f64()
        )));
    }
    let y = call.apply(Op::Arange { start, step, len: count as usize, dtype }, &[])?;
    call.fresh(y)
}
