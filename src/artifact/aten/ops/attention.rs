//! Scaled dot-product attention.

use super::{
    Call, Entry, Operand, Outcome, Value, arithmetic::combine, contraction::matmul, entry, logic::band,
    random::drop, view::swap,
};
use crate::{
    artifact::{Mode, Problem},
    graph::{Binary, Compare, Op, Reduction, ValueId, ValueInfo, infer},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[entry(
    "scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False)",
    attention,
)];

/// softmax(scale·q·kᵀ + mask)·v: one operation, or where it is masked or drops some of its weights, as PyTorch's
/// reference computes it.
fn attention(call: &mut Call<'_, '_>) -> Outcome {
    let (query, mut key, mut value) = (call.tensor("query")?, call.tensor("key")?, call.tensor("value")?);
    let (q, k) = (call.shape(query), call.shape(key));
    if q.rank() < 2 || k.rank() < 2 || call.shape(value).rank() < 2 {
        return Err(Problem::argument(format!("query {q} and key {k} are no matrices")));
    }
    let (length, width, others) = (q[q.rank() - 2], q[q.rank() - 1], k[k.rank() - 2]);
    let scale = if call.get("scale") == Value::None {
        1.0 / (width.max(1) as f64).sqrt()
    } else {
        call.float("scale")?
    };
    if call.flag("enable_gqa")? {
        let heads = q.rank().checked_sub(3).map_or(1, |i| q[i]);
        key = shared(call, key, heads)?;
        value = shared(call, value, heads)?;
    }
    let mask = call.optional_tensor("attn_mask")?;
    let p = call.float("dropout_p")?;
    let drops = p > 0.0 && call.mode() == Mode::Train;
    let causal = call.flag("is_causal")?;
    if mask.is_none() && !drops {
        let attention = Op::Attention { causal, scale };
        if let Some(operands) = heads(call, [query, key, value], &attention)? {
            let y = call.apply(attention, &operands)?;
            return call.fresh(y);
        }
    }
    let rank = call.shape(key).rank();
    let transposed = swap(call, key, rank - 2, rank - 1)?;
    let query = call.scale(query, scale)?;
    let mut scores = matmul(call, query, transposed)?;
    let dtype = call.dtype_of(scores);
    let mut masks = Vec::new();
    if causal {
        masks.push(band(call, [length, others], Compare::Le, 0)?);
    }
    let masked = mask.is_some();
    if let Some(mask) = mask {
        if call.dtype_of(mask) == DType::Bool {
            masks.push(mask);
        } else {
            scores = combine(call, Binary::Add, Operand::Tensor(scores), Operand::Tensor(mask))?;
        }
    }
    for mask in masks {
        let nothing = call.full(Shape::scalar(), dtype, f64::NEG_INFINITY)?;
        scores = call.apply(Op::Where, &[mask, scores, nothing])?;
    }
    let dim = call.shape(scores).rank() - 1;
    let mut weights = call.apply(Op::Softmax { dim }, &[scores])?;
    if masked {
        // A query that may look at nothing gets nothing: zeros, where plain softmax would give NaN.
        let largest = call.apply(Op::Reduce { reduction: Reduction::Amax, dims: vec![dim] }, &[scores])?;
        let lowest = call.full(Shape::scalar(), dtype, f64::NEG_INFINITY)?;
        let nothing = call.apply(Op::Compare(Compare::Eq), &[largest, lowest])?;
        let zero = call.full(Shape::scalar(), dtype, 0.0)?;
        weights = call.apply(Op::Where, &[nothing, zero, weights])?;
    }
    if drops {
        weights = drop(call, weights, p)?;
    }
    let y = matmul(call, weights, value)?;
    call.fresh(y)
}

/// The operands as one operation takes them, expanded to one batch; `None` where it does not, because their types
/// differ, heads are too wide, or nothing is asked for.
fn heads(
    call: &mut Call<'_, '_>,
    operands: [ValueId; 3],
    attention: &Op,
) -> Result<Option<[ValueId; 3]>, Problem> {
    let shapes = operands.map(|x| call.shape(x));
    let batch = |shape: &Shape| Shape::from(&shape[..shape.rank() - 2]);
    let both = batch(&shapes[0]).broadcast(&batch(&shapes[1]));
    let Ok(whole) = both.and_then(|both| both.broadcast(&batch(&shapes[2]))) else { return Ok(None) };
    let expanded =
        shapes.map(|shape| whole.iter().chain(&shape[shape.rank() - 2..]).copied().collect::<Shape>());
    let infos: [ValueInfo; 3] = std::array::from_fn(|n| {
        let dtype = call.dtype_of(operands[n]);
        ValueInfo { shape: expanded[n].clone(), dtype }
    });
    if infer(attention, &infos.each_ref()).is_err() {
        return Ok(None);
    }
    let mut heads = operands;
    for (x, shape) in heads.iter_mut().zip(&expanded) {
        *x = call.expand(*x, shape)?;
    }
    Ok(Some(heads))
}

/// Each head of keys and values, repeated for the queries that share it.
fn shared(call: &mut Call<'_, '_>, x: ValueId, heads: usize) -> Result<ValueId, Problem> {
    let shape = call.shape(x);
    let Some(at) = shape.rank().checked_sub(3) else { return Ok(x) };
    let own = shape[at];
    if own == 0 || !heads.is_multiple_of(own) {
        return Err(Problem::argument(format!("{own} key heads do not divide {heads} query heads")));
    }
    let mut sizes = shape.to_vec();
    sizes.insert(at + 1, 1);
    let split = call.reshape(x, sizes.clone().into())?;
    sizes[at + 1] = heads / own;
    let wide = call.expand(split, &sizes.into())?;
    let mut merged = shape.to_vec();
    merged[at] = heads;
    call.reshape(wide, merged.into())
}
