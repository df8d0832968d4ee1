//! What a trainer and its session say to each other on the control connection, as JSON.
//!
//! A request is an object with `"verb"`; every request has one reply, in order: `{"ok": …}` or
//! `{"error": {…}}`. A field that is not listed here is an error, so that a misspelt option is not lost.

use serde::{Deserialize, Serialize};

use super::{
    ArenaLayout, Blend, Export, FailureKind, Fossilize, GraftRole, Prune, ScheduleSpec, SeedState,
    StartBlend, Watch,
};
use crate::{
    digest::Digest,
    fault::Fault,
    id::{Generation, KernelId, LayerId, SeedIndex, SessionId},
    tensor::{DType, Shape},
};

/// The protocol this build speaks.
pub const PROTOCOL: u32 = 2;

/// What a trainer asks of its session. Its first request must be [`Request::Hello`], and only that; or
/// [`Request::Watch`], and then it asks no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Who is there. Answered by [`HelloReply`], with two descriptors: the arena, then the doorbell.
    Hello(Hello),
    /// Has events told from now on, as frames of their own kind. Answered by [`Empty`]; it is the only request of its
    /// connection.
    Watch(Watch),
    /// Opens a layer. Answered by [`LayerReply`].
    OpenLayer(OpenLayer),
    /// Closes a layer with its seeds; tickets of it are released. Answered by [`Empty`].
    CloseLayer(CloseLayer),
    /// Puts a kernel into a seed. Answered by [`GraftReply`] once it is live, with one descriptor: the
    /// seed's block of parameters and buffers.
    Graft(Graft),
    /// The same, without waiting. Answered by [`Empty`] at once; [`Request::FinishGraft`] puts the kernel into
    /// the seed when it is ready, and what runs there goes on until then.
    BeginGraft(Graft),
    /// Puts the kernel of a [`Request::BeginGraft`] into its seed. Answered by [`GraftReply`] with one
    /// descriptor, by null while the kernel loads, or by the refusal that the load came to.
    FinishGraft(SeedRef),
    /// Sets a seed's blend factor and leaves it there. Answered by [`SeedReply`].
    SetAlpha(SetAlpha),
    /// Has a seed's blend factor go by a schedule. Answered by [`SeedReply`].
    Blend(StartBlend),
    /// Leaves a seed's blend factor where its schedule has brought it. Answered by [`SeedReply`].
    Hold(SeedRef),
    /// Makes a seed's kernel part of its layer. Answered by [`SeedReply`].
    Fossilize(Fossilize),
    /// Takes a seed's kernel out. Answered by [`SeedReply`].
    Prune(Prune),
    /// Where a seed stands. Answered by [`SeedReply`].
    SeedState(SeedRef),
    /// A seed's numbers. Answered by [`SeedStats`].
    SeedStats(SeedRef),
    /// A seed's last training passes. Answered by [`SeriesReply`].
    SeedSeries(SeedSeries),
    /// A seed's most recent failure. Answered by [`LastErrorReply`].
    LastError(SeedRef),
    /// Fetches and proves kernels without grafting them. Answered by [`PrefetchReply`] at once.
    Prefetch(Prefetch),
    /// Has an artifact that lies in the arena's heap judged, and its kernel kept in memory for a graft. Answered by
    /// [`OfferReply`].
    Offer(Offer),
    /// Has the artifact of a seed's kernel, with the weights that the seed has now, written into the arena's heap.
    /// Answered by [`ExportReply`](super::ExportReply).
    Export(Export),
}

impl Request {
    /// The verb as it stands in the JSON: for logs and metric labels.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Watch(_) => "watch",
            Self::OpenLayer(_) => "open_layer",
            Self::CloseLayer(_) => "close_layer",
            Self::Graft(_) => "graft",
            Self::BeginGraft(_) => "begin_graft",
            Self::FinishGraft(_) => "finish_graft",
            Self::SetAlpha(_) => "set_alpha",
            Self::Blend(_) => "blend",
            Self::Hold(_) => "hold",
            Self::Fossilize(_) => "fossilize",
            Self::Prune(_) => "prune",
            Self::SeedState(_) => "seed_state",
            Self::SeedStats(_) => "seed_stats",
            Self::SeedSeries(_) => "seed_series",
            Self::LastError(_) => "last_error",
            Self::Prefetch(_) => "prefetch",
            Self::Offer(_) => "offer",
            Self::Export(_) => "export",
        }
    }
}

