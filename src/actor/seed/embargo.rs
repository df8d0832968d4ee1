//! Kernels that a seed refuses for a while, because they were pruned from it.

use std::time::{Duration, Instant};

use crate::id::KernelId;

/// Kernels that one seed remembers; of more, those go first whose embargo ends first.
const REMEMBERED: usize = 64;
/// The longest embargo.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// What one seed refuses, and until when.
#[derive(Debug, Default)]
pub(super) struct Embargoes(Vec<(KernelId, Instant)>);

impl Embargoes {
    /// Refuses a kernel from now on; for no time at all, it is taken again.
    pub(super) fn set(&mut self, kernel: &KernelId, now: Instant, embargo: Duration) {
        self.0.retain(|(known, until)| known != kernel && *until > now);
        let until = now.checked_add(embargo.min(LONGEST)).unwrap_or(now);
        if until <= now {
            return;
        }
        if self.0.len() == REMEMBERED
            && let Some(first) = (0..self.0.len()).min_by_key(|n| self.0[*n].1)
        {
            self.0.swap_remove(first);
        }
        self.0.push((kernel.clone(), until));
    }

    /// For how long the kernel is still refused; none where it is taken.
    pub(super) fn left(&self, kernel: &KernelId, now: Instant) -> Option<Duration> {
        let (_, until) = self.0.iter().find(|(known, _)| known == kernel)?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> KernelId {
        text.parse().unwrap()
    }

    #[test]
    fn a_kernel_is_refused_until_its_time_is_over() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut embargoes = Embargoes::default();
        embargoes.set(&id("a"), start, 3 * second);
        assert_eq!(embargoes.left(&id("a"), start + second), Some(2 * second));
        assert_eq!(embargoes.left(&id("b"), start), None);
        assert_eq!(embargoes.left(&id("a"), start + 3 * second), None);
        embargoes.set(&id("a"), start + second, Duration::ZERO);
        assert_eq!(embargoes.left(&id("a"), start + second), None);
        embargoes.set(&id("a"), start, Duration::MAX);
        assert!(embargoes.left(&id("a"), start + 1000 * second).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut embargoes = Embargoes::default();
        for n in 0..REMEMBERED as u32 + 1 {
            embargoes.set(&id(&format!("k{n}")), start, (n + 1) * second);
        }
        assert_eq!((embargoes.0.len(), embargoes.left(&id("k0"), start)), (REMEMBERED, None));
        assert!(embargoes.left(&id("k1"), start).is_some());
        embargoes.set(&id("late"), start + 1000 * second, second);
        assert_eq!(embargoes.0.len(), 1, "what is over is forgotten");
    }
}
