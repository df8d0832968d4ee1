//! `[device]`: what kernels run on.

use std::{num::NonZero, path::PathBuf, thread, time::Duration};

use super::{section::section, setting::words, units::ByteSize};

/// Which device runs the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The GPUs that can be opened, else the processor.
    Auto,
    /// The processor. Nothing of CUDA is looked for or loaded.
    Cpu,
    /// NVIDIA GPUs; the daemon does not start without one, nor without any that is named.
    Cuda,
}

words!(DeviceKind { Auto = "auto", Cpu = "cpu", Cuda = "cuda" });

section! {
    /// The device and its threads.
    Device in "device" {
        /// Which device runs the kernels.
        kind: DeviceKind = DeviceKind::Cpu, "auto, cpu or cuda", Restart;
        /// Threads a pass may use; 0 is one for each processor the daemon may run on.
        threads: usize = 0, "threads", Restart;
        /// Which GPUs, counted from 0 among those that `CUDA_VISIBLE_DEVICES` leaves; empty is all of them.
        ordinals: Vec<u32> = Vec::new(), "list of numbers", Restart;
        /// Bytes that kernels, plans and sessions may take on each GPU; 0 is nine tenths of what is free when it is
        /// opened.
        memory: ByteSize = ByteSize(0), "bytes", Restart;
        /// How long a GPU may do nothing at all while sessions are on it before it is taken for lost; 0 is for ever.
        stall_limit: Duration = Duration::from_secs(120), "time", Restart;
        /// Whether a plan's launches on the GPU are captured once as a CUDA graph and replayed as one.
        graphs: bool = true, "true or false", Restart;
        /// Whether cuBLASLt and cuDNN may round factors of products and convolutions in float32 to TF32, as with
        /// `torch.backends.cuda.matmul.allow_tf32` and `torch.backends.cudnn.allow_tf32`.
        tf32: bool = false, "true or false", Restart;
        /// Whether 3×3 convolutions of passes on the CPU go by Winograd's algorithm where that is faster. Its results in float32
        /// differ from a sum over taps by about 1e-5 of the largest nearby, so what cancels to 0 there may be as much here.
        winograd: bool = true, "true or false", Restart;
        /// Where NVIDIA's libraries are looked for before the usual places.
        libraries: Vec<PathBuf> = Vec::new(), "list of paths", Restart;
        /// Where compiled CUDA kernels are kept; empty is `cuda` in `daemon.state_dir`.
        image_folder: PathBuf = PathBuf::new(), "path", Restart;
    }
}

impl DeviceKind {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl Device {
    /// The threads a pass may use, at least 1: those asked for, else the processors that affinity and
    /// control group leave to this process.
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        }
    }
}
