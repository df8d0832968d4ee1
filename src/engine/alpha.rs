//! Blend factors.

use std::fmt;

use super::EngineError;

/// How much of a seed's output goes into its layer's: a number in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Default)]
pub struct Alpha(f32);

impl Alpha {
    /// Nothing of it; the seed does not run.
    pub const ZERO: Self = Self(0.0);

    /// A blend factor.
    ///
    /// # Errors
    /// [`EngineError::Alpha`] for a NaN or a number out of range.
    pub fn new(value: f32) -> Result<Self, EngineError> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(EngineError::Alpha { value }) }
    }

    /// The number.
    pub fn get(self) -> f32 {
        self.0
    }
}

impl fmt::Display for Alpha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_from_0_to_1_are_blend_factors() {
        for good in [0.0, -0.0, 0.5, 1.0] {
            assert_eq!(Alpha::new(good).unwrap().get(), good);
        }
        for bad in [-1e-9, 1.0001, f32::NAN, f32::INFINITY] {
            assert!(Alpha::new(bad).is_err(), "{bad}");
        }
    }
}
