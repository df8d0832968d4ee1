//! Products by the rules of cuBLASLt: column by column, so that whoever describes a factor wrongly gets wrong numbers.

use super::{
    super::{DriverError, Matrices, ProductSpec, RoutineArguments},
    routines::{check_aligned, read, write},
};
use crate::tensor::DType;

/// What some products take for themselves, so that a plan has to give it to them and to nobody else meanwhile.
const WORKSPACE_BYTES: usize = 320;
/// From this inner size on they do.
const LONG: u64 = 8;

pub(super) fn workspace_bytes(spec: &ProductSpec) -> usize {
    if spec.k < LONG { 0 } else { WORKSPACE_BYTES }
}

/// Holds a product against what the library's documentation asks for.
pub(super) fn check(spec: &ProductSpec) {
    let ProductSpec { batch, m, n, k, .. } = *spec;
    assert!([batch, m, n, k].iter().all(|size| (1..1 << 31).contains(size)), "{spec:?}");
    assert!(spec.dtype.is_floating_point(), "{spec:?}");
    for (matrices, rows) in [
        (&spec.a, if spec.transposes_a { k } else { m }),
        (&spec.b, if spec.transposes_b { n } else { k }),
        (&spec.out, m),
    ] {
        assert!(matrices.lead >= rows, "columns overlap: {spec:?}");
        assert!(matrices.alignment_bytes.is_power_of_two(), "{spec:?}");
        assert!(matrices.alignment_bytes as usize >= spec.dtype.size_bytes(), "{spec:?}");
    }
    assert!(!spec.adds_bias || (batch == 1 && spec.dtype != DType::F64), "{spec:?}");
    assert!(batch == 1 || spec.out.apart >= spec.out.lead * n, "results overlap: {spec:?}");
}

/// Computes a product.
///
/// # Safety
/// All addresses must be good for what the product touches.
pub(super) unsafe fn multiply(spec: &ProductSpec, at: &RoutineArguments) -> Result<(), DriverError> {
    for (matrices, address) in [(&spec.a, at.a), (&spec.b, at.b), (&spec.out, at.out)] {
        check_aligned(address, matrices.alignment_bytes, spec)?;
    }
    let place = |matrices: &Matrices, is_transposed: bool, nth: u64, row: u64, column: u64| {
        let (row, column) = if is_transposed { (column, row) } else { (row, column) };
        nth * matrices.apart + column * matrices.lead + row
    };
    for nth in 0..spec.batch {
        for (i, j) in (0..spec.n).flat_map(|j| (0..spec.m).map(move |i| (i, j))) {
            let terms = (0..spec.k).map(|l| {
                let a = place(&spec.a, spec.transposes_a, nth, i, l);
                let b = place(&spec.b, spec.transposes_b, nth, l, j);
                // SAFETY: as the caller promises.
                unsafe { (read(spec.dtype, at.a, a), read(spec.dtype, at.b, b)) }
            });
            let sum = if spec.dtype == DType::F64 {
                terms.fold(0.0, |sum, (a, b)| sum + a * b)
            } else {
                f64::from(terms.fold(0.0_f32, |sum, (a, b)| sum + a as f32 * b as f32))
            };
            let sum = if spec.adds_bias {
                // SAFETY: as the caller promises.
                f64::from(sum as f32 + unsafe { read(spec.dtype, at.bias, i) } as f32)
            } else {
                sum
            };
            // SAFETY: as the caller promises.
            unsafe { write(spec.dtype, at.out, place(&spec.out, false, nth, i, j), sum) };
        }
    }
    Ok(())
}