/// A reply: `{"ok": …}` or `{"error": …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<T> {
    /// What was asked for.
    Ok(T),
    /// Why not.
    Error(ErrorReply),
}

impl<T> Reply<T> {
    /// The reply as a result.
    ///
    /// # Errors
    /// The other side's refusal.
    pub fn into_result(self) -> Result<T, ErrorReply> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Error(error) => Err(error),
        }
    }
}

/// A reply without content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A refusal, with what it concerns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ErrorReply {
    /// The stable code, such as `kernel.not_found`.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
    /// The layer concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerId>,
    /// The seed concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<SeedIndex>,
    /// The kernel concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

impl ErrorReply {
    /// The refusal that an error of ours becomes. The message carries the error's causes.
    pub fn from_fault(fault: &dyn Fault) -> Self {
        let mut message = fault.to_string();
        let mut cause = fault.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.ends_with(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        Self { code: fault.code().to_owned(), message, layer: None, seed: None, kernel: None }
    }

    /// Names the seed the refusal concerns.
    pub fn at(mut self, layer: LayerId, seed: SeedIndex) -> Self {
        self.layer = Some(layer);
        self.seed = Some(seed);
        self
    }

    /// Names the kernel the refusal concerns.
    pub fn about(mut self, kernel: &KernelId) -> Self {
        self.kernel = Some(kernel.as_str().to_owned());
        self
    }
}

/// See [`Request::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The protocol the client speaks, [`PROTOCOL`].
    pub protocol: u32,
    /// Name and version of the client, `kasmina-python/0.1.0`.
    pub client: String,
    /// The client's own idea of its process id, which may differ from the kernel's across namespaces.
    pub pid: u32,
    /// How large an arena the client would like; the daemon may give less.
    pub arena_bytes: u64,
    /// The GPU that the client's tensors lie on, by its UUID in hexadecimal; null where they lie in the host's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
}

/// What a session is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// The session's number.
    pub session: SessionId,
    /// Name and version of the daemon.
    pub server: String,
    /// The protocol it speaks.
    pub protocol: u32,
    /// The device kernels run on, as PyTorch would write it.
    pub device: String,
    /// Where things lie in the arena.
    pub arena: ArenaLayout,
    /// How much the session may hold.
    pub limits: SessionLimits,
    /// How long the client may spin for a completion before it sleeps; 0 means that it should not.
    pub spin_us: u32,
    /// Bytes of the GPU's memory whose descriptor comes last: where tensors lie, at the arena's offsets. Absent where they
    /// lie in the arena.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
}

/// How much one session may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLimits {
    /// The largest arena.
    pub max_arena_bytes: u64,
    /// Layers open at once.
    pub max_layers: u32,
    /// Seeds of one layer, at most [`MAX_SEEDS`](super::MAX_SEEDS).
    pub max_seeds_per_layer: u16,
    /// Tickets taken and not yet spent.
    pub max_tickets: u32,
    /// Bytes that those tickets' saved activations may take.
    pub max_saved_bytes: u64,
}

/// See [`Request::OpenLayer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenLayer {
    /// The layer's name in the trainer, for reports.
    pub name: String,
    /// How many seeds.
    pub seeds: u16,
    /// How their outputs meet the layer's own.
    #[serde(default)]
    pub blend: Blend,
    /// The input's shape without the batch, or null if it is not known yet.
    #[serde(default)]
    pub input_shape: Option<Shape>,
    /// The input's element type.
    pub dtype: DType,
    /// Whether the daemon runs the layer's own transform too. It is grafted into one more slot, whose number
    /// is `seeds`.
    #[serde(default)]
    pub host: bool,
    /// Whether a backward runs its forward again, so that a ticket holds next to nothing.
    #[serde(default)]
    pub recompute: bool,
}

/// Answers [`Request::OpenLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReply {
    /// The layer's number, for descriptors and later requests.
    pub layer: LayerId,
}

