//! `parameters.limit`: not too many numbers in parameters and constants.

use crate::tensor::HostTensor;

/// How many numbers tensors hold together.
pub(in crate::validation) fn count<'a>(tensors: impl IntoIterator<Item = &'a HostTensor>) -> u64 {
    tensors.into_iter().fold(0, |sum, tensor| sum.saturating_add(tensor.shape().elements() as u64))
}

/// Holds the count to the limit. A weight that was made a constant is no smaller for it, so both are counted.
pub(in crate::validation) fn parameters_limited(
    parameters: u64,
    constants: u64,
    declared: Option<u64>,
    limit: u64,
) -> Result<String, String> {
    let declared = match declared {
        Some(declared) if declared != parameters => format!(", the catalogue says {declared}"),
        _ => String::new(),
    };
    let fixed = if constants == 0 { String::new() } else { format!(" and {constants} numbers in constants") };
    if parameters.saturating_add(constants) > limit {
        return Err(format!(
            "{parameters} parameters{declared}{fixed}, {limit} are allowed: use a smaller kernel or raise \
             validator.max_parameters"
        ));
    }
    Ok(format!("{parameters} parameters{declared}{fixed}, of at most {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_is_allowed() {
        let tensor = HostTensor::from_values([2, 3].into(), &[0.0f32; 6]).unwrap();
        assert_eq!(count([&tensor, &tensor]), 12);
        assert!(parameters_limited(12, 0, Some(12), 12).is_ok());
        let advice = "use a smaller kernel or raise validator.max_parameters";
        let too_many = parameters_limited(13, 0, None, 12).unwrap_err();
        assert_eq!(too_many, format!("13 parameters, 12 are allowed: {advice}"));
        let both = parameters_limited(12, 1, None, 12).unwrap_err();
        assert_eq!(both, format!("12 parameters and 1 numbers in constants, 12 are allowed: {advice}"));
        assert!(parameters_limited(1, u64::MAX, None, 12).is_err());
        assert!(parameters_limited(1, 0, Some(2), 12).unwrap().contains("the catalogue says 2"));
    }
}
