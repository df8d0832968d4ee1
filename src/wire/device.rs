//! What an operator is told of the device that kernels run on.

use serde::{Deserialize, Serialize};

/// What kernels run on, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// `cpu`, or the GPUs as PyTorch would write them: `cuda:0`.
    pub names: Vec<String>,
    /// What `device.kind` asks for: `auto`, `cpu` or `cuda`.
    pub kind: String,
    /// Threads of the processor that a pass may use.
    pub threads: u64,
    /// Why a GPU that would have been taken is not used, for each; null where all are used, or where the settings ask for
    /// the processor.
    pub no_gpu: Option<String>,
    /// The GPUs; empty where kernels run on the processor.
    pub gpus: Vec<GpuReport>,
    /// NVIDIA's libraries; empty where the settings ask for the processor, for then nobody looks.
    pub libraries: Vec<LibraryReport>,
}

/// A GPU that kernels run on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuReport {
    /// As PyTorch would write it: `cuda:0`.
    pub name: String,
    /// What tells it from all others, in hexadecimal.
    pub uuid: String,
    /// The maker's name for it.
    pub model: String,
    /// Its compute capability, such as `9.0`.
    pub capability: String,
    /// The latest CUDA that its driver knows, such as `12.8`.
    pub cuda: String,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory in all.
    pub memory_bytes: u64,
    /// Bytes that kernels, plans and sessions may take.
    pub budget_bytes: u64,
    /// Bytes that they have taken; null while nobody counts them.
    pub used_bytes: Option<u64>,
    /// Sessions whose kernels run on it.
    pub sessions: u64,
    /// Whether NVIDIA's MPS ran when the GPU was opened: without it, trainer and daemon take turns on the GPU.
    pub mps: bool,
}

/// One of NVIDIA's libraries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryReport {
    /// `libcuda`, `NVRTC`, `cuBLASLt` or `cuDNN`.
    pub name: String,
    /// The file; null where there is none.
    pub path: Option<String>,
    /// The version, as far as its file's name or the library itself tells.
    pub version: Option<String>,
    /// What it is there for, or what its lack costs.
    pub remark: String,
}
