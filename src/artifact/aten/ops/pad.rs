//! Padding.

use super::{Call, Entry, Outcome, Value, combine::join, entry, view::cut};
use crate::{
    artifact::Problem,
    graph::{Op, ValueId},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("pad(self, pad, mode='constant', value=None)", |call| {
        let mode = call.text("mode")?;
        pad(call, "pad", &mode)
    }),
    entry("constant_pad_nd(self, pad, value=0)", |call| pad(call, "pad", "constant")),
    entry("reflection_pad1d(self, padding)", |call| pad(call, "padding", "reflect")),
    entry("reflection_pad2d(self, padding)", |call| pad(call, "padding", "reflect")),
    entry("replication_pad1d(self, padding)", |call| pad(call, "padding", "replicate")),
    entry("replication_pad2d(self, padding)", |call| pad(call, "padding", "replicate")),
];

/// The widest border that is built index by index.
const MAX_MIRRORED: usize = 1024;

fn pad(call: &mut Call<'_, '_>, name: &str, mode: &str) -> Outcome {
    let mut x = call.tensor("self")?;
    let amounts = call.ints(name)?;
    let rank = call.shape(x).rank();
    if !amounts.len().is_multiple_of(2) || amounts.len() / 2 > rank {
        return Err(Problem::argument(format!("{amounts:?} is no padding for {rank} dimensions")));
    }
    let value = if call.get("value") == Value::None { 0.0 } else { call.float("value")? };
    for (back, pair) in amounts.chunks_exact(2).enumerate() {
        let dim = rank - 1 - back;
        x = match mode {
            "constant" => constant(call, x, dim, [pair[0], pair[1]], value)?,
            "reflect" | "replicate" | "circular" => border(call, x, dim, [pair[0], pair[1]], mode)?,
            _ => return Err(Problem::unsupported(format!("padding by {mode:?}"))),
        };
    }
    call.fresh(x)
}

/// Constant borders; a negative amount cuts.
fn constant(
    call: &mut Call<'_, '_>,
    x: ValueId,
    dim: usize,
    amounts: [i64; 2],
    value: f64,
) -> Result<ValueId, Problem> {
    let size = call.shape(x)[dim];
    let cuts = amounts.map(|n| n.min(0).unsigned_abs() as usize);
    let [before, after] = amounts.map(|n| n.max(0) as usize);
    let Some(len) = cuts[0].checked_add(cuts[1]).and_then(|both| size.checked_sub(both)) else {
        return Err(Problem::argument(format!("cutting {cuts:?} leaves nothing of {size}")));
    };
    let x = cut(call, x, dim, cuts[0], len)?;
    if before == 0 && after == 0 {
        return Ok(x);
    }
    let total = before.checked_add(len).and_then(|n| n.checked_add(after));
    let Some(total) = total else { return Err(Problem::argument("the padding overflows")) };
    if value == 0.0 {
        return call.apply(Op::Unslice { dim, size: total, start: before, step: 1 }, &[x]);
    }
    let (shape, dtype) = (call.shape(x), call.dtype_of(x));
    let mut parts = Vec::new();
    for (amount, own) in [(before, false), (0, true), (after, false)] {
        if own {
            parts.push(x);
        } else if amount > 0 {
            let sizes = shape.iter().enumerate().map(|(i, &n)| if i == dim { amount } else { n }).collect();
            parts.push(call.full(sizes, dtype, value)?);
        }
    }
    join(call, &parts, dim)
}

/// Borders made of the tensor's own elements.
fn border(
    call: &mut Call<'_, '_>,
    x: ValueId,
    dim: usize,
    amounts: [i64; 2],
    mode: &str,
) -> Result<ValueId, Problem> {
    let size = call.shape(x)[dim];
    let [Ok(before), Ok(after)] = amounts.map(usize::try_from) else {
        return Err(Problem::unsupported(format!("cutting by {mode:?}")));
    };
    let most = match mode {
        "reflect" => size.saturating_sub(1),
        "circular" => size,
        _ if size == 0 => 0,
        _ => MAX_MIRRORED,
    };
    if before.max(after) > most.min(MAX_MIRRORED) {
        return Err(Problem::argument(format!(
            "a border of {} is too wide for size {size}",
            before.max(after)
        )));
    }
    let index = |from_edge: usize, low: bool| match (mode, low) {
        ("reflect", true) => from_edge,
        ("reflect", false) => size - 1 - from_edge,
        ("circular", true) => size - from_edge,
        ("circular", false) => from_edge - 1,
        (_, true) => 0,
        (_, false) => size - 1,
    };
    let mut parts = Vec::with_capacity(before + after + 1);
    for step in (1..=before).rev() {
        parts.push(cut(call, x, dim, index(step, true), 1)?);
    }
    parts.push(x);
    for step in 1..=after {
        parts.push(cut(call, x, dim, index(step, false), 1)?);
    }
    join(call, &parts, dim)
}
