//! The last calls of a closed breaker: how many failed, how many were slow.

use super::{OpenCause, WindowPolicy};

const FAILED: u8 = 1;
const SLOW: u8 = 2;

/// A ring of the last calls with running sums, so that a share costs one division however long the ring is.
#[derive(Debug)]
pub(super) struct Window {
    policy: WindowPolicy,
    /// Empty where neither share counts. One byte a call.
    ring: Box<[u8]>,
    next: usize,
    calls: u32,
    failed: u32,
    slow: u32,
}

impl Window {
    pub(super) fn new(policy: WindowPolicy) -> Self {
        let used = policy.failure_rate > 0 || policy.slow_call_rate > 0;
        let size = if used { policy.size.max(1) as usize } else { 0 };
        Self { policy, ring: vec![0; size].into(), next: 0, calls: 0, failed: 0, slow: 0 }
    }

    /// Takes a call in and the oldest out, and says which share is too high with it.
    pub(super) fn push(&mut self, failed: bool, slow: bool) -> Option<OpenCause> {
        let size = self.ring.len();
        if size == 0 {
            return None;
        }
        if self.calls as usize == size {
            let oldest = self.ring[self.next];
            self.failed -= u32::from(oldest & FAILED != 0);
            self.slow -= u32::from(oldest & SLOW != 0);
        } else {
            self.calls += 1;
        }
        self.ring[self.next] = u8::from(failed) * FAILED + u8::from(slow) * SLOW;
        self.next = (self.next + 1) % size;
        self.failed += u32::from(failed);
        self.slow += u32::from(slow);

        let WindowPolicy { failure_rate, slow_call_rate, slow_call, .. } = self.policy;
        let calls = self.calls;
        let reaches = |rate: u32, threshold: u32| threshold > 0 && rate >= threshold;
        let (failure_percent, slow_percent) = self.percent()?;
        if reaches(failure_percent, failure_rate) {
            return Some(OpenCause::FailureRate { percent: failure_percent, calls });
        }
        reaches(slow_percent, slow_call_rate).then_some(OpenCause::SlowCallRate {
            percent: slow_percent,
            calls,
            slow_call,
        })
    }

    /// The shares of failures and of slow calls, rounded down; none before there are enough calls.
    pub(super) fn percent(&self) -> Option<(u32, u32)> {
        let enough = (self.policy.minimum_calls as usize).clamp(1, self.ring.len().max(1));
        let share = |part: u32| u32::try_from(u64::from(part) * 100 / u64::from(self.calls)).unwrap_or(100);
        (self.calls as usize >= enough).then(|| (share(self.failed), share(self.slow)))
    }

    /// Forgets every call.
    pub(super) fn clear(&mut self) {
        (self.next, self.calls, self.failed, self.slow) = (0, 0, 0, 0);
    }
}
