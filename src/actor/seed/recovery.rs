//! Coming back: a kernel that was unloaded after failures in a row is tried again, in the memory that its trainer
//! knows and with the values that are there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, Handler, Message, WrapFuture as _};

use super::{Occupant, Seed, SeedParts, graft::Prepared};
use crate::{
    actor::ActorError,
    backoff::Jitter,
    clock::whole_ms,
    engine::{Alpha, Course, EngineError, Role, is_active, transition},
    failpoint::{self, Failpoint},
    id::{Generation, KernelId},
    wire::{ErrorReply, EventKind, RecoveryReport, SeedState},
};

/// Passes that must go well after a kernel has come back before its attempts count from 1 again.
const GOOD_PASSES: u64 = 100;

/// How often a seed has tried to come back in a row.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    used: u32,
    /// Passes that had gone well when the kernel last came back.
    successes_then: u64,
}

impl Attempts {
    /// Another kernel counts anew.
    pub(super) fn renew(&mut self) {
        *self = Self::default();
    }

    /// Takes note that the kernel was unloaded, after so many passes went well in all.
    fn unloaded(&mut self, successes: u64) {
        if successes.saturating_sub(self.successes_then) >= GOOD_PASSES {
            self.used = 0;
        }
    }

    /// The next attempt's number from 1, if there is one left.
    fn next(&mut self, limit: u32) -> Option<u32> {
        (self.used < limit).then(|| {
            self.used += 1;
            self.used
        })
    }
}

/// How long an attempt stands back for what the trainer has asked the lane for.
const STAND_BACK: Duration = Duration::from_millis(10);

/// How far an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting { until: Instant },
    Loading,
    Attaching,
}

/// A seed on its way back.
#[derive(Debug)]
pub(super) struct Recovery {
    occupant: Occupant,
    /// Where it stood, with what blend factor, and how that was to go on.
    state: SeedState,
    alpha: Alpha,
    course: Option<Course>,
    /// Which attempt is next or under way.
    attempt: u32,
    /// The number of its wait or its load: what comes late of an earlier one is not wanted.
    number: u64,
    stage: Stage,
}

impl Recovery {
    pub(super) fn occupant(&self) -> &Occupant {
        &self.occupant
    }

    pub(super) fn kernel(&self) -> &KernelId {
        &self.occupant.graft.kernel
    }

    /// Whether the kernel may be in the lane already.
    pub(super) fn is_attaching(&self) -> bool {
        self.stage == Stage::Attaching
    }

    /// Whether it comes back as part of its layer, whose blend factor nobody sets.
    pub(super) fn is_fossil(&self) -> bool {
        self.state == SeedState::Fossilized
    }

    /// The trainer has set another blend factor meanwhile.
    pub(super) fn come_back_with(&mut self, alpha: Alpha) {
        if !self.is_fossil() {
            (self.alpha, self.course) = (alpha, None);
        }
        if self.state == SeedState::Blending {
            self.state = SeedState::Holding;
        }
    }
}

/// Tells that the lane has taken the kernel out, because too many passes failed in a row.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct UnloadSeed {
    /// Which of its kernels.
    pub generation: Generation,
    /// Why the last pass failed.
    pub error: EngineError,
    /// The blend factor that it had.
    pub alpha: Alpha,
    /// The schedule that this was following.
    pub course: Option<Course>,
}

impl Handler<UnloadSeed> for Seed {
    type Result = ();

