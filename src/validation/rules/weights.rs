//! `weights.finite`: no weight is infinite or not a number.

use half::{bf16, f16};

use crate::{
    artifact::{NamedTensor, Parameter},
    tensor::{DType, HostTensor},
};

/// Holds parameters to finite numbers, buffers and constants to numbers: an attention mask, which is one of
/// these, is full of −∞.
pub(in crate::validation) fn weights_finite(
    parameters: &[Parameter],
    buffers: &[NamedTensor],
    constants: &[(String, &HostTensor)],
) -> Result<String, String> {
    let report = |name: &str, tensor: &HostTensor, (at, value): (usize, f64)| {
        format!("{name} of shape {} has {value} at element {at}", tensor.shape())
    };
    for Parameter { name, tensor, .. } in parameters {
        if !all_finite(tensor.bytes(), tensor.dtype())
            && let Some(bad) = first(tensor, |value| !value.is_finite())
        {
            return Err(report(name, tensor, bad));
        }
    }
    let buffers_too = buffers.iter().map(|NamedTensor { name, tensor, .. }| (name, tensor));
    let constants_too = constants.iter().map(|(name, tensor)| (name, *tensor));
    for (name, tensor) in buffers_too.chain(constants_too) {
        if let Some(bad) = first(tensor, f64::is_nan) {
            return Err(report(name, tensor, bad));
        }
    }
    let (parameters, buffers, constants) = (parameters.len(), buffers.len(), constants.len());
    Ok(format!("{parameters} parameters, {buffers} buffers and {constants} constants looked through"))
}

/// Whether every number is finite; those of types that know nothing else are.
pub(in crate::validation) fn all_finite(bytes: &[u8], dtype: DType) -> bool {
    // Without a way out in the middle the loop is one of vectors.
    fn all<const N: usize>(bytes: &[u8], is_finite: fn([u8; N]) -> bool) -> bool {
        bytes.as_chunks().0.iter().fold(true, |all, &value| all & is_finite(value))
    }
    match dtype {
        DType::F32 => all(bytes, |b| f32::from_le_bytes(b).is_finite()),
        DType::F64 => all(bytes, |b| f64::from_le_bytes(b).is_finite()),
        DType::BF16 => all(bytes, |b| bf16::from_le_bytes(b).is_finite()),
        DType::F16 => all(bytes, |b| f16::from_le_bytes(b).is_finite()),
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => true,
    }
}

/// The first element of a kind, where the type has such elements; nothing is copied.
fn first(tensor: &HostTensor, is_bad: fn(f64) -> bool) -> Option<(usize, f64)> {
    fn search<const N: usize>(
        bytes: &[u8],
        value: fn([u8; N]) -> f64,
        is_bad: fn(f64) -> bool,
    ) -> Option<(usize, f64)> {
        let values = bytes.as_chunks::<N>().0.iter().map(|&chunk| value(chunk));
        values.enumerate().find(|&(_, value)| is_bad(value))
    }
    let bytes = tensor.bytes();
    match tensor.dtype() {
        DType::F32 => search(bytes, |b| f32::from_le_bytes(b).into(), is_bad),
        DType::F64 => search(bytes, f64::from_le_bytes, is_bad),
        DType::BF16 => search(bytes, |b| bf16::from_le_bytes(b).to_f64(), is_bad),
        DType::F16 => search(bytes, |b| f16::from_le_bytes(b).to_f64(), is_bad),
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Element;

    fn parameter<T: Element>(values: &[T]) -> Parameter {
        let tensor = HostTensor::from_values([values.len()].into(), values).unwrap();
        Parameter { name: "conv.weight".into(), tensor, requires_grad: true, aliases: Vec::new() }
    }

    #[test]
    fn every_floating_type_is_looked_through() {
        let bad = [
            parameter(&[0.0, 1.0, f32::NAN]),
            parameter(&[0.0, 1.0, f64::INFINITY]),
            parameter(&[bf16::ZERO, bf16::ONE, bf16::NEG_INFINITY]),
            parameter(&[f16::ZERO, f16::MAX, f16::NAN]),
        ];
        for bad in bad {
            let refusal = weights_finite(&[parameter(&[1.0f32]), bad], &[], &[]).unwrap_err();
            assert!(refusal.starts_with("conv.weight of shape [3] has "), "{refusal}");
            assert!(refusal.ends_with("at element 2"), "{refusal}");
        }
        assert!(weights_finite(&[parameter(&[f32::MAX]), parameter(&[i64::MAX])], &[], &[]).is_ok());
    }

    #[test]
    fn a_buffer_or_a_constant_may_be_infinite_but_not_nan() {
        let buffer = |value: f32| NamedTensor {
            name: "mask".into(),
            tensor: HostTensor::from_values([1].into(), &[value]).unwrap(),
            shared: false,
            aliases: Vec::new(),
            persistent: true,
        };
        for (value, passes) in [(f32::NEG_INFINITY, true), (f32::INFINITY, true), (f32::NAN, false)] {
            let buffer = buffer(value);
            let constant = [("constants.pkl 0".to_owned(), &buffer.tensor)];
            assert_eq!(weights_finite(&[], &[], &constant).is_ok(), passes, "{value}");
            assert_eq!(weights_finite(&[], std::slice::from_ref(&buffer), &[]).is_ok(), passes, "{value}");
        }
    }
}
