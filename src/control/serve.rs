//! One operator's connection: requests and replies as frames.

use std::sync::Arc;

use serde::Serialize;
use tokio::{net::UnixStream, sync::Notify};

use super::file::read_artifact;
use crate::{
    actor::{
        ActorError, ClearKernels, Events, EvictKernel, ExplainKernel, JudgeArtifact, KernelCache, PinKernel,
        ReportCache, ReportSeeds, ReportStatus, Scope, Supervisor, Validator, WarmKernels,
        base::{Frames, Handle},
        serve_watcher,
    },
    cache::Evictor,
    fault::{ErrorClass, Fault},
    id::{KernelId, ParseKernelIdError},
    telemetry::resident_bytes,
    wire::{
        Empty, ErrorReply, FrameKind, HolderReport, OperatorRequest, Peer, Reply, RuleReport, SeedReport,
        ValidationReport, WhyReport, WireError, decode, encode,
    },
};

/// Whom an operator's requests go to.
#[derive(Clone, Debug)]
pub struct Control {
    /// Sessions, seeds, actors, breakers.
    pub supervisor: Handle<Supervisor>,
    /// What is resident.
    pub cache: Handle<KernelCache>,
    /// Who judges files.
    pub validator: Handle<Validator>,
    /// Where what happens is told.
    pub events: Events,
    /// Tells the daemon to leave.
    pub shutdown: Arc<Notify>,
    /// What the daemon is doing now.
    pub phase: fn() -> &'static str,
    /// The largest artifact that is read for judging.
    pub max_artifact_bytes: u64,
}

/// Why nothing can be said of a subject.
#[derive(Debug, thiserror::Error)]
enum SubjectError {
    #[error("{subject:?} is no kernel's name: {reason}; a seed is written session/layer/seed")]
    Name { subject: String, reason: String },
    #[error("there is no seed {subject}: kasmina seeds lists them")]
    NoSeed { subject: String },
    #[error("seed {subject} has no kernel and is loading none")]
    NoKernel { subject: String },
    #[error(transparent)]
    Actor(#[from] ActorError),
}

impl Fault for SubjectError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Name { .. } => ErrorClass::Invalid,
            Self::NoSeed { .. } | Self::NoKernel { .. } => ErrorClass::NotFound,
            Self::Actor(error) => error.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Name { .. } => "session.protocol",
            Self::NoSeed { .. } | Self::NoKernel { .. } => "kernel.not_found",
            Self::Actor(error) => error.code(),
        }
    }
}

fn seed_name(seed: &SeedReport) -> String {
    format!("{}/{}/{}", seed.session, seed.layer, seed.seed)
}

/// Whether a seed has a kernel, or will have it.
fn has(seed: &SeedReport, kernel: &KernelId) -> bool {
    let loading = seed.loading.as_ref().map(|loading| &loading.kernel);
    seed.kernel.as_ref() == Some(kernel) || loading == Some(kernel)
}

/// Says what for a kernel is held, as far as its seed knows: by tickets where it does not.
fn tell_stage(holder: &mut HolderReport, seeds: &[SeedReport]) {
    let place = |seed: &&SeedReport| {
        (seed.session, seed.layer, seed.seed) == (holder.session, holder.layer, holder.seed)
    };
    let Some(seed) = seeds.iter().find(place) else { return };
    let loading = seed.loading.as_ref().filter(|loading| loading.generation == holder.generation);
    if let Some(loading) = loading {
        holder.stage.clone_from(&loading.stage);
    } else if seed.kernel.is_some() && seed.generation == holder.generation {
        "live".clone_into(&mut holder.stage);
    }
}