    fn handle(&mut self, message: UnloadSeed, context: &mut Self::Context) {
        let UnloadSeed { generation, error, alpha, course } = message;
        if generation != self.generation || !is_active(self.state) {
            // It was taken out just before another kernel came into its place: that goes on, and this is told.
            if let Some((_, kernel)) = self.before.take_if(|(before, _)| *before == generation) {
                let error = ErrorReply::from_fault(&error).about(&kernel);
                self.tell_of(Some(kernel), EventKind::Unloaded { error });
            }
            return;
        }
        let Some(occupant) = self.occupant.take() else { return };
        let mut failure = ErrorReply::from_fault(&error);
        failure.kernel = Some(occupant.graft.kernel.clone().into());
        let kernel = occupant.graft.kernel.clone();
        // Where no schedule moved it, what the trainer has set counts, which the lane may have had no kernel for.
        let (state, alpha, course) = match (self.state, course) {
            (SeedState::Blending, Some(course)) => (self.state, alpha, Some(course)),
            (SeedState::Blending, None) => (SeedState::Holding, alpha, None),
            (state, _) => (state, Alpha::new(self.alpha).unwrap_or(alpha), None),
        };
        (self.alpha, self.way) = (0.0, None);
        self.failure = Some(failure.clone());
        self.tell_of(Some(kernel), EventKind::Unloaded { error: failure });
        self.attempts.unloaded(self.parts.counters.successes());
        let stage = Stage::Loading;
        self.recovery = Some(Recovery { occupant, state, alpha, course, attempt: 0, number: 0, stage });
        if let Err(error) = self.step(SeedState::ErrorRecovery, "too many of its passes failed in a row") {
            tracing::error!(%error, "a seed was unloaded in a state that has no kernel");
        }
        failpoint::reached(Failpoint::Unloaded);
        self.wait(context);
    }
}

impl Seed {
    pub(super) fn recovery_report(&self) -> Option<RecoveryReport> {
        let recovery = self.recovery.as_ref()?;
        let now = self.parts.clock.now();
        let retry_after_ms = match recovery.stage {
            Stage::Waiting { until } => Some(whole_ms(until.saturating_duration_since(now))),
            _ => None,
        };
        Some(RecoveryReport {
            kernel: recovery.kernel().clone(),
            attempt: recovery.attempt,
            attempts: self.parts.config.recovery.attempts,
            retry_after_ms,
        })
    }

    /// Waits for the next attempt, or gives the kernel up where there is none left.
    fn wait(&mut self, context: &mut Context<Self>) {
        let policy = self.parts.config.recovery;
        let Some(attempt) = self.attempts.next(policy.attempts) else {
            return self.give_up();
        };
        let delay = policy.backoff.delay(attempt, &mut Jitter::from_process());
        let Some(recovery) = &mut self.recovery else { return };
        recovery.attempt = attempt;
        self.come_back_after(delay, context);
    }

    fn come_back_after(&mut self, delay: Duration, context: &mut Context<Self>) {
        let (number, until) = (self.number(), self.parts.clock.now() + delay);
        let Some(recovery) = &mut self.recovery else { return };
        (recovery.number, recovery.stage) = (number, Stage::Waiting { until });
        context.run_later(delay, move |seed, context| {
            if seed.waits_for(number) {
                seed.come_back(context);
            }
        });
    }

    /// Whether the seed's way back is still at this wait or this load.
    fn waits_for(&self, number: u64) -> bool {
        self.recovery.as_ref().is_some_and(|recovery| recovery.number == number)
    }

    fn give_up(&mut self) {
        let reason = "every attempt to bring its kernel back has failed";
        if self.state == SeedState::ErrorRecovery
            && let Err(error) = self.step(SeedState::Dormant, reason)
        {
            tracing::error!(%error, "a seed that failed cannot rest");
        }
        // Its memory file goes with it; the trainer keeps what it has mapped.
        (self.recovery, self.frozen) = (None, false);
    }

    /// Loads the kernel again and puts it into the lane.
    fn come_back(&mut self, context: &mut Context<Self>) {
        if self.takeovers > 0 {
            return self.come_back_after(STAND_BACK, context);
        }
        failpoint::reached(Failpoint::RecoveryLoading);
        let number = self.number();
        let Some(recovery) = &mut self.recovery else { return };
        (recovery.number, recovery.stage) = (number, Stage::Loading);
        let Occupant { graft, memory, tables, .. } = &recovery.occupant;
        let (graft, earlier) = (graft.clone(), (memory.clone(), tables.clone()));
        if self.state == SeedState::ErrorRecovery
            && let Err(error) = self.step(SeedState::Loading, "its kernel is tried again")
        {
            tracing::error!(%error, "a seed that failed cannot load");
        }
        let parts = self.parts.clone();
        let loaded = async move { parts.prepare(&graft, Generation(number), Some(earlier)).await };
        context.spawn(loaded.into_actor(self).map(move |prepared, seed, context| {
            if !seed.waits_for(number) {
                return;
            }
            match prepared {
                Ok(prepared) => seed.put_back(number, prepared, context),
                Err(error) => seed.failed_again(&error, context),
            }
        }));
    }

