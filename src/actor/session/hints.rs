//! Kernels that a trainer will want: loaded ahead, a few at a time, for as long as its session lives.

use std::collections::VecDeque;

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use tokio::sync::oneshot;

use super::Session;
use crate::{
    actor::{ActorError, PrefetchKernel},
    id::KernelId,
};

/// How many kernels may wait.
const MAX_WAITING: usize = 256;

/// How many of a session are loaded at a time: hints must not take the places of those who wait.
const AT_A_TIME: usize = 2;

/// A session's hints, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Hints {
    waiting: VecDeque<KernelId>,
    loading: Vec<KernelId>,
}

impl Hints {
    /// Takes kernels in, or none of them; says how many were not waited for already.
    pub(super) fn add(&mut self, kernels: Vec<KernelId>) -> Result<u32, ActorError> {
        let before = self.waiting.len();
        for id in kernels {
            if !self.waiting.contains(&id) && !self.loading.contains(&id) {
                self.waiting.push_back(id);
            }
        }
        // Those that are loaded at once do not wait.
        if self.waiting.len() > MAX_WAITING + AT_A_TIME.saturating_sub(self.loading.len()) {
            self.waiting.truncate(before);
            let (what, limit) = ("kernels waiting to be prefetched", MAX_WAITING as u64);
            return Err(ActorError::Quota { what, limit });
        }
        Ok((self.waiting.len() - before) as u32)
    }

    /// The next to be loaded, where there is one and a place is free.
    fn begin(&mut self) -> Option<KernelId> {
        if self.loading.len() == AT_A_TIME {
            return None;
        }
        let id = self.waiting.pop_front()?;
        self.loading.push(id.clone());
        Some(id)
    }

    fn end(&mut self, id: &KernelId) {
        self.loading.retain(|other| other != id);
    }
}

impl Session {
    /// Begins to load what may be loaded. A session that ends loses all of this.
    pub(super) fn follow_hints(&mut self, context: &mut Context<Self>) {
        while let Some(kernel) = self.hints.begin() {
            let cache = self.parts.kernels.cache().clone();
            let (still_wanted, wanted) = oneshot::channel();
            let id = kernel.clone();
            let load = async move {
                let loaded = cache.ask(PrefetchKernel { kernel, wanted }).await;
                drop(still_wanted);
                loaded.map_err(ActorError::from).and_then(|loaded| loaded)
            };
            context.spawn(load.into_actor(self).map(move |loaded, session: &mut Self, context| {
                if let Err(error) = loaded {
                    tracing::warn!(session = %session.parts.id, kernel = %id, %error, "prefetch failed");
                }
                session.hints.end(&id);
                session.follow_hints(context);
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault as _;

    fn ids(numbers: std::ops::Range<u32>) -> Vec<KernelId> {
        numbers.map(|n| format!("k{n}").parse().unwrap()).collect()
    }

    #[test]
    fn a_few_are_loaded_at_a_time_in_the_order_they_came() {
        let mut hints = Hints::default();
        assert_eq!(hints.add(ids(0..3)).unwrap(), 3);
        assert_eq!(hints.add(ids(2..5)).unwrap(), 2, "one waits already");
        let begun: Vec<_> = std::iter::from_fn(|| hints.begin()).collect();
        assert_eq!(begun, ids(0..2));
        assert_eq!(hints.add(ids(0..1)).unwrap(), 0, "it is being loaded");
        hints.end(&begun[1]);
        assert_eq!((hints.begin(), hints.begin()), (ids(2..3).pop(), None));
    }

    #[test]
    fn more_than_may_wait_are_refused_together() {
        let mut hints = Hints::default();
        assert_eq!(hints.add(ids(0..258)).unwrap(), 258);
        while hints.begin().is_some() {}
        let refused = hints.add(ids(300..301)).unwrap_err();
        assert_eq!(refused.code(), "session.quota");
        assert!(refused.to_string().contains("256 kernels waiting to be prefetched"), "{refused}");
        hints.end(&ids(0..1)[0]);
        hints.begin();
        assert!(hints.add(ids(300..302)).is_err(), "both or none");
        assert_eq!(hints.add(ids(301..302)).unwrap(), 1);
    }
}
