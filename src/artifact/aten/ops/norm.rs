//! Normalisation, with running statistics kept as PyTorch keeps them.

use super::{
    Call, Entry, Outcome, Value,
    activation::floating,
    entry,
    reduce::{moments, widened},
    view::volume,
};
use crate::{
    artifact::{Mode, Problem},
    graph::{Binary, Op, Reduction, Unary, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        "batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True)",
        |call| {
            let y = batch(call, true)?[0];
            call.fresh(y)
        },
    ),
    entry(
        "native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)",
        |call| {
            let all = batch(call, true)?;
            call.fresh_tuple(&all[..3])
        },
    ),
    entry(
        "_native_batch_norm_legit(input, weight, bias, running_mean, running_var, training, momentum, eps)",
        |call| {
            let all = batch(call, true)?;
            call.fresh_tuple(&all[..3])
        },
    ),
    entry("_native_batch_norm_legit.no_stats(input, weight, bias, training, momentum, eps)", |call| {
        let all = batch(call, true)?;
        call.fresh_tuple(&all[..3])
    }),
    entry(
        "_native_batch_norm_legit_functional(input, weight, bias, running_mean, running_var, training, momentum, eps)",
        |call| {
            let all = batch(call, false)?;
            call.fresh_tuple(&all)
        },
    ),
    entry(
        "_native_batch_norm_legit_no_training(input, weight, bias, running_mean, running_var, momentum, eps)",
        |call| {
            // The mode decides here too, whatever it was exported in.
            if call.mode() == Mode::Train {
                let all = batch(call, true)?;
                return call.fresh_tuple(&all[..3]);
            }
            let y = by_running(call)?;
            let dtype = call.dtype_of(y);
            let none = call.full([0].into(), dtype, 0.0)?;
            call.fresh_tuple(&[y, none, none])
        },
    ),
    entry(
        "instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=True)",
        instance,
    ),
    entry(
        "layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-05, cudnn_enable=True)",
        |call| {
            let y = layer(call)?[0];
            call.fresh(y)
        },
    ),
    entry("native_layer_norm(input, normalized_shape, weight, bias, eps)", |call| {
        let mut all = layer(call)?;
        let (shape, dims) = (call.shape(all[0]), call.sizes("normalized_shape")?.len());
        for value in &mut all[1..] {
            let kept = shape.iter().enumerate().map(|(i, &n)| if i + dims < shape.rank() { n } else { 1 });
            *value = call.reshape(*value, kept.collect())?;
        }
        call.fresh_tuple(&all)
    }),
    entry("group_norm(input, num_groups, weight=None, bias=None, eps=1e-05, cudnn_enabled=True)", |call| {
        let y = group(call, "num_groups")?[0];
        call.fresh(y)
    }),
    entry("native_group_norm(input, weight, bias, N, C, HxW, group, eps)", |call| {
        let all = group(call, "group")?;
        call.fresh_tuple(&all)
    }),
    entry("rms_norm(input, normalized_shape, weight=None, eps=None)", |call| {
        let given = floating(call, "input")?;
        // Halves are reckoned in float32, the weight too, and so is the ε of None.
        let x = widened(call, given)?;
        let (shape, inner) = (call.shape(x), call.sizes("normalized_shape")?);
        if !shape.ends_with(&inner) || inner.is_empty() {
            return Err(Problem::argument(format!("shape {shape} does not end in {inner:?}")));
        }
        let dims = (shape.rank() - inner.len()..shape.rank()).collect();
        let eps = match (call.get("eps"), call.dtype_of(x)) {
            (Value::None, DType::F64) => f64::EPSILON,
            (Value::None, _) => f64::from(f32::EPSILON),
            _ => call.float("eps")?,
        };
        let squares = call.apply(Op::Binary(Binary::Mul), &[x, x])?;
        let mean = call.apply(Op::Reduce { reduction: Reduction::Mean, dims }, &[squares])?;
        let shifted = call.unary(Unary::AddScalar { value: eps }, mean)?;
        let factor = call.unary(Unary::Rsqrt, shifted)?;
        let mut y = call.apply(Op::Binary(Binary::Mul), &[x, factor])?;
        if let Some(weight) = call.optional_tensor("weight")? {
            let dtype = call.dtype_of(x);
            let weight = call.cast(weight, dtype)?;
            y = call.apply(Op::Binary(Binary::Mul), &[y, weight])?;
        }
        let dtype = call.dtype_of(given);
        let y = call.cast(y, dtype)?;
        call.fresh(y)
    }),
];

