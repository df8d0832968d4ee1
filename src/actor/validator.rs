//! The validator: judges artifacts on threads of its own, a few at a time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use tokio::sync::Semaphore;

use super::{
    ActorError,
    base::{Life, stops_in_order},
};
use crate::validation::{Metadata, Outcome, Policy, Verdict, validate, validate_again};

/// Requests that may wait in the mailbox.
const MAILBOX: usize = 256;

/// Judges whether an artifact may run.
#[derive(Debug)]
pub struct Validator {
    policy: Arc<Policy>,
    // Each judgement may take as much memory as the policy allows, so only a few run at a time.
    places: Arc<Semaphore>,
    life: Life,
}

impl Validator {
    /// A validator that judges by a policy, `places` artifacts at a time.
    pub fn new(policy: Arc<Policy>, places: usize, life: Life) -> Self {
        Self { policy, places: Arc::new(Semaphore::new(places.max(1))), life }
    }
}

impl Actor for Validator {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

stops_in_order!(Validator);

/// Asks for the verdict on an artifact.
#[derive(Debug, Message)]
#[rtype(result = "Result<Judged, ActorError>")]
pub struct JudgeArtifact {
    /// The artifact.
    pub bytes: Arc<[u8]>,
    /// What its catalogue says of it.
    pub metadata: Option<Metadata>,
    /// What was found of it before, where that is kept beside it.
    pub earlier: Option<Arc<Verdict>>,
}

/// What was found, and how long that took.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The verdict, and the module.
    pub outcome: Outcome,
    /// Microseconds until a place was free.
    pub queue_us: u64,
    /// Microseconds of judging.
    pub judge_us: u64,
}

impl Handler<JudgeArtifact> for Validator {
    type Result = ResponseFuture<Result<Judged, ActorError>>;

    fn handle(&mut self, message: JudgeArtifact, _: &mut Self::Context) -> Self::Result {
        let (policy, places) = (self.policy.clone(), self.places.clone());
        Box::pin(async move {
            let asked = Instant::now();
            let _place = places.acquire_owned().await.map_err(|_| ActorError::Draining)?;
            let start = Instant::now();
            let judged = tokio::task::spawn_blocking(move || {
                let JudgeArtifact { bytes, metadata, earlier } = message;
                match earlier {
                    Some(earlier) => validate_again(bytes, metadata.as_ref(), &policy, &earlier),
                    None => validate(bytes, metadata.as_ref(), &policy),
                }
            });
            let outcome = judged.await.map_err(|_| ActorError::Lost { what: "the validation" })?;
            let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            let (queue_us, judge_us) = (micros(start - asked), micros(start.elapsed()));
            tracing::debug!(
                accepted = outcome.verdict.accepted,
                digest = %outcome.verdict.digest,
                queue_us,
                judge_us,
                "artifact judged"
            );
            Ok(Judged { outcome, queue_us, judge_us })
        })
    }
}
