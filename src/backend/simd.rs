//! Vector instructions chosen at run time: the binary is built for any x86-64, and the loops that matter
//! are compiled again for AVX2 and AVX-512.

use std::sync::LazyLock;

/// Names vectors, of which no wider ones are then used: `baseline`, `avx2` or `avx512`.
const VARIABLE: &str = "KASMINA_VECTORS";

/// The widest vectors that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Vectors {
    /// What every processor that the binary is built for has.
    Baseline,
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, VL, DQ and BW, with all of AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Vectors {
    /// What this processor has, or less where the environment names less: tests run so, and whoever suspects an instruction
    /// may. The `gemm` crate chooses for itself.
    #[inline(always)]
    pub(crate) fn used() -> Self {
        static USED: LazyLock<Vectors> = LazyLock::new(|| {
            Vectors::of_processor().min(Vectors::limit(std::env::var(VARIABLE).ok().as_deref()))
        });
        *USED
    }

    #[cfg(target_arch = "x86_64")]
    fn of_processor() -> Self {
        use std::arch::is_x86_feature_detected as has;
        if !(has!("avx2") && has!("fma") && has!("bmi1") && has!("bmi2")) {
            Self::Baseline
        } else if has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw") {
            Self::Avx512
        } else {
            Self::Avx2
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_processor() -> Self {
        Self::Baseline
    }

    #[cfg(target_arch = "x86_64")]
    fn limit(name: Option<&str>) -> Self {
        match name {
            Some("baseline") => Self::Baseline,
            Some("avx2") => Self::Avx2,
            Some("avx512") | None => Self::Avx512,
            Some(name) => {
                tracing::warn!(
                    "{VARIABLE} is {name}, and there are baseline, avx2 and avx512: it is passed over"
                );
                Self::Avx512
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn limit(_: Option<&str>) -> Self {
        Self::Baseline
    }
}

/// Runs a closure compiled for the widest vectors that are used.
///
/// The closure and what it calls must be `#[inline(always)]` to be compiled along; what is not still runs,
/// for the baseline.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    match Vectors::used() {
        // SAFETY: the processor has the features that the function is compiled for.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512 => unsafe { avx512(f) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => unsafe { avx2(f) },
        Vectors::Baseline => f(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,bmi1,bmi2")]
unsafe fn avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
unsafe fn avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn no_wider_vectors_are_used_than_are_named() {
        let named = std::env::var(VARIABLE).ok();
        assert!(
            named.as_deref().is_none_or(|name| ["baseline", "avx2", "avx512"].contains(&name)),
            "{named:?}"
        );
        assert!(Vectors::used() <= Vectors::limit(named.as_deref()));
        assert_eq!(Vectors::limit(Some("baseline")), Vectors::Baseline);
        assert_eq!(Vectors::limit(Some("avx2")), Vectors::Avx2);
        assert_eq!(Vectors::limit(Some("AVX")), Vectors::Avx512);
    }
}