fn channels(call: &Call<'_, '_>, x: ValueId) -> Result<usize, Problem> {
    let shape = call.shape(x);
    shape.get(1).copied().ok_or_else(|| Problem::argument(format!("shape {shape} has no channels")))
}

/// Weight and bias, ones and zeros where they are absent.
fn affine(call: &mut Call<'_, '_>, x: ValueId, shape: &Shape) -> Result<[ValueId; 2], Problem> {
    let dtype = call.dtype_of(x);
    let mut get = |name, otherwise| match call.optional_tensor(name)? {
        Some(value) => call.cast(value, dtype),
        None => call.full(shape.clone(), dtype, otherwise),
    };
    Ok([get("weight", 1.0)?, get("bias", 0.0)?])
}

/// The input in the type that the statistics are kept in, where that is the wider one.
fn batched(call: &mut Call<'_, '_>) -> Result<ValueId, Problem> {
    let x = call.tensor("input")?;
    match call.optional_tensor("running_mean")? {
        Some(mean) if call.dtype_of(mean) == DType::F32 => widened(call, x),
        _ => Ok(x),
    }
}

fn by_running(call: &mut Call<'_, '_>) -> Result<ValueId, Problem> {
    let x = batched(call)?;
    let channels = channels(call, x)?;
    let [weight, bias] = affine(call, x, &[channels].into())?;
    let (mean, var) = (call.tensor("running_mean")?, call.tensor("running_var")?);
    let eps = call.float("eps")?;
    let y = call.apply(Op::BatchNormEval { eps }, &[x, weight, bias, mean, var])?;
    as_input(call, y)
}

/// A result in the type of the input.
fn as_input(call: &mut Call<'_, '_>, y: ValueId) -> Result<ValueId, Problem> {
    let x = call.tensor("input")?;
    let dtype = call.dtype_of(x);
    call.cast(y, dtype)
}

/// (1 − momentum)·old + momentum·new.
fn blend(call: &mut Call<'_, '_>, old: ValueId, new: ValueId, momentum: f64) -> Result<ValueId, Problem> {
    let dtype = call.dtype_of(old);
    let new = call.cast(new, dtype)?;
    let (old, new) = (call.scale(old, 1.0 - momentum)?, call.scale(new, momentum)?);
    call.apply(Op::Binary(Binary::Add), &[old, new])
}

/// y, the statistics used (mean and 1/σ), and the new running statistics, which are written where `write`.
///
/// The mode decides between batch and running statistics; without running statistics there is only the
/// batch's.
fn batch(call: &mut Call<'_, '_>, write: bool) -> Result<[ValueId; 5], Problem> {
    let x = batched(call)?;
    let channels = channels(call, x)?;
    let running = match (call.optional_tensor("running_mean")?, call.optional_tensor("running_var")?) {
        (Some(mean), Some(var)) => Some((mean, var)),
        _ => None,
    };
    if let Some(mean) = call.tensor_ref("running_mean") {
        call.lowering.note_running_mean(mean);
    }
    let eps = call.float("eps")?;
    // A batch of nothing has no statistics, and the running ones stay as they are.
    let by_these = call.mode() == Mode::Eval || call.shape(x).elements() == 0;
    if let Some((mean, var)) = running.filter(|_| by_these) {
        let y = by_running(call)?;
        let shifted = call.unary(Unary::AddScalar { value: eps }, var)?;
        let rstd = call.unary(Unary::Rsqrt, shifted)?;
        return Ok([y, mean, rstd, mean, var]);
    }
    let [weight, bias] = affine(call, x, &[channels].into())?;
    let results = call.push(Op::BatchNorm { eps }, &[x, weight, bias])?;
    let [y, mean, rstd, var] = results[..] else {
        return Err(Problem::argument("batch norm gave another number of results"));
    };
    let y = as_input(call, y)?;
    let Some((old_mean, old_var)) = running else { return Ok([y, mean, rstd, mean, var]) };
    // Momentum None means a cumulative average, whose factor an export writes as a number.
    let momentum = call.float("momentum")?;
    if momentum == 0.0 && !call.flag("training")? {
        return Err(Problem::unsupported(
            "training a batch norm with momentum None that was exported in eval mode, where its average's \
             factor is not written down (export it in train mode, or give it a momentum)",
        ));
    }
    let shape = call.shape(x);
    let count = volume(&[&shape[..1], &shape[2..]].concat())? as f64;
    let unbiased = call.scale(var, count / (count - 1.0))?;
    let new_mean = blend(call, old_mean, mean, momentum)?;
    let new_var = blend(call, old_var, unbiased, momentum)?;
    if write {
        store(call, "running_mean", new_mean)?;
        store(call, "running_var", new_var)?;
    }
    Ok([y, mean, rstd, new_mean, new_var])
}