/// See [`Request::CloseLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseLayer {
    /// Which layer.
    pub layer: LayerId,
}

/// Names a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedRef {
    /// Its layer.
    pub layer: LayerId,
    /// Its place there, from 0; the host's is the number of seeds.
    pub seed: SeedIndex,
}

/// See [`Request::Graft`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graft {
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// The kernel's name in the catalogue.
    pub kernel: KernelId,
    /// The blend factor to start with, in [0, 1].
    pub alpha: f32,
    /// The input's shape without the batch.
    pub input_shape: Shape,
    /// The input's element type.
    pub dtype: DType,
    /// What the kernel does from now on. In the slot of a layer's host it is the host, whatever this says.
    #[serde(default)]
    pub role: GraftRole,
    /// How the blend factor goes on from `alpha`; left out, it stays there. Not for the role `train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleSpec>,
}

/// Answers [`Request::Graft`]. The descriptor beside it is a sealed memory file of `memory_bytes` bytes, or of a GPU's memory:
/// the parameters' block from 0, the buffers' block from `buffers_offset`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraftReply {
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// The kernel.
    pub kernel: KernelId,
    /// Which of the seed's kernels this is.
    pub generation: Generation,
    /// Where the seed stands now.
    pub state: SeedState,
    /// The blend factor it runs with.
    pub alpha: f32,
    /// Bytes of the memory file that are used.
    pub memory_bytes: u64,
    /// Bytes of the GPU's memory that the descriptor is of; absent where it is of the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    /// Where the buffers' block starts in the memory file.
    pub buffers_offset: u64,
    /// Bytes of this seed's block in a backward's parameter gradients, laid out as the parameters' block.
    pub gradient_bytes: u64,
    /// The parameters, in the module's order.
    pub parameters: Vec<TensorEntry>,
    /// The buffers, in the module's order.
    pub buffers: Vec<TensorEntry>,
}

/// One parameter or buffer in a seed's memory file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// The dotted name, as `named_parameters` gives it.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The sizes.
    pub shape: Shape,
    /// Bytes from the start of the memory file; for a parameter also from the start of its seed's block of
    /// gradients.
    pub offset: u64,
    /// Whether the module asks for a gradient. False for every buffer.
    pub requires_grad: bool,
    /// The other dotted names that the same tensor has, where weights are tied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Whether a `state_dict` has it. False for buffers alone.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub persistent: bool,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

/// See [`Request::SetAlpha`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAlpha {
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// The blend factor, in [0, 1].
    pub alpha: f32,
}

/// A seed as its session sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedReply {
    /// Where it stands.
    pub state: SeedState,
    /// Its blend factor.
    pub alpha: f32,
    /// Its kernel.
    pub kernel: Option<KernelId>,
    /// Which of its kernels that is.
    pub generation: Generation,
    /// Where its schedule ends; null where it follows none.
    #[serde(default)]
    pub target: Option<f32>,
    /// How many training forwards that still takes.
    #[serde(default)]
    pub steps_left: u32,
    /// Whether it was fossilized with parameters that are trained no more.
    #[serde(default)]
    pub frozen: bool,
}

/// A seed's numbers since its layer was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeedStats {
    /// Passes it was part of.
    pub executions: u64,
    /// Passes that went well.
    pub successes: u64,
    /// Passes that did not, by kind.
    pub failures: FailureCounts,
    /// Successes over executions; 1 before the first.
    pub success_rate: f64,
    /// Mean time of a pass, in microseconds.
    pub mean_us: f64,
    /// Median time of a pass, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// Passes that ran on the seed's own thread.
    pub asynchronous_passes: u64,
    /// Passes that the thread holding the request ran itself.
    pub synchronous_passes: u64,
}

/// Failed passes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureCounts {
    /// See [`FailureKind::Deserialize`].
    pub deserialize: u64,
    /// See [`FailureKind::Shape`].
    pub shape: u64,
    /// See [`FailureKind::Runtime`].
    pub runtime: u64,
    /// See [`FailureKind::Timeout`].
    pub timeout: u64,
    /// See [`FailureKind::NonFinite`].
    pub non_finite: u64,
}