/// Serves an operator's connection until it is closed.
pub async fn serve_operator(stream: UnixStream, peer: Peer, control: Control) {
    let mut frames = Frames::new(stream);
    let mut is_first = true;
    loop {
        let frame = match frames.next().await {
            Ok(Some(payload)) => match decode(&payload) {
                Ok(OperatorRequest::Watch { session }) if is_first => {
                    return serve_watcher(&mut frames, &control.events, Scope { uid: None, session }).await;
                }
                Ok(request) => control.answer(request, peer).await,
                Err(error) => refusal(&error),
            },
            Ok(None) | Err(WireError::Closed) => return,
            Err(error) => {
                if let Ok(frame) = refusal(&error) {
                    // One that does not listen has closed already.
                    let _ = frames.send(&frame, &[]).await;
                }
                return;
            }
        };
        is_first = false;
        let sent = match frame {
            Ok(frame) => frames.send(&frame, &[]).await,
            Err(error) => Err(error),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn reply<T: Serialize, E: Fault>(result: Result<T, E>) -> Result<Vec<u8>, WireError> {
    match result {
        Ok(value) => encode(FrameKind::Reply, 0, &Reply::Ok(value)),
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &dyn Fault) -> Result<Vec<u8>, WireError> {
    encode(FrameKind::Reply, 0, &Reply::<Empty>::Error(ErrorReply::from_fault(error)))
}

impl Control {
    async fn answer(&self, request: OperatorRequest, peer: Peer) -> Result<Vec<u8>, WireError> {
        let by = Evictor::Operator { uid: peer.uid };
        tracing::debug!(verb = request.verb(), "operator asks");
        match request {
            OperatorRequest::Status {} => {
                let report = self.supervisor.ask(ReportStatus).await;
                reply(report.map(|mut report| {
                    report.version = env!("CARGO_PKG_VERSION").to_owned();
                    report.pid = std::process::id();
                    report.phase = (self.phase)().to_owned();
                    report.resident_bytes = resident_bytes();
                    report
                }))
            }
            OperatorRequest::Seeds {} => reply(self.supervisor.ask(ReportSeeds).await),
            OperatorRequest::Cache {} => reply(self.cache.order(ReportCache).await),
            OperatorRequest::Evict { kernel, fleet } => {
                let evicted = self.cache.order(EvictKernel { kernel, fleet, by }).await;
                reply(evicted.map_err(ActorError::from).and_then(|result| result))
            }
            OperatorRequest::Clear { tiers } => {
                let cleared = self.cache.order(ClearKernels { tiers, by }).await;
                reply(cleared.map_err(ActorError::from).and_then(|result| result))
            }
            OperatorRequest::Warm { kernels } => reply(self.cache.order(WarmKernels(kernels)).await),
            OperatorRequest::Pin { kernel } => reply(self.pin(kernel, true).await),
            OperatorRequest::Unpin { kernel } => reply(self.pin(kernel, false).await),
            OperatorRequest::Why { subject } => reply(self.why(&subject).await),
            OperatorRequest::Validate { path } => match read_artifact(&path, self.max_artifact_bytes).await {
                Ok(bytes) => reply(self.judge(path, bytes).await),
                Err(error) => refusal(&error),
            },
            OperatorRequest::Watch { .. } => refusal(&ActorError::Greeting { verb: "watch" }),
            OperatorRequest::Shutdown {} => {
                tracing::info!("an operator asks the daemon to leave");
                self.shutdown.notify_one();
                reply(Ok::<_, ActorError>(Empty {}))
            }
        }
    }

    async fn pin(&self, kernel: KernelId, pinned: bool) -> Result<Empty, ActorError> {
        let message = PinKernel { kernel, pinned };
        // One that is to be pinned may have to be fetched.
        if pinned { self.cache.ask(message).await } else { self.cache.order(message).await }??;
        Ok(Empty {})
    }

    /// All that is known of a kernel, or of the kernel that a seed has or else is loading.
    async fn why(&self, subject: &str) -> Result<WhyReport, SubjectError> {
        let seeds = self.supervisor.ask(ReportSeeds).await.map_err(ActorError::from)?.seeds;
        let kernel = match subject.contains('/') {
            true => {
                let seed = seeds.iter().find(|seed| seed_name(seed) == subject);
                let seed = seed.ok_or_else(|| SubjectError::NoSeed { subject: subject.to_owned() })?;
                let loading = || seed.loading.as_ref().map(|loading| loading.kernel.clone());
                seed.kernel
                    .clone()
                    .or_else(loading)
                    .ok_or_else(|| SubjectError::NoKernel { subject: subject.to_owned() })?
            }
            false => subject.parse().map_err(|error: ParseKernelIdError| SubjectError::Name {
                subject: subject.to_owned(),
                reason: error.to_string(),
            })?,
        };
        let mut report = self.cache.order(ExplainKernel(kernel.clone())).await.map_err(ActorError::from)?;
        report.holders.iter_mut().for_each(|holder| tell_stage(holder, &seeds));
        report.seeds = seeds.into_iter().filter(|seed| has(seed, &kernel)).collect();
        report.breakers = self.supervisor.ask(ReportStatus).await.map_err(ActorError::from)?.breakers;
        Ok(report)
    }

    async fn judge(&self, path: String, bytes: Arc<[u8]>) -> Result<ValidationReport, ActorError> {
        let outcome = self.validator.ask(JudgeArtifact { bytes, metadata: None, earlier: None });
        let verdict = outcome.await??.outcome.verdict;
        let rules = verdict.rules.into_iter().map(|rule| RuleReport {
            rule: rule.name,
            passed: rule.passed,
            detail: Some(rule.detail).filter(|detail| !detail.is_empty()),
        });
        Ok(ValidationReport {
            path,
            accepted: verdict.accepted,
            digest: Some(verdict.digest.to_string()),
            format: verdict.format,
            parameters: Some(verdict.parameters),
            input_shape: verdict.input_shape,
            rules: rules.collect(),
        })
    }
}
