//! One operator's connection: requests and replies as frames.

use std::{path::Path, sync::Arc};

use serde::Serialize;
use tokio::{net::UnixStream, sync::Notify};

use crate::{
    actor::{
        ActorError, ClearKernels, EvictKernel, JudgeArtifact, KernelCache, ReportCache, ReportSeeds,
        ReportStatus, Supervisor, Validator,
        base::{Frames, Handle},
    },
    fault::{ErrorClass, Fault},
    wire::{
        Empty, ErrorReply, FrameKind, OperatorRequest, Reply, RuleReport, ValidationReport, WireError,
        decode, encode,
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
    /// Tells the daemon to leave.
    pub shutdown: Arc<Notify>,
    /// What the daemon is doing now.
    pub phase: fn() -> &'static str,
    /// The largest artifact that is read for judging.
    pub max_artifact_bytes: u64,
}

/// Why a file could not be judged.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot read {path}: {reason}; the daemon reads it as its own user")]
    Read { path: String, reason: String },
    #[error("{path} has {bytes} bytes, at most {limit} are read: raise validator.max_artifact_bytes")]
    TooLarge { path: String, bytes: u64, limit: u64 },
}

impl Fault for FileError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Invalid
    }

    fn code(&self) -> &'static str {
        "kernel.deserialize"
    }
}

/// Serves an operator's connection until it is closed.
pub async fn serve_operator(stream: UnixStream, control: Control) {
    let mut frames = Frames::new(stream);
    loop {
        let frame = match frames.next().await {
            Ok(Some(payload)) => control.answer(&payload).await,
            Ok(None) | Err(WireError::Closed) => return,
            Err(error) => {
                if let Ok(frame) = refusal(&error) {
                    // One that does not listen has closed already.
                    let _ = frames.send(&frame, &[]).await;
                }
                return;
            }
        };
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
    async fn answer(&self, payload: &[u8]) -> Result<Vec<u8>, WireError> {
        let request: OperatorRequest = match decode(payload) {
            Ok(request) => request,
            Err(error) => return refusal(&error),
        };
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
            OperatorRequest::Cache {} => reply(self.cache.ask(ReportCache).await),
            OperatorRequest::Evict { kernel } => {
                let evicted = self.cache.ask(EvictKernel(kernel)).await;
                reply(evicted.map_err(ActorError::from).and_then(|result| result))
            }
            OperatorRequest::Clear {} => reply(self.cache.ask(ClearKernels).await),
            OperatorRequest::Validate { path } => match self.read(&path).await {
                Ok(bytes) => reply(self.judge(path, bytes).await),
                Err(error) => refusal(&error),
            },
            OperatorRequest::Shutdown {} => {
                tracing::info!("an operator asks the daemon to leave");
                self.shutdown.notify_one();
                reply(Ok::<_, ActorError>(Empty {}))
            }
        }
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, FileError> {
        let failed =
            |error: std::io::Error| FileError::Read { path: path.to_owned(), reason: error.to_string() };
        let file = Path::new(path);
        let (bytes, limit) =
            (tokio::fs::metadata(file).await.map_err(failed)?.len(), self.max_artifact_bytes);
        if bytes > limit {
            return Err(FileError::TooLarge { path: path.to_owned(), bytes, limit });
        }
        tokio::fs::read(file).await.map_err(failed)
    }

    async fn judge(&self, path: String, bytes: Vec<u8>) -> Result<ValidationReport, ActorError> {
        let outcome = self.validator.ask(JudgeArtifact { bytes: bytes.into(), metadata: None }).await??;
        let verdict = outcome.verdict;
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

/// Resident memory of this process as the kernel counts it; 0 where that cannot be read.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
