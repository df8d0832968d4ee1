//! Sums of many terms, in lanes: they vectorise, and equal terms give equal bits.

use super::{real::Real, simd::vectorised};

/// Lanes: four vectors, so that one addition need not wait for the last.
const LANES: usize = 64;
/// Lanes of what is left of a run, a vector.
pub(super) const NARROW: usize = 16;
/// Terms after which lanes are emptied, so that long sums keep their accuracy.
pub(super) const MOST_TERMS: usize = 4096;

/// A sum of terms of many runs.
pub(super) struct Sum<T> {
    /// Apart, because what is indexed by a number that is not constant does not stay in registers.
    lanes: [T; LANES],
    narrow: [T; NARROW],
    terms: usize,
    total: f64,
}

impl<T: Real> Sum<T> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { lanes: [T::ZERO; LANES], narrow: [T::ZERO; NARROW], terms: 0, total: 0.0 }
    }

    /// Adds f(x) for each x of a run.
    #[inline(always)]
    pub(super) fn add(&mut self, x: &[T], f: impl Fn(T) -> T) {
        self.add_both(
            x,
            x,
            #[inline(always)]
            |x, _| f(x),
        );
    }

    /// Adds f(x, g) for each pair of two runs of one length.
    #[inline(always)]
    pub(super) fn add_both(&mut self, x: &[T], g: &[T], f: impl Fn(T, T) -> T) {
        for (x, g) in x.chunks(MOST_TERMS).zip(g.chunks(MOST_TERMS)) {
            self.make_room(x.len());
            let ((wide_x, rest_x), (wide_g, rest_g)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>());
            // Of its own and of zeros at first: it stays in registers.
            let mut lanes = [T::ZERO; LANES];
            for (x, g) in wide_x.iter().zip(wide_g) {
                lanes.iter_mut().zip(x).zip(g).for_each(|((lane, &x), &g)| *lane += f(x, g));
            }
            self.lanes.iter_mut().zip(lanes).for_each(|(to, lane)| *to += lane);
            for (x, g) in rest_x.chunks(NARROW).zip(rest_g.chunks(NARROW)) {
                self.narrow.iter_mut().zip(x).zip(g).for_each(|((lane, &x), &g)| *lane += f(x, g));
            }
        }
    }

    #[inline(always)]
    pub(super) fn total(mut self) -> f64 {
        self.empty();
        self.total
    }

    #[inline(always)]
    fn make_room(&mut self, terms: usize) {
        if self.terms + terms > MOST_TERMS {
            self.empty();
        }
        self.terms += terms;
    }

    #[inline(always)]
    fn empty(&mut self) {
        let mut sums = self.narrow;
        for part in self.lanes.as_chunks::<NARROW>().0 {
            for (sum, &lane) in sums.iter_mut().zip(part) {
                *sum += lane;
            }
        }
        *self = Self { total: self.total + of_lanes(sums).to_f64(), ..Self::new() };
    }
}

/// The sum of a vector's lanes.
#[inline(always)]
pub(super) fn of_lanes<T: Real>(lanes: [T; NARROW]) -> T {
    let halves = halved::<T, NARROW, 8>(lanes);
    let quarters = halved::<T, 8, 4>(halves);
    let [sum] = halved::<T, 2, 1>(halved::<T, 4, 2>(quarters));
    sum
}

/// Adds the second half of some sums to the first.
#[inline(always)]
fn halved<T: Real, const N: usize, const H: usize>(sums: [T; N]) -> [T; H] {
    const { assert!(N == 2 * H, "a half") };
    let mut halves = [T::ZERO; H];
    for (n, half) in halves.iter_mut().enumerate() {
        *half = sums[n] + sums[n + H];
    }
    halves
}

/// Σ f(x) over a run.
#[inline(always)]
pub(super) fn sum_of<T: Real>(x: &[T], f: impl Fn(T) -> T) -> f64 {
    let mut sum = Sum::new();
    sum.add(x, f);
    sum.total()
}

/// Σ f(x, g) over two runs of one length.
#[inline(always)]
pub(super) fn sum_of_both<T: Real>(x: &[T], g: &[T], f: impl Fn(T, T) -> T) -> f64 {
    let mut sum = Sum::new();
    sum.add_both(x, g, f);
    sum.total()
}

/// Whether all numbers are.
pub(super) fn is_finite<T: Real>(numbers: &[T]) -> bool {
    let probe = vectorised(
        #[inline(always)]
        || {
            sum_of(
                numbers,
                #[inline(always)]
                |number| number * T::ZERO,
            )
        },
    );
    probe == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_term_is_added_once() {
        for len in [0, 1, 15, 16, 63, 64, 79, 80, 4095, 4096, 4097, 10_000] {
            let x: Vec<f32> = (0..len).map(|n| (n % 11) as f32).collect();
            let truth: f64 = x.iter().map(|&x| f64::from(x)).sum();
            assert_eq!(sum_of(&x, |x| x), truth, "{len}");
            let mut twice = Sum::new();
            twice.add(&x, |x| x);
            twice.add_both(&x, &x, |x, g| x * g);
            assert_eq!(twice.total(), truth + x.iter().map(|&x| f64::from(x * x)).sum::<f64>(), "{len}");
        }
    }

    #[test]
    fn one_odd_number_is_found_anywhere() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 63, 64, 99] {
                let mut numbers = vec![f32::MAX; 100];
                assert!(is_finite(&numbers));
                numbers[at] = odd;
                assert!(!is_finite(&numbers), "{odd} at {at}");
            }
        }
    }

    #[test]
    fn long_sums_stay_exact() {
        let ones = vec![1.0f32; 1 << 25];
        assert_eq!(sum_of(&ones, |x| x), f64::from(1 << 25));
    }
}