impl FailureCounts {
    /// The counter of one kind.
    pub fn of(&mut self, kind: FailureKind) -> &mut u64 {
        match kind {
            FailureKind::Deserialize => &mut self.deserialize,
            FailureKind::Shape => &mut self.shape,
            FailureKind::Runtime => &mut self.runtime,
            FailureKind::Timeout => &mut self.timeout,
            FailureKind::NonFinite => &mut self.non_finite,
        }
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.deserialize + self.shape + self.runtime + self.timeout + self.non_finite
    }
}

/// See [`Request::SeedSeries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedSeries {
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// The last step that the asker has seen; 0 for all that is kept.
    #[serde(default)]
    pub after: u64,
}

/// Answers [`Request::SeedSeries`]: columns of the same length, the oldest pass first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeriesReply {
    /// Which training forward of the layer it was, from 1.
    pub step: Vec<u64>,
    /// The seed's blend factor.
    pub alpha: Vec<f32>,
    /// How long the seed's forward took, in microseconds.
    pub latency_us: Vec<f32>,
    /// The Euclidean norm of what the seed gave; null where it was not measured.
    pub output_norm: Vec<Option<f32>>,
    /// The Euclidean norm of the gradients of its parameters in that pass's backward; null where that has not run or was
    /// not measured.
    pub gradient_norm: Vec<Option<f32>>,
}

/// Answers [`Request::LastError`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastErrorReply {
    /// The failure, or null if there was none.
    pub error: Option<ErrorReply>,
}

/// See [`Request::Prefetch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefetch {
    /// The kernels.
    pub kernels: Vec<KernelId>,
}

/// Answers [`Request::Prefetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchReply {
    /// How many were not resident and are being fetched.
    pub started: u32,
}

/// See [`Request::Offer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Where the artifact lies, in bytes from the start of the arena. The block is the client's again with the reply.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// Answers [`Request::Offer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferReply {
    /// What the kernel is called, for a graft of it.
    pub kernel: KernelId,
    /// SHA-256 of the artifact as the daemon has it.
    pub digest: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let text = r#"{"verb":"graft","layer":1,"seed":0,"kernel":"conv","alpha":0.25,
            "input_shape":[8,4,4],"dtype":"float32"}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        let Request::Graft(graft) = &request else { panic!("{request:?}") };
        assert_eq!((graft.layer, graft.seed, graft.alpha), (LayerId(1), SeedIndex(0), 0.25));
        assert_eq!(graft.role, GraftRole::Blend);
        assert_eq!(graft.input_shape, Shape::from([8, 4, 4]));
        assert_eq!(serde_json::to_value(&request).unwrap()["verb"], request.verb());
    }

    #[test]
    fn an_unknown_verb_or_field_is_refused() {
        for text in [
            r#"{"verb":"obey"}"#,
            r#"{"verb":"prune","layer":1,"seed":0,"force":true}"#,
            r#"{"verb":"prune","layer":-1,"seed":0}"#,
            r#"{"verb":"prune","layer":1,"seed":65536}"#,
            r#"{"verb":"prefetch","kernels":["../x"]}"#,
            r#"{"verb":"graft","layer":1,"seed":0,"kernel":"k","alpha":0,"input_shape":[1],"dtype":"float32","role":"host"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn replies_have_one_of_two_keys() {
        let ok = Reply::Ok(LayerReply { layer: LayerId(7) });
        assert_eq!(serde_json::to_string(&ok).unwrap(), r#"{"ok":{"layer":7}}"#);
        assert_eq!(serde_json::to_string(&Reply::Ok(Empty {})).unwrap(), r#"{"ok":{}}"#);
        let text = r#"{"error":{"code":"kernel.not_found","message":"no such kernel","seed":1}}"#;
        let error = serde_json::from_str::<Reply<LayerReply>>(text).unwrap().into_result().unwrap_err();
        assert_eq!((error.code.as_str(), error.seed), ("kernel.not_found", Some(SeedIndex(1))));
        assert_eq!(serde_json::to_string(&Reply::<Empty>::Error(error)).unwrap(), text);
    }
}
