//! Chance: dropout, whose mask is a pure function of seed, site and index.

use smallvec::smallvec;

use super::{OperandGradients, Operands, Results, Rule, one};
use crate::graph::{GraphError, Op};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    let [x] = operands.exactly()?;
    let dtype = operands.floating()?;
    let Op::Dropout { p, .. } = op else { return operands.fail("it is no random operation") };
    operands.ensure((0.0..=1.0).contains(p), || format!("the probability {p} is not between 0 and 1"))?;
    Ok(one(x.shape.clone(), dtype))
}

/// Whether dropout keeps an element: the mask that every backend must reproduce.
///
/// A counter-based generator: `index` and `site` are mixed with the pass's seed by the finaliser of
/// SplitMix64, whose upper 32 bits, taken as a fraction of 2³², are compared with `p`. Nothing depends on
/// the order of evaluation, so the backward pass draws the same mask and none is saved.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
#[inline(always)]
pub fn keep(seed: u64, site: u32, index: u64, p: f64) -> bool {
    let drop_below = (p * 4_294_967_296.0) as u64;
    let stream = mix(seed.wrapping_add(u64::from(site).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    mix(stream ^ index.wrapping_mul(0xD1B5_4A32_D192_ED03)) >> 32 >= drop_below
}

#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

pub(super) fn vjp(rule: &mut Rule<'_>) -> Result<OperandGradients, GraphError> {
    let gy = rule.gradient()?;
    // The same mask and scale again: the operation is linear and its own adjoint.
    let op = rule.node.op.clone();
    Ok(smallvec![Some(rule.op(op, &[gy])?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_their_probability_and_differ_by_site_and_seed() {
        for p in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let kept = (0..100_000).filter(|&i| keep(7, 0, i, p)).count() as f64 / 1e5;
            assert!((kept - (1.0 - p)).abs() < 0.005, "p = {p}: kept {kept}");
        }
        let mask = |seed, site| (0..64).map(|i| keep(seed, site, i, 0.5)).collect::<Vec<_>>();
        assert_eq!(mask(1, 2), mask(1, 2));
        assert_ne!(mask(1, 2), mask(1, 3));
        assert_ne!(mask(1, 2), mask(2, 2));
        assert_ne!(mask(0, 0), mask(0, 1));
    }
}
