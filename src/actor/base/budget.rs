//! How often and how soon a failed actor is brought back.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The limits on restarting one actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Restarts allowed within the window.
    pub max_restarts: u32,
    /// The window that restarts are counted in.
    pub window: Duration,
    /// The wait before the first restart of a row; each further one doubles it.
    pub first_delay: Duration,
    /// The longest wait.
    pub max_delay: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            window: Duration::from_secs(60),
            first_delay: Duration::from_millis(10),
            max_delay: Duration::from_secs(5),
        }
    }
}

/// Remembers restarts and decides on the next.
#[derive(Debug)]
pub struct RestartBudget {
    policy: RestartPolicy,
    restarts: VecDeque<Instant>,
}

impl RestartBudget {
    /// A budget from which nothing is spent yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, restarts: VecDeque::new() }
    }

    /// Spends one restart: how long to wait for it, or `None` where the budget is used up.
    pub fn spend(&mut self, now: Instant) -> Option<Duration> {
        while self.restarts.front().is_some_and(|&at| now.duration_since(at) >= self.policy.window) {
            self.restarts.pop_front();
        }
        let spent = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
        if spent >= self.policy.max_restarts {
            return None;
        }
        self.restarts.push_back(now);
        let factor = 1u32.checked_shl(spent).unwrap_or(u32::MAX);
        Some(self.policy.first_delay.saturating_mul(factor).min(self.policy.max_delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_the_window_gives_restarts_back() {
        let policy = RestartPolicy {
            max_restarts: 3,
            window: Duration::from_secs(60),
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(3),
        };
        let (mut budget, start) = (RestartBudget::new(policy), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(budget.spend(at(0)), Some(Duration::from_secs(1)));
        assert_eq!(budget.spend(at(10)), Some(Duration::from_secs(2)));
        assert_eq!(budget.spend(at(20)), Some(Duration::from_secs(3)));
        assert_eq!(budget.spend(at(30)), None);
        assert_eq!(budget.spend(at(60)), Some(Duration::from_secs(3)));
    }
}
