//! Several tensors into one.

use super::{
    Call, Entry, Operand, Outcome, Value,
    arithmetic::result_type,
    entry,
    view::{cut, unsqueeze},
};
use crate::{
    artifact::Problem,
    graph::{Op, ValueId},
    tensor::Shape,
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("cat(tensors, dim=0)", |call| {
        let tensors = call.tensors("tensors")?;
        cat(call, tensors)
    }),
    entry("concat(tensors, dim=0)", |call| {
        let tensors = call.tensors("tensors")?;
        cat(call, tensors)
    }),
    entry("stack(tensors, dim=0)", |call| {
        let tensors = call.tensors("tensors")?;
        let Some(&first) = tensors.first() else {
            return Err(Problem::argument("it takes at least one tensor"));
        };
        let longer: Shape = call.shape(first).iter().copied().chain([1]).collect();
        let dim = call.dim("dim", &longer)?;
        let tensors = tensors.into_iter().map(|x| unsqueeze(call, x, dim)).collect::<Result<Vec<_>, _>>()?;
        let y = join(call, &tensors, dim)?;
        call.fresh(y)
    }),
    entry("repeat(self, repeats)", |call| {
        let x = call.tensor("self")?;
        let repeats = call.sizes("repeats")?;
        let shape = call.shape(x);
        let Some(new) = repeats.len().checked_sub(shape.rank()) else {
            return Err(Problem::argument(format!("{repeats:?} are fewer than the dimensions of {shape}")));
        };
        let sizes: Vec<usize> = vec![1; new].into_iter().chain(shape.iter().copied()).collect();
        let paired: Shape = sizes.iter().flat_map(|&n| [1, n]).collect();
        let wide: Shape = repeats.iter().zip(&sizes).flat_map(|(&r, &n)| [r, n]).collect();
        wide.checked_elements()?;
        let merged: Shape = repeats.iter().zip(&sizes).map(|(&r, &n)| r.saturating_mul(n)).collect();
        let y = call.reshape(x, paired)?;
        let y = call.expand(y, &wide)?;
        let y = call.reshape(y, merged)?;
        call.fresh(y)
    }),
    entry("repeat_interleave.self_int(self, repeats, dim=None, *, output_size=None)", |call| {
        let mut x = call.tensor("self")?;
        let times = call.size("repeats")?;
        if call.get("dim") == Value::None {
            let all = call.shape(x).elements();
            x = call.reshape(x, [all].into())?;
        }
        let shape = call.shape(x);
        let dim = if call.get("dim") == Value::None { 0 } else { call.dim("dim", &shape)? };
        let Some(&size) = shape.get(dim) else {
            return Err(Problem::argument("a tensor without dimensions has none to repeat"));
        };
        let y = unsqueeze(call, x, dim + 1)?;
        let with = |middle: &[usize]| -> Shape {
            shape[..dim].iter().chain(middle).chain(&shape[dim + 1..]).copied().collect()
        };
        let wide = with(&[size, times]);
        wide.checked_elements()?;
        let y = call.expand(y, &wide)?;
        let y = call.reshape(y, with(&[size.saturating_mul(times)]))?;
        call.fresh(y)
    }),
    entry("roll(self, shifts, dims=[])", |call| {
        let mut x = call.tensor("self")?;
        let (shape, shifts, dims) = (call.shape(x), call.ints("shifts")?, call.ints("dims")?);
        // Without dimensions it is the flattened tensor that is rolled.
        let flat = dims.is_empty();
        let (dims, sizes) = if flat { (vec![0], [shape.elements()].into()) } else { (dims, shape.clone()) };
        if dims.len() != shifts.len() {
            return Err(Problem::argument(format!("{} shifts for {} dimensions", shifts.len(), dims.len())));
        }
        x = call.reshape(x, sizes.clone())?;
        for (&dim, &shift) in dims.iter().zip(&shifts) {
            let dim = sizes.resolve_dim(dim)?;
            let size = sizes.get(dim).copied().unwrap_or(0);
            let shift = if size == 0 { 0 } else { shift.rem_euclid(size as i64) as usize };
            if shift > 0 {
                let back = cut(call, x, dim, size - shift, shift)?;
                let front = cut(call, x, dim, 0, size - shift)?;
                x = join(call, &[back, front], dim)?;
            }
        }
        x = call.reshape(x, shape)?;
        call.fresh(x)
    }),
    entry("broadcast_tensors(tensors)", |call| {
        let tensors = call.tensors("tensors")?;
        let mut shape = Shape::scalar();
        for &x in &tensors {
            shape = shape.broadcast(&call.shape(x))?;
        }
        let mut items = Vec::with_capacity(tensors.len());
        for (i, x) in tensors.into_iter().enumerate() {
            let y = call.expand(x, &shape)?;
            items.push(call.maybe_view_of_item("tensors", i, y));
        }
        Ok(call.lowering.tuple(items))
    }),
];

/// Tensors end to end along one dimension.
pub(super) fn join(call: &mut Call<'_, '_>, tensors: &[ValueId], dim: usize) -> Result<ValueId, Problem> {
    let operands: Vec<Operand> = tensors.iter().map(|&x| Operand::Tensor(x)).collect();
    let dtype = result_type(call, &operands);
    let tensors = tensors.iter().map(|&x| call.cast(x, dtype)).collect::<Result<Vec<_>, _>>()?;
    match tensors[..] {
        [one] => Ok(one),
        _ => call.apply(Op::Cat { dim }, &tensors),
    }
}

fn cat(call: &mut Call<'_, '_>, mut tensors: Vec<ValueId>) -> Outcome {
    // PyTorch passes over empty tensors of one dimension, whatever the others' shapes.
    if tensors.iter().any(|&x| call.shape(x).rank() > 1) {
        tensors.retain(|&x| call.shape(x).dims() != [0]);
    }
    let Some(&first) = tensors.first() else { return Err(Problem::argument("it takes at least one tensor")) };
    let shape = call.shape(first);
    let dim = call.dim("dim", &shape)?;
    let y = join(call, &tensors, dim)?;
    call.fresh(y)
}
