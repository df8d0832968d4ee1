//! Scratch memory that tasks borrow while they run.

use std::sync::atomic::{AtomicBool, Ordering};

use super::memory::Shared;

/// The most threads that work on a step, each with scratch of its own.
pub(super) const MAX_PARTS: usize = 256;

/// Scratch in equal parts, lent to tasks.
pub(super) struct Parts<T> {
    shared: Shared<T>,
    len: usize,
    taken: [AtomicBool; MAX_PARTS],
    count: usize,
}

impl<T> Parts<T> {
    pub(super) fn new(scratch: &mut [T], len: usize) -> Self {
        let count = scratch.len().checked_div(len).unwrap_or(MAX_PARTS).clamp(1, MAX_PARTS);
        Self {
            shared: Shared::new(scratch),
            len,
            taken: [const { AtomicBool::new(false) }; MAX_PARTS],
            count,
        }
    }

    /// Lends a part to the function. There are as many parts as threads, so one is always free; empty ones are without number.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut [T]) -> R) -> R {
        loop {
            for (n, taken) in self.taken[..self.count].iter().enumerate() {
                if !taken.swap(true, Ordering::Acquire) {
                    // SAFETY: the flag gives this part to this task alone until it is given back.
                    let result = f(unsafe { self.shared.part(n * self.len, self.len) });
                    taken.store(false, Ordering::Release);
                    return result;
                }
            }
            std::hint::spin_loop();
        }
    }
}