    fn put_back(&mut self, number: u64, prepared: Prepared, context: &mut Context<Self>) {
        if self.takeovers > 0 {
            return self.come_back_after(STAND_BACK, context);
        }
        let SeedParts { layer, seed, ref lane, .. } = self.parts;
        let Some(recovery) = &mut self.recovery else { return };
        recovery.stage = Stage::Attaching;
        let kernel = prepared.live.kernel();
        (recovery.occupant.kernel, recovery.occupant.digest) = (Arc::downgrade(kernel), kernel.digest());
        let in_training = recovery.state == SeedState::Training;
        let role = if in_training { Role::Straight } else { Role::Blended };
        let (lane, alpha, course) = (lane.clone(), recovery.alpha, recovery.course);
        let attached = async move { lane.attach(layer, seed, prepared.live, alpha, role, course).await };
        context.spawn(attached.into_actor(self).map(move |attached, seed, context| {
            // A prune or a graft that came meanwhile has taken it out of the lane again.
            if !seed.waits_for(number) {
                return;
            }
            match attached {
                Ok(()) => seed.returned(number, context),
                Err(error) => seed.failed_again(&error, context),
            }
        }));
    }

    /// Takes note that the kernel runs again.
    fn returned(&mut self, number: u64, context: &mut Context<Self>) {
        let Some(recovery) = self.recovery.take() else { return };
        if let Err(error) = self.go_on(number, recovery) {
            // What the seed does not know of must not run.
            tracing::error!(%error, "a kernel came back to a seed that cannot have it");
            let SeedParts { layer, seed, ref lane, .. } = self.parts;
            let lane = lane.clone();
            context.spawn(async move { lane.detach(layer, seed).await }.into_actor(self).map(|_, _, _| ()));
        }
    }

    fn go_on(&mut self, number: u64, recovery: Recovery) -> Result<(), ActorError> {
        let Recovery { occupant, state, alpha, course, attempt, .. } = recovery;
        transition(self.state, if state == SeedState::Fossilized { SeedState::Holding } else { state })?;
        (self.occupant, self.generation) = (Some(occupant), Generation(number));
        (self.alpha, self.failure) = (alpha.get(), None);
        self.attempts.successes_then = self.parts.counters.successes();
        let reason = "its kernel runs again";
        if state == SeedState::Fossilized {
            // Nobody loads into that state, and this one was there.
            self.arrive(SeedState::Holding, None, reason)?;
        }
        self.arrive(state, course, reason)?;
        failpoint::reached(Failpoint::RecoveryReturned);
        self.tell(EventKind::Recovered { attempt });
        Ok(())
    }

    fn failed_again(&mut self, error: &ActorError, context: &mut Context<Self>) {
        let SeedParts { layer, seed, .. } = self.parts;
        let Some(recovery) = &self.recovery else { return };
        let (attempt, kernel) = (recovery.attempt, recovery.kernel().clone());
        tracing::warn!(%layer, %seed, %kernel, attempt, %error, "a kernel does not come back");
        let error = ErrorReply::from_fault(error).about(&kernel);
        self.failure = Some(error.clone());
        self.tell_of(Some(kernel), EventKind::RecoveryFailed { attempt, error });
        if self.state == SeedState::Loading
            && let Err(error) = self.step(SeedState::ErrorRecovery, "its kernel could not be loaded again")
        {
            tracing::error!(%error, "a seed that loads cannot fail");
        }
        self.wait(context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_count_in_a_row_and_anew_after_many_good_passes() {
        let mut attempts = Attempts::default();
        attempts.unloaded(3);
        assert_eq!([attempts.next(2), attempts.next(2), attempts.next(2)], [Some(1), Some(2), None]);
        attempts.successes_then = 3;
        attempts.unloaded(3 + GOOD_PASSES - 1);
        assert_eq!(attempts.next(2), None);
        attempts.unloaded(3 + GOOD_PASSES);
        assert_eq!(attempts.next(2), Some(1));
        assert_eq!(Attempts::default().next(0), None);
        attempts.renew();
        assert_eq!(attempts.next(2), Some(1));
    }
}