fn store(call: &mut Call<'_, '_>, name: &str, value: ValueId) -> Result<(), Problem> {
    match call.tensor_ref(name) {
        Some(tensor) => call.lowering.write(tensor, value),
        None => Ok(()),
    }
}

/// Instance norm is group norm with a group for each channel.
fn instance(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("input")?;
    let channels = channels(call, x)?;
    // Unlike batch norm, PyTorch's instance norm does not count its batches.
    let tracked = call.get("running_mean") != Value::None;
    if tracked && call.mode() == Mode::Eval {
        let y = by_running(call)?;
        return call.fresh(y);
    }
    let [weight, bias] = affine(call, x, &[channels].into())?;
    let eps = call.float("eps")?;
    let y = call.apply(Op::GroupNorm { groups: channels, eps }, &[x, weight, bias])?;
    if tracked {
        let momentum = call.float("momentum")?;
        let dims: Vec<usize> = (2..call.shape(x).rank()).collect();
        let (mean, var) = moments(call, x, &dims, 1.0, false)?;
        for (name, each) in [("running_mean", mean), ("running_var", var)] {
            let old = call.tensor(name)?;
            let over_batch = call.apply(Op::Reduce { reduction: Reduction::Mean, dims: vec![0] }, &[each])?;
            let new = call.reshape(over_batch, [channels].into())?;
            let value = blend(call, old, new, momentum)?;
            store(call, name, value)?;
        }
    }
    call.fresh(y)
}

fn layer(call: &mut Call<'_, '_>) -> Result<Vec<ValueId>, Problem> {
    let x = call.tensor("input")?;
    let (shape, inner) = (call.shape(x), call.sizes("normalized_shape")?);
    if !shape.ends_with(&inner) || inner.is_empty() {
        return Err(Problem::argument(format!("shape {shape} does not end in {inner:?}")));
    }
    let dims = inner.len();
    let [weight, bias] = affine(call, x, &inner.into())?;
    let eps = call.float("eps")?;
    call.push(Op::LayerNorm { dims, eps }, &[x, weight, bias])
}

fn group(call: &mut Call<'_, '_>, name: &str) -> Result<Vec<ValueId>, Problem> {
    let x = call.tensor("input")?;
    let channels = channels(call, x)?;
    let [weight, bias] = affine(call, x, &[channels].into())?;
    let (groups, eps) = (call.size(name)?, call.float("eps")?);
    call.push(Op::GroupNorm { groups, eps }, &[x, weight, bias])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::{NamedTensor, ReadLimits, aten::Lowering, aten::call as lower},
        graph::Limits,
        tensor::HostTensor,
    };

    /// What an export in eval mode does not say is not made up.
    #[test]
    fn a_cumulative_average_is_not_guessed() {
        let buffers = ["running_mean", "running_var"].map(|name| NamedTensor {
            name: name.into(),
            tensor: HostTensor::from_values([3].into(), &[1.0f32; 3]).unwrap(),
            shared: false,
            aliases: Vec::new(),
            persistent: true,
        });
        let normalised = |mode, momentum: f64, training: bool| {
            let read = ReadLimits::default();
            let mut lowering = Lowering::new(&[], &buffers, mode, Limits::default(), &read);
            let x = lowering.input(0, [2, 3].into(), DType::F32).unwrap();
            let (mean, var) = (lowering.buffer(0).unwrap(), lowering.buffer(1).unwrap());
            let rest = [Value::bool(training), Value::float(momentum), Value::float(1e-5), Value::bool(true)];
            let given = [x, Value::None, Value::None, mean, var].into_iter().chain(rest);
            let given: Vec<_> = given.map(|value| (None, value)).collect();
            lower(&mut lowering, "batch_norm", "", &given).map(drop)
        };
        let error = normalised(Mode::Train, 0.0, false).unwrap_err();
        assert!(error.to_string().contains("momentum None"), "{error}");
        for (mode, momentum, training) in
            [(Mode::Eval, 0.0, false), (Mode::Train, 0.1, false), (Mode::Train, 0.0, true)]
        {
            normalised(mode, momentum, training).unwrap();
        }
    }
}
