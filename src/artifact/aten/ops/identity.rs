//! Operations that change nothing but a type, if that.

use super::{Call, Entry, Known, Operand, Outcome, Scalar, Value, arithmetic::materialise, entry};
use crate::{graph::Op, tensor::DType};

pub(super) const ENTRIES: &[Entry] = &[
    entry("contiguous(self, *, memory_format=None)", maybe_copy),
    entry("alias(self)", same),
    entry("lift_fresh(self)", same),
    entry("clone(self, *, memory_format=None)", copy),
    entry("lift_fresh_copy(self)", copy),
    entry("detach(self)", detach),
    entry("requires_grad_(self, requires_grad=True)", same),
    entry(
        "_to_copy(self, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None)",
        |call| {
            let dtype = call.dtype("dtype")?;
            to(call, dtype)
        },
    ),
    entry("to.dtype(self, dtype, non_blocking=False, copy=False, *, memory_format=None)", |call| {
        let dtype = call.dtype("dtype")?;
        to(call, dtype)
    }),
    entry(
        "to.dtype_layout(self, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, copy=False, memory_format=None)",
        |call| {
            let dtype = call.dtype("dtype")?;
            to(call, dtype)
        },
    ),
    entry("to.device(self, device, dtype, non_blocking=False, copy=False, *, memory_format=None)", |call| {
        let dtype = call.dtype("dtype")?;
        to(call, dtype)
    }),
    entry(
        "to.traced(self, dtype, layout, device, pin_memory, non_blocking=False, copy=False, memory_format=None)",
        |call| {
            let dtype = call.dtype("dtype")?;
            to(call, dtype)
        },
    ),
    entry("to.other(self, other, non_blocking=False, copy=False, *, memory_format=None)", as_other),
    entry("type_as(self, other)", as_other),
    entry("float(self)", |call| to(call, Some(DType::F32))),
    entry("double(self)", |call| to(call, Some(DType::F64))),
    entry("half(self)", |call| to(call, Some(DType::F16))),
    entry("bfloat16(self)", |call| to(call, Some(DType::BF16))),
    entry("long(self)", |call| to(call, Some(DType::I64))),
    entry("copy(self, src, non_blocking=False)", |call| {
        let (target, source) = (call.tensor("self")?, call.tensor("src")?);
        let (shape, dtype) = (call.shape(target), call.dtype_of(target));
        let source = call.cast(source, dtype)?;
        let value = call.expand(source, &shape)?;
        call.fresh(value)
    }),
    entry("fill(self, value)", |call| {
        let value = call.operand("value")?;
        filled(call, value)
    }),
    entry("zero(self)", |call| filled(call, Operand::Number(Scalar::Int(0)))),
];

fn filled(call: &mut Call<'_, '_>, value: Operand) -> Outcome {
    let target = call.tensor("self")?;
    let (shape, dtype) = (call.shape(target), call.dtype_of(target));
    let value = materialise(call, value, dtype)?;
    let value = call.expand(value, &shape)?;
    call.fresh(value)
}

fn same(call: &mut Call<'_, '_>) -> Outcome {
    call.tensor("self")?;
    Ok(call.get("self"))
}

/// A copy where the memory lies otherwise, else the tensor itself: which of both is not known here.
fn maybe_copy(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    call.maybe_view("self", x)
}

fn copy(call: &mut Call<'_, '_>) -> Outcome {
    if let Value::Known(known) = call.get("self") {
        return Ok(Value::Known(Known { literal: false, ..known }));
    }
    let x = call.tensor("self")?;
    call.fresh(x)
}

/// The same tensor, seen by no gradient.
fn detach(call: &mut Call<'_, '_>) -> Outcome {
    if let Value::Known(known) = call.get("self") {
        return Ok(Value::Known(Known { literal: false, ..known }));
    }
    let x = call.tensor("self")?;
    if call.lowering.is_differentiable(x)? {
        let y = call.apply(Op::Detach, &[x])?;
        return call.view("self", y);
    }
    Ok(call.get("self"))
}

fn to(call: &mut Call<'_, '_>, dtype: Option<DType>) -> Outcome {
    if let Value::Known(known) = call.get("self") {
        return Ok(match dtype {
            Some(dtype) if dtype != known.dtype => Value::known(known.scalar, dtype),
            _ => Value::Known(known),
        });
    }
    let x = call.tensor("self")?;
    match dtype {
        Some(dtype) if dtype != call.dtype_of(x) => {
            let y = call.cast(x, dtype)?;
            call.fresh(y)
        }
        _ if call.flag("copy")? => call.fresh(x),
        _ => Ok(call.get("self")),
    }
}

fn as_other(call: &mut Call<'_, '_>) -> Outcome {
    let dtype = call.lowering.info(&call.get("other")).map(|(_, dtype)| dtype);
    to(call, dtype)
}
