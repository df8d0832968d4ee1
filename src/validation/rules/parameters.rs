//! `parameters.limit`: not too many parameters.

use crate::tensor::HostTensor;

/// How many numbers tensors hold together.
pub(in crate::validation) fn count<'a>(tensors: impl IntoIterator<Item = &'a HostTensor>) -> u64 {
    tensors.into_iter().fold(0, |sum, tensor| sum.saturating_add(tensor.shape().elements() as u64))
}

/// Holds the count to the limit.
pub(in crate::validation) fn parameters_limited(
    parameters: u64,
    declared: Option<u64>,
    limit: u64,
) -> Result<String, String> {
    let declared = match declared {
        Some(declared) if declared != parameters => format!(", the catalogue says {declared}"),
        _ => String::new(),
    };
    if parameters > limit {
        return Err(format!("{parameters} parameters{declared}, {limit} are allowed"));
    }
    Ok(format!("{parameters} of at most {limit} parameters{declared}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_is_allowed() {
        let tensor = HostTensor::from_values([2, 3].into(), &[0.0f32; 6]).unwrap();
        assert_eq!(count([&tensor, &tensor]), 12);
        assert!(parameters_limited(12, Some(12), 12).is_ok());
        assert_eq!(parameters_limited(13, None, 12).unwrap_err(), "13 parameters, 12 are allowed");
        assert!(parameters_limited(1, Some(2), 12).unwrap().contains("the catalogue says 2"));
    }
}
